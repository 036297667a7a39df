"""The feature extractor: a pre-activation wide residual network (Zagoruyko & Komodakis, 2016).

Layers are counted as the convolutions in order of execution, a group's shortcut before the main path of its first
block. In WRN-28-10 layer 1 is the stem, layers 2, 11 and 20 are the shortcuts and layer 28 is the last convolution.
The paper takes its features from "layer 21" (Appendix B.2) and does not define its count; this one gives the 28 of
the name and puts 21 at the first 3x3 convolution of group 3 (640 channels). In WRN-10-2 the counterpart is layer 9.
"""

from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from runner.errors import InputError

BASE_CHANNELS = 16
NUM_GROUPS = 3


def conv3x3(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


class Block(nn.Module):
    """The parameters of a pre-activation block; the first block of a group has a 1x1 convolution as its shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float, *, first: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False) if first else None
        )
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(out_channels, out_channels, stride=1)


class WideResNet(nn.Module):
    """WRN-``depth``-``width``: a stem, three groups of (depth - 4) / 6 blocks, a linear classifier.

    The groups have 16, 32 and 64 times ``width`` channels and begin with their entry of ``strides``. Every group's
    first block has a 1x1 shortcut convolution, also where the channels match, so there are exactly ``depth``
    convolutions: 1 + 3 (1 + 2 (depth - 4) / 6). ``dropout`` acts between the two convolutions of each block.
    """

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        num_classes: int,
        in_channels: int,
        strides: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        blocks_per_group, rest = divmod(depth - 4, 6)
        if rest or blocks_per_group < 1:
            below = max(depth - rest, 10)
            nearest = f"{below}" if depth < below else f"{below} or {below + 6}"
            raise InputError(f"depth={depth} is not 6n + 4 with n of at least 1; the nearest is {nearest}")
        if len(strides) != NUM_GROUPS:
            raise InputError(f"strides={list(strides)} has {len(strides)} entries; give one per group, {NUM_GROUPS}")
        self.name = f"WRN-{depth}-{width}"
        self.depth = depth
        self.shortcut_layers = tuple(2 + group * (2 * blocks_per_group + 1) for group in range(NUM_GROUPS))
        self.main_layers = tuple(layer for layer in range(1, depth + 1) if layer not in self.shortcut_layers)

        channels = BASE_CHANNELS
        self.stem = conv3x3(in_channels, channels, stride=1)
        self.blocks = nn.ModuleList()
        for group, stride in enumerate(strides):
            out_channels = BASE_CHANNELS * 2**group * width
            for index in range(blocks_per_group):
                first = index == 0
                self.blocks.append(Block(channels, out_channels, stride if first else 1, dropout, first=first))
                channels = out_channels
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.classifier.bias)

    @property
    def penultimate(self) -> int:
        """The last convolution, whose features the classifier reads."""
        return self.depth

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes] of float images [B, in_channels, H, W]."""
        return self.classifier(self.features(images, [self.penultimate])[self.penultimate])

    def features(self, images: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Each layer's representation, float32 [B, channels], from one pass that ends after the last one asked for.

        A representation is the layer's output after the norm and the ReLU that follow it on the main path (for the
        second convolution of a block: after the addition), averaged over the image.
        """
        for layer in layers:
            self._check_layer(layer)
        pooled: dict[int, Tensor] = {}
        last = max(layers)
        for layer, activation in zip(self.main_layers, self._activations(images), strict=True):
            if layer in layers:
                pooled[layer] = activation.float().mean(dim=(2, 3))
            if layer == last:
                break
        return pooled

    def _activations(self, images: Tensor) -> Iterator[Tensor]:
        """The output [B, channels, height, width] of each of ``main_layers`` after its norm and ReLU, lazily."""
        stream = self.stem(images)
        for block in self.blocks:
            assert isinstance(block, Block)
            entry = F.relu(block.norm1(stream))
            yield entry
            hidden = F.relu(block.norm2(block.conv1(entry)))
            yield hidden
            identity = stream if block.shortcut is None else block.shortcut(entry)
            stream = identity + block.conv2(block.dropout(hidden))
        yield F.relu(self.norm(stream))

    def _check_layer(self, layer: int) -> None:
        if layer in self.shortcut_layers:
            raise InputError(
                f"layer {layer} of {self.name} is a shortcut, which has no norm of its own; "
                f"choose {layer - 1} or {layer + 1}"
            )
        if layer not in self.main_layers:
            raise InputError(f"layer {layer} is not in {self.name}; its layers are 1 to {self.depth}")
