"""LEO that generates all parameters of a model: time and memory of an update against their number.

    python -m benchmarks.generated_models --json generated_models.json

Models: a perceptron that is written for batches of parameters (``leo.inference.MLP``), the same as a module of torch
(``leo.any_module.AnyModule``, all tasks at once), the same with one task after another, a recurrent network and a
convolutional one. Five latent and five fine-tuning steps of tasks of random numbers, one thread unless told otherwise.
Figures are medians of repeats, models in turns; the memory is the peak that tensors add in one update.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.meta_training import in_turns, peak_memory, prepare_process, show
from leo.any_module import AnyModule
from leo.convolutional import SmallConvNet
from leo.functions import ModelTasks
from leo.inference import MLP, InferenceModel, squared_error
from leo.recurrent import FreeRunning
from leo.regression import ModelLEO
from runner.folder import write_json

WIDTHS = (20, 40, 80, 160)  # hidden units of the perceptrons
HIDDEN = (10, 20, 40, 80)  # of the recurrent networks
CHANNELS = (4, 8, 16)  # of the convolutional ones


class Shape(NamedTuple):
    """Of tasks: how many at once, examples of the support and of the queries, numbers of x and y."""

    num_tasks: int
    num_shot: int
    num_query: int
    num_inputs: int
    num_targets: int


FUNCTIONS = Shape(32, 5, 10, 1, 1)
SEQUENCES = Shape(32, 3, 10, 10, 20)
IMAGES = Shape(4, 5, 25, 32 * 32, 5)


def perceptron(width: int) -> nn.Module:
    """The network of ``leo.inference.MLP`` with two hidden layers, as a module."""
    return nn.Sequential(
        nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
    )  # fmt: skip


def one_by_one(make: Callable[[], nn.Module]) -> AnyModule:
    """The module for one task after another."""
    model = AnyModule(make=make)
    model.one_by_one = True
    return model


def contestants() -> list[tuple[str, Callable[[], InferenceModel], Shape]]:
    """Name, model, shape of its tasks."""
    found: list[tuple[str, Callable[[], InferenceModel], Shape]] = []
    for width in WIDTHS:
        module = partial(perceptron, width)
        found += [
            ("perceptron, written for batches", partial(MLP, sizes=[1, width, width, 1]), FUNCTIONS),
            ("perceptron, module", partial(AnyModule, make=module), FUNCTIONS),
            ("perceptron, module, one by one", partial(one_by_one, module), FUNCTIONS),
        ]
    for num_hidden in HIDDEN:
        module = partial(FreeRunning, num_hidden=num_hidden, num_predicted=SEQUENCES.num_targets)
        found.append(("recurrent, module", partial(AnyModule, make=module), SEQUENCES))
    for num_channels in CHANNELS:
        settings = {"image_size": 32, "in_channels": 1, "num_channels": num_channels, "num_classes": IMAGES.num_targets}
        found.append(("convolutional, module", partial(AnyModule, make=partial(SmallConvNet, **settings)), IMAGES))
    return found


def make_update(make: Callable[[], InferenceModel], shape: Shape) -> tuple[Callable[[], Any], int]:
    """An update of LEO on random tasks, and the number of parameters that it generates."""
    torch.manual_seed(0)
    learner = ModelLEO(
        model=make(), loss=squared_error, max_norm=1.0, num_inputs=shape.num_inputs + shape.num_targets,
        num_latents=16, num_hidden=32, num_latent_steps=5, num_finetune_steps=5, latent_lr=0.1, finetune_lr=0.01,
        noise_scale=0.1, kl_weight=0.01, encoder_penalty_weight=1e-4, l2_weight=1e-8, orthogonality_weight=0.1,
    )  # fmt: skip
    optimizer, generator = torch.optim.Adam(learner.parameters(), lr=1e-4, fused=True), torch.Generator()
    support, query = (
        (torch.randn(shape.num_tasks, n, shape.num_inputs), torch.randn(shape.num_tasks, n, shape.num_targets))
        for n in (shape.num_shot, shape.num_query)
    )
    tasks = ModelTasks(*support, *query, query[1])

    def update() -> None:
        optimizer.zero_grad()
        learner.meta_loss(tasks, generator)["loss"].backward()
        optimizer.step()

    return update, len(learner.model.scale)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print a table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--updates", type=int, default=5, help="of each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    prepare_process()
    torch.set_num_threads(args.threads)
    made = [(name, *make_update(make, shape), shape) for name, make, shape in contestants()]
    names = [f"{name} {number}" for name, _, number, _ in made]
    calls = {key: (update, args.updates) for key, (_, update, _, _) in zip(names, made, strict=True)}
    seconds = in_turns(calls, args.repeats)
    rows = [
        {
            "model": name,
            "parameters": number,
            "tasks": shape.num_tasks,
            "ms an update": round(1000 * seconds[key], 1),
            "MB an update": round(peak_memory(update) / 1e6, 1),
        }
        for key, (name, update, number, shape) in zip(names, made, strict=True)
    ]
    show(f"LEO that generates a whole model, {args.threads} thread", rows)
    if args.json:
        write_json(args.json, {"rows": rows})
    return rows


if __name__ == "__main__":
    main()
