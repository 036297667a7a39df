"""The support of tasks: K images a class, as in training, or classes that differ in their number of images.

The functions below take both forms, so that a learner is written once.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from leo import softmax


class Support(NamedTuple):
    """Labelled images, and which of them each of B adaptations sees: all, or, to test itself, all but one.

    In training, tasks had ``num_way`` classes of ``num_shot`` images, and the inner losses were sums over images. Here
    the images of a class together count as ``num_shot``, however many they are: else a class with more of them would
    draw the classifier to itself. And N classes count as the square root of N ``num_way``: else the steps, whose length
    was learned, would be too long. docs/predict.md has the measurements.

    ``targets`` are 1 where an image is of a class, else 0; in every row of ``present`` each class has an image.
    """

    images: Float[Tensor, "n D"]
    targets: Float[Tensor, "N n"]
    present: Bool[Tensor, "B n"]
    num_shot: int
    num_way: int

    @property
    def partner_mean(self) -> Float[Tensor, "B n"]:
        """What each image contributes to a mean over all images."""
        present = self.present.to(self.images)
        return present / present.sum(1, keepdim=True)

    @property
    def class_mean(self) -> Float[Tensor, "B N n"]:
        """What each image contributes to the mean over its class."""
        members = self.present.unsqueeze(1) * self.targets
        return members / members.sum(2, keepdim=True)

    def labels(self) -> softmax.Labels:
        """The class of each image, and how often it counts in the inner loss."""
        of_class = self.num_shot * (self.num_way / len(self.targets)) ** 0.5
        return softmax.Labels(self.targets, of_class * self.class_mean.sum(1, keepdim=True))


AnySupport = Float[Tensor, "B N K D"] | Support


def labelled(images: Float[Tensor, "n D"], labels: Int[Tensor, " n"], num_shot: int, num_way: int) -> Support:
    """One adaptation, which sees all images; ``labels`` are 0 to N - 1, the numbers those of training."""
    present = torch.ones(1, len(labels), dtype=torch.bool, device=labels.device)
    return Support(images, one_hot(labels).T.to(images), present, num_shot, num_way)


def images_of(support: AnySupport) -> Tensor:
    """The images, whose last dimension is features: [B, N, K, D] in training, else [n, D]."""
    return support.images if isinstance(support, Support) else support


def mean_over_class(x: Tensor, support: AnySupport) -> Float[Tensor, "B N *any"]:
    """The mean over the images of each class of ``x``, which has a row for each image of ``images_of(support)``."""
    return support.class_mean @ x if isinstance(support, Support) else x.mean(2)


def sizes_of(support: AnySupport) -> tuple[int, int, int]:
    """Number of adaptations B, classes N, and images K that a class counts for."""
    if isinstance(support, Support):
        return len(support.present), len(support.targets), support.num_shot
    num_tasks, num_way, num_shot, _ = support.shape
    return num_tasks, num_way, num_shot


class LabelledImages(NamedTuple):
    """Images in a row, [B, N K, D] or [n, D], and their labels; None: K of class 0, then K of class 1, ..."""

    images: Tensor
    labels: softmax.Labels | None


def examples_of(support: AnySupport) -> LabelledImages:
    """The support as the inner losses of ``leo.softmax`` take it."""
    if isinstance(support, Support):
        return LabelledImages(support.images, support.labels())
    return LabelledImages(support.flatten(1, 2), None)


def support_loss(weights: Float[Tensor, "B N D"], support: AnySupport) -> Float[Tensor, " B"]:
    """The inner loss of each task (Eq. 5): cross-entropy of the classifiers ``weights``, summed over the support."""
    if not isinstance(support, Support):
        return softmax.cross_entropy(softmax.logits(weights, support)).sum((1, 2))
    logits, labels = weights @ support.images.T, support.labels()  # [B, N, n]
    of_image = logits.logsumexp(1) - (logits * labels.targets).sum(1)
    return (of_image * labels.counts.squeeze(1)).sum(1)
