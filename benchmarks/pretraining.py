"""Training images per second of stage 1's Wide-ResNet: our step beside a plain one, measured in turn in one run.

    python -m benchmarks.pretraining --batch 1024 --device cuda --compile      # Table 4's step, on a GPU
    python -m benchmarks.pretraining --depth 10 --width 2 --size 32 --batch 32 --threads 1

Ours is the step of `stage=pretrain trainer=bf16`: bf16 autocast, channels last, torch.compile where asked for. Plain
is float32, eager, NCHW. Both take the same uint8 batch, which lies on the device, through the same augmentation.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

from pretrain.data import ImageBatch
from pretrain.module import Pretraining
from pretrain.wide_resnet import WideResNet
from runner.names import register

NUM_CLASSES = 64
CONF = Path(__file__).parent.parent / "conf"
# Dense bf16 operations per second, from the makers' data sheets.
PEAKS = {"A100": 312e12, "H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "L40S": 362e12, "RTX 4090": 165e12}

Step = Callable[[], None]


def recipe(data: str) -> DictConfig:
    """The configuration of stage 1 on ``data``."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [f"data={data}"])


def build_network(options: argparse.Namespace) -> WideResNet:
    """The network of Appendix B.2, of the depth and width asked for."""
    backbone = recipe("mini_imagenet").backbone
    return WideResNet(
        depth=options.depth,
        width=options.width,
        num_classes=NUM_CLASSES,
        in_channels=3,
        strides=list(backbone.strides),
        dropout=backbone.dropout,
    )


def build(options: argparse.Namespace) -> Pretraining:
    """The training of Appendix B.2, of the size asked for."""
    pretrain = recipe("mini_imagenet").data.pretrain
    return Pretraining(
        network=build_network(options),
        augment=instantiate(pretrain.augment, size=options.size),
        crop=instantiate(pretrain.crop, size=options.size),
        centroid_accuracy=None,
        **{key: instantiate(pretrain[key]) for key in ("optimizer", "schedule")},
        **{key: pretrain[key] for key in ("label_smoothing", "mean", "std")},
    ).to(options.device)


def our_step(options: argparse.Namespace, batch: ImageBatch) -> Step:
    module = build(options)
    if options.compile:
        module.network.compile()
    optimizer = module.make_optimizer(module.parameters())

    def step() -> None:
        with torch.autocast(batch.images.device.type, dtype=torch.bfloat16):
            loss, _ = module.classify(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain_step(options: argparse.Namespace, batch: ImageBatch) -> Step:
    module = build(options)
    network = module.network.to(memory_format=torch.contiguous_format)
    optimizer = module.make_optimizer(network.parameters())

    def step() -> None:
        inputs = module.to_input(batch.images, module.augment).contiguous()
        F.cross_entropy(network(inputs), batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(step: Step, options: argparse.Namespace) -> float:
    """The mean over ``options.steps`` calls of ``step``."""

    def wait() -> None:
        if options.device == "cuda":
            torch.cuda.synchronize()

    wait()
    start = time.perf_counter()
    for _ in range(options.steps):
        step()
    wait()
    return (time.perf_counter() - start) / options.steps


def operations_per_image(options: argparse.Namespace) -> float:
    """Floating-point operations of an image's forward and backward pass, multiply and add counted apart."""
    with torch.device("meta"):
        network = build_network(options)
        images = torch.zeros(1, 3, options.size, options.size)
    with FlopCounterMode(display=False) as counter:
        network(images).sum().backward()
    return float(counter.get_total_flops())


def peak_of(card: str) -> float | None:
    """Dense bf16 operations per second of the card of this name; None where they are not known here."""
    return next((peak for name, peak in PEAKS.items() if name in card), None)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=1024, help="images")
    parser.add_argument("--size", type=int, default=80, help="pixels of a side")
    parser.add_argument("--depth", type=int, default=28)
    parser.add_argument("--width", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="torch.compile our network")
    parser.add_argument("--steps", type=int, default=5, help="steps timed together")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each, in turn; at least 3")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak", type=float, help="the card's dense bf16 TFLOP/s, where it is not known here")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.repeats < 3:
        parser.error(f"--repeats {options.repeats} makes no median; give at least 3")
    return options


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    stored = options.size * 84 // 80  # as 84 pixels are to 80
    batch = ImageBatch(
        torch.randint(256, (options.batch, stored, stored, 3), dtype=torch.uint8, device=options.device),
        torch.randint(NUM_CLASSES, (options.batch,), device=options.device),
    )
    steps = {"ours": our_step(options, batch), "plain": plain_step(options, batch)}
    memory = 0
    for name, step in steps.items():  # algorithms are chosen and code is compiled in the first calls
        step()
        step()
        if name == "ours" and options.device == "cuda":
            memory = torch.cuda.max_memory_allocated()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.repeats):
        for name, step in steps.items():
            times[name].append(seconds(step, options))
    rates = {name: options.batch / statistics.median(values) for name, values in times.items()}
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    operations = operations_per_image(options)
    result = {
        "device": device,
        "torch": torch.__version__,
        "network": f"WRN-{options.depth}-{options.width}",
        "settings": {key: getattr(options, key) for key in ("batch", "size", "compile", "threads", "steps", "repeats")},
        "images_per_second": rates,
        "all_seconds_per_step": times,
        "ratio": rates["ours"] / rates["plain"],
        "gflop_per_image": operations / 1e9,
        "tflop_per_second": rates["ours"] * operations / 1e12,
    }
    if options.device == "cuda":
        peak = options.peak * 1e12 if options.peak else peak_of(device)
        result["share_of_bf16_peak"] = rates["ours"] * operations / peak if peak else None
        result["peak_memory_gib"] = memory / 2**30
    if (options.depth, options.width, options.size) == (28, 10, 80):
        result["hours_of_table_4"] = {
            data: pretrain.max_steps * pretrain.batch_size / rates["ours"] / 3600
            for data in ("mini_imagenet", "tiered_imagenet")
            for pretrain in [recipe(data).data.pretrain]
        }
    if options.json:
        print(json.dumps(result, indent=2))
        return
    size = f"{options.size}x{options.size}, batch {options.batch}"
    print(f"{result['network']}, {size}, {device}, torch {torch.__version__}")
    for name, rate in rates.items():
        spread = [f"{options.batch / value:.1f}" for value in sorted(times[name], reverse=True)]
        print(f"  {name:5} {rate:10.1f} images/s  (of {', '.join(spread)})")
    print(f"  ours / plain {result['ratio']:.2f}; {result['tflop_per_second']:.3f} TFLOP/s")
    for key in ("share_of_bf16_peak", "peak_memory_gib", "hours_of_table_4"):
        if key in result:
            print(f"  {key}: {result[key]}")


if __name__ == "__main__":
    main()
