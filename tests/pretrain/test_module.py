"""The extractor's training: what it holds out, how its rate moves, and that a resumed run repeats the straight one."""

import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.optim import SGD

from pretrain.augment import InceptionAugment, RandomShift
from pretrain.data import ShuffledBatches, TrainImages
from pretrain.module import Pretraining, warmup_cosine
from pretrain.store import ImageStore, read_split, write_split
from pretrain.wide_resnet import WideResNet

COUNTS = (8, 5, 7)


def striped_store() -> ImageStore:
    """Three classes of 8x8 images told apart by a bright row; pixel (0, 0) is the image's number."""
    generator = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(COUNTS)])
    images = generator.integers(0, 100, size=(sum(COUNTS), 8, 8, 1), dtype=np.uint8)
    for label in range(len(COUNTS)):
        images[offsets[label] : offsets[label + 1], 2 * label + 2] += 150
    images[:, 0, 0, 0] = np.arange(sum(COUNTS))
    return ImageStore(
        images=torch.from_numpy(images),
        offsets=torch.from_numpy(offsets),
        class_names=["a", "b", "c"],
        split="train",
        data="stripes",
        source={},
    )


def build_data(**changes: Any) -> TrainImages:
    settings = {"batch_size": 4, "num_val_per_class": 2, "val_every": 3, "seed": 3} | changes
    return TrainImages(striped_store(), **settings)


def build_stream(data: TrainImages, **changes: Any) -> ShuffledBatches:
    """Passes of three batches over the 14 training images."""
    settings: dict[str, Any] = {
        "batch_size": 4,
        "num_parts": 1,
        "parts": range(1),
        "seed": 3,
        "length": 3,
        "step": int,
    } | changes
    return ShuffledBatches(data.store, data.train_rows, **settings)


def build_module(num_steps: int, lr: float = 0.1) -> Pretraining:
    return Pretraining(
        network=WideResNet(depth=10, width=1, num_classes=3, in_channels=1, strides=(1, 2, 2), dropout=0.3),
        augment=RandomShift(max_shift=1),
        crop=nn.Identity(),
        centroid_accuracy=None,
        optimizer=partial(SGD, lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4),
        schedule=partial(warmup_cosine, num_warmup=2, num_steps=num_steps),
        label_smoothing=0.1,
        mean=[0.5],
        std=[0.25],
    )


def build_trainer(folder: Path, **changes: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return Trainer(**settings | changes)


def test_holds_out_the_last_images_of_each_class() -> None:
    data = build_data()
    assert data.val_rows.tolist() == [6, 7, 11, 12, 18, 19]
    assert sorted([*data.train_rows.tolist(), *data.val_rows.tolist()]) == list(range(20))
    data.trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    batches = list(data.val_dataloader())
    assert [len(batch.labels) for batch in batches] == [4, 2]
    assert torch.cat([batch.labels for batch in batches]).tolist() == [0, 0, 1, 1, 2, 2]


def test_each_pass_visits_every_training_image_once_and_drops_the_rest() -> None:
    data = build_data()
    orders = []
    for first in (0, 3, 0):  # 14 training images make passes of three batches
        batches = list(build_stream(data, step=partial(int, first)))
        assert [batch.images.shape for batch in batches] == [(4, 8, 8, 1)] * 3
        numbers = torch.cat([batch.images[:, 0, 0, 0] for batch in batches]).tolist()
        assert len(numbers) == len(set(numbers)) == 12
        assert set(numbers) <= set(data.train_rows.tolist())
        assert torch.equal(torch.cat([batch.labels for batch in batches]), data.store.labels[numbers])
        orders.append(numbers)
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]


@pytest.mark.parametrize("first", [1, 4, 5])
def test_a_stream_entered_anywhere_gives_the_batches_of_those_steps(first: int) -> None:
    """Intervals of four batches, passes of three: their borders differ."""
    data = build_data()

    def images(step: int) -> list[list[int]]:
        stream = build_stream(data, length=4, step=partial(int, step))
        return [batch.images[:, 0, 0, 0].tolist() for batch in stream]

    straight = images(0) + images(4)
    end = 4 if first < 4 else 8
    assert images(first) == straight[first:end]


