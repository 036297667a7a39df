"""Each figure of trained methods: its numbers as a table, a summary of them, and the picture."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from hydra.utils import instantiate
from jaxtyping import Float
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor

from leo.analysis import drawing
from leo.analysis.calibration import predictions, reliability, sampled_predictions
from leo.analysis.codes import STEPS, code_map
from leo.analysis.curvature import curvature as curvature_of
from leo.analysis.decoder import singular_values
from leo.analysis.inner_steps import LOOPS, accuracy_after, trained_steps
from leo.analysis.learned_rates import final_rates, logged_rates
from leo.analysis.methods import Method, Sizes
from leo.analysis.step_lengths import step_lengths as lengths_of
from leo.analysis.trajectory import trajectory
from leo.episodes import TaskIndices, gather, sample_tasks
from leo.evaluate import interval95
from leo.leo import LEO
from leo.run import TEST_SEED, VAL_SEED

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """A figure: the rows of its CSV file, what they come to, and the picture."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    summary: dict[str, Any]
    picture: Figure


class Question(NamedTuple):
    """What is looked at: trained methods, tasks of ``sizes``, and the numbers of ``conf/stage/analyze.yaml``."""

    methods: list[Method]
    sizes: Sizes
    settings: DictConfig

    def tasks(self, split: str) -> TaskIndices:
        """The same tasks of ``split`` for every method and figure; the first K images of a class are the support."""
        table = getattr(self.methods[0], split)
        num_images = self.sizes.num_shot + self.sizes.num_query
        generator = torch.Generator().manual_seed({"val": VAL_SEED, "test": TEST_SEED}[split])
        return sample_tasks(table, self.settings.num_tasks, self.sizes.num_way, num_images, generator)

    def with_codes(self, figure: str) -> list[Method]:
        """The methods that have latent codes; says which have none."""
        for method in self.methods:
            if not isinstance(method.learner, LEO):
                log.info("%s: %s is left out, it has no latent codes", figure, method.name)
        return [method for method in self.methods if isinstance(method.learner, LEO)]


@runtime_checkable
class OfMethods(Protocol):
    """Any question about trained methods."""

    @property
    def methods(self) -> Sequence[Any]:
        """Each with a name, a learner and a checkpoint."""


def learned_rates(question: OfMethods) -> Outcome | None:
    """The means of the learned inner rates over training, and all of them at the end."""
    logged, final = {}, {}
    rows: list[tuple[Any, ...]] = []
    for method in question.methods:
        path = method.checkpoint.with_name("metrics.csv")
        rates = logged_rates(path)
        if not rates:
            log.info("learned_rates: %s is left out of the course of training, %s tells no rates", method.name, path)
        for name, values in final_rates(method.learner).items():
            key = f"{method.name}, {name.replace('_', ' ')}"
            logged[key], final[key] = [rate for rate in rates if rate.name == name], values
            rows += [(method.name, name, rate.step, "mean", rate.mean) for rate in logged[key]]
            rows += [(method.name, name, "end", i, value) for i, value in enumerate(values.tolist())]
    if not final:
        log.info("learned_rates: skipped, no method learns a rate")
        return None
    summary = {key: spread(values) | {"negative": (values < 0).float().mean().item()} for key, values in final.items()}
    return Outcome(("method", "rate", "step", "element", "value"), rows, summary, drawing.learned_rates(logged, final))


def decoder(question: Question) -> Outcome | None:
    """Figure 5b: the singular values of the decoders."""
    values = {method.name: singular_values(method.learner) for method in question.with_codes("decoder")}  # type: ignore[arg-type]
    if not values:
        log.info("decoder: skipped, it needs a method with latent codes")
        return None
    rows = [(name, i, value) for name, of_method in values.items() for i, value in enumerate(of_method.tolist())]
    summary = {
        name: {
            **spread(of_method),
            "above_1": (of_method > 1).float().mean().item(),
            "root_mean_square": of_method.square().mean().sqrt().item(),
        }
        for name, of_method in values.items()
    }
    return Outcome(("method", "index", "singular_value"), rows, summary, drawing.decoder(values))


def curvature(question: Question) -> Outcome | None:
    """Figure 5a: the absolute eigenvalues of the Hessian of the task loss, in z and in the weights."""
    tasks = question.tasks("test")
    values: dict[tuple[str, str], Tensor] = {}
    summary: dict[str, Any] = {}
    for method in question.methods:
        support = gather(method.test, tasks, question.sizes.num_shot).support
        spaces = {space: eigenvalues.abs() for space, eigenvalues in curvature_of(method.learner, support).items()}
        if not spaces:
            log.info("curvature: %s is left out, it takes no steps", method.name)
        values |= {(method.name, space): eigenvalues for space, eigenvalues in spaces.items()}
        summary |= {f"{method.name}, {space}": spread(eigenvalues) for space, eigenvalues in spaces.items()}
        if "latent" in spaces:
            ratio = spaces["latent"].median() / spaces["weight"].median()
            summary[f"{method.name}, orders of magnitude, latent above weight"] = ratio.log10().item()
    if not values:
        log.info("curvature: skipped, no method takes steps")
        return None
    rows = [
        (name, space, task, value)
        for (name, space), eigenvalues in values.items()
        for task, of_task in enumerate(eigenvalues.tolist())
        for value in of_task
    ]
    return Outcome(("method", "space", "task", "absolute_eigenvalue"), rows, summary, drawing.curvature(values))


