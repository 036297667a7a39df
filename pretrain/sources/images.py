"""Encoded images to arrays of one size and one mode."""

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from runner.errors import InputError


def decode(content: bytes, name: str | Path, size: int, mode: str, *, is_photograph: bool = False) -> NDArray[np.uint8]:
    """uint8 [size, size, C] of an encoded image; ``mode`` is RGB (C = 3) or L (grey, C = 1).

    Both sides are resized at once (Lanczos), as in the files that circulate; an image that has the size is left as it
    is. Grey, palette, CMYK and 16-bit images are converted; what is transparent becomes white. ``is_photograph`` turns
    the image as the camera noted; those of benchmarks are left as they are. ``name`` is for the message about a bad
    image.
    """
    if not content:
        raise InputError(f"image {name} is empty (0 bytes); replace it and start again, which goes on from there")
    try:
        with Image.open(BytesIO(content)) as image:
            return standard(ImageOps.exif_transpose(image) if is_photograph else image, size, mode)
    except UnidentifiedImageError:
        raise InputError(
            f"image {name} is not an image; replace it and start again, which goes on from there"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(
            f"image {name} is truncated or damaged ({error}); replace it and start again, which goes on from there"
        ) from error


def standard(image: Image.Image, size: int, mode: str) -> NDArray[np.uint8]:
    """uint8 [size, size, C] of an opened image, as ``decode`` makes it."""
    flat = to_mode(image, mode)
    return resize(np.asarray(flat).reshape(flat.height, flat.width, -1), size)


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """uint8 [size, size, C] of uint8 [H, W, C], both sides at once."""
    if image.shape[:2] == (size, size):
        return image
    picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
    return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS)).reshape(size, size, -1)


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """The opened image as RGB or L (grey)."""
    if image.mode in ("F", "I"):
        raise InputError(f"its pixels are 32-bit numbers (mode {image.mode}), whose range is not known")
    if image.mode.startswith("I;16"):  # Pillow would cut all above 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert(mode)
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert(mode)
    return image.convert(mode)
