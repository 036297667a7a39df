"""Encoded images of every kind that lies about, decoded to one."""

import struct
import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps, JpegImagePlugin
from torchvision.transforms import InterpolationMode, functional

from pretrain.sources.images import Framing, decode, no_image, resize, standard, upright


def encoded(image, kind="PNG", **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


GREY16 = Image.fromarray(np.full((5, 7), 0x8000, np.uint16))
PALETTE = Image.new("RGB", (7, 5), (10, 200, 30)).quantize(4)
CLEAR = Image.new("RGBA", (7, 5), (10, 20, 30, 0))
CLEAR_PALETTE = Image.new("P", (7, 5), 3)
CLEAR_PALETTE.putpalette([0, 0, 0, 1, 1, 1, 2, 2, 2, 10, 200, 30])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(Image.new("RGB", (7, 5), (10, 200, 30))), (10, 200, 30)),
        (encoded(Image.new("L", (7, 5), 77)), (77, 77, 77)),
        (encoded(Image.new("L", (7, 5), 77), "JPEG"), (77, 77, 77)),
        (encoded(Image.new("1", (7, 5), 1)), (255, 255, 255)),
        (encoded(Image.new("CMYK", (7, 5), (255, 0, 0, 0)), "JPEG", quality=95), (0, 255, 255)),
        (encoded(PALETTE), (10, 200, 30)),
        (encoded(GREY16), (128, 128, 128)),
        (encoded(CLEAR), (255, 255, 255)),
        (encoded(Image.new("LA", (7, 5), (77, 255))), (77, 77, 77)),
        (encoded(CLEAR_PALETTE, transparency=bytes([255, 255, 255, 0])), (255, 255, 255)),
        (encoded(Image.new("RGBA", (7, 5), (10, 20, 30, 255))), (10, 20, 30)),
    ],
    ids=[
        "RGB",
        "grey",
        "grey JPEG",
        "1 bit",
        "CMYK",
        "palette",
        "16 bit",
        "clear",
        "grey+alpha",
        "clear palette",
        "RGBA",
    ],
)
def test_every_mode_becomes_rgb(content, expected):
    image = decode(content, "a", 4, "RGB")
    assert image.shape == (4, 4, 3)
    assert np.abs(image.astype(int) - expected).max() <= 2


@pytest.mark.parametrize(("orientation", "quarters"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_photographs_are_turned_as_the_camera_noted(orientation, quarters):
    noise = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(noise), exif=exif)
    turned = decode(content, "a", 6, "RGB", is_photograph=True)
    assert np.array_equal(turned, np.rot90(noise, quarters))  # of a quarter turn to the left
    assert np.array_equal(decode(content, "a", 6, "RGB"), noise)


def test_grey_is_one_channel():
    assert decode(encoded(Image.new("1", (105, 105), 1)), "a", 28, "L").shape == (28, 28, 1)


def test_both_sides_are_resized_at_once_and_a_fitting_image_is_left_alone():
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 4:] = 200
    squared = decode(encoded(Image.fromarray(wide)), "a", 4, "RGB")
    assert squared[:, 0].max() < 30
    assert squared[:, 3].min() > 170
    noise = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    assert np.array_equal(decode(encoded(Image.fromarray(noise)), "a", 6, "RGB"), noise)
    assert resize(noise, 6) is noise


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"image birds/a.png is empty \(0 bytes\); replace it and start again"),
        (b"GIF89a?", "image birds/a.png is truncated or damaged|is not an image"),
        (b"<html>", "image birds/a.png is not an image: it is a web page; replace it"),
        (
            encoded(Image.effect_noise((64, 64), 50))[:-200],
            r"image birds/a.png is truncated or damaged \(.*\); replace",
        ),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:-200], r"image birds/a.png is truncated or damaged"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "32-bit numbers .mode F., whose range is not known"),
    ],
    ids=["empty", "GIF", "HTML", "cut PNG", "cut JPEG", "float"],
)
def test_what_is_no_image_is_named(content, message):
    with pytest.raises(ValueError, match=message):
        decode(content, "birds/a.png", 8, "RGB")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"\0\0\0\x18ftypheic", r"it is HEIC, which needs the extra .heic. .pip install -e '.\[heic\]'"),
        (b"\0\0\0\x18ftypmif1", "it is HEIC"),
        (b"\0\0\0\x18ftypmp42", "it is a film .MP4, QuickTime"),
        (b"RIFF\x10\0\0\0AVI LIST", "it is a film .AVI"),
        (b"\0\0\x01\xba", "it is a film .MPEG"),
        (b"PK\x03\x04", "it is a ZIP archive"),
        (b"\xef\xbb\xbf  <svg>", "it is a drawing .SVG"),
        (b"RIFF\x10\0\0\0WEBP", "is not an image"),
        (b"\xff\x0a", "it is JPEG XL"),
        (b"\0" * 64, "is not an image; replace it"),
    ],
)
def test_what_a_file_is_instead_is_said(tmp_path, head, message):
    if "pillow_heif" in sys.modules and "HEIC" in message:
        message = "is not an image|is truncated or damaged"
    path = tmp_path / "IMG_1.jpg"
    path.write_bytes(head + bytes(200))
    for content in (path, path.read_bytes()):
        with pytest.raises(ValueError, match=f"image IMG_1 .*{message}"):
            decode(content, "IMG_1", 8, "RGB")


