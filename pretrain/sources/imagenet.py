"""The two data sets cut out of ILSVRC-2012, from whichever of their formats lies at the path."""

from collections.abc import Mapping
from pathlib import Path

from pretrain.sources import csv_images, ilsvrc, mini_pickles, tiered_pickles
from pretrain.sources.writing import Files, Format, Splits, detect, ilsvrc_classes, write_store

MINI = {"ilsvrc": ilsvrc.FORMAT, "pickles": mini_pickles.FORMAT, "csv": csv_images.FORMAT}
TIERED = {"ilsvrc": ilsvrc.FORMAT, "pickles": tiered_pickles.FORMAT}


def build_mini(folder: Path, *, path: str | None, data: str, image_size: int, split_file: str) -> None:
    """Write miniImageNet: the images that ``split_file`` lists, 600 a class (Ravi & Larochelle, 2017)."""
    _build(folder, path, data, image_size, split_file, None, MINI)


def build_tiered(
    folder: Path, *, path: str | None, data: str, image_size: int, split_file: str, num_images: Mapping[str, int]
) -> None:
    """Write tieredImageNet: all images of the classes in ``split_file`` (Ren et al., 2018), ``num_images`` a split."""
    _build(folder, path, data, image_size, split_file, num_images, TIERED)


def _build(
    folder: Path,
    path: str | None,
    data: str,
    image_size: int,
    split_file: str,
    num_images: Mapping[str, int] | None,
    formats: Mapping[str, Format],
) -> None:
    def open_source() -> tuple[str, Splits]:
        name, root = detect(path, formats)
        return name, formats[name].splits(root, ilsvrc_classes(split_file, num_images), image_size)

    def list_files(root: Path) -> Files:
        name, _ = detect(str(root), formats)
        return formats[name].files(root, ilsvrc_classes(split_file, num_images))

    write_store(
        folder,
        data=data,
        image_shape=(image_size, image_size, 3),
        source={"image_size": image_size, "split_file": split_file},
        root=None if path is None else Path(path),
        list_files=list_files,
        open_source=open_source,
    )
