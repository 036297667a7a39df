"""Which method is best on the data at hand: trained and validated side by side, the best one tested once."""

import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor

from leo.checkpoint import load_weights
from leo.evaluate import interval95
from leo.methods import method_name
from leo.run import Classification, make_problem, meta_train, run_config, test_checkpoint
from runner.config import search_path
from runner.errors import InputError
from runner.files import read_json
from runner.folder import run_folder, write_json
from runner.record import made_by

log = logging.getLogger(__name__)

FEW_CLASSES = 20  # for validation: with fewer, other classes may put the methods in another order
CHOICE = "choice.json"


class Scored(NamedTuple):
    """A method, how it was configured, its accuracy on each validation task [T] (fractions), and its seconds."""

    name: str
    cfg: DictConfig
    accuracy: Tensor
    seconds: float


def choose(cfg: DictConfig) -> float:
    """Train and validate each of ``cfg.stage.methods``, test the best; write ``choice.json``.

    Returns the best validation accuracy in %.

    The same call again goes on where it was, and does nothing where it is finished.
    """
    methods, folder = methods_of(cfg), Path(cfg.run_dir)
    configured = {name: configuration(folder / name, overrides) for name, overrides in methods.items()}
    problem = make_problem(cfg)
    if not isinstance(problem, Classification):
        raise InputError("stage=choose compares methods of classification; leave tasks= out")
    config = run_config(cfg, problem.origin) | {"methods": methods}
    for name, of_method in configured.items():  # before the first one is trained
        make_problem(of_method).build()
        log.info("%s: %s", name, " ".join(methods[name]) or "as configured")
    with run_folder(folder, config):
        path = folder / CHOICE
        if path.exists():
            choice = read_json(path, ("rows", "chosen", "test", "notes"), "delete it: the same command makes it again")
        else:
            choice = outcome([scored(name, of_method) for name, of_method in configured.items()])
            choice |= {"num_val_classes": (count := len(problem.tables["val"].class_names)), **made_by()}
            choice["notes"] = notes(choice["rows"], count)
            best = configured[choice["chosen"]]
            with_test = OmegaConf.merge(best, {"test": cfg.test, "run_dir": str(folder / "test")})
            assert isinstance(with_test, DictConfig)
            with_test.checkpoint = str(folder / choice["chosen"] / "best.ckpt")
            test_checkpoint(with_test)
            tested = read_json(folder / "test" / "result.json", ("summary",), "give the command again")
            choice["test"] = tested["summary"]
            write_json(path, choice)
        show(choice)
    return float(choice["rows"][0]["accuracy"])


def methods_of(cfg: DictConfig) -> dict[str, list[str]]:
    """The overrides of each method that is compared."""
    known = {str(name): list(overrides) for name, overrides in cfg.stage.methods.items()}
    wanted = list(known if cfg.stage.only is None else cfg.stage.only)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise InputError(f"stage.only: there is no method {', '.join(unknown)}; choose of {', '.join(known)}")
    if len(wanted) < 2:
        raise InputError(f"stage.only={wanted}: there is nothing to choose from; name at least two methods")
    return {name: known[name] for name in wanted}


def configuration(folder: Path, overrides: list[str]) -> DictConfig:
    """The configuration of this command with the ``overrides`` of a method, for a run in ``folder`` without a test."""
    hydra = HydraConfig.get()
    of_this = ("stage=", "stage.", "test")
    kept = [override for override in hydra.overrides.task if not override.lstrip("+~").startswith(of_this)]
    cfg = compose(hydra.job.config_name, [*search_path(), *kept, *overrides, "stage=meta", "test.num_tasks=null"])
    cfg.run_dir = str(folder)
    return cfg


def scored(name: str, cfg: DictConfig) -> Scored:
    """Train the method, or go on, and score its best checkpoint on the validation tasks."""
    start = time.perf_counter()
    meta_train(cfg)
    problem = make_problem(cfg)
    assert isinstance(problem, Classification)
    module = problem.build()
    load_weights(module, Path(cfg.run_dir) / "best.ckpt", cfg)
    return Scored(name, cfg, problem.val_accuracy(module), time.perf_counter() - start)


def outcome(methods: list[Scored]) -> dict[str, Any]:
    """The rows, best first, with the paired difference of each to the best over the same tasks; accuracies in %."""
    ordered = sorted(methods, key=lambda scored: -scored.accuracy.mean().item())
    best, rows = ordered[0], []
    for method in ordered:
        difference = 100 * (method.accuracy - best.accuracy)
        learner = OmegaConf.to_container(method.cfg.model.learner)
        assert isinstance(learner, dict)
        rows.append(
            {
                "name": method.name,
                "method": method_name({str(key): value for key, value in learner.items()}) or method.name,
                "scaling": method.cfg.features.normalize,
                "accuracy": 100 * method.accuracy.mean().item(),
                "interval95": 100 * interval95(method.accuracy),
                "difference": difference.mean().item(),
                "difference_interval95": interval95(difference),
                "seconds": method.seconds,
            }
        )
    return {"chosen": best.name, "num_tasks": len(best.accuracy), "rows": rows}


def notes(rows: list[dict[str, Any]], num_classes: int) -> list[str]:
    """What to know before one relies on the choice."""
    first, second = rows[:2]
    gap, interval = -second["difference"], second["difference_interval95"]
    verdict = "outside" if gap > interval else "within"
    said = [
        f"{first['name']} is {gap:.2f} points better than {second['name']}, the next one, which is {verdict} the 95 % "
        f"interval of this difference, {interval:.2f}" + ("" if gap > interval else ": either may be the better one")
    ]
    if num_classes < FEW_CLASSES:
        said.append(
            f"there are only {num_classes} validation classes, fewer than {FEW_CLASSES}: the intervals are over tasks "
            f"made of these classes, and with others the order may differ"
        )
    return said


def show(choice: dict[str, Any]) -> None:
    """Print the table, the notes and the test."""
    table = Table(title=f"validation, {choice['num_tasks']:,} tasks, the same for all")
    for header in ("method", "scaling", "accuracy, %", "to the best", "s"):
        table.add_column(header, justify="left" if header in ("method", "scaling") else "right", overflow="fold")
    for row in choice["rows"]:
        is_best = row["name"] == choice["chosen"]
        paired = "" if is_best else f"{row['difference']:.2f} +- {row['difference_interval95']:.2f}"
        table.add_row(
            row["name"], row["scaling"], f"{row['accuracy']:.2f} +- {row['interval95']:.2f}", paired,
            f"{row['seconds']:.0f}", style="bold" if is_best else None,
        )  # fmt: skip
    console = Console()
    console.print(table)
    for note in choice["notes"]:
        console.print(note, highlight=False)
    console.print(f"chosen: {choice['chosen']}; {choice['test']}", highlight=False)
