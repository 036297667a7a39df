"""Stages 2 and 3 of the paper as Hydra tasks: meta-train a learner on features, test its best checkpoint."""

import logging
import math
import pickle
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from leo.episodes import TaskStream, check_task_size
from leo.evaluate import evaluate, fixed_tasks, interval95
from leo.features import FeatureTable, Normalizer, concatenate, load_splits
from leo.module import MetaLearning, TaskData
from runner.config import without_paths
from runner.folder import run_folder, write_json
from runner.loggers import open_loggers
from runner.memory import keep_freed_memory
from runner.training import make_trainer, train

log = logging.getLogger(__name__)

VAL_SEED, TEST_SEED = 1, 2  # of the tasks: the same for every method, ablation and seed


def meta_train(cfg: DictConfig, callbacks: Sequence[pl.Callback] = ()) -> float:
    """Meta-train, test the best checkpoint, write ``result.json``; the best validation accuracy, a fraction.

    The same call again goes on from the last checkpoint, and does nothing where the run is finished. Without
    ``test.num_tasks`` there is neither test nor result. ``callbacks`` join those of every run.
    """
    tables = load_splits(Path(cfg.features.folder))
    check_sizes(cfg, tables)
    module, config, folder = build(cfg, tables), run_config(cfg, tables), Path(cfg.run_dir)
    is_trained = next(module.learner.parameters(), None) is not None
    if is_trained and cfg.max_steps < cfg.val.every:
        raise ValueError(f"max_steps={cfg.max_steps} ends before the first validation, after val.every={cfg.val.every}")
    with run_folder(folder, config), open_loggers(cfg.logger) as loggers:
        if (folder / "result.json").exists():
            result = OmegaConf.load(folder / "result.json")
            log.info(
                "%s is finished: test accuracy %.2f %%; delete the folder to repeat it", folder, 100 * result.accuracy
            )
            return float(result.val_accuracy)
        keep_freed_memory()
        # Torch counts the cores, of which a launcher gives each of its processes a share. More than two are no faster.
        torch.set_num_threads(cfg.threads or min(2, torch.get_num_threads()))
        trainer = make_trainer(
            instantiate(cfg.trainer),
            folder,
            config=config,
            monitor="val/accuracy",
            patience=cfg.patience,
            max_steps=cfg.max_steps,
            val_every=cfg.val.every,
            updates_per_step=updates_per_step(cfg),
            loggers=loggers,
            more_callbacks=callbacks,
        )
        device = trainer.strategy.root_device
        tables = {split: scaled(module, table).to(device) for split, table in tables.items()}
        val_tasks = fixed_tasks(tables["val"], cfg.val.num_tasks, cfg.num_way, cfg.num_shot, VAL_SEED)
        if is_trained:
            training = concatenate([tables[split] for split in cfg.train_splits])
            outcome = train(trainer, module, task_data(cfg, training, tables["val"], val_tasks), folder)
            load_weights(module, outcome.checkpoint, cfg)
            trained = outcome._asdict() | {"checkpoint": str(outcome.checkpoint)}
        else:
            scores = evaluate(module.to(device).learner, tables["val"], val_tasks, cfg.num_shot)
            score = scores.accuracy.mean().item()
            trained = {"score": score, "num_steps": 0, "seconds": 0.0, "checkpoint": None}
        if cfg.test.num_tasks is None:
            return float(trained["score"])
        tested = test(cfg, module.to(device), tables["test"], trained, config)
        for logger in loggers:
            logger.log_metrics({"test/accuracy": tested["accuracy"]})
        return float(tested["val_accuracy"])


def check(cfg: DictConfig) -> None:
    """Raise where the features of ``cfg`` are missing or do not fit its sizes."""
    check_sizes(cfg, load_splits(Path(cfg.features.folder)))


def test_checkpoint(cfg: DictConfig) -> float:
    """Test ``cfg.checkpoint`` alone, with the configuration given; write ``result.json``; the accuracy, a fraction."""
    if cfg.checkpoint is None:
        raise ValueError("stage=test needs checkpoint=PATH, the best.ckpt of a run folder")
    tables = load_splits(Path(cfg.features.folder))
    check_sizes(cfg, tables)
    module = build(cfg, tables)
    checkpoint = load_weights(module, Path(cfg.checkpoint), cfg)
    config = run_config(cfg, tables)
    score = max(state["best_score"] for name, state in checkpoint["callbacks"].items() if name == "RunCheckpoints")
    trained = {"score": score, "num_steps": checkpoint["global_step"], "seconds": None}
    with run_folder(Path(cfg.run_dir), config):
        return test(cfg, module, scaled(module, tables["test"]), trained | {"checkpoint": cfg.checkpoint}, config)[
            "accuracy"
        ]


def test(
    cfg: DictConfig, module: MetaLearning, table: FeatureTable, trained: dict[str, Any], config: dict[str, Any]
) -> dict[str, Any]:
    """Score ``cfg.test.num_tasks`` tasks of the scaled ``table``; write and return the result."""
    start = time.perf_counter()
    tasks = fixed_tasks(table, cfg.test.num_tasks, cfg.num_way, cfg.num_shot, TEST_SEED)
    scores = evaluate(module.learner, table, tasks, cfg.num_shot)
    result = {
        **OmegaConf.to_container(cfg.names, resolve=True),  # type: ignore[dict-item]
        "seed": cfg.seed,
        "num_way": cfg.num_way,
        "num_shot": cfg.num_shot,
        "data": table.origin["data"],
        "layer": table.origin["layer"],
        "num_tasks": len(scores.accuracy),
        "accuracy": scores.accuracy.mean().item(),
        "interval95": interval95(scores.accuracy),
        "loss": scores.loss.mean().item(),
        "val_accuracy": trained["score"],
        "num_steps": trained["num_steps"],
        "seconds": {"train": trained["seconds"], "test": time.perf_counter() - start},
        "checkpoint": trained["checkpoint"],
        "config": config,
        "versions": {name: version(name) for name in ("leo", "torch", "pytorch-lightning", "hydra-core")},
    }
    write_json(Path(cfg.run_dir) / "result.json", result)
    log.info(
        "%s: test accuracy %.2f +- %.2f %% (95 %% interval over %d tasks)",
        cfg.run_dir, 100 * result["accuracy"], 100 * result["interval95"], result["num_tasks"],
    )  # fmt: skip
    return result