def test_heic_is_read_with_its_extra(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason='the extra "heic" is not installed')
    heif.from_pillow(Image.new("RGB", (40, 30), (200, 30, 30))).save(tmp_path / "IMG_1.HEIC")
    assert no_image(tmp_path / "IMG_1.HEIC") is None
    pixels = decode(tmp_path / "IMG_1.HEIC", "IMG_1.HEIC", 8, "RGB", is_photograph=True)
    assert abs(pixels.astype(int) - (200, 30, 30)).max() < 12


@pytest.mark.parametrize("orientation", range(10))
def test_an_image_is_turned_as_pillow_turns_it(orientation):
    image = Image.effect_noise((12, 8), 50)
    exif = Image.Exif()
    exif[0x112] = orientation
    file = BytesIO()
    image.save(file, "PNG", exif=exif)
    opened = Image.open(file)
    assert np.array_equal(upright(opened), ImageOps.exif_transpose(opened))


def test_an_orientation_that_cannot_be_read_leaves_the_image(monkeypatch):
    image = Image.effect_noise((12, 8), 50)

    def fail(self):
        raise struct.error("unpack requires a buffer of 8 bytes")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert upright(image) is image


def photograph(width, height):
    """A smooth picture, as photographs are."""
    small = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(500, 375), (333, 517), (64, 64), (40, 200)])
@pytest.mark.parametrize(("resized", "cropped", "name"), [(256, 224, "bicubic"), (232, 224, "bilinear")])
def test_a_framed_image_is_that_of_torchvision(size, resized, cropped, name):
    image = photograph(*size)
    whole = functional.resize(image, resized, InterpolationMode(name), antialias=True)
    expected = np.asarray(functional.center_crop(whole, cropped)).astype(int)
    found = standard(image, cropped, "RGB", Framing(cropped / resized, name))
    assert found.shape == (cropped, cropped, 3)
    assert abs(expected - found).max() <= 2


@pytest.mark.parametrize("framing", [None, Framing(0.875, "bicubic")])
def test_a_large_photograph_is_decoded_in_reduced_size(monkeypatch, framing):
    content, sizes = encoded(photograph(3200, 2400), "JPEG", quality=90), []

    def noted(image):
        sizes.append(image.size)
        return image

    monkeypatch.setattr("pretrain.sources.images.upright", noted)
    reduced = decode(content, "x", 112, "RGB", is_photograph=True, framing=framing)
    assert sizes == [(400, 300)], "an eighth, and no less than twice what is needed"
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", lambda *_: None)
    full = decode(content, "x", 112, "RGB", is_photograph=True, framing=framing)
    assert sizes[1] == (3200, 2400)
    assert abs(full.astype(int) - reduced).mean() < 1
    assert abs(full.astype(int) - reduced).max() < 10


def test_a_photograph_decoded_in_reduced_size_is_turned_as_the_camera_noted():
    image = photograph(1600, 1200)
    exif = image.getexif()
    exif[0x0112] = 6
    turned = decode(encoded(image, "JPEG", quality=95, exif=exif), "x", 56, "RGB", is_photograph=True)
    straight = decode(encoded(image, "JPEG", quality=95), "x", 56, "RGB", is_photograph=True)
    assert abs(np.rot90(straight, -1).astype(int) - turned).max() <= 3
