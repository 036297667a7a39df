"""Stages 2 and 3 of the paper as Hydra tasks: meta-train a learner on tasks, test its best checkpoint."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from leo import kernels
from leo.checkpoint import load_weights, start_from
from leo.episodes import Classes, TaskIndices, TaskStream, check_task_size
from leo.evaluate import Scorer, Scores, evaluate, fixed_tasks, interval95, mean_of
from leo.features import AnyTable, FeatureTable, Normalizer, load_splits, scaled
from leo.learner import Learner
from leo.module import MetaLearning, TaskData
from runner.checkpoints import save_checkpoint
from runner.config import check_whole_numbers, without_paths
from runner.errors import InputError
from runner.files import read_json, whole_file
from runner.folder import run_folder, write_json
from runner.loggers import open_loggers
from runner.machine import machine
from runner.names import identity, trained_file
from runner.process import hide_absent_gpus, keep_freed_memory
from runner.record import group, made_by, scored
from runner.training import make_trainer, train

log = logging.getLogger(__name__)

VAL_SEED, TEST_SEED = 1, 2  # of the tasks: the same for every method, ablation and seed


@runtime_checkable
class Problem(Protocol):
    """A kind of tasks, as meta-training asks for it; ``conf/tasks`` names one.

    ``score`` is what validation and testing maximise, ``origin`` what results follow from beside the configuration.
    """

    score: str
    origin: dict[str, Any]

    def build(self) -> MetaLearning:
        """The learner in its Lightning module."""

    def data(self, module: MetaLearning, device: torch.device) -> TaskData:
        """Training stream, validation tasks and scorer on ``device``."""

    def validate(self, module: MetaLearning) -> float:
        """The validation score of a learner that has nothing to train."""

    def test(self, module: MetaLearning, device: torch.device) -> dict[str, Any]:
        """What ``result.json`` says of the test tasks, with ``score`` among it."""

    def summary(self, result: dict[str, Any]) -> str:
        """The result in a line or a table."""


def make_problem(cfg: DictConfig) -> Problem:
    """The problem that ``cfg.extractor`` or else ``cfg.tasks`` names, after its checks."""
    problem: Problem = instantiate(cfg.extractor.problem or cfg.tasks)(cfg)
    return problem


def meta_train(cfg: DictConfig, callbacks: Sequence[pl.Callback] = ()) -> float:
    """Meta-train, test the best checkpoint, write ``result.json``; the best validation score (accuracy: a fraction).

    The same call again goes on from the last checkpoint, and does nothing where the run is finished. Without
    ``test.num_tasks`` there is neither test nor result. ``callbacks`` join those of every run.
    """
    problem = make_problem(cfg)
    module, config, folder = problem.build(), run_config(cfg, problem.origin), Path(cfg.run_dir)
    is_trained = next(module.learner.parameters(), None) is not None
    if not is_trained and cfg.model.optimizer is not None:
        raise InputError(f"model.optimizer is set, but {cfg.model.learner._target_} has nothing to train; leave it out")
    if cfg.checkpoint is not None:
        config["start"] = start_from(module, trained_file(Path(cfg.checkpoint)), cfg)
    if is_trained and cfg.max_steps < cfg.val.every:
        raise InputError(f"max_steps={cfg.max_steps} ends before the first validation, after val.every={cfg.val.every}")
    with run_folder(folder, config), open_loggers(cfg.logger, folder) as loggers:
        if (folder / "result.json").exists():
            remedy = "delete it: the same command tests again"
            result = read_json(folder / "result.json", (problem.score, f"val_{problem.score}"), remedy)
            log.info("%s is finished: %s; delete the folder to repeat it", folder, problem.summary(result))
            return float(result[f"val_{problem.score}"])
        keep_freed_memory()
        hide_absent_gpus()
        # Torch counts the cores, of which a launcher gives each of its processes a share. More than two are no faster.
        torch.set_num_threads(cfg.threads or min(2, torch.get_num_threads()))
        trainer = make_trainer(
            instantiate(cfg.trainer, accelerator=accelerator(cfg)),
            folder,
            config=config,
            monitor=f"val/{problem.score}",
            patience=cfg.patience,
            max_steps=cfg.max_steps,
            val_every=cfg.val.every,
            updates_per_step=updates_per_step(cfg),
            loggers=loggers,
            more_callbacks=callbacks,
        )
        device = trainer.strategy.root_device
        if is_trained:
            outcome = train(trainer, module, problem.data(module, device), folder, totals=module.totals)
            load_weights(module, outcome.checkpoint, cfg)
            trained = outcome._asdict() | {"checkpoint": str(outcome.checkpoint)}
        else:
            score, checkpoint = problem.validate(module.to(device)), folder / "best.ckpt"
            write_untrained(checkpoint, module, config, score)
            trained = {"score": score, "num_steps": 0, "seconds": 0.0, "totals": {}, "checkpoint": str(checkpoint)}
        if cfg.test.num_tasks is None:
            return float(trained["score"])
        tested = test(cfg, problem, module.to(device), trained, config)
        for logger in loggers:
            logger.log_metrics({f"test/{problem.score}": tested[problem.score]})
        return float(trained["score"])


def write_untrained(path: Path, module: MetaLearning, config: dict[str, Any], score: float) -> None:
    """Write a checkpoint of a learner that has nothing to train: its scale of the features, and what it is."""
    checkpoint = {
        "state_dict": {name: value.cpu() for name, value in module.state_dict().items()},
        "config": config,
        "global_step": 0,
        "callbacks": {"RunCheckpoints": {"best_score": score}},
    }
    with whole_file(path) as part:
        save_checkpoint(checkpoint, part)


def check(cfg: DictConfig) -> None:
    """Raise where the tasks of ``cfg`` cannot be made: features are missing, or do not fit its sizes."""
    make_problem(cfg)


def test_checkpoint(cfg: DictConfig) -> float:
    """Test ``cfg.checkpoint`` alone, with the configuration given; write ``result.json``; its score."""
    if cfg.checkpoint is None:
        raise InputError("stage=test needs checkpoint=PATH, the best.ckpt of a run folder")
    problem = make_problem(cfg)
    module, path = problem.build(), trained_file(Path(cfg.checkpoint))
    checkpoint = load_weights(module, path, cfg)
    config = run_config(cfg, problem.origin) | {"checkpoint": identity(path)}
    score = max(state["best_score"] for name, state in checkpoint["callbacks"].items() if name == "RunCheckpoints")
    counted = {"train_diverged": checkpoint["diverged"]["total"]} if "diverged" in checkpoint else {}
    trained = {"score": score, "num_steps": checkpoint["global_step"], "seconds": None, "totals": counted}
    with run_folder(Path(cfg.run_dir), config):
        return float(test(cfg, problem, module, trained | {"checkpoint": str(path)}, config)[problem.score])


def test(
    cfg: DictConfig, problem: Problem, module: MetaLearning, trained: dict[str, Any], config: dict[str, Any]
) -> dict[str, Any]:
    """Test ``module``; write and return the result, which says what it is: see ``docs/report.md``."""
    start = time.perf_counter()
    checkpoint = identity(Path(trained["checkpoint"]))
    result: dict[str, Any] = {
        **OmegaConf.to_container(cfg.names, resolve=True),  # type: ignore[dict-item]
        "seed": cfg.seed,
        **(scores := problem.test(module, module.device)),
        f"val_{problem.score}": trained["score"],
        "num_steps": trained["num_steps"],
        **trained["totals"],
        "seconds": {"train": trained["seconds"], "test": time.perf_counter() - start},
        "checkpoint": trained["checkpoint"],
        "checkpoint_sha256": checkpoint["sha256"],
        "config": config,
        "versions": {name: version(name) for name in ("leo", "torch", "pytorch-lightning", "hydra-core")},
        "machine": machine(module.device) | {"c_kernels": kernels.serve(torch.empty(0, device=module.device))},
        **made_by(),
        **scored(problem.score, scores[problem.score]),
        "group": group(config),
        "inputs": problem.origin | {"checkpoint": checkpoint},
    }
    result["summary"] = problem.summary(result)
    write_json(Path(cfg.run_dir) / "result.json", result)
    log.info("%s: %s", cfg.run_dir, result["summary"])
    return result


class Classification:
    """N-way K-shot classification of images by the features of ``cfg.features``; judged by accuracy."""

    score = "accuracy"

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg, self.tables = cfg, load_splits(Path(cfg.features.folder))
        check_sizes(cfg, self.tables)
        self.origin = {"features_origin": self.tables["train"].identity}

    def build(self) -> MetaLearning:
        """The learner, and the normaliser of its features."""
        return build(self.cfg, self.tables)

    def data(self, module: MetaLearning, device: torch.device) -> TaskData:
        """Tasks of scaled features."""
        cfg = self.cfg
        stream = TaskStream(
            self.scaled(module, cfg.train_splits, device),
            num_way=cfg.num_way,
            **stream_settings(cfg, device),
        )
        val = self.scaled(module, ["val"], device)
        return TaskData(stream, self.val_tasks(val), partial(Scorer, table=val, num_shot=cfg.num_shot))

    def scaled(self, module: MetaLearning, splits: Sequence[str], device: torch.device) -> AnyTable:
        """The classes of ``splits``, with the features that the learner sees."""
        assert module.normalizer is not None
        return scaled([self.tables[split] for split in splits], module.normalizer, device)

    def val_tasks(self, val: Classes) -> list[TaskIndices]:
        """The validation tasks of the table ``val``."""
        return fixed_tasks(val, self.cfg.val.num_tasks, self.cfg.num_way, self.cfg.num_shot, VAL_SEED)

    def val_accuracy(self, module: MetaLearning) -> Tensor:
        """The accuracy on each validation task [T], fractions."""
        val = self.scaled(module, ["val"], module.device)
        assert isinstance(module.learner, Learner)
        return evaluate(module.learner, val, self.val_tasks(val), self.cfg.num_shot).accuracy

    def validate(self, module: MetaLearning) -> float:
        """Validation accuracy of a learner that is not trained, a fraction."""
        return self.val_accuracy(module).mean().item()

    def test(self, module: MetaLearning, device: torch.device) -> dict[str, Any]:
        """Accuracy, its interval and the loss on the test tasks."""
        cfg, table = self.cfg, self.scaled(module, ["test"], device)
        assert isinstance(module.learner, Learner)
        tasks = fixed_tasks(table, cfg.test.num_tasks, cfg.num_way, cfg.num_shot, TEST_SEED)
        return tested(cfg, table.origin, evaluate(module.learner, table, tasks, cfg.num_shot))

    def summary(self, result: dict[str, Any]) -> str:
        """Accuracy and interval."""
        return (
            f"test accuracy {100 * result['accuracy']:.2f} +- {100 * result['interval95']:.2f} % "
            f"(95 % interval over {result['num_tasks']} tasks)"
            + (f"; {result['num_diverged']} of them diverged and count as wrong" if result.get("num_diverged") else "")
        )


def tested(cfg: DictConfig, origin: Mapping[str, Any], scores: Scores) -> dict[str, Any]:
    """What ``result.json`` says of the test tasks, by their scores; ``origin`` is that of the features."""
    return {
        "num_way": cfg.num_way,
        "num_shot": cfg.num_shot,
        "data": origin["data"],
        "layer": origin["layer"],
        "num_tasks": len(scores.accuracy),
        "num_diverged": int(scores.diverged.sum()),
        "accuracy": scores.accuracy.mean().item(),
        "interval95": interval95(scores.accuracy),
        "loss": mean_of(scores.loss, scores.diverged),
    }


def build(cfg: DictConfig, tables: dict[str, FeatureTable]) -> MetaLearning:
    """The learner of ``cfg`` in its Lightning module, its normaliser fitted to the training splits."""
    normalizer = fitted(cfg, [tables[split].features for split in cfg.train_splits])
    return make_module(cfg, normalizer, num_features=len(normalizer.mean))


def fitted(cfg: DictConfig, features: Sequence[Tensor]) -> Normalizer:
    """The normaliser of ``cfg``, with the statistics of ``features`` of the training splits."""
    normalizer = Normalizer(cfg.features.normalize, features[0].shape[1])
    normalizer.fit(*features)
    return normalizer


def stream_settings(cfg: DictConfig, device: torch.device) -> dict[str, Any]:
    """The arguments of a stream of training tasks that all kinds of tasks share."""
    return {
        "num_shot": cfg.num_shot,
        "num_query": cfg.num_query,
        "batch_size": cfg.tasks_per_batch,
        "batches_per_epoch": cfg.val.every,
        "batches_per_step": updates_per_step(cfg),
        "generator": torch.Generator(device).manual_seed(cfg.seed),
    }


def make_module(
    cfg: DictConfig, normalizer: Normalizer | None, kind: Callable[..., MetaLearning] = MetaLearning, **sizes: int
) -> MetaLearning:
    """The learner of ``cfg`` for data of ``sizes``, freshly drawn from ``cfg.seed``, in its Lightning module."""
    pl.seed_everything(cfg.seed, verbose=False)
    return kind(
        instantiate(cfg.model.learner, **sizes),
        normalizer,
        optimizer=instantiate(cfg.model.optimizer),
        schedule=instantiate(cfg.model.schedule),
        clip_value=cfg.model.clip_value,
        clip_norm=cfg.model.clip_norm,
        diverged=cfg.diverged,
        max_diverged=float(cfg.max_diverged),
        seed=cfg.seed,
        captured=cfg.captured,
    )


def accelerator(cfg: DictConfig) -> str:
    """Where meta-training runs: on the processor, which all figures are of, unless a GPU is asked for."""
    if cfg.captured and not torch.cuda.is_available():
        raise InputError("captured=true needs a GPU of NVIDIA, and this machine has none; leave it out")
    if cfg.captured and cfg.trainer.accelerator not in ("auto", "gpu", "cuda"):
        raise InputError(f"captured=true needs a GPU, and trainer.accelerator={cfg.trainer.accelerator} is none")
    if cfg.trainer.accelerator == "auto":
        return "gpu" if cfg.captured else "cpu"
    return str(cfg.trainer.accelerator)


def updates_per_step(cfg: DictConfig) -> int:
    """Updates between two logged ones; a whole number of times in a validation interval."""
    return math.gcd(cfg.val.every, cfg.trainer.log_every_n_steps)


def check_numbers(cfg: DictConfig) -> None:
    """Raise where a size that all kinds of tasks have makes no sense."""
    smallest = {"num_shot": 1, "num_query": 1, "tasks_per_batch": 1, "val.every": 1, "val.num_tasks": 2}
    smallest |= {} if cfg.num_way is None else {"num_way": 2}
    smallest |= {} if cfg.test.num_tasks is None else {"test.num_tasks": 2}
    smallest |= {} if cfg.threads is None else {"threads": 1}
    check_whole_numbers(cfg, smallest)


def check_sizes(cfg: DictConfig, tables: Mapping[str, Classes]) -> None:
    """Raise where a size of ``cfg`` makes no sense, or its tasks cannot be drawn from a split that it uses."""
    check_numbers(cfg)
    unknown = set(cfg.train_splits) - {"train", "val"}
    if unknown or "train" not in cfg.train_splits:
        raise InputError(f"train_splits={list(cfg.train_splits)} must be [train] or [train, val]")
    for split in cfg.train_splits:
        check_task_size(tables[split], split, cfg.num_way, cfg.num_shot, cfg.num_query)
    for split in ("val", "test"):  # all remaining images are queries: at least one
        check_task_size(tables[split], split, cfg.num_way, cfg.num_shot, 1)


def run_config(cfg: DictConfig, origin: dict[str, Any]) -> dict[str, Any]:
    """What a run's numbers follow from: the resolved configuration, less what only shows them, and ``origin``."""
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    free = ["stage", "logger", "run_dir", "checkpoint", "threads", "captured"]
    if cfg.extractor.problem is None:
        free.append("extractor")  # a run on frozen features is what it was before there was a choice
    shown = {str(key): value for key, value in config.items() if key not in free}
    return without_paths(shown) | origin
