"""Images as people have them: paths, Pillow's images, arrays, tensors; and which of what is given are images at all."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pretrain.fingerprint import shown
from pretrain.sources.images import Framing, decode, standard, upright
from runner.errors import InputError


def are_images(X: Any) -> bool:
    """Whether ``X`` holds images: paths, Pillow's images, or arrays of pixels. Else it is a matrix of features."""
    if isinstance(X, np.ndarray | Tensor) and X.ndim != 1:
        return X.ndim > 2
    if not isinstance(X, Sequence | np.ndarray) or isinstance(X, str) or not len(X):
        return False
    first = X[0]
    return isinstance(first, str | os.PathLike | Image.Image) or (
        isinstance(first, np.ndarray | Tensor) and first.ndim in (2, 3)
    )


def pixels(image: Any, name: str, size: int, mode: str, framing: Framing | None = None) -> Tensor:
    """uint8 [size, size, C] of one image; ``mode`` is RGB or L. ``name`` is for the message about a bad array.

    Arrays are [H, W] or [H, W, C]; tensors too, or [C, H, W]. Numbers are uint8, or fractions of white, 0 to 1.
    """
    if isinstance(image, str | os.PathLike):
        array = decode(Path(image), shown(image), size, mode, is_photograph=True, framing=framing)
    elif isinstance(image, Image.Image):
        array = standard(upright(image), size, mode, framing)
    else:
        array = standard(Image.fromarray(as_uint8(image, name)), size, mode, framing)
    return torch.from_numpy(np.array(array))


def as_uint8(image: NDArray[Any] | Tensor, name: str) -> NDArray[np.uint8]:
    """uint8 [H, W] or [H, W, 3 or 4] of an array or a tensor of pixels."""
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.ndim == 3 and isinstance(image, Tensor) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or not array.size:
        raise InputError(
            f"{name} has the shape {list(image.shape)}; pixels are [H, W] or [H, W, C] with C of 1, 3 or 4"
        )
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating) or array.min() < 0 or array.max() > 1:
        raise InputError(
            f"{name} holds {array.dtype} numbers from {array.min()} to {array.max()}; pixels are uint8, 0 to 255, or "
            f"fractions, 0 to 1"
        )
    return np.rint(255 * array).astype(np.uint8)
