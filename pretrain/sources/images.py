"""Encoded images to arrays of one size and one mode."""

from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from runner.errors import InputError

try:
    import pillow_heif
except ImportError:  # the extra "heic"
    pass
else:
    pillow_heif.register_heif_opener()

AGAIN = "; replace it and start again, which goes on from there"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by the orientation that a camera notes

_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_STARTS = (
    (b"AVI ", "a film (AVI)"),  # after RIFF and a length
    (b"WAVE", "sound (WAV)"),
    (b"\x1aE\xdf\xa3", "a film (Matroska or WebM)"),
    (b"\x00\x00\x01\xba", "a film (MPEG)"),
    (b"\x00\x00\x01\xb3", "a film (MPEG)"),
    (b"FLV\x01", "a film (Flash)"),
    (b"0&\xb2u\x8ef\xcf\x11", "a film or sound (Windows Media)"),
    (b"OggS", "a film or sound (Ogg)"),
    (b"ID3", "sound (MP3)"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive or an office document"),
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\xff\x0a", "JPEG XL, which Pillow does not read"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL, which Pillow does not read"),
    (b"FUJIFILMCCD-RAW", "a raw photograph"),
    (b"version https://git-lfs", "a pointer of Git LFS: `git lfs pull` fetches what it points to"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<svg", "a drawing (SVG), which Pillow does not read"),
    (b"<?xml", "XML text, maybe a drawing (SVG), which Pillow does not read"),
)


class Framing(NamedTuple):
    """The square at the centre, as networks are tested on photographs, where else both sides are resized at once.

    The shorter side is resized to size / ``crop_fraction``, and the middle is cut out. ``filter`` is one of Pillow's:
    bilinear, bicubic, lanczos.
    """

    crop_fraction: float
    filter: str


def decode(
    content: bytes | Path,
    name: str | Path,
    size: int,
    mode: str,
    *,
    is_photograph: bool = False,
    framing: Framing | None = None,
) -> NDArray[np.uint8]:
    """uint8 [size, size, C] of an encoded image, in memory or at a path; ``mode`` is RGB (C = 3) or L (grey, C = 1).

    Without ``framing`` both sides are resized at once (Lanczos), as in the files that circulate; an image that has the
    size is left as it is. Grey, palette, CMYK and 16-bit images are converted; what is transparent becomes white.
    ``is_photograph`` turns the image as the camera noted, and lets the decoder of JPEG reduce it to no less than twice
    the size needed; those of benchmarks are left as they are. ``name`` is for the message about a bad image. Of a file
    that is no image only the first bytes are read.
    """
    try:
        with Image.open(BytesIO(content) if isinstance(content, bytes) else content) as image:
            if is_photograph:
                needed = size if framing is None else round(size / framing.crop_fraction)
                image.draft(mode, (2 * needed, 2 * needed))
            return standard(upright(image) if is_photograph else image, size, mode, framing)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything on bytes that they do not expect; the file is what is wrong
        problem = no_image(content) or f"is truncated or damaged ({error})"
        raise InputError(f"image {name} {problem}{AGAIN}") from error


def no_image(content: bytes | Path) -> str | None:
    """Why an encoded image, in memory or at a path, is none, by its first bytes: the rest of a sentence."""
    try:
        head = _head(content)
        if not head:
            return "is empty (0 bytes)"
        with Image.open(BytesIO(content) if isinstance(content, bytes) else content):
            return None
    except UnidentifiedImageError:
        return f"is not an image{_kind(head)}"
    except Exception as error:  # as in decode
        if isinstance(error, OSError) and error.errno is not None:
            return f"cannot be read ({error.strerror})"
        return f"is truncated or damaged ({error})"


def _head(content: bytes | Path) -> bytes:
    if isinstance(content, bytes):
        return content[:64]
    with content.open("rb") as file:
        return file.read(64)


def _kind(head: bytes) -> str:
    """What a file with this head is instead of an image, where that is known."""
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    if brand in _HEIC:
        return ": it is HEIC, which needs the extra \"heic\" (pip install -e '.[heic]', or pip install pillow-heif)"
    if brand:
        return (
            ": it is AVIF, damaged or not read by this Pillow"
            if brand == b"avif"
            else ": it is a film (MP4, QuickTime)"
        )
    start = head if head[:4] != b"RIFF" else head[8:12]
    text = head.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    names = (name for magic, name in _STARTS if start.startswith(magic) or text.startswith(magic))
    return "".join(f": it is {name}" for name in [*names][:1])


def upright(image: Image.Image) -> Image.Image:
    """The image turned as the camera noted; as it is where the note cannot be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a malformed note, on which Pillow raises anything
        return image
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def standard(image: Image.Image, size: int, mode: str, framing: Framing | None = None) -> NDArray[np.uint8]:
    """uint8 [size, size, C] of an opened image, as ``decode`` makes it."""
    flat = to_mode(image, mode)
    if framing is None:
        return resize(np.asarray(flat).reshape(flat.height, flat.width, -1), size)
    box = [edge for pair in zip(*square(flat.width, flat.height, size, framing), strict=True) for edge in pair]
    method = Image.Resampling[framing.filter.upper()]
    return np.asarray(flat.resize((size, size), method, box=(box[0], box[1], box[2], box[3]))).reshape(size, size, -1)


def square(width: int, height: int, size: int, framing: Framing) -> tuple[tuple[float, float], tuple[float, float]]:
    """What of an image lies in the frame: from where to where, for its columns and for its rows.

    In whole pixels of the resized image, as torchvision crops it, but in the pixels of the image itself: only what lies
    in the frame is computed.
    """
    shorter, edges = round(size / framing.crop_fraction), []
    for side in (width, height):
        resized = int(shorter * side / min(width, height))
        start = round((resized - size) / 2)
        edges.append((start * side / resized, (start + size) * side / resized))
    return edges[0], edges[1]


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
