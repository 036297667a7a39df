"""The package of a trained model as a Hydra task, with its model card and a program for other runtimes."""

import copy
import logging
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from fewshot.card import card
from fewshot.loading import chosen
from fewshot.model import Model
from fewshot.package import MANIFEST, write_manifest, write_pieces
from leo.checkpoint import read_checkpoint
from leo.methods import METHODS
from leo.support import Support
from runner.config import check_whole_numbers
from runner.errors import InputError
from runner.files import read_json, whole_folder, write_text
from runner.folder import run_folder
from runner.names import identity

log = logging.getLogger(__name__)

PROGRAM, CARD = "adapt_and_predict.pt2", "README.md"


class AdaptAndPredict(nn.Module):
    """Probabilities [Q, N] of images [Q, S, S, C] after adaptation to N classes of K images [N, K, S, S, C], uint8."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        # In rows, as the program's file holds tensors.
        self.extractor = copy.deepcopy(model.needed_extractor()).to(memory_format=torch.contiguous_format)
        self.normalizer, self.learner = model.normalizer, model.learner
        self.num_shot = model.config["num_shot"]

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        """The classes are in the order of ``support``."""
        num_way, num_shot = support.shape[:2]
        features, of_query = (self.normalizer(self.extractor(images)) for images in (support.flatten(0, 1), query))
        present = torch.ones(1, len(features), dtype=torch.bool)
        targets = torch.eye(num_way).repeat_interleave(num_shot, dim=1)
        classifier = self.learner.adapt(Support(features, targets, present, self.num_shot, num_way))[0]
        return (self.learner.embed(of_query) @ classifier.T).softmax(1)


def program(model: Model, num_query: int) -> torch.export.ExportedProgram:
    """``AdaptAndPredict`` for tasks as in training and ``num_query`` images to classify."""
    extractor = model.needed_extractor()
    shape = (extractor.image_size, extractor.image_size, len(extractor.mean))
    support = torch.zeros(model.config["num_way"], model.config["num_shot"], *shape, dtype=torch.uint8)
    with torch.no_grad():
        return torch.export.export(AdaptAndPredict(model), (support, torch.zeros(num_query, *shape, dtype=torch.uint8)))


def package(cfg: DictConfig) -> None:
    """Write the package of ``cfg.checkpoint``, or of the run that the configuration names, whole or not at all."""
    check_whole_numbers(cfg, {"stage.num_query": 1})
    if cfg.checkpoint is not None and Path(cfg.checkpoint, MANIFEST).is_file():
        raise InputError(f"checkpoint={cfg.checkpoint} is a package already; copy it")
    folder = Path(cfg.stage.output)
    model, is_trained = chosen(cfg), (cfg.checkpoint or cfg.stage.model) is not None
    model.needed_extractor()
    if cfg.stage.extractor_weights not in ("inside", "by_name"):
        raise InputError(f"stage.extractor_weights={cfg.stage.extractor_weights} must be inside or by_name")
    by_name = cfg.stage.extractor_weights == "by_name"
    result = matching_result(Path(model.source).parent / "result.json", model) if is_trained else None
    more = {"num_query": cfg.stage.num_query, "result": result, "versions": {n: version(n) for n in ("leo", "torch")}}
    config = {
        "checkpoint": identity(Path(model.source)) if is_trained else None,
        "extractor": model.config["features_origin"]["checkpoint"],
        "output": str(folder),
        "num_query": cfg.stage.num_query,
        **({"extractor_weights": "by_name"} if by_name else {}),
    }
    with run_folder(Path(cfg.run_dir), config), whole_folder(folder) as partial:
        write_pieces(model, partial, more, by_name=by_name)
        content = BytesIO()  # torch.export.save to a path hides why it cannot write
        torch.export.save(program(model, cfg.stage.num_query), content)
        (partial / PROGRAM).write_bytes(content.getvalue())
        write_text(partial / CARD, card(model, result, PROGRAM, cfg.stage.num_query, by_name=by_name))
        write_manifest(partial)
    log.info("%s holds the package: FewShotClassifier.load(%r)", folder, str(folder))


def package_choice(cfg: DictConfig) -> None:
    """Package what ``stage=choose`` has chosen, next to its choice; nothing where that is done.

    A classifier of scikit-learn has no package; the best method that has one is packaged in its place.
    """
    folder = Path(cfg.run_dir)
    choice = read_json(folder / "choice.json", ("chosen", "rows"), "delete it: the same command makes it again")
    if (folder / "package").exists():
        log.info("%s is there already", folder / "package")
        return
    extractor = Path(cfg.dirs.runs) / cfg.data.pretrain.run
    is_here = extractor.is_dir() or cfg.backbone.get("pretrained") is not None
    if cfg.data.source is None or cfg.features.source is not None or not is_here:
        log.info("no package: %s was chosen on features whose extractor is not here", choice["chosen"])
        return
    for row in choice["rows"]:
        checkpoint = folder / row["name"] / "best.ckpt"
        if read_checkpoint(checkpoint)["config"]["model"]["learner"]["_target_"] in METHODS:
            break
        log.info(
            "%s has no package, as it is of scikit-learn: fit it where you use it, or take the next one", row["name"]
        )
    else:
        return
    log.info("packaging %s", row["name"])
    run = OmegaConf.merge(
        cfg,
        {
            "checkpoint": str(checkpoint),
            "run_dir": str(folder / "packaged"),
            "stage": {
                "output": str(folder / "package"),
                "model": None,
                "extractor": str(extractor) if extractor.is_dir() else None,
            },
        },
    )
    assert isinstance(run, DictConfig)
    package(run)


def matching_result(path: Path, model: Model) -> dict[str, Any] | None:
    """What the run of the checkpoint found on its test tasks, where that stands beside it."""
    if not path.is_file():
        return None
    keys = ("experiment", "ablation", "seed", "data", "num_way", "num_shot", "num_tasks", "accuracy", "interval95")
    remedy = "delete it and give the command of its run again, which tests again; or move it away for a package without"
    result = read_json(path, ("config", *keys), remedy)
    if result["config"]["model"]["learner"] != model.config["learner"]:
        return None
    return {key: result[key] for key in keys} | {"train_splits": result["config"]["train_splits"]}
