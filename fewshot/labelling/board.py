"""What the page shows and changes, in one place: the folder's images, the journal, the method, the order."""

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from fewshot.labelling.journal import Journal
from fewshot.labelling.labels import Event, History, clean_name, described
from fewshot.labelling.methods import Centroid, Logistic, Method, Trained, centred, similarity
from fewshot.labelling.order import NONE, order, unlike_each_other, unsorted
from fewshot.labelling.pictures import Picture
from fewshot.model import Model
from leo.prototypes import NearestCentroid
from runner.errors import InputError

UNCERTAIN, UNSORTED, PREDICTED, EXAMPLES = "uncertain", "unsorted", "predicted", "examples"
NUM_UNCERTAIN = 60  # images in the row of those to be asked next
CENTROID, LOGISTIC = "nearest centroid", "logistic regression"


class Row(NamedTuple):
    """An image for labels.csv: the name of one of its files, its class, whether by hand, and how probable."""

    name: str
    label: str
    by_hand: bool
    probability: float


class Board:
    """One folder that is labelled. Its methods may be called from several threads.

    Args:
        folder: where the images are.
        pictures: the n images.
        features: float32 [n, D].
        journal: open; it is replayed.
        model: what was trained, and the extractor. Its learner is a method to choose, if it was trained.
    """

    def __init__(
        self, folder: Path, pictures: Sequence[Picture], features: NDArray[np.float32], journal: Journal, model: Model
    ) -> None:
        self.folder, self.pictures, self.features, self.model = folder, list(pictures), features, model
        self.index = {one.key: i for i, one in enumerate(pictures)}
        self.catalogue = hashlib.sha256("".join(self.index).encode()).hexdigest()[:16]  # what indices mean
        self._journal, self._history = journal, History(journal.events)
        self._hidden = np.zeros(len(pictures), bool)
        self._unit = centred(features)
        self._kinds: NDArray[np.intp] | None = None
        self._lock = threading.RLock()
        self._makers: dict[str, Callable[[], Method]] = {
            CENTROID: lambda: Centroid(self._unit),
            LOGISTIC: lambda: Logistic(self._unit),
        }
        self.method = CENTROID
        if type(model.learner) is not NearestCentroid:  # of which there are subclasses
            self.method = type(model.learner).__name__
            self._makers[self.method] = lambda: Trained(features, model)
        self._methods: dict[str, Method] = {}
        self.num_orders = 0
        self._sort()

    @property
    def methods(self) -> list[str]:
        """The methods to choose from."""
        return list(self._makers)

    @property
    def names(self) -> dict[int, str]:
        """The classes' names by their numbers."""
        return self._history.labels.names

    def act(self, asked: Mapping[str, Any], base: int) -> None:
        """Do what a window asks for, which shows version ``base``: on disk first, then in the order.

        ``asked`` is an event whose labels are {index: class}. Raises InputError where it cannot be, StaleError where
        another window was faster; nothing is changed then, nor where the journal cannot be written.
        """
        with self._lock:
            event = self._event(asked)
            self._history.check(event, base)
            self._journal.append(event | {"time": round(time.time(), 3)})
            self._history.add(event)
            self._sort()

    def choose(self, method: str) -> None:
        """Sort by another one of ``methods``."""
        if method not in self._makers:
            raise InputError(f"there is no method {method!r}; there are {', '.join(self._makers)}")
        with self._lock:
            if method != self.method:
                self.method = method
                self._sort()

    def hide(self, index: int) -> None:
        """Leave out an image that is no longer in the folder; what it was an example of stays learned."""
        with self._lock:
            if not self._hidden[index]:
                self._hidden[index] = True
                self._sort()

    def close(self) -> None:
        """Close the journal."""
        with self._lock:
            self._journal.close()

    def view(self, num_items: int) -> dict[str, Any]:
        """Everything that the page shows, of each list the first ``num_items``."""
        with self._lock:
            history, order = self._history, self._order
            classes = [
                {"id": number, "name": name, "examples": len(self._examples[number]), "predicted": len(predicted)}
                for (number, name), predicted in zip(self.names.items(), order.predicted, strict=True)
            ]
            return {
                "order": self.num_orders,
                "version": history.version,
                "catalogue": self.catalogue,
                "folder": self.folder.name or str(self.folder),
                "total": len(self.pictures),
                "gone": int(self._hidden.sum()),
                "by_hand": int(order.by_hand.sum()),
                "method": self.method,
                "methods": self.methods,
                "problem": self.problem,
                "undo": described(history.done[-1], self.names) if history.done else None,
                "classes": classes,
                "lists": {key: self.window(key, 0, num_items) for key in self._lists()},
            }

    def window(self, key: str, start: int, count: int) -> dict[str, Any]:
        """Some images of a list: [index, class or null, probability, whether by hand] of each."""
        with self._lock:
            found = self._lists().get(key)
            if found is None:
                raise InputError(f"there is no list {key!r} any more")
            numbers = [*self.names, None]  # the last one: NONE
            items = [
                [int(i), numbers[self._order.classes[i]], round(float(self._order.probabilities[i]), 4),
                 bool(self._order.by_hand[i])]
                for i in found[start : start + count]
            ]  # fmt: skip
            return {"order": self.num_orders, "total": len(found), "start": start, "items": items}

    def rows(self) -> list[Row]:
        """A row for each file that is in the folder now, in order of the names; without a class an empty label."""
        with self._lock:
            names, order = [*self.names.values(), ""], self._order
            found = [
                Row(name, names[order.classes[i]], bool(order.by_hand[i]), float(order.probabilities[i]))
                for i, picture in enumerate(self.pictures)
                for name in picture.names
                if (self.folder / name).is_file()
            ]
        return sorted(found)

    def examples(self) -> tuple[NDArray[np.intp], NDArray[np.intp], list[str]]:
        """Indices [m] of the images labelled by hand, their classes [m] as positions in the names, the names."""
        with self._lock:
            rows = np.flatnonzero(self._order.by_hand)
            return rows, self._order.classes[rows], list(self.names.values())

    def _event(self, asked: Mapping[str, Any]) -> Event:
        """The event that a window asks for, checked and with the names that the journal has."""
        kind = asked.get("kind")
        try:
            if kind == "new":
                return {"kind": kind, "class": self._history.num_classes + 1, "name": clean_name(asked["name"])}
            if kind == "rename":
                return {"kind": kind, "class": int(asked["class"]), "name": clean_name(asked["name"])}
            if kind == "remove":
                return {"kind": kind, "class": int(asked["class"])}
            if kind == "undo":
                return {"kind": kind}
            if kind == "label" and asked["labels"]:
                labels = {int(i): None if number is None else int(number) for i, number in asked["labels"].items()}
                if min(labels) >= 0:
                    return {"kind": kind, "labels": {self.pictures[i].key: number for i, number in labels.items()}}
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            pass
        raise InputError("this cannot be understood; reload the page")

    def _lists(self) -> dict[str, Sequence[int] | NDArray[np.intp]]:
        """Every list of images by its key."""
        lists: dict[str, Sequence[int] | NDArray[np.intp]] = {
            UNCERTAIN: self._order.uncertain,
            UNSORTED: self._order.unsorted,
        }
        for number, predicted in zip(self.names, self._order.predicted, strict=True):
            lists[f"{PREDICTED}-{number}"] = predicted
            lists[f"{EXAMPLES}-{number}"] = self._examples[number]
        return lists

    def _sort(self) -> None:
        """Adapt the method to the examples and put all images in order."""
        positions = {number: i for i, number in enumerate(self.names)}
        by_hand = np.full(len(self.pictures), NONE)
        self._examples: dict[int, list[int]] = {number: [] for number in positions}
        for key, number in reversed(self._history.labels.examples.items()):  # the latest first
            if key in self.index:  # else its file is no longer in the folder
                by_hand[self.index[key]] = positions[number]
                self._examples[number].append(self.index[key])
        self.problem = ""
        rows = np.flatnonzero(by_hand != NONE)
        columns = np.unique(by_hand[rows])
        if len(columns) > 1:
            classes = np.searchsorted(columns, by_hand[rows])
            with threadpool_limits(1):  # of such small matrices: several wait for each other on a busy machine
                try:
                    found = self._prepared(self.method)(rows, classes, len(columns))
                except InputError as error:  # a trained learner may diverge
                    self.problem = f"sorted by {CENTROID}: {error}"
                    found = self._prepared(CENTROID)(rows, classes, len(columns))
            self._order = order(by_hand, found, columns, len(positions), NUM_UNCERTAIN, self._hidden)
        else:
            closeness = similarity(self._unit, rows) if len(rows) else None
            if self._kinds is None:
                self._kinds = unlike_each_other(self._unit, NUM_UNCERTAIN)
            self._order = unsorted(by_hand, closeness, self._kinds, len(positions), self._hidden)
        self.num_orders += 1

    def _prepared(self, name: str) -> Method:
        if name not in self._methods:
            self._methods[name] = self._makers[name]()
        return self._methods[name]
