"""From the command line of a Hydra sweep to that of a search."""

from collections.abc import Iterator
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from omegaconf import DictConfig

from runner.errors import InputError
from sweeps.space import distribution

WORKER = "search.worker"


def jobs(
    arguments: list[str], params: DictConfig | None, n_trials: int | None, config: DictConfig, loader: ConfigLoader
) -> list[list[str]]:
    """The overrides of each worker of the search that ``arguments`` and ``params`` describe.

    What has a range is searched; a value on the command line takes its key out of ``params``. Without any range the
    space is that of ``conf/search/space``. ``search.worker=0,1`` starts two workers. ``config`` is the configuration
    without what is swept.
    """
    parser = OverridesParser.create(config_loader=loader)
    given = parser.parse_overrides(arguments)
    named = {override.key_or_group for override in given}
    stored = parser.parse_overrides([f"{key}={words}" for key, words in flat(params or {}) if key not in named])
    fixed = [str(override.input_line) for override in (*stored, *given) if not override.is_sweep_override()]
    swept = [override for override in (*stored, *given) if override.is_sweep_override()]
    workers = [x for override in swept if override.key_or_group == WORKER for x in override.sweep_string_iterator()]
    ranges = {override.key_or_group: words(override) for override in swept if override.key_or_group != WORKER}
    for key, text in ranges.items():
        check(key, text, loader)
    if "search" not in config:
        if "stage" in named:
            raise InputError("hydra/sweeper=optuna starts a search; choose stage=search, or leave the sweeper out")
        fixed.append("stage=search")
    changes = ["search/space=none", *(f"+{in_space(key, text)}" for key, text in ranges.items())] if ranges else []
    if ranges and "search" in config:
        default = {key: str(text) for key, text in flat(config.search.space or {})}
        less = [f"~search.space.{key}" for key in default if key not in ranges]
        other = [
            ("" if k in default else "+") + in_space(k, text) for k, text in ranges.items() if default.get(k) != text
        ]
        changes = min(less + other, changes, key=len)
    number = [] if n_trials is None else [f"search.n_trials={n_trials}"]
    return [[*fixed, *changes, *number, *([f"{WORKER}={worker}"] if workers else [])] for worker in workers or ["0"]]


def check(key: str, text: str, loader: ConfigLoader) -> None:
    """Raise where ``key=text`` is not for a search."""
    if loader.get_group_options(key):
        raise InputError(f"{key}={text}: a search draws values, and {key} is a group; start one search for each choice")
    if key == "seed" or key.startswith(("search.", "hydra.")):
        raise InputError(f"{key}={text}: a search does not draw {key}; give it one value")
    distribution(key, text)


def flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of ``node`` by their dotted keys."""
    for key, value in node.items():
        if isinstance(value, dict | DictConfig):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def words(override: Override) -> str:
    """The right side of ``override`` as it was written."""
    assert override.input_line is not None
    return override.input_line.partition("=")[2]


def in_space(key: str, text: str) -> str:
    """The override that searches ``key`` in the range ``text``, without the sign of a new key."""
    return f"search.space.{key}={QuotedString(text, Quote.single).with_quotes()}"
