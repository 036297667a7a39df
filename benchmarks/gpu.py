"""All that only a GPU can show, by one command in ten minutes, in one JSON file.

    python -m benchmarks.gpu --json gpu.json

- ``card``: the card, its driver, the versions of torch and CUDA;
- ``tests``: the golden tests on the card in float64 and float32, and the tests that need a GPU;
- ``captured``: the captured update against the eager one, after 1,000 updates;
- ``resume``: a training that was killed and went on against one that was not, bit for bit;
- ``speed``: seconds of 100,000 updates, extrapolated from a measured stretch, and of a test of 50,000 tasks;
- ``profile``: the longest kernels of an update, and the share of time in which the card has nothing to do;
- ``wide_resnet``, ``wide_resnet_eager``: images per second of stage 1's WRN-28-10, and the share of the card's peak.

Each part has a process and a time limit of its own. What fails or takes too long is an ``error`` in the file, which is
written anew after each part.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import gpu_parts
from benchmarks.meta_training import prepare_process
from runner.errors import InputError
from runner.folder import write_json


class Part(NamedTuple):
    """What is measured, and the seconds after which it is given up."""

    measure: Callable[[str], Any]
    limit: int


PARTS = {
    "card": Part(gpu_parts.card, 20),
    "tests": Part(gpu_parts.tests, 110),
    "captured": Part(gpu_parts.captured, 60),
    "resume": Part(gpu_parts.resume, 110),
    "speed": Part(gpu_parts.speed, 50),
    "profile": Part(gpu_parts.profile, 30),
    "wide_resnet_eager": Part(gpu_parts.wide_resnet_eager, 50),
    "wide_resnet": Part(gpu_parts.wide_resnet, 170),
}


class Target(NamedTuple):
    """A figure that is asked for: where it is in the results, and its bound."""

    what: str
    part: str
    keys: tuple[str | int, ...]
    bound: float
    at_least: bool = False


SPEED = "100,000 updates, extrapolated, s"
TARGETS = [
    Target("seconds of 100,000 updates, 1-shot, extrapolated", "speed", (0, SPEED), 60),
    Target("seconds of 100,000 updates, 5-shot, extrapolated", "speed", (1, SPEED), 120),
    Target("seconds of a test of 50,000 tasks, 1-shot", "speed", (0, "test, s"), 2),
    Target("seconds of a test of 50,000 tasks, 5-shot", "speed", (1, "test, s"), 2),
    Target("share of the peak, WRN-28-10", "wide_resnet", ("step", "share_of_peak"), 0.4, at_least=True),
    Target("the same with the data path", "wide_resnet", ("with data", "share_of_peak"), 0.4, at_least=True),
]


def check_gpu() -> None:
    """Raise where torch finds no GPU."""
    if not torch.cuda.is_available():
        raise InputError(
            f"benchmarks.gpu needs a GPU of NVIDIA, and torch {torch.__version__} finds none on this machine; on a "
            f"processor run benchmarks.meta_training and benchmarks.stage_1"
        )


def part_command(name: str, path: Path) -> list[str]:
    """The command that measures one part on the GPU and writes its result to ``path``."""
    return [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--json", str(path)]


def measured(command: list[str], path: Path, limit: float) -> dict[str, Any]:
    """What ``command`` writes to ``path`` as ``result``, or its ``error``; with its ``seconds``."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=gpu_parts.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True,
    )  # fmt: skip
    error = None
    try:
        said = process.communicate(timeout=limit)[0]
        if process.returncode or not path.exists():
            error = f"ended with {process.returncode}: {said[-4000:].strip()}"
    except subprocess.TimeoutExpired:
        error = f"took longer than its {limit:g} s and was stopped"
    finally:
        end_session(process)
    seconds = time.perf_counter() - start
    if error is not None:
        return {"seconds": seconds, "error": error}
    return {"seconds": seconds, "result": json.loads(path.read_text(encoding="utf-8"))["result"]}


def end_session(process: subprocess.Popen[str]) -> None:
    """End the process and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # a process that waits for a broken driver cannot be ended
        process.wait(10)
    assert process.stdout is not None
    process.stdout.close()


def measure_all(
    limits: dict[str, int], command_of: Callable[[str, Path], list[str]], path: Path
) -> dict[str, dict[str, Any]]:
    """Measure one part after another; ``path`` is written after each."""
    parts: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, limit) in enumerate(limits.items()):
            say(f"[{i + 1}/{len(limits)}] {name}, at most {limit} s")
            result = Path(folder, f"{name}.json")
            parts[name] = measured(command_of(name, result), result, limit)
            write_json(path, {"parts": parts, "targets": judged(parts)})
            outcome = parts[name].get("error", "done").split("\n")
            say(f"      {outcome[0]} ({parts[name]['seconds']:.0f} s){': ' + outcome[-1] if len(outcome) > 1 else ''}")
    return parts


def judged(parts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Each target with the value found and whether it is met; null where there is no value."""
    rows = []
    for target in TARGETS:
        value: Any = parts.get(target.part, {}).get("result")
        for key in target.keys:
            value = None if value is None else value[key]
        met = None if value is None else bool(value >= target.bound if target.at_least else value < target.bound)
        bound = f"{'at least' if target.at_least else 'less than'} {target.bound:g}"
        rows.append({"what": target.what, "target": bound, "value": value, "met": met})
    return rows


def say(line: str) -> None:
    """Show ``line`` at once."""
    print(line, flush=True)


def measure_part(name: str, path: Path) -> None:
    """Measure one part in this process."""
    prepare_process()
    write_json(path, {"result": PARTS[name].measure("cuda")})


def main(arguments: list[str] | None = None) -> None:
    """Measure all parts, or the one that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where to write the figures")
    parser.add_argument("--part", choices=PARTS, help="this part alone, in this process")
    args = parser.parse_args(arguments)
    try:
        check_gpu()
    except InputError as error:
        sys.exit(f"error: {error}")
    if args.part is not None:
        measure_part(args.part, args.json.absolute())
        return
    parts = measure_all({name: part.limit for name, part in PARTS.items()}, part_command, args.json.absolute())
    about = parts["card"].get("result")
    if about is not None:
        say(f"{about['name']}, driver {about['driver']}, torch {about['torch']}, CUDA {about['cuda']}")
    for row in judged(parts):
        value = "no value" if row["value"] is None else f"{row['value']:.3g}"
        met = {True: "met", False: "missed", None: "unknown"}[row["met"]]
        say(f"  {row['what']}: {value} ({row['target']}: {met})")
    say(f"all figures: {args.json}")


if __name__ == "__main__":
    main()
