"""The space of a search: from each dotted key, in Hydra's words for a sweep, to what Optuna draws."""

from collections.abc import Iterator
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, QuotedString, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from runner.errors import InputError

WORDS = "interval(a, b), int(interval(a, b)), range(a, b), each within tag(log, ...) or not, or choice(a, b)"


def distribution(name: str, words: Any) -> BaseDistribution:
    """What ``name=words`` draws from.

    interval(a, b): a float; int(interval(a, b)): a whole number, b too; tag(log, ...): on a logarithmic scale;
    range(start, stop, step): as Hydra's, without ``stop``; choice(a, b), or a,b: one of these.
    """
    try:
        found = OverridesParser.create().parse_override(f"{name}={words}").value()
        if isinstance(found, IntervalSweep | RangeSweep | ChoiceSweep):
            return of_sweep(found)
    except (HydraException, ValueError) as error:
        raise InputError(f"{name}={words} cannot be searched: {error}; write {WORDS}") from error
    raise InputError(f"{name}={words} is no range to search; write {WORDS}")


def of_sweep(sweep: IntervalSweep | RangeSweep | ChoiceSweep) -> BaseDistribution:
    """What ``sweep`` draws from."""
    if sweep.tags - {"log"} or getattr(sweep, "shuffle", False):
        raise ValueError("a search has neither shuffle nor tags other than log")
    is_log = "log" in sweep.tags
    if isinstance(sweep, IntervalSweep):
        return numbers(sweep.start, sweep.end, None, is_log)
    if isinstance(sweep, RangeSweep):
        values = sorted(sweep.range())
        if not values:
            raise ValueError("the range is empty")
        return numbers(values[0], values[-1], abs(sweep.step), is_log)
    choices: list[Any] = [value.text if isinstance(value, QuotedString) else value for value in sweep.list]
    if is_log or not all(isinstance(value, None | bool | int | float | str) for value in choices):
        raise ValueError("a choice is of single values, and has no logarithm")
    return CategoricalDistribution(choices)


def numbers(low: Any, high: Any, step: Any, is_log: bool) -> BaseDistribution:
    """Whole numbers where ``low`` is one."""
    if isinstance(low, int):
        return IntDistribution(low, high, log=is_log, step=1 if step is None else step)
    return FloatDistribution(low, high, log=is_log, step=step)


def space(node: DictConfig | None, prefix: str = "") -> Iterator[tuple[str, BaseDistribution]]:
    """The dotted key of each value to search, and what it is drawn from; ``node`` is nested or not."""
    for key, words in (node or {}).items():
        name = f"{prefix}{key!s}"
        if isinstance(words, DictConfig):
            yield from space(words, f"{name}.")
        else:
            yield name, distribution(name, words)


def suggest(trial: Trial, name: str, drawn_from: BaseDistribution) -> Any:
    """The value of ``name`` in ``trial``."""
    match drawn_from:
        case FloatDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_float(name, low, high, step=step, log=log)
        case IntDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_int(name, low, high, step=step, log=log)
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(name, choices)
    raise AssertionError(drawn_from)


def limits(drawn_from: BaseDistribution) -> str:
    """The values of a distribution, for messages."""
    if isinstance(drawn_from, CategoricalDistribution):
        return ", ".join(map(str, drawn_from.choices))
    assert isinstance(drawn_from, FloatDistribution | IntDistribution)
    return f"{drawn_from.low} to {drawn_from.high}"


def holds(drawn_from: BaseDistribution, value: Any) -> bool:
    """Whether ``value`` can be drawn; steps are not looked at."""
    if isinstance(drawn_from, CategoricalDistribution):
        return value in drawn_from.choices
    assert isinstance(drawn_from, FloatDistribution | IntDistribution)
    return bool(drawn_from.low <= value <= drawn_from.high)
