"""The command: every figure of one checkpoint, or of several beside each other, into one folder."""

import csv
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from omegaconf import DictConfig, OmegaConf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from leo.analysis.figures import FIGURES, Outcome, Question
from leo.analysis.methods import Sizes, load_methods
from leo.analysis.models import MODEL_FIGURES, model_question
from leo.features import load_splits
from runner.config import check_whole_numbers
from runner.errors import InputError
from runner.files import whole_file
from runner.folder import run_folder, write_json
from runner.names import fingerprint, trained_file
from runner.record import made_by
from runner.terminal import shares_terminal

log = logging.getLogger(__name__)

PIXELS_PER_INCH = 100


def analyze(cfg: DictConfig) -> None:
    """Write each figure as PNG and SVG with its numbers as CSV, and what they come to as ``analysis.json``."""
    if cfg.checkpoint is None:
        raise InputError("stage=analyze needs checkpoint=PATH, the best.ckpt of a run folder")
    smallest = {"num_tasks": 2, "max_inner_steps": 0, "num_samples": 1, "num_bins": 1}
    check_whole_numbers(cfg, {f"stage.{key}": limit for key, limit in smallest.items()})
    torch.set_num_threads(1)  # products are small: more are no faster, and far slower on a busy machine
    sizes, folder = Sizes(cfg.num_way, cfg.num_shot, cfg.num_query), Path(cfg.run_dir)
    question: Any
    figures: Mapping[str, Callable[[Any], Outcome | None]]
    if cfg.features.folder is None:
        question, figures = model_question(cfg), MODEL_FIGURES
    else:
        paths = [trained_file(Path(path)) for path in dict.fromkeys([cfg.checkpoint, *cfg.stage.compare])]
        question = Question(load_methods(paths, load_splits(Path(cfg.features.folder)), sizes), sizes, cfg.stage)
        figures = FIGURES
    config = {
        "checkpoints": {method.name: str(method.checkpoint) for method in question.methods},
        "checkpoint_sha256": {method.name: fingerprint(method.checkpoint) for method in question.methods},
        "features": cfg.features.folder,
        **sizes._asdict(),
        **{
            key: value for key, value in as_dict(cfg.stage).items() if key not in ("tasks", "compare", "folder", "uses")
        },
    }
    start, summaries = time.perf_counter(), {}
    columns = ("{task.description:13}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with run_folder(folder, config), Progress(*columns, disable=shares_terminal()) as progress:
        bar = progress.add_task("", total=len(figures))
        for name, figure in figures.items():
            progress.update(bar, description=name)
            outcome = figure(question)
            if outcome is not None:
                save(outcome, folder, name)
                summaries[name] = outcome.summary
            progress.advance(bar)
        seconds = time.perf_counter() - start
        write_json(folder / "analysis.json", {**made_by(), **config, "seconds": seconds, "figures": summaries})
    log.info("%s holds %s, and analysis.json; %.0f s", folder, ", ".join(summaries), seconds)


def save(outcome: Outcome, folder: Path, name: str) -> None:
    """The files ``name``.csv, .png and .svg."""
    with (
        whole_file(folder / f"{name}.csv") as partial,
        partial.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(outcome.columns)
        writer.writerows(outcome.rows)
    # The same numbers make the same file: no date, no random names.
    with rc_context({"svg.hashsalt": name}), whole_file(folder / f"{name}.svg") as partial:
        outcome.picture.savefig(partial, format="svg", metadata={"Date": None}, dpi=PIXELS_PER_INCH)
    with whole_file(folder / f"{name}.png") as partial:
        outcome.picture.savefig(partial, format="png", dpi=PIXELS_PER_INCH)


def as_dict(settings: DictConfig) -> dict[str, Any]:
    """The resolved settings."""
    content = OmegaConf.to_container(settings, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}
