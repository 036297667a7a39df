"""From stored images to the network's input: crops and augmentation of whole batches on their device, then scaling.

A crop or an augmentation is a module from uint8 images [B, H, W, C] to uint8 images [B, H', W', C]. An augmentation
draws from torch's default generator and independently for each image; torchvision's draw once for a whole batch.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.errors import InputError


def to_float(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(images / 255 - mean) / std as float [B, C, H, W], of uint8 images [B, H, W, C].

    ``mean`` and ``std`` [C] are in units of the full range, 0 to 1.
    """
    return ((images / 255 - mean) / std).permute(0, 3, 1, 2)


class RandomShift(nn.Module):
    """Moves each image by up to ``max_shift`` pixels along each axis, uniformly, and fills in by reflection."""

    def __init__(self, max_shift: int) -> None:
        super().__init__()
        if max_shift < 0:
            raise InputError(f"max_shift={max_shift} is negative; 0 turns the shift off")
        self.max_shift = max_shift

    def forward(self, images: Tensor) -> Tensor:
        batch_size, height, width, _ = images.shape
        if self.max_shift >= min(height, width):
            raise InputError(
                f"max_shift={self.max_shift} leaves nothing to reflect in images of {height}x{width}; "
                f"choose at most {min(height, width) - 1}"
            )
        shifts = torch.randint(-self.max_shift, self.max_shift + 1, (2, batch_size, 1), device=images.device)
        rows = reflect(torch.arange(height, device=images.device) + shifts[0], height)  # [B, H]
        columns = reflect(torch.arange(width, device=images.device) + shifts[1], width)  # [B, W]
        batch = torch.arange(batch_size, device=images.device)
        return images[batch[:, None, None], rows[:, :, None], columns[:, None, :]]


def reflect(index: Tensor, size: int) -> Tensor:
    """Indices beyond 0 .. size - 1 by less than ``size``, mirrored at the edge pixels."""
    return (size - 1) - ((size - 1) - index.abs()).abs()


def resize_windows(images: Tensor, windows: Tensor, size: int) -> Tensor:
    """A window of each image, resized to ``size`` x ``size`` by bilinear interpolation, float [B, C, size, size].

    ``windows`` [B, 4] holds the vertical centre, the horizontal centre, the height and the width as fractions of the
    image's sides. A negative width mirrors.
    """
    offsets = (torch.arange(size, device=images.device) + 0.5) / size - 0.5  # of the new pixels from the centre
    rows, columns = (windows[:, :2, None] + windows[:, 2:, None] * offsets).unbind(dim=1)  # [B, size] each
    grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), dim=-1)
    return F.grid_sample(
        images.permute(0, 3, 1, 2).float(), 2 * grid - 1, mode="bilinear", padding_mode="border", align_corners=False
    )


def to_uint8(images: Tensor) -> Tensor:
    """uint8 images [B, H, W, C] of float images [B, C, H, W] in grey levels, 0 to 255."""
    return images.round().clamp(0, 255).byte().permute(0, 2, 3, 1)


class Crop(nn.Module):
    """The part of each image in proportion to its sides that covers ``area`` of it, resized to ``size`` x ``size``.

    ``place`` is -1 (top, left), 0 (centre) or 1 (bottom, right) for each axis.
    """

    def __init__(self, *, area: float, size: int, place: tuple[int, int] = (0, 0), mirrored: bool = False) -> None:
        super().__init__()
        if not 0 < area <= 1:
            raise InputError(f"area={area} is not a fraction of the image; it must be more than 0 and at most 1")
        if size < 1:
            raise InputError(f"size={size} must be at least 1 pixel")
        self.area, self.size, self.place, self.mirrored = area, size, place, mirrored

    def forward(self, images: Tensor) -> Tensor:
        side = math.sqrt(self.area)
        centre = [0.5 + 0.5 * place * (1 - side) for place in self.place]
        window = torch.tensor([*centre, side, -side if self.mirrored else side], device=images.device)
        return to_uint8(resize_windows(images, window.expand(len(images), 4), self.size))

    def multiview(self) -> list["Crop"]:
        """The ten views of Appendix B.2: this crop at the centre and at the four corners, and the mirror of each."""
        places = [(0, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)]
        return [
            Crop(area=self.area, size=self.size, place=place, mirrored=mirrored)
            for place in places
            for mirrored in (False, True)
        ]


