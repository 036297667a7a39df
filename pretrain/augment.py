"""From stored images to the network's input: augmentation of whole batches on their device, then scaling.

An augmentation is a module from uint8 images [B, H, W, C] to uint8 images [B, H', W', C]; it draws from torch's
default generator and independently for each image.
"""

import torch
from torch import Tensor, nn


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
            raise ValueError(f"max_shift={max_shift} is negative; 0 turns the shift off")
        self.max_shift = max_shift

    def forward(self, images: Tensor) -> Tensor:
        batch_size, height, width, _ = images.shape
        if self.max_shift >= min(height, width):
            raise ValueError(
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