def step_lengths(question: Question) -> Outcome | None:
    """Figure 5c: the length of each step in weight space."""
    tasks, values, summary, rows = question.tasks("test"), {}, {}, []
    for method in question.methods:
        path = trajectory(method.learner, gather(method.test, tasks, question.sizes.num_shot).support)
        if path is None or not path.loops:
            log.info("step_lengths: %s is left out, it takes no steps", method.name)
            continue
        lengths = lengths_of(path)
        for step, (loop, of_step) in enumerate(zip(path.loops, lengths, strict=True), start=1):
            values[method.name, loop, step] = of_step
            summary[f"{method.name}, step {step}, {loop}"] = spread(of_step)
            rows += [(method.name, loop, step, task, length) for task, length in enumerate(of_step.tolist())]
    if not values:
        log.info("step_lengths: skipped, no method takes steps")
        return None
    return Outcome(("method", "loop", "step", "task", "length"), rows, summary, drawing.step_lengths(values))


def inner_steps(question: Question) -> Outcome | None:
    """Test accuracy against the number of steps of each loop, the other loop as trained."""
    tasks, rows, summary = question.tasks("test"), [], {}
    for method in question.methods:
        trained = trained_steps(method.learner)
        if not trained:
            log.info("inner_steps: %s is left out, it takes no steps", method.name)
        for name, num_trained in trained.items():
            accuracies = []
            for num_steps in range(question.settings.max_inner_steps + 1):
                accuracy = accuracy_after(method.learner, name, num_steps, method.test, tasks, question.sizes.num_shot)
                accuracies.append(accuracy.mean().item())
                rows.append((method.name, LOOPS[name], num_trained, num_steps, accuracies[-1], interval95(accuracy)))
            summary[f"{method.name}, {LOOPS[name]} steps"] = {
                "none": accuracies[0], "trained": num_trained, "best": accuracies.index(max(accuracies)),
                "best_accuracy": max(accuracies),
            }  # fmt: skip
    if not rows:
        log.info("inner_steps: skipped, no method takes steps")
        return None
    columns = ("method", "loop", "trained_steps", "steps", "accuracy", "interval95")
    return Outcome(columns, rows, summary, drawing.inner_steps(rows, "test accuracy [%]", 100))


def calibration(question: Question) -> Outcome:
    """Reliability and ECE of each method; again with sampled adaptations for those that sample in training."""
    tasks, settings = question.tasks("test"), question.settings
    curves, rows, summary = {}, [], {}
    for method in question.methods:
        batch = gather(method.test, tasks, question.sizes.num_shot)
        predicted = {0: predictions(method.learner, batch)}
        if isinstance(method.learner, LEO) and method.learner.stochastic:
            generator = torch.Generator().manual_seed(TEST_SEED)
            predicted[settings.num_samples] = sampled_predictions(
                method.learner, batch, settings.num_samples, generator
            )
        for num_samples, (confidence, correct) in predicted.items():
            curve = reliability(confidence, correct, settings.num_bins)
            curves[method.name, num_samples] = curve
            bins = torch.stack(curve, dim=1).tolist()
            rows += [(method.name, num_samples, i, *of_bin) for i, of_bin in enumerate(bins)]
            summary[f"{method.name}, {num_samples} samples"] = {
                "expected_calibration_error": curve.expected_calibration_error,
                "accuracy": correct.float().mean().item(),
            }
    columns = ("method", "samples", "bin", "count", "confidence", "accuracy")
    return Outcome(columns, rows, summary, drawing.calibration(curves))


def codes(question: Question) -> Outcome | None:
    """Figure 4: the codes of the first method that has some, before and after adaptation, with their silhouettes."""
    methods = question.with_codes("codes")
    if not methods:
        log.info("codes: skipped, it needs a method with latent codes")
        return None
    method, tasks = methods[0], question.tasks("val")
    path = trajectory(method.learner, gather(method.val, tasks, question.sizes.num_shot).support)
    assert path is not None
    assert path.codes is not None
    before, after = (codes.mean(2).flatten(0, 1) for codes in (path.codes[0], path.codes[-1]))
    shown = code_map(before, after, tasks.classes.flatten(), instantiate(question.settings.embedding))
    names, typical = method.val.class_names, shown.typical_class
    rows = [
        (step, names[label], *place, silhouette)
        for step, places, silhouettes in zip(STEPS, shown.places.tolist(), shown.silhouettes.tolist(), strict=True)
        for label, place, silhouette in zip(shown.classes.tolist(), places, silhouettes, strict=True)
    ]
    means = dict(zip(STEPS, shown.silhouettes.mean(1).tolist(), strict=True))
    summary = {"method": method.name, "silhouette": means, "highlighted_class": names[typical]}
    return Outcome(("step", "class", "x", "y", "silhouette"), rows, summary, drawing.codes(shown, names[typical]))


# The slowest last.
FIGURES = {
    figure.__name__: figure
    for figure in (learned_rates, decoder, curvature, step_lengths, calibration, inner_steps, codes)
}


def spread(values: Float[Tensor, "*any"]) -> dict[str, float]:
    """The median and the 5th and 95th percentile, as the box plots show them."""
    quantiles = torch.tensor([0.05, 0.5, 0.95], dtype=values.dtype)
    return dict(zip(("p5", "median", "p95"), values.flatten().quantile(quantiles).tolist(), strict=True))
