"""Feature files: what they hold, in which order, and that a failure leaves no half of one."""

import json
import resource
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.augment import to_float
from pretrain.export import Origin, export
from pretrain.store import ImageStore
from pretrain.wide_resnet import WideResNet

ORIGIN = Origin(images="f00d", checkpoint="c0ffee", crop="full", config={"seed": 0, "data": {"images": 48}})
TO_INPUT = partial(to_float, mean=torch.tensor([0.5]), std=torch.tensor([0.25]))


def build_store(split: str, counts: tuple[int, ...]) -> ImageStore:
    images = np.random.default_rng(0).integers(0, 256, size=(sum(counts), 6, 6, 1), dtype=np.uint8)
    return ImageStore(
        images=torch.from_numpy(images),
        offsets=torch.tensor([0, *np.cumsum(counts)]),
        class_names=[f"{split}-ä{label}" for label in range(len(counts))],
        split=split,
        data="noise",
        source={},
    )


def build_network() -> WideResNet:
    torch.manual_seed(0)
    return WideResNet(depth=10, width=1, num_classes=2, in_channels=1, strides=(1, 2, 2), dropout=0.5)


def read(path: Path) -> tuple[Tensor, Tensor, dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"features", "offsets"}
        return file.get_tensor("features"), file.get_tensor("offsets"), file.metadata()


def test_files_of_several_layers_and_splits(tmp_path: Path) -> None:
    network = build_network()
    stores = [build_store("train", (3, 5)), build_store("test", (2, 1, 4))]
    folders: dict[int | str, Path] = {layer: tmp_path / f"layer{layer}" for layer in (9, 10, "pixels")}
    export(network, stores, folders, to_inputs=[TO_INPUT], batch_size=3, origin=ORIGIN)

    for store in stores:
        inputs = TO_INPUT(store.images)
        for layer in (9, 10):
            features, offsets, metadata = read(folders[layer] / f"{store.split}.safetensors")
            assert features.dtype == torch.float32
            assert features.shape == (len(store.images), 64)
            assert torch.equal(offsets, store.offsets)
            one_by_one = [network.features(image[None], [layer])[layer] for image in inputs]
            torch.testing.assert_close(features, torch.cat(one_by_one))
            assert metadata == {
                "format": "leo-features-1",
                "split": store.split,
                "data": "noise",
                "images": "f00d",
                "class_names": json.dumps(store.class_names),
                "layer": str(layer),
                "extractor": "WRN-10-1",
                "checkpoint": "c0ffee",
                "crop": "full",
                "config": '{"seed": 0, "data": {"images": 48}}',
            }
        pixels, _, metadata = read(folders["pixels"] / f"{store.split}.safetensors")
        assert torch.equal(pixels, store.images.reshape(-1, 36) / 255)
        assert (metadata["layer"], metadata["checkpoint"], metadata["extractor"]) == ("pixels", "", "")


def test_one_pass_equals_a_pass_per_layer(tmp_path: Path) -> None:
    store = build_store("val", (4, 4))
    together: dict[int | str, Path] = {layer: tmp_path / "together" / str(layer) for layer in (1, 9, 10)}
    export(build_network(), [store], together, to_inputs=[TO_INPUT], batch_size=8, origin=ORIGIN)
    for layer, folder in together.items():
        alone = tmp_path / "alone" / str(layer)
        export(build_network(), [store], {layer: alone}, to_inputs=[TO_INPUT], batch_size=8, origin=ORIGIN)
        assert torch.equal(read(alone / "val.safetensors")[0], read(folder / "val.safetensors")[0])


def test_features_are_the_mean_over_the_views(tmp_path: Path) -> None:
    store = build_store("val", (4, 4))

    def mirrored(images: Tensor) -> Tensor:
        return TO_INPUT(images.flip(2))

    views = {"one": [TO_INPUT], "other": [mirrored], "both": [TO_INPUT, mirrored]}
    features = {}
    for name, to_inputs in views.items():
        folders: dict[int | str, Path] = {9: tmp_path / name}
        export(build_network(), [store], folders, to_inputs=to_inputs, batch_size=3, origin=ORIGIN)
        features[name] = read(tmp_path / name / "val.safetensors")[0]
    assert not torch.allclose(features["one"], features["other"])
    torch.testing.assert_close(features["both"], (features["one"] + features["other"]) / 2)


def test_features_that_are_not_finite_name_the_image(tmp_path: Path) -> None:
    store = build_store("train", (3, 5))

    def infinite_image_4(images: Tensor) -> Tensor:
        return TO_INPUT(images).masked_fill(
            (images == store.images[4]).all(dim=(1, 2, 3))[:, None, None, None], torch.inf
        )

    with pytest.raises(ValueError, match=r"image 4 of split 'train' \(class 'train-ä1'\) at layer 10"):
        export(
            build_network(),
            [store],
            {10: tmp_path},
            to_inputs=[infinite_image_4],
            batch_size=3,
            origin=ORIGIN,
        )
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # bytes: the disk "fills up" within the file
    try:
        with pytest.raises((OSError, SafetensorError)):
            export(
                build_network(),
                [build_store("train", (3, 5))],
                {10: tmp_path},
                to_inputs=[TO_INPUT],
                batch_size=8,
                origin=ORIGIN,
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_unknown_layers_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layer pixel is not in WRN-10-1; its layers are"):
        stores = [build_store("val", (2, 2))]
        export(
            build_network(), stores, {9: tmp_path, "pixel": tmp_path}, to_inputs=[TO_INPUT], batch_size=8, origin=ORIGIN
        )
    assert list(tmp_path.iterdir()) == []
