"""A chart as pixels: what the page's template draws as inline SVG."""

import math
from itertools import pairwise
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 320, 180
LEFT, RIGHT, TOP, BOTTOM = 42, 302, 8, 158  # of the plotted area
MAX_POINTS = 200  # of a line

Points = list[tuple[float, float]]


class Line(NamedTuple):
    """Points of one kind, a class of the page's style sheet; ``label`` is shown where the pointer rests."""

    kind: str
    label: str
    points: Points


class Scale(NamedTuple):
    """From the values ``low`` to ``high`` to the pixels ``start`` to ``end``, with round values marked."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[float]

    def __call__(self, value: float) -> float:
        """The pixel of ``value``."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    @property
    def marks(self) -> list[tuple[float, str]]:
        """Pixel and text of each round value."""
        return [(self(tick), short(tick)) for tick in self.ticks]


class Chart(NamedTuple):
    """A titled chart; the points of its lines are pixels."""

    title: str
    x: Scale
    y: Scale
    lines: list[Line]


def scale(values: list[float], start: float, end: float, num_ticks: int, *, is_wide: bool) -> Scale:
    """The scale of ``values``; ``is_wide`` widens it to the round values around them."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    ticks = [round(float(tick), 12) for tick in MaxNLocator(num_ticks, steps=(1, 2, 2.5, 5, 10)).tick_values(low, high)]
    if is_wide:
        low, high = ticks[0], ticks[-1]
    return Scale(low, high, start, end, [tick for tick in ticks if low <= tick <= high])


def short(value: float) -> str:
    """``value`` in at most seven characters, where it is round."""
    text = f"{value:.6g}"
    if len(text) <= 6 and "e" not in text:
        return text
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def chart(title: str, lines: list[Line]) -> Chart | None:
    """The chart of the finite points of ``lines``; None where there are none."""
    finite = [
        line._replace(points=[point for point in line.points if all(map(math.isfinite, point))]) for line in lines
    ]
    every = [point for line in finite for point in line.points]
    if not every:
        return None
    x = scale([point[0] for point in every], LEFT, RIGHT, 4, is_wide=False)
    y = scale([point[1] for point in every], BOTTOM, TOP, 4, is_wide=True)
    drawn = [line._replace(points=[(x(a), y(b)) for a, b in thinned(line.points)]) for line in finite]
    return Chart(title, x, y, drawn)


def thinned(points: Points) -> Points:
    """At most ``MAX_POINTS``: the lowest and the highest of each stretch of a longer line, so that no spike is lost."""
    if len(points) <= MAX_POINTS:
        return points
    num_stretches = MAX_POINTS // 2
    edges = [round(i * len(points) / num_stretches) for i in range(num_stretches + 1)]
    kept = []
    for start, end in pairwise(edges):
        stretch = range(start, end)
        lowest, highest = (choose(stretch, key=lambda i: points[i][1]) for choose in (min, max))
        kept += [points[i] for i in sorted({lowest, highest})]
    return kept
