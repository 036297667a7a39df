"""A trained learner rebuilt from data alone: the name of a method, its settings, its weights."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from hydra.utils import get_class
from torch import Tensor, nn

from leo.features import Normalizer
from leo.learner import Learner
from leo.methods import METHODS
from runner.errors import InputError


class Trained(NamedTuple):
    """A learner in evaluation mode, and the normaliser of what it sees."""

    learner: Learner
    normalizer: Normalizer


def rebuild(settings: Mapping[str, Any], normalize: str, weights: Mapping[str, Tensor], source: object) -> Trained:
    """The learner of ``settings``, with its method as ``_target_``, and of ``weights``: learner.* and normalizer.*.

    They may come from elsewhere: only the methods of ``leo.methods`` are called. ``source`` is for messages.
    """
    target = settings["_target_"]
    if target not in METHODS:
        raise InputError(f"{source} holds a {target}; what can be looked into and used is {', '.join(METHODS)}")
    width = len(weights["normalizer.mean"])
    others = {key: value for key, value in settings.items() if key != "_target_"}
    parts = nn.ModuleDict(
        {
            "learner": get_class(target)(num_features=width, **others),
            "normalizer": Normalizer(normalize, width),
        }
    ).eval()
    try:
        parts.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise InputError(f"{source} does not fit the learner that it names: {error}") from error
    parts.requires_grad_(False)
    learner, normalizer = parts["learner"], parts["normalizer"]
    assert isinstance(learner, Learner)
    assert isinstance(normalizer, Normalizer)
    return Trained(learner, normalizer)
