"""What of a configuration results follow from; and checks of its keys and numbers that Hydra does not make."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from runner.errors import InputError

OVERRIDING_GROUPS = ("experiment", "hparams", "ablation", "sweep")


def without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """``config`` less each group's ``source.path``: results follow from what outside files hold, not where they lie."""
    kept = {}
    for key, group in config.items():
        if isinstance(group, dict) and isinstance(group.get("source"), dict):
            group = group | {"source": {name: value for name, value in group["source"].items() if name != "path"}}
        kept[key] = group
    return kept


def check_whole_numbers(cfg: DictConfig, smallest: Mapping[str, int]) -> None:
    """Raise where one of the keys of ``smallest`` is not a whole number, or is below its limit."""
    for key, limit in smallest.items():
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, int) or value < limit:
            raise InputError(f"{key}={value} must be a whole number of at least {limit}")


def key_paths(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """The dotted path of each key whose value is not a mapping."""
    for key in map(str, cfg):
        path = f"{prefix}.{key}".lstrip(".")
        if (
            not OmegaConf.is_missing(cfg, key)
            and not OmegaConf.is_interpolation(cfg, key)
            and OmegaConf.is_dict(cfg[key])
        ):
            yield from key_paths(cfg[key], path)
        else:
            yield path


def unknown_keys(cfg: DictConfig, base: DictConfig) -> list[str]:
    """Keys of ``cfg`` that are not in ``base``, unless below a key whose value there is not a mapping."""
    known = set(key_paths(base))
    known |= {path.rpartition(".")[0] for path in known}  # a section may be replaced by null
    empty = {path for path in known if OmegaConf.select(base, path, default=None, throw_on_missing=False) in (None, {})}
    return [
        path
        for path in key_paths(cfg)
        if path not in known and not any(path.startswith(f"{parent}.") for parent in empty)
    ]


def search_path() -> list[str]:
    """The override that names folders of configurations beside ``conf``, which composing again within a run needs."""
    return [override for override in HydraConfig.get().overrides.hydra if override.startswith("hydra.searchpath=")]


def check_keys(cfg: DictConfig) -> None:
    """Raise where an experiment, hparams or ablation file sets a key that the rest of ``conf`` does not have."""
    hydra = HydraConfig.get()
    groups = {group: choice for group, choice in hydra.runtime.choices.items() if not group.startswith("hydra")}
    choices = {group: "none" if group in OVERRIDING_GROUPS else choice for group, choice in groups.items()}
    added = [override for override in hydra.overrides.task if override.startswith("+")]
    chosen = [f"{group}={choice}" for group, choice in choices.items()]
    base = compose(hydra.job.config_name, [*search_path(), *chosen, *added])
    unknown = unknown_keys(cfg, base)
    if unknown:
        files = ", ".join(f"{group}/{groups[group]}.yaml" for group in OVERRIDING_GROUPS if groups[group] != "none")
        close = get_close_matches(unknown[0], list(key_paths(base)), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"{files}: {', '.join(unknown)} is set, but no configuration has that key{hint}")