class InceptionAugment(nn.Module):
    """A random window resized to ``size`` x ``size``, mirrored half of the time, in random colours.

    As Inception is trained (Szegedy et al., 2015), with YIQ's colour axes for hue and saturation. ``area`` (a fraction
    of the image) and ``aspect`` (width / height, uniform in the logarithm) are the window's least and most.
    ``brightness`` (of the full range) and ``hue`` (in turns) are the greatest changes; ``contrast`` and ``saturation``
    those of factors around 1.
    """

    def __init__(
        self,
        *,
        size: int,
        area: Sequence[float],
        aspect: Sequence[float],
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
    ) -> None:
        super().__init__()
        if not 0 < area[0] <= area[1] <= 1:
            raise InputError(f"area={list(area)} must be two rising fractions of the image, more than 0 and at most 1")
        if not 0 < aspect[0] <= aspect[1]:
            raise InputError(f"aspect={list(aspect)} must be two rising positive numbers")
        self.size, self.area, self.aspect = size, area, aspect
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        to_yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
        self.to_yiq: Tensor
        self.from_yiq: Tensor
        self.register_buffer("to_yiq", to_yiq, persistent=False)
        self.register_buffer("from_yiq", to_yiq.inverse(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-1] != 3:
            raise InputError(f"images have {images.shape[-1]} channels; colours can be changed in images with 3")
        windows = self.windows(len(images), images.shape[1], images.shape[2], images.device)
        return to_uint8(self.distort(resize_windows(images, windows, self.size)))

    def windows(self, batch_size: int, height: int, width: int, device: torch.device) -> Tensor:
        """Random windows [B, 4] as :func:`resize_windows` takes them."""
        # Of ten draws the first one that fits into the image, as is usual; ten that all fail are clamped.
        area = torch.empty(10, batch_size, device=device).uniform_(*self.area)
        aspect = torch.empty_like(area).uniform_(math.log(self.aspect[0]), math.log(self.aspect[1])).exp()
        aspect = aspect * height / width  # in fractions of the sides
        sides = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()], dim=-1)  # [10, B, 2]
        first = (sides <= 1).all(dim=-1).byte().argmax(dim=0)
        sides = sides[first, torch.arange(batch_size, device=device)].clamp(max=1)
        centres = 0.5 + (torch.rand_like(sides) - 0.5) * (1 - sides)
        flip = torch.randint(2, (batch_size,), device=device) * 2 - 1
        return torch.cat([centres, sides[:, :1], sides[:, 1:] * flip[:, None]], dim=1)

    def distort(self, images: Tensor) -> Tensor:
        """Float images [B, 3, H, W] in grey levels, each with its own random colours; not limited to 0 to 255."""
        around = torch.empty(4, len(images), device=images.device).uniform_(-1, 1)
        brightness, contrast = 255 * self.brightness * around[0], 1 + self.contrast * around[1]
        saturation, angle = 1 + self.saturation * around[2], 2 * math.pi * self.hue * around[3]
        # Hue turns and saturation stretches the two colour axes of YIQ.
        turn = torch.zeros(len(images), 3, 3, device=images.device)
        turn[:, 0, 0] = 1
        turn[:, 1, 1] = turn[:, 2, 2] = saturation * angle.cos()
        turn[:, 2, 1] = saturation * angle.sin()
        turn[:, 1, 2] = -turn[:, 2, 1]
        pixels = (self.from_yiq @ turn @ self.to_yiq) @ images.flatten(2)  # [B, 3, H * W]
        mean = pixels.mean(dim=2, keepdim=True)
        pixels = contrast[:, None, None] * (pixels - mean) + mean + brightness[:, None, None]
        return pixels.view_as(images)
