"""A small convolutional classifier: one whose parameters a learner can generate."""

import itertools

from jaxtyping import Float
from torch import Tensor, nn

from runner.errors import InputError


class SmallConvNet(nn.Module):
    """Three convolutions (3 x 3, stride 2, ReLU; C, 2 C, 2 C channels), means over quarters of the map, a linear layer.

    Without batch norm, whose running means would mix tasks.

    Args:
        image_size: S, of images of S x S pixels, a multiple of 16, whose numbers come row by row, channels last.
        in_channels: of the images.
        num_channels: C.
        num_classes: N.
    """

    def __init__(self, *, image_size: int, in_channels: int, num_channels: int, num_classes: int) -> None:
        super().__init__()
        if image_size % 16:
            raise InputError(f"image_size={image_size} must be a multiple of 16")
        self.shape = (image_size, image_size, in_channels)
        channels = (in_channels, num_channels, 2 * num_channels, 2 * num_channels)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(num_in, num_out, 3, stride=2, padding=1) for num_in, num_out in itertools.pairwise(channels)
        )
        self.quarters = nn.AvgPool2d(image_size // 16)
        self.classifier = nn.Linear(8 * num_channels, num_classes)

    def forward(self, x: Float[Tensor, "n X"]) -> Float[Tensor, "n N"]:
        """A logit for each class."""
        maps = x.unflatten(1, self.shape).movedim(3, 1)
        for convolution in self.convolutions:
            maps = convolution(maps).relu()
        return self.classifier(self.quarters(maps).flatten(1))
