"""The checkpoint of a meta-training: what a learner takes from it, and whether it was trained on the same features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from leo.features import Normalizer, check_origin, read_origin
from runner.checkpoints import load_checkpoint
from runner.errors import InputError, MissingFileError
from runner.folder import differences
from runner.names import identity

if TYPE_CHECKING:
    from leo.module import MetaLearning  # Lightning takes seconds to import, which a classifier need not wait for


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint at ``path``, with the ``config`` of its run."""
    if not path.is_file():
        raise MissingFileError(f"checkpoint {path} is missing; meta-training writes it (best.ckpt in the run folder)")
    checkpoint = load_checkpoint(path, "give another one, or delete its run folder and train again")
    names = checkpoint.get("state_dict", {}) if isinstance(checkpoint, dict) else {}
    if not any(name.startswith(("learner.", "normalizer.")) for name in names):
        raise InputError(f"{path} does not hold a learner; choose the best.ckpt of a meta-training run")
    return checkpoint


def load_weights(
    module: MetaLearning, path: Path, cfg: DictConfig, *, may_lack_extractor: bool = False
) -> dict[str, Any]:
    """Put the weights and normaliser of the checkpoint at ``path`` into ``module``; the whole checkpoint.

    An ``extractor`` of the module that is trained with its learner gets the checkpoint's weights; with
    ``may_lack_extractor`` it keeps its own where there are none.
    """
    checkpoint = read_checkpoint(path)
    learner = checkpoint["config"]["model"]["learner"]["_target_"]
    if learner != cfg.model.learner._target_:
        raise InputError(
            f"{path} holds a {learner}, the configuration asks for a {cfg.model.learner._target_}; "
            f"choose the experiment that the checkpoint was trained with"
        )
    kept = {}
    if may_lack_extractor and "extractor" not in checkpoint:
        kept = {name: value for name, value in module.state_dict().items() if name.startswith("extractor.")}
    else:
        check_extractor(module, checkpoint, path)
    if module.normalizer is not None:
        check_features(module.normalizer, checkpoint, path, cfg)
    try:
        module.load_state_dict(checkpoint["state_dict"] | kept)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit the configured learner: {error}") from error
    return checkpoint


def start_from(module: MetaLearning, path: Path, cfg: DictConfig) -> dict[str, str | None]:
    """Put the learner of the checkpoint at ``path`` into ``module``, which keeps its normaliser; what path holds.

    So joint training may go on from a learner of frozen features.
    """
    kept = {name: value.clone() for name, value in module.state_dict().items() if name.startswith("normalizer.")}
    load_weights(module, path, cfg, may_lack_extractor=True)
    module.load_state_dict(kept, strict=False)
    return identity(path)


def check_extractor(module: MetaLearning, checkpoint: dict[str, Any], path: Path) -> None:
    """Raise where one of the two has an extractor that is trained with the learner, and the other none or another."""
    wanted, found = getattr(module, "extractor", None), checkpoint.get("extractor")
    if wanted is None and found is not None:
        raise InputError(f"{path} holds an extractor that was trained with its learner; add extractor=joint")
    if wanted is not None and found is None:
        raise InputError(f"{path} holds no extractor: its learner was trained on frozen features; use extractor=frozen")
    if wanted is not None and wanted.settings != found:
        changed = "; ".join(differences(found, wanted.settings))
        raise InputError(
            f"{path} holds another extractor than the configured one ({changed}); choose data=, backbone= and "
            f"features= as it was trained with"
        )


def check_features(normalizer: Normalizer, checkpoint: dict[str, Any], path: Path, cfg: DictConfig) -> None:
    """Raise where the checkpoint at ``path`` was trained on features of another width, origin or scale."""
    width, wanted = len(checkpoint["state_dict"]["normalizer.mean"]), len(normalizer.mean)
    if width != wanted:
        raise InputError(
            f"{path} was trained on features of width {width}, {cfg.features.folder} holds width {wanted}; "
            f"choose the features that the checkpoint was trained on"
        )
    kind = checkpoint["config"]["features"]["normalize"]
    if kind != normalizer.kind:
        raise InputError(
            f"{path} was trained with features.normalize={kind}, the configuration asks for {normalizer.kind}; "
            f"add features.normalize={kind}"
        )
    if "extractor" in checkpoint:  # whose features are in no folder
        return
    expected = checkpoint["config"].get("features_origin", {})
    check_origin(expected, read_origin(Path(cfg.features.folder)), path, cfg.features.folder)