@pytest.mark.parametrize(("num_processes", "per_step"), [(1, 2), (2, 1), (2, 2)])
def test_parts_make_up_the_same_batches(num_processes: int, per_step: int) -> None:
    data = build_data()

    def numbers(num_parts: int, parts: range) -> list[list[int]]:
        stream = build_stream(data, num_parts=num_parts, parts=parts)
        batches = [batch.images[:, 0, 0, 0].tolist() for batch in stream]
        assert len(batches) == len(stream) == 3 * len(parts)
        return batches

    num_parts = num_processes * per_step
    shares = [numbers(num_parts, range(rank * per_step, (rank + 1) * per_step)) for rank in range(num_processes)]
    for step, whole in enumerate(numbers(1, range(1))):
        parts = [share[step * per_step + index] for share in shares for index in range(per_step)]
        assert [len(part) for part in parts] == [4 // num_parts] * num_parts
        assert [number for part in parts for number in part] == whole


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_mapped_store_is_read_batch_by_batch(tmp_path: Path) -> None:
    def anonymous_memory() -> int:  # kB, without the pages of mapped files
        found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
        assert found
        return int(found[1])

    write_split(
        tmp_path, "train", torch.zeros(200, 512, 512, 1).byte(), torch.tensor([0, 100, 200]), ["a", "b"], "d", {}
    )
    before = anonymous_memory()
    data = TrainImages(read_split(tmp_path, "train"), batch_size=4, num_val_per_class=50, val_every=20, seed=0)
    data.trainer = build_trainer(tmp_path)
    loaders = data.train_dataloader(), data.val_dataloader()
    assert sum(len(batch.labels) for loader in loaders for batch in loader) == 80 + 100
    # A copy of the held-out images alone takes 25,600.
    assert anonymous_memory() - before < 10_000


def test_data_that_cannot_be_split() -> None:
    with pytest.raises(ValueError, match=r"num_val_per_class=5 .* less than the 5 images of class 'b'"):
        build_data(num_val_per_class=5)
    with pytest.raises(ValueError, match="num_val_per_class=0 must be at least 1"):
        build_data(num_val_per_class=0)
    with pytest.raises(ValueError, match="batch_size=15 is more than the 14 training images"):
        build_data(batch_size=15)
    data = build_data()
    data.trainer = Trainer(accumulate_grad_batches=3, logger=False, accelerator="cpu", enable_checkpointing=False)
    with pytest.raises(ValueError, match="batch_size=4 cannot be cut into 3 equal parts"):
        data.train_dataloader()


def test_warmup_cosine_by_hand() -> None:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    schedule = warmup_cosine(optimizer, num_warmup=2, num_steps=6)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    # 1/2 and 2/2 of 0.4, then 0.2 (1 + cos(pi k / 4)) for k = 0 .. 4.
    expected = [0.2, 0.4, 0.4, 0.2 + 0.2 * 2**-0.5, 0.2, 0.2 - 0.2 * 2**-0.5, 0.0]
    assert rates == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match=r"num_warmup=6 .* less than num_steps=6"):
        warmup_cosine(optimizer, num_warmup=6, num_steps=6)


def test_the_input_is_as_exact_in_bf16_training() -> None:
    module = build_module(num_steps=3)
    images = torch.randint(256, (4, 9, 9, 3), dtype=torch.uint8)
    augment = InceptionAugment(
        size=8, area=(0.2, 1), aspect=(0.5, 2), brightness=0.1, contrast=0.5, saturation=0.5, hue=0.2
    )
    seed_everything(0)
    exact = module.to_input(images, augment)
    seed_everything(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module.to_input(images, augment), exact)


def test_accumulated_parts_take_a_step_per_batch(tmp_path: Path) -> None:
    seed_everything(0)
    trainer = build_trainer(tmp_path, max_steps=6, accumulate_grad_batches=2, enable_checkpointing=False)
    trainer.fit(build_module(num_steps=6), build_data())
    assert trainer.global_step == 6
    assert trainer.fit_loop.total_batch_idx + 1 == 12
    assert trainer.current_epoch == 2


def test_learns_and_reports(tmp_path: Path) -> None:
    seed_everything(0)
    module = build_module(num_steps=60)
    trainer = build_trainer(tmp_path, max_steps=60, log_every_n_steps=60, check_val_every_n_epoch=20)
    trainer.fit(module, build_data())
    assert trainer.global_step == 60
    metrics = trainer.callback_metrics
    assert metrics.keys() == {"train/loss", "train/accuracy", "val/loss", "val/accuracy"}
    assert metrics["val/accuracy"] == 1.0
    assert metrics["val/loss"] < 0.5


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("limit", [{"max_epochs": 4}, {"max_steps": 12}], ids=str)
@pytest.mark.parametrize("when", ["after validation", "at the end of the epoch"])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path, limit: dict[str, int], when: str) -> None:
    def run(seed: int, checkpoint: Path | None) -> Pretraining:
        seed_everything(seed)
        module = build_module(num_steps=12)
        save = ModelCheckpoint(
            tmp_path,
            filename="{epoch}",
            save_top_k=-1,
            save_on_train_epoch_end=when == "at the end of the epoch",
        )
        trainer = build_trainer(tmp_path, callbacks=[save], **limit)
        trainer.fit(module, build_data(), ckpt_path=checkpoint, weights_only=True)
        assert trainer.global_step == 12
        return module

    straight = run(seed=0, checkpoint=None)
    # Another start and other draws: all that matters must come from the checkpoint.
    resumed = run(seed=1, checkpoint=tmp_path / "epoch=1.ckpt")
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_diverged_run_stops(tmp_path: Path) -> None:
    seed_everything(0)
    trainer = build_trainer(tmp_path, max_steps=60, log_every_n_steps=1)
    with pytest.raises(ValueError, match=r"train/loss is (nan|inf) at step \d+; lower the learning rate"):
        trainer.fit(build_module(num_steps=60, lr=1e20), build_data())