def build(cfg: DictConfig, tables: dict[str, FeatureTable]) -> MetaLearning:
    """The learner of ``cfg`` in its Lightning module, its normaliser fitted to the training splits."""
    pl.seed_everything(cfg.seed, verbose=False)
    training = concatenate([tables[split] for split in cfg.train_splits]).features
    normalizer = Normalizer(cfg.features.normalize, training.shape[1])
    normalizer.fit(training)
    return MetaLearning(
        instantiate(cfg.model.learner, num_features=training.shape[1]),
        normalizer,
        optimizer=instantiate(cfg.model.optimizer),
        schedule=instantiate(cfg.model.schedule),
        clip_value=cfg.model.clip_value,
        clip_norm=cfg.model.clip_norm,
        seed=cfg.seed,
    )


def scaled(module: MetaLearning, table: FeatureTable) -> FeatureTable:
    """``table`` with the features that the learner sees."""
    return table._replace(features=module.normalizer(table.features))


def updates_per_step(cfg: DictConfig) -> int:
    """Updates between two logged ones; a whole number of times in a validation interval."""
    return math.gcd(cfg.val.every, cfg.trainer.log_every_n_steps)


def task_data(cfg: DictConfig, training: FeatureTable, val: FeatureTable, val_tasks: list[Any]) -> TaskData:
    """The training stream and the validation tasks of ``cfg``."""
    stream = TaskStream(
        training,
        num_way=cfg.num_way,
        num_shot=cfg.num_shot,
        num_query=cfg.num_query,
        batch_size=cfg.tasks_per_batch,
        batches_per_epoch=cfg.val.every,
        batches_per_step=updates_per_step(cfg),
        generator=torch.Generator(training.features.device).manual_seed(cfg.seed),
    )
    return TaskData(stream, val, val_tasks)


def check_sizes(cfg: DictConfig, tables: dict[str, FeatureTable]) -> None:
    """Raise where a size of ``cfg`` makes no sense, or its tasks cannot be drawn from a split that it uses."""
    smallest = {"num_way": 2, "num_shot": 1, "num_query": 1, "tasks_per_batch": 1}
    smallest |= {"val.every": 1, "val.num_tasks": 2}
    smallest |= {} if cfg.test.num_tasks is None else {"test.num_tasks": 2}
    smallest |= {} if cfg.threads is None else {"threads": 1}
    for key, limit in smallest.items():
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, int) or value < limit:
            raise ValueError(f"{key}={value} must be a whole number of at least {limit}")
    unknown = set(cfg.train_splits) - {"train", "val"}
    if unknown or "train" not in cfg.train_splits:
        raise ValueError(f"train_splits={list(cfg.train_splits)} must be [train] or [train, val]")
    for split in cfg.train_splits:
        check_task_size(tables[split], split, cfg.num_way, cfg.num_shot, cfg.num_query)
    for split in ("val", "test"):  # all remaining images are queries: at least one
        check_task_size(tables[split], split, cfg.num_way, cfg.num_shot, 1)


def run_config(cfg: DictConfig, tables: dict[str, FeatureTable]) -> dict[str, Any]:
    """What a run's numbers follow from: the resolved configuration, less what only shows them, and the features."""
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    free = ("stage", "logger", "run_dir", "checkpoint", "threads")
    shown = {str(key): value for key, value in config.items() if key not in free}
    return without_paths(shown) | {
        "features_origin": {key: value for key, value in tables["train"].origin.items() if key != "config"}
    }


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint at ``path``, with the ``config`` of its run."""
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} is missing; meta-training writes it (best.ckpt in the run folder)")
    try:
        checkpoint: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} is not a checkpoint of this project, or is damaged: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(checkpoint, dict) or "normalizer.mean" not in checkpoint.get("state_dict", {}):
        raise ValueError(f"{path} does not hold a learner; choose the best.ckpt of a meta-training run")
    return checkpoint


def load_weights(module: MetaLearning, path: Path, cfg: DictConfig) -> dict[str, Any]:
    """Put the weights and normaliser of the checkpoint at ``path`` into ``module``; the whole checkpoint."""
    checkpoint = read_checkpoint(path)
    learner = checkpoint["config"]["model"]["learner"]["_target_"]
    if learner != cfg.model.learner._target_:
        raise ValueError(
            f"{path} holds a {learner}, the configuration asks for a {cfg.model.learner._target_}; "
            f"choose the experiment that the checkpoint was trained with"
        )
    width, wanted = len(checkpoint["state_dict"]["normalizer.mean"]), len(module.normalizer.mean)
    if width != wanted:
        raise ValueError(
            f"{path} was trained on features of width {width}, {cfg.features.folder} holds width {wanted}; "
            f"choose the features that the checkpoint was trained on"
        )
    kind = checkpoint["config"]["features"]["normalize"]
    if kind != module.normalizer.kind:
        raise ValueError(
            f"{path} was trained with features.normalize={kind}, the configuration asks for {module.normalizer.kind}; "
            f"add features.normalize={kind}"
        )
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the configured learner: {error}") from error
    return checkpoint
