"""Contact sheet: one class a row, so that a broken or mixed-up store shows at a glance."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pretrain.glyphs import FONTS
from pretrain.store import ImageStore
from runner.errors import InputError
from runner.files import whole_file

_CELL = 96  # images of fewer pixels are enlarged to about this height
_GAP = 6
_PAPER, _INK = (128, 128, 128), (255, 255, 255)


def draw(store: ImageStore, path: Path, num_classes: int, num_images: int) -> None:
    """Write a PNG with the first ``num_images`` of ``num_classes`` classes, evenly spread over the split.

    A split with fewer classes is shown whole, and a class with fewer images leaves the rest of its row empty.
    """
    if num_classes < 1 or num_images < 1:
        raise InputError(f"num_classes={num_classes} and num_images={num_images} must be at least 1")
    total = len(store.class_names)
    rows = torch.linspace(0, total - 1, min(num_classes, total)).round().long().tolist()
    enlarge = max(1, _CELL // store.images.shape[1])
    height, width = (enlarge * side for side in store.images.shape[1:3])

    font = ImageFont.truetype(FONTS / "DejaVuSans.ttf", 20)
    title = f"{store.data}, {store.split}: {total} classes, {len(store.images)} images"
    labels = [_label(store.class_names[row]) for row in rows]
    left = _GAP * 3 + round(max(map(font.getlength, labels)))
    top = 2 * _GAP + sum(font.getmetrics())
    size = (
        max(left + num_images * (width + _GAP), round(font.getlength(title)) + 2 * _GAP),
        top + len(rows) * (height + _GAP),
    )
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, _GAP), title, _INK, font)
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = top + i * (height + _GAP)
        pen.text((_GAP, y + height // 2), label, _INK, font, anchor="lm")
        first, end = store.offsets[row : row + 2].tolist()
        for j, image in enumerate(store.images[first : min(end, first + num_images)]):
            picture = _picture(image).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (left + j * (width + _GAP), y))
    with whole_file(path) as partial:
        sheet.save(partial, format="PNG")


def _label(class_name: str) -> str:
    """The name; a single character gets its code point beside it."""
    return f"{class_name}  U+{ord(class_name):04X}" if len(class_name) == 1 else class_name


def _picture(image: Tensor) -> Image.Image:
    """uint8 [H, W, 1 or 3] as a picture."""
    return Image.fromarray(image.squeeze(2).numpy() if image.shape[2] == 1 else image.numpy())
