"""Classes, examples and what was done to them: a list of events, whose replay is the state. No files, no web."""

import unicodedata
from collections.abc import Iterable
from typing import Any, NamedTuple

from runner.errors import InputError

MAX_NAME = 100  # letters of a class's name
Event = dict[str, Any]


class StaleError(InputError):
    """An event rests on a version that another window has changed in the meantime."""


class Labels(NamedTuple):
    """What is known by hand.

    ``names`` has each class's name by its number, in the order in which they were made; ``examples`` each image's
    class, in the order in which they were given.
    """

    names: dict[int, str]
    examples: dict[str, int]


def apply(labels: Labels, event: Event) -> None:
    """Change ``labels`` by an ``event`` that ``History.check`` has passed.

    Kinds: ``new`` and ``rename`` (class, name), ``remove`` (class), ``label`` (labels: each image's class, or None).
    """
    names, examples = labels
    match event["kind"]:
        case "new" | "rename":
            names[event["class"]] = event["name"]
        case "remove":
            del names[event["class"]]
            for image in [image for image, number in examples.items() if number == event["class"]]:
                del examples[image]
        case "label":
            for image, number in event["labels"].items():
                examples.pop(image, None)  # a correction is the latest example
                if number is not None:
                    examples[image] = number


def touched(event: Event, labels: Labels) -> list[object]:
    """What ``event`` changes: images, classes by their number, and the examples of a class as a whole.

    ``labels`` are those before it.
    """
    match event["kind"]:
        case "new" | "rename":
            return [event["class"]]
        case "remove":
            number = event["class"]
            return [number, ("examples", number), *(i for i, of in labels.examples.items() if of == number)]
        case _:
            numbers = {number for number in event["labels"].values() if number is not None}
            return [*event["labels"], *(("examples", number) for number in numbers)]


class History:
    """The events so far. ``version`` counts them, those undone and the undoing included."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.version = 0
        self.labels = Labels({}, {})
        self.done: list[Event] = []
        self.num_classes = 0  # that ever were: a number is never used again
        self._changed: dict[object, int] = {}  # the version that changed an image or a class last
        for event in events:
            self.add(event)

    def check(self, event: Event, base: int) -> None:
        """Raise where ``event`` cannot be: InputError, or StaleError where what it changes is newer than ``base``."""
        names, examples = self.labels
        kind = event["kind"]
        if kind == "undo":
            if not self.done:
                raise InputError("there is nothing to undo")
            if base != self.version:
                raise StaleError("another window has changed something since; look at it, then undo again")
            return
        if kind in ("rename", "remove") and event["class"] not in names:
            raise StaleError("this class is no longer there: another window has removed it")
        if kind in ("new", "rename"):
            check_name(event["name"], {number: name for number, name in names.items() if number != event["class"]})
        if kind == "label" and any(n is not None and n not in names for n in event["labels"].values()):
            raise StaleError("this class is no longer there: another window has removed it")
        if kind == "new":
            return
        if kind == "label":  # the same label given twice is no conflict, nor are examples of one class from two windows
            newer = [i for i, n in event["labels"].items() if self._newer(i, base) and examples.get(i) != n]
        else:
            newer = [one for one in touched(event, self.labels) if self._newer(one, base)]
        if newer:
            raise StaleError(
                "another window has changed "
                + (f"{len(newer):,} of these images" if kind == "label" else "this class")
                + " since; the page shows it now: look at it, then do it again"
            )

    def add(self, event: Event) -> None:
        """Take an event that has passed ``check``."""
        self.version += 1
        if event["kind"] == "undo":
            undone = self.done.pop()
            self.labels = Labels({}, {})
            for one in self.done:
                apply(self.labels, one)
            changes = touched(undone, self.labels)
        else:
            changes = touched(event, self.labels)
            apply(self.labels, event)
            self.done.append(event)
            self.num_classes += event["kind"] == "new"
        self._changed |= dict.fromkeys(changes, self.version)

    def _newer(self, what: object, base: int) -> bool:
        return self._changed.get(what, 0) > base


def clean_name(name: object) -> str:
    """``name`` with single spaces, in composed letters."""
    return " ".join(unicodedata.normalize("NFC", str(name)).split())


def check_name(name: str, others: dict[int, str]) -> None:
    """Raise where ``name`` cannot be that of a class next to ``others``. Names that differ in case alone are one."""
    if not name:
        raise InputError("a class needs a name; type one")
    if len(name) > MAX_NAME:
        raise InputError(f"the name has {len(name)} letters; the limit is {MAX_NAME}: take a shorter one")
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise InputError("the name has letters that cannot be shown; take others")
    for other in others.values():
        if other.casefold() == name.casefold():
            raise InputError(
                f"there is a class {other!r} already; take another name, or give these images that class to join them"
            )


def described(event: Event, names: dict[int, str]) -> str:
    """What undoing ``event`` takes back, in a few words."""
    match event["kind"]:
        case "new":
            return f"new class {event['name']}"
        case "rename":
            return f"rename to {event['name']}"
        case "remove":
            return "remove a class"
    numbers = set(event["labels"].values())
    images = f"{len(event['labels']):,} image{'s' if len(event['labels']) > 1 else ''}"
    if numbers == {None}:
        return f"take {images} back"
    return f"{images} as {names.get(numbers.pop(), 'a class')}" if len(numbers) == 1 else f"confirm {images}"
