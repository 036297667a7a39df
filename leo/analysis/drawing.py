"""The pictures of the figures' numbers. No number is made here."""

from collections.abc import Callable, Iterable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from leo.analysis.calibration import Reliability
from leo.analysis.codes import STEPS, CodeMap
from leo.analysis.learned_rates import Rate

WHISKERS = (5, 95)  # percentiles
GREY = "0.85"
SPACES = {"latent": "latent space (z)", "weight": "weight space (w)"}


def panels(num_rows: int, num_columns: int, width: float, height: float, **keywords: Any) -> tuple[Figure, Any]:
    """A figure of ``width`` x ``height`` inches, and its axes."""
    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots(num_rows, num_columns, **keywords)


def colours(names: Iterable[Any]) -> dict[Any, str]:
    """A colour for each different name, in order of appearance."""
    return {name: f"C{i}" for i, name in enumerate(dict.fromkeys(names))}


def box(axes: Axes, values: np.ndarray, position: int | float, width: float, colour: str) -> None:
    """A box plot of ``values``: median, quartiles, and whiskers at the 5th and 95th percentile."""
    drawn = axes.boxplot(
        values, positions=[position], widths=width, whis=WHISKERS, showfliers=False, patch_artist=True,
        medianprops={"color": "black"}, manage_ticks=False,
    )  # fmt: skip
    drawn["boxes"][0].set(facecolor=colour, alpha=0.8)


def labelled_boxes(axes: Axes, values: dict[str, Any], colour: Callable[[str], str]) -> None:
    """One box for each entry, its name below it."""
    for i, (label, of_label) in enumerate(values.items()):
        box(axes, of_label, i, 0.6, colour(label))
    axes.set_xticks(range(len(values)), list(values))
    axes.set_xlim(-0.6, len(values) - 0.4)
    axes.grid(axis="y", color=GREY)
    axes.set_axisbelow(True)


def wrapped(name: str) -> str:
    """A method's name on two lines."""
    return name.replace(", ", ",\n", 1)


def curvature(values: dict[tuple[str, str], Tensor]) -> Figure:
    """Eigenvalues by method and space."""
    figure, axes = panels(1, 1, 1.6 + 1.7 * len(values), 4.5)
    shown = {f"{wrapped(name)}\n{SPACES[space]}": part.flatten().numpy() for (name, space), part in values.items()}
    colour = {"latent": "C0", "weight": "C1"}
    by_label = dict(zip(shown, (colour[space] for _, space in values), strict=True))
    labelled_boxes(axes, shown, by_label.__getitem__)
    axes.set_yscale("log")
    axes.set_ylabel("absolute eigenvalue of the Hessian [nats]")
    num_tasks, num_values = next(iter(values.values())).shape
    axes.set_title(
        f"Curvature of the task loss where adaptation starts:\n{num_values} eigenvalues of {num_tasks:,} tasks"
    )
    spaces = dict.fromkeys(space for _, space in values)
    handles = [Patch(color=colour[space], label=f"in {SPACES[space]}") for space in spaces]
    figure.legend(handles=handles, title="box: quartiles; whiskers: 5 %, 95 %", loc="outside lower center", ncols=2)
    return figure


def decoder(values: dict[str, Tensor]) -> Figure:
    """Singular values by method."""
    figure, axes = panels(1, 1, 3 + 1.6 * len(values), 4.5)
    labelled_boxes(axes, {wrapped(name): part.numpy() for name, part in values.items()}, lambda _: "C0")
    axes.axhline(1, color="black", linestyle="--", label="length kept")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("singular value of the decoder [1]")
    axes.set_title("Decoder: above 1, space expands")
    figure.legend(title="box: quartiles; whiskers: 5 %, 95 %", loc="outside lower center")
    return figure


