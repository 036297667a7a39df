"""In which order images are shown: each under its most probable class, and which to ask about next."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NONE = -1
MAX_COMPARED = 5000  # images among which those unlike each other are looked for


class Order(NamedTuple):
    """All images [n] in order.

    ``classes`` has the position of each image's class, by hand or predicted, or NONE; ``probabilities`` how probable it
    is (1 by hand). ``predicted`` holds the images of each class that were not labelled by hand, most certain first,
    ``uncertain`` those to be asked next, least certain first, ``unsorted`` those without a class.
    """

    classes: NDArray[np.intp]
    probabilities: NDArray[np.float32]
    by_hand: NDArray[np.bool_]
    predicted: list[NDArray[np.intp]]
    uncertain: NDArray[np.intp]
    unsorted: NDArray[np.intp]


def certainty(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """By how much the most probable class of each row of [n, N] is more probable than the next one."""
    two = np.partition(probabilities, -2, axis=1)[:, -2:]
    return np.asarray(two[:, 1] - two[:, 0], np.float32)


def order(
    by_hand: NDArray[np.intp],
    probabilities: NDArray[np.float32],
    columns: NDArray[np.intp],
    num_classes: int,
    num_uncertain: int,
    hidden: NDArray[np.bool_],
) -> Order:
    """The order by ``probabilities`` [n, N], whose ``columns`` [N] are positions of classes.

    ``by_hand`` has each image's class by hand, or NONE. ``hidden`` images are in no list.
    """
    known = by_hand != NONE
    best = probabilities.argmax(1)
    classes = np.where(known, by_hand, columns[best])
    of_best = np.where(known, np.float32(1), probabilities[np.arange(len(best)), best])
    asked = np.flatnonzero(~known & ~hidden)
    sure = certainty(probabilities[asked])
    uncertain = asked[np.argsort(sure, kind="stable")[:num_uncertain]]
    ranked = asked[np.lexsort((asked, -of_best[asked], classes[asked]))]
    ends = np.searchsorted(classes[ranked], np.arange(num_classes + 1))
    predicted = [ranked[start:end] for start, end in pairwise(ends)]
    return Order(classes, of_best, known, predicted, uncertain, np.empty(0, np.intp))


def unsorted(
    by_hand: NDArray[np.intp],
    closeness: NDArray[np.float32] | None,
    kinds: NDArray[np.intp],
    num_classes: int,
    hidden: NDArray[np.bool_],
) -> Order:
    """The order while fewer than two classes have examples: the images most like those of the only class first.

    ``kinds`` are images to be asked about.
    """
    known = by_hand != NONE
    rest = np.flatnonzero(~known & ~hidden)
    if closeness is not None:
        rest = rest[np.argsort(-closeness[rest], kind="stable")]
    nothing = np.empty(0, np.intp)
    asked = kinds[~known[kinds] & ~hidden[kinds]]
    return Order(by_hand, known.astype(np.float32), known, [nothing] * num_classes, asked, rest)


def unlike_each_other(unit: NDArray[np.float32], number: int) -> NDArray[np.intp]:
    """Indices of up to ``number`` rows of unit length: the most usual one, then always the least like those before."""
    some = np.unique(np.linspace(0, len(unit) - 1, min(len(unit), MAX_COMPARED)).astype(np.intp))
    rows = unit[some]
    chosen = [int((rows @ rows.mean(0)).argmax())]
    nearest = rows @ rows[chosen[0]]
    while len(chosen) < min(number, len(some)):
        chosen.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, rows @ rows[chosen[-1]])
        nearest[chosen] = np.inf
    return some[chosen]
