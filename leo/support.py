"""A support whose classes differ in their number of images, as a trained learner meets it in use."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot


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

    def loss_gradient(self, weights: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Gradient of the inner loss with respect to classifiers: the weighted sum over images of (p - y) x."""
        of_class = self.num_shot * (self.num_way / len(self.targets)) ** 0.5
        counts = of_class * self.class_mean.sum(1, keepdim=True)
        return ((weights @ self.images.T).softmax(1) - self.targets) * counts @ self.images


def labelled(images: Float[Tensor, "n D"], labels: Int[Tensor, " n"], num_shot: int, num_way: int) -> Support:
    """One adaptation, which sees all images; ``labels`` are 0 to N - 1, the numbers those of training."""
    present = torch.ones(1, len(labels), dtype=torch.bool, device=labels.device)
    return Support(images, one_hot(labels).T.to(images), present, num_shot, num_way)