def step_lengths(values: dict[tuple[str, str, int], Tensor]) -> Figure:
    """Lengths by method, loop and step."""
    figure, axes = panels(1, 1, 9.0, 4.0)
    series = colours((name, loop) for name, loop, _ in values)
    methods = list(dict.fromkeys(name for name, _, _ in values))
    width = 0.8 / len(methods)
    for (name, loop, step), lengths in values.items():
        offset = (methods.index(name) - (len(methods) - 1) / 2) * width
        box(axes, lengths.numpy(), step + offset, 0.9 * width, series[name, loop])
    last = max(step for _, _, step in values)
    axes.set_xticks(range(1, last + 1))
    axes.set_xlim(0.4, last + 0.6)
    for step in range(1, last):
        axes.axvline(step + 0.5, color=GREY, linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xlabel("step of adaptation")
    axes.set_ylabel("length in weight space [1]")
    axes.set_title("Length of each step of adaptation")
    handles = [Patch(color=colour, label=f"{name}: {loop} steps") for (name, loop), colour in series.items()]
    figure.legend(handles=handles, title="box: quartiles; whiskers: 5 %, 95 %", loc="outside right upper")
    return figure


def learned_rates(logged: dict[str, list[Rate]], final: dict[str, Tensor]) -> Figure:
    """Mean rates over training, and all rates at its end."""
    figure, (left, right) = panels(1, 2, 11.0, 4.0, width_ratios=(3, 2))
    colour = colours(final)
    for name, rates in logged.items():
        if rates:
            left.plot([rate.step + 1 for rate in rates], [rate.mean for rate in rates], color=colour[name], label=name)
    left.set_xlabel("meta-updates")
    left.set_ylabel("mean learned rate [1]")
    left.set_title("Over training")
    left.grid(color=GREY)
    for i, (name, values) in enumerate(final.items()):
        box(right, values.numpy(), i, 0.6, colour[name])
    right.set_xticks([])
    right.axhline(0, color="black", linewidth=0.8)
    right.set_ylabel("learned rate [1]")
    right.set_title("All elements at the end")
    right.grid(axis="y", color=GREY)
    handles = [Patch(color=value, label=name) for name, value in colour.items()]
    figure.legend(handles=handles, title="box: quartiles; whiskers: 5 %, 95 %", loc="outside lower center", ncols=3)
    return figure


def inner_steps(rows: list[tuple[Any, ...]], label: str, factor: int) -> Figure:
    """``factor`` times the rows' numbers by number of steps, a panel for each loop; a dot where training was."""
    loops = list(dict.fromkeys(row[1] for row in rows))
    figure, grid = panels(1, len(loops), 1 + 4.5 * len(loops), 4.0, sharey=True, squeeze=False)
    colour = colours(row[0] for row in rows)
    for axes, loop in zip(grid[0], loops, strict=True):
        for name in dict.fromkeys(row[0] for row in rows if row[1] == loop):
            trained, steps, value, interval = np.array([row[2:] for row in rows if row[:2] == (name, loop)]).T
            value, interval = factor * value, factor * interval
            axes.plot(steps, value, color=colour[name], label=name)
            axes.fill_between(steps, value - interval, value + interval, color=colour[name], alpha=0.2, linewidth=0)
            if trained[0] <= steps[-1]:
                axes.plot(trained[0], value[int(trained[0])], "o", color=colour[name])
        axes.set_xlabel(f"steps in {SPACES[loop]}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
        axes.set_xlim(-0.5, max(row[3] for row in rows) + 0.5)
        axes.grid(color=GREY)
        axes.legend(title="dot: as trained; band: 95 % interval")
    grid[0, 0].set_ylabel(label)
    figure.suptitle("By number of inner steps, the other loop as trained")
    return figure


def calibration(curves: dict[tuple[str, int], Reliability]) -> Figure:
    """Reliability curves above the share of predictions in each bin, by method and number of samples (0: none)."""
    figure, (upper, lower) = panels(2, 1, 6.5, 8.0, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 100], [0, 100], color="black", linestyle=":", label="calibrated")
    colour = colours(name for name, _ in curves)
    for (name, num_samples), curve in curves.items():
        full = curve.num_predictions > 0
        label = f"{name}{f', {num_samples} samples' if num_samples else ''}: ECE"
        style = {"color": colour[name], "linestyle": "--" if num_samples else "-", "marker": "."}
        label = f"{label} {100 * curve.expected_calibration_error:.1f} %"
        upper.plot(100 * curve.confidence[full], 100 * curve.accuracy[full], label=label, **style)
        lower.plot(
            100 * curve.confidence[full], 100 * curve.num_predictions[full] / curve.num_predictions.sum(), **style
        )
    upper.set_ylabel("queries classified rightly [%]")
    upper.set_title("Calibration")
    lower.set_xlabel("confidence, the highest class probability [%]")
    lower.set_ylabel("share [%]")
    for axes in (upper, lower):
        axes.grid(color=GREY)
    figure.legend(loc="outside lower center")
    return figure


def codes(shown: CodeMap, highlighted: str) -> Figure:
    """Codes by step, by class, with one class highlighted; and the silhouettes of the classes."""
    figure, grid = panels(2, 3, 11.0, 7.6)
    labels, position = np.unique(shown.classes, return_inverse=True)
    hues = matplotlib.colormaps["hsv"](position / len(labels))
    dots: dict[str, Any] = {"s": 3, "linewidths": 0, "rasterized": True}
    is_typical = shown.classes == shown.typical_class
    for step, places, colour in zip(STEPS, shown.places, ("C0", "C1"), strict=True):
        grid[0, 0].scatter(*places.T, color=colour, alpha=0.5, label=step, **dots)
    grid[0, 0].set_title("before and after adaptation")
    for i, (step, places) in enumerate(zip(STEPS, shown.places, strict=True), start=1):
        grid[0, i].scatter(*places.T, c=hues, **dots)
        grid[0, i].set_title(f"{step} adaptation, by class\nsilhouette {shown.silhouettes[i - 1].mean():.3f}")
        grid[1, i].scatter(*places[~is_typical].T, color=GREY, label=f"{len(labels) - 1} classes", **dots)
        grid[1, i].scatter(*places[is_typical].T, color="C3", label=f"class {highlighted}", **dots | {"s": 8})
        grid[1, i].set_title(f"{step} adaptation, one class")
    low, high = shown.places.min((0, 1)), shown.places.max((0, 1))
    margin = 0.04 * (high - low)
    for axes in (*grid[0], *grid[1, 1:]):
        axes.set(xticks=[], yticks=[], xlabel="t-SNE, first axis", ylabel="t-SNE, second axis")
        axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
        axes.set_ylim(low[1] - 4 * margin[1], high[1] + margin[1])  # room for the legend
        if axes not in grid[0, 1:]:
            axes.legend(loc="lower center", ncols=2, markerscale=4)
    by_class = np.stack([shown.silhouettes[:, position == i].mean(1) for i in range(len(labels))], axis=1)
    axes, ends = grid[1, 0], [by_class.min() - 0.02, by_class.max() + 0.02]
    axes.plot(ends, ends, color="black", linestyle="--", linewidth=0.8, label="no change")
    axes.plot(*by_class[:, labels != shown.typical_class], "o", color="0.6", label="a class")
    axes.plot(*by_class[:, labels == shown.typical_class], "o", color="C3", label=f"class {highlighted}")
    axes.set(xlabel="silhouette before [1]", ylabel="silhouette after [1]", title="silhouette by class")
    axes.legend(loc="lower right")
    return figure
