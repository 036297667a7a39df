"""The trained pieces together: learner, normaliser and, where images are to be classified, the extractor."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.nn.functional import one_hot

from leo.features import Normalizer
from leo.learner import Learner
from leo.leo import LEO
from leo.methods import METHODS
from leo.prototypes import NearestCentroid
from leo.support import Support
from pretrain.extractor import Extractor, network_of
from runner.errors import InputError


class Model(NamedTuple):
    """What ``FewShotClassifier`` adapts. Nothing changes it, so copies of a classifier share it.

    ``config`` says how the learner was made and what its features come from; ``source`` is where all was read.
    """

    learner: Learner
    normalizer: Normalizer
    extractor: Extractor | None
    config: dict[str, Any]
    source: str

    def __repr__(self) -> str:
        return f"<model of {self.source}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Model":
        return self

    @property
    def num_features(self) -> int:
        """The width of the features that the learner takes."""
        return len(self.normalizer.mean)

    def to(self, device: torch.device | str) -> "Model":
        """Itself, on ``device``."""
        for part in (self.learner, self.normalizer, self.extractor):
            if part is not None:
                part.to(device)
        return self

    @property
    def method(self) -> str:
        """The learner and the extractor in words."""
        origin, learner = self.config.get("features_origin"), METHODS[self.config["learner"]["_target_"]]
        if origin is None:
            return learner
        by_others = self.config.get("backbone", {}).get("pretrained")
        if "extractor_start" in self.config:
            trained = f"trained with the learner on {origin['data']}, "
        else:
            trained = "trained by others, " if by_others else f"trained on {origin['data']}, "
        name, layer, digest = origin["extractor"] or "no extractor", origin["layer"], origin["checkpoint"][:12]
        return f"{learner} on features of {name} (layer {layer}, {trained}SHA-256 {digest or 'none'})"

    def needed_extractor(self) -> Extractor:
        """The extractor; raises where there is none."""
        if self.extractor is not None:
            return self.extractor
        origin, needs = self.config["features_origin"], network_of(self.config.get("backbone", {}))
        if needs is not None and origin["checkpoint"]:
            raise InputError(
                f"{self.source} was trained on features of {needs}, a network of your own, which images need: give "
                f"backbone=..., the configuration that names it (with hydra.searchpath=...), or its class to "
                f"FewShotClassifier.load(..., networks=[...]); or its features in place of images"
            )
        if not origin["checkpoint"]:
            raise InputError(
                f"{self.source} was trained on features that no extractor of stage 1 makes of images (layer "
                f"{origin['layer']} of {origin['extractor'] or 'none'}); give features, or train on those of stage 1"
            )
        raise InputError(
            f"{self.source} holds a learner of features without its extractor, which images need: "
            f"{origin['extractor']} trained on {origin['data']}, SHA-256 {origin['checkpoint'][:12]}...; give "
            f"stage.extractor=PATH, in Python load(..., extractor=PATH): the run folder of stage 1 or its file; or "
            f"take a package instead (python train.py stage=package)"
        )

    def sampled_learner(self, num_samples: int) -> LEO:
        """The learner, which must be one that samples."""
        if isinstance(self.learner, LEO) and self.learner.stochastic:
            return self.learner
        raise InputError(
            f"num_samples={num_samples} asks for sampled adaptations, which the learner of {self.source} does not have "
            f"(LEO with stochastic=true does); leave num_samples at 0"
        )

    @torch.no_grad()
    def embed(self, features: Float[Tensor, "n D"]) -> Float[Tensor, "n E"]:
        """Features in the space in which classifiers are linear."""
        embedded: Tensor = self.learner.embed(self.normalizer(features))
        return embedded

    def fit(
        self, features: Float[Tensor, "n D"], labels: Int[Tensor, " n"], num_samples: int, seed: int
    ) -> Float[Tensor, "S N E"]:
        """The classifiers of examples labelled 0 to N - 1, as ``adapt`` gives them."""
        generator = torch.Generator(features.device).manual_seed(seed)
        everything = torch.ones(1, len(features), dtype=torch.bool, device=features.device)
        return self.adapt(features, one_hot(labels).T.to(features), everything, num_samples, generator)[:, 0]

    @torch.no_grad()
    def adapt(
        self,
        features: Float[Tensor, "n D"],
        targets: Float[Tensor, "N n"],
        present: Bool[Tensor, "B n"],
        num_samples: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "S B N E"]:
        """The classifiers of each row of ``present``: that of the means where ``num_samples`` is 0, else sampled ones.

        ``targets`` and ``present`` as in ``leo.support.Support``. Sampled adaptations that
        diverge are left out; raises where none is left.
        """
        support = Support(self.normalizer(features), targets, present, self.config["num_shot"], self.config["num_way"])
        if num_samples:
            learner, sizes = self.sampled_learner(num_samples), (len(present), len(targets), support.num_shot)
            noises = (learner.draw_samples(sizes, generator) for _ in range(num_samples))
            classifiers = torch.stack([learner.adaptation(support, noise).weights for noise in noises])
        else:
            classifiers = self.learner.adapt(support).unsqueeze(0)
        finite = classifiers.isfinite()
        if finite.all():
            return classifiers
        finite = finite.flatten(1).all(1)
        if not finite.any():
            raise InputError(
                f"the learner of {self.source} diverged on these examples: its classifier is not finite; give other or "
                f"more examples, or take a learner with lower inner rates, or nearest centroid"
            )
        return classifiers[finite]


def probabilities(embedded: Float[Tensor, "n E"], classifiers: Float[Tensor, "S N E"]) -> Float64[Tensor, "n N"]:
    """Of each class: means over the adaptations."""
    return (embedded @ classifiers.mT).double().softmax(-1).mean(0)


def nearest_centroid(num_features: int) -> Model:
    """What needs no training: cosine to the mean of each class's unit-length features."""
    learner, normalizer = NearestCentroid(num_features=num_features), Normalizer("l2", num_features)
    return Model(learner, normalizer, None, {"num_way": 2, "num_shot": 1}, "nearest centroid")
