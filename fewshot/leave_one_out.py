"""How well a labelled folder is classified: each image in turn is left out, and classified by the rest."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fewshot.model import Model

SCORES_PER_PART = 1 << 25  # probabilities held at a time: adaptations x classes x images


def leave_one_out(
    model: Model, features: Tensor, labels: Tensor, num_samples: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """float64 probabilities [., N] of ``features`` [n, D], in order, a part at a time.

    Each image is classified by an adaptation of its own that sees all images but this one. Those of a part are
    computed together: they share the images, and the relation network's pairs.
    """
    num_images, num_way = len(labels), int(labels.max()) + 1
    targets, embedded = one_hot(labels).T.to(features), model.embed(features)
    for part in torch.arange(num_images).split(max(1, SCORES_PER_PART // (num_way * num_images))):
        present = torch.ones(len(part), num_images, dtype=torch.bool, device=features.device)
        present[torch.arange(len(part)), part] = False
        classifiers = model.adapt(features, targets, present, num_samples, generator)  # [S, B, N, E]
        scores = (classifiers @ embedded[part].unsqueeze(2)).squeeze(3)
        yield scores.double().softmax(-1).mean(0)
