"""The embedded data set: classes are Unicode characters, samples are typefaces inside the matplotlib wheel.

Lengths in this file are pixels of a 64x64 drawing, whose 2x2 means give the 32x32 image; a larger
``image_size`` samples the same drawing more finely.
"""

import importlib.resources
import json
import unicodedata
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageFont
from rich.console import Console
from rich.progress import Progress
from scipy.interpolate import CubicSpline
from scipy.ndimage import map_coordinates

from pretrain.store import missing_splits, write_split
from runner.errors import InputError, MissingFileError
from runner.folder import taking_turns

FONTS = Path(matplotlib.get_data_path(), "fonts", "ttf")

_FACES = [
    f"{family}{style}.ttf"
    for family, styles in {
        "DejaVuSans": ("", "-Bold", "-Oblique", "-BoldOblique"),
        "DejaVuSansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
        "DejaVuSerif": ("", "-Bold", "-Italic", "-BoldItalic"),
        "STIXGeneral": ("", "Bol", "Italic", "BolIta"),
    }.items()
    for style in styles
]
_ALPHABETS = {"LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "GEORGIAN"}

_FONT_SIZE = 96
_SIDE = 64  # of the drawing that becomes the image
_GLYPH = 44  # longer side of a glyph's ink
_KNOTS = 7  # of the elastic field, along each side
_KNOT_SPACING = 12
_MIN_SIZE = 8  # of an image; below, strokes vanish


def build(folder: Path, *, images_per_class: int, image_size: int, seed: int) -> None:
    """Write the splits that ``folder`` lacks; splits made by other settings are an error.

    Safe to call from several processes at once: one builds, the others wait and find the work done.
    """
    if images_per_class < 1:
        raise InputError(f"images_per_class={images_per_class} must be at least 1")
    if image_size < _MIN_SIZE:
        raise InputError(f"image_size={image_size} cannot show a character; it must be at least {_MIN_SIZE}")
    source = {"images_per_class": images_per_class, "image_size": image_size, "seed": seed}
    if not missing_splits(folder, "glyphs", source):
        return
    with taking_turns(folder / ".build.lock", f"the images in {folder}"):
        missing = missing_splits(folder, "glyphs", source)
        if not missing:
            return
        all_classes, all_faces = classes(), faces()
        with Progress(console=Console(stderr=True)) as progress:
            bar = progress.add_task("Drawing glyphs", total=sum(len(all_classes[split]) for split in missing))
            for split in missing:
                characters = all_classes[split]
                drawn = []
                for character in characters:
                    drawn.append(draw_class(character, characters, all_faces, images_per_class, image_size, seed))
                    progress.advance(bar)
                images = torch.from_numpy(np.concatenate(drawn))
                offsets = torch.arange(len(characters) + 1) * images_per_class
                write_split(folder, split, images, offsets, list(characters), "glyphs", source)


def classes() -> dict[str, str]:
    """The characters of each split, every one a class; none looks like another."""
    text = importlib.resources.files("pretrain").joinpath("glyph_classes.json").read_text(encoding="utf-8")
    return json.loads(text)


def faces(folder: Path = FONTS) -> list[Path]:
    """The 16 font files: DejaVu Sans, Sans Mono, Serif and STIXGeneral, four styles each."""
    for name in _FACES:
        if not (folder / name).is_file():
            raise MissingFileError(
                f"{folder / name} does not exist, the glyphs need all {len(_FACES)} faces that matplotlib "
                f"ships; reinstall it with `pip install --force-reinstall matplotlib`"
            )
    return [folder / name for name in _FACES]


def draw_class(
    character: str,
    characters: str,
    faces: list[Path],
    num_images: int,
    image_size: int,
    seed: int,
) -> NDArray[np.uint8]:
    """Images of ``character``, light on dark, uint8 [num_images, image_size, image_size, 1].

    They cycle over the faces that have the character. They depend on the seed, the character and, through
    the neighbours in the picture, on ``characters`` (its split), and on nothing drawn before.
    """
    own_faces = [face for face in faces if character in _characters(face)]
    if not own_faces:
        raise InputError(
            f"none of the {len(faces)} faces has {character!r} (U+{ord(character):04X}); "
            f"reinstall matplotlib or drop the class from glyph_classes.json"
        )
    rng = np.random.default_rng((seed, ord(character)))
    images = []
    for i in range(num_images):
        face = own_faces[i % len(own_faces)]
        line = typeset(character, same_script(face, character, characters), face, rng)
        images.append(_photograph(_distort(line, image_size, rng), rng))
    return np.stack(images)[..., None]


@cache
def same_script(face: Path, character: str, characters: str) -> str:
    """Those of ``characters`` that the face has and that share the script of ``character``."""
    script = _script(character)
    return "".join(c for c in characters if c in _characters(face) and _script(c) == script)


def typeset(character: str, neighbours: str, face: Path, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The character in the middle of uint8 [64, 192], with a neighbour on each side 7 times in 10."""
    line = np.zeros((_SIDE, 3 * _SIDE), np.uint8)

    def place(glyph: NDArray[np.uint8], left: int) -> None:
        height, width = glyph.shape
        top = (_SIDE - height) // 2
        line[top : top + height, left : left + width] = glyph

    centre = _glyph(character, face)
    start = (line.shape[1] - centre.shape[1]) // 2
    place(centre, start)
    for side in ("left", "right"):
        if rng.random() < 0.7:
            neighbour = _glyph(neighbours[rng.integers(len(neighbours))], face)
            gap = int(rng.integers(4, 9, endpoint=True))
            left = start - gap - neighbour.shape[1] if side == "left" else start + centre.shape[1] + gap
            place(neighbour, left)
    return line


@cache
def _characters(face: Path) -> frozenset[str]:
    """All characters the face has."""
    return frozenset(map(chr, FT2Font(str(face)).get_charmap()))


def _script(character: str) -> str:
    first_word = unicodedata.name(character).split()[0]
    return first_word if first_word in _ALPHABETS else "SYMBOL"


@cache
def _font(face: Path) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(face, _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


@cache
def _glyph(character: str, face: Path) -> NDArray[np.uint8]:
    """Ink of the character, uint8 [height, width] with the longer side 44."""
    mask = _font(face).getmask(character)
    ink = Image.frombytes("L", mask.size, bytes(mask))
    ink = ink.crop(ink.getbbox())
    scale = _GLYPH / max(ink.size)
    width, height = (max(1, round(scale * side)) for side in ink.size)
    return np.asarray(ink.resize((width, height), Image.Resampling.BILINEAR))


def _distort(line: NDArray[np.uint8], image_size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """The middle of the line through a random affine map and elastic field, [0, 1], [size, size]."""
    angle = np.deg2rad(rng.uniform(-18, 18))
    shear = rng.uniform(-0.3, 0.3)
    scale = rng.uniform(0.65, 1.15)
    stretch = np.exp(rng.uniform(-0.15, 0.15) / 2)  # its square is the aspect, width over height
    shift = rng.uniform(-6, 6, (2, 1, 1))
    knots = rng.normal(0, 3.2, (2, _KNOTS, _KNOTS))

    # Rows before columns in every vector below; the map goes from the picture back to the line.
    cos, sin = np.cos(angle), np.sin(angle)
    forward = (
        np.array([[cos, sin], [-sin, cos]])
        @ np.array([[1, 0], [shear, 1]])
        @ np.diag([scale / stretch, scale * stretch])
    )
    position = _positions(2 * image_size)
    picture = np.stack(np.meshgrid(position, position, indexing="ij")) - shift
    basis = _spline_basis(2 * image_size)
    rows, columns = np.tensordot(np.linalg.inv(forward), picture, axes=1) + basis @ knots @ basis.T
    centre = np.array(line.shape) / 2 - 0.5
    fine = map_coordinates(line, [rows + centre[0], columns + centre[1]], output=np.float64, order=1)
    return fine.reshape(image_size, 2, image_size, 2).mean((1, 3)) / 255


def _positions(num_pixels: int) -> NDArray[np.float64]:
    """Pixel centres along one side of the drawing, relative to its middle."""
    return ((np.arange(num_pixels) + 0.5) / num_pixels - 0.5) * _SIDE


@cache
def _spline_basis(num_pixels: int) -> NDArray[np.float64]:
    """Interpolating cubic spline as a matrix from its knots to the pixels, [num_pixels, 7]."""
    knots = (np.arange(_KNOTS) - (_KNOTS - 1) / 2) * _KNOT_SPACING
    return CubicSpline(knots, np.eye(_KNOTS))(_positions(num_pixels))


def _photograph(ink: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The ink at a random contrast over a background that brightens in a random direction, with noise."""
    direction = rng.uniform(0, 2 * np.pi)
    brightest = rng.uniform(0, 0.4)
    contrast = rng.uniform(0.4, 1.0)
    position = np.linspace(-1, 1, len(ink))
    slope = np.cos(direction) * position + np.sin(direction) * position[:, None]
    background = brightest * (slope - slope.min()) / np.ptp(slope)
    image = background + contrast * ink * (1 - background) + rng.normal(0, 0.10, ink.shape)
    return np.rint(255 * image.clip(0, 1)).astype(np.uint8)
