"""What of a configuration results follow from; and checks of its keys and numbers that Hydra does not make."""

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from runner.conf_folder import CONF
from runner.errors import InputError

OVERRIDING_GROUPS = ("experiment", "hparams", "ablation", "sweep")
PLACES = ("dirs", "run_dir")  # where things are; every stage may be told
INSTRUCTIONS = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")  # to Hydra
ABOUT = {"backbone": ("name", "mid_level", "depth", "pretrained")}  # keys that say how a part is used


def without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """``config`` without each group's ``source.path``, ``source.labels`` and ``pretrained.file``.

    Results follow from what outside files hold, not from where they lie.
    """
    kept = {}
    for key, group in config.items():
        for part, path in (("source", "path"), ("source", "labels"), ("pretrained", "file")):
            if isinstance(group, dict) and isinstance(group.get(part), dict):
                group = group | {part: {name: value for name, value in group[part].items() if name != path}}
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
    if not HydraConfig.initialized():
        return []
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


# The last parts of keys whose values are names and paths, which may look like numbers.
NAMES = (
    "name", "path", "folder", "run", "run_dir", "checkpoint", "support", "query", "extractor", "output", "select",
    "trained", "images", "features", "runs", "best", "entity", "project",
)  # fmt: skip


def names_are_text(cfg: DictConfig) -> None:
    """Make text of each name and path that is a number: ``data.name=2024``."""
    for path in list(key_paths(cfg)):
        parent, _, key = path.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        if key in NAMES and OmegaConf.is_dict(node) and not OmegaConf.is_interpolation(node, key):
            value = None if OmegaConf.is_missing(node, key) else node[key]
            if isinstance(value, bool | int | float):
                OmegaConf.update(cfg, path, str(value), force_add=False)


class Override(NamedTuple):
    """One of the overrides of the command line: as it was given, its key, and whether it chooses of a group."""

    text: str
    key: str
    is_choice: bool


def task_overrides() -> list[Override]:
    """The overrides of this run."""
    choices, found = HydraConfig.get().runtime.choices, []
    for text in HydraConfig.get().overrides.task:
        key = text.partition("=")[0].lstrip("+~")
        found.append(Override(text, key, key in choices or key.partition("@")[0] in choices))
    return found


def check_overrides(cfg: DictConfig) -> None:
    """Raise where the command line sets what the stage of ``cfg`` does not use.

    A stage says what it uses as ``stage.uses`` (conf/stage/uses): parts with their ``keys``, which count where the keys
    of ``where`` are set and those of ``unless`` are not. A stage that says nothing takes everything.
    """
    if cfg.stage.get("uses") is None:
        return
    ignored = {override: changes for override in task_overrides() if (changes := unused_changes(cfg, override))}
    if ignored:
        listed, changes = ", ".join(override.text for override in ignored), next(iter(ignored.values()))
        choice = HydraConfig.get().runtime.choices["stage"]
        others = [other for other in stages_using(changes) if other != f"stage={choice}"]
        raise InputError(
            f"{listed}: no effect in stage={choice}{why_unused(cfg, changes)}; leave it out"
            + (f", or give it to {' or '.join(others)}" if others else "")
        )


def used_keys(cfg: DictConfig) -> list[str]:
    """The keys that the stage uses, with the other values as they are."""
    return [key for part in cfg.stage.uses.values() if applies(cfg, part) for key in part["keys"]]


def applies(cfg: DictConfig, part: DictConfig) -> bool:
    """Whether ``part`` of ``stage.uses`` counts."""
    return all(OmegaConf.select(cfg, key) for key in part.get("where", [])) and not any(
        OmegaConf.select(cfg, key) for key in part.get("unless", [])
    )


def unused_changes(cfg: DictConfig, override: Override) -> list[str]:
    """The keys that ``override`` changes, where nothing that the stage uses is among them or made of them."""
    used, key = used_keys(cfg), override.key
    if key.partition(".")[0] in ("stage", *PLACES) or key in used:
        return []
    others = [other.text for other in task_overrides() if other != override]
    if not override.is_choice:
        is_used = any(touches(key, other) for other in used) or depends(cfg, used, key)
        return [] if is_used or is_missing_without(others, key) else [key]
    try:
        without = compose(HydraConfig.get().job.config_name, [*search_path(), *others], return_hydra_config=True)
    except HydraException:
        return []  # the others need it
    with open_dict(without):  # that names say what was given is no effect
        without.hydra.job.override_dirname = HydraConfig.get().job.override_dirname
    after_used = values(cfg, used)
    with of_run(without):
        names_are_text(without)
        everything = [path for path in key_paths(without) if not path.startswith(("stage.", "hydra."))]
        is_used = values(without, used_keys(without)) != after_used
        before = values(without, everything)
    after = values(cfg, [*everything, *(path for path in key_paths(cfg) if not path.startswith("stage."))])
    changed = [] if is_used else [path for path, value in after.items() if path not in before or before[path] != value]
    return [path for path in changed if not path.startswith("names.")]  # which say the choice, whatever its values


def is_missing_without(overrides: list[str], key: str) -> bool:
    """Whether ``overrides`` alone leave ``key`` without a value that every configuration must have."""
    without = compose(HydraConfig.get().job.config_name, [*search_path(), *overrides])
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(without, parent) if parent else without
    return isinstance(node, DictConfig) and OmegaConf.is_missing(node, name)


def depends(cfg: DictConfig, used: list[str], key: str) -> bool:
    """Whether a value of ``used`` is made of the one of ``key``."""
    changed = copy.deepcopy(cfg)
    with open_dict(changed):
        OmegaConf.update(changed, key, "another value", merge=False, force_add=True)
    return values(changed, used) != values(cfg, used)


def values(cfg: DictConfig, keys: Iterable[str]) -> dict[str, Any]:
    """The resolved values of ``keys``."""
    found = {}
    for key in keys:
        try:
            value = OmegaConf.select(cfg, key, throw_on_missing=False)
            found[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:  # made of a value that is missing
            found[key] = str(error)
    return found


@contextmanager
def of_run(cfg: DictConfig) -> Iterator[None]:
    """Within, what configurations ask Hydra for is answered by ``cfg``, composed with its ``hydra``."""
    instance = HydraConfig.instance()
    kept = instance.cfg
    instance.set_config(cfg)
    try:
        yield
    finally:
        instance.cfg = kept


def why_unused(cfg: DictConfig, changes: list[str]) -> str:
    """The values for which ``changes`` have no effect, where they had one with others."""
    for part in cfg.stage.uses.values():
        if not applies(cfg, part) and any(touches(change, key) for change in changes for key in part["keys"]):
            chosen = {key: OmegaConf.select(cfg, key) for key in (*part.get("where", []), *part.get("unless", []))}
            shown = [f"{key} {'given' if value else 'null'}" for key, value in chosen.items()]
            return f" with {' and '.join(shown)}"
    return ""


@cache
def stage_configs(*more: str) -> dict[str, DictConfig]:
    """The configuration of each stage, composed with nothing else chosen but ``more``. Takes seconds."""
    opened = (
        nullcontext() if GlobalHydra.instance().is_initialized() else initialize_config_dir(CONF, version_base="1.3")
    )
    with opened:
        found = {}
        for stage in GlobalHydra.instance().config_loader().get_group_options("stage"):
            with suppress(HydraException):
                found[stage] = compose("train", [*more, f"stage={stage}"])
        return found


def stages_using(changes: list[str]) -> list[str]:
    """The stages that use one of the keys ``changes``."""
    return [
        f"stage={stage}"
        for stage, cfg in stage_configs(*search_path()).items()
        for used in [[key for part in (cfg.stage.get("uses") or {}).values() for key in part["keys"]]]
        if any(touches(change, key) for change in changes for key in used)
    ]


def hint_at(key: str) -> str:
    """What may have been meant by ``key``, which this stage's configuration does not have."""
    keys = {stage: [*key_paths(cfg), *map(str, cfg)] for stage, cfg in stage_configs(*search_path()).items()}
    having = [f"stage={stage}" for stage, known in keys.items() if key in known]
    if having:
        return f"it belongs to {', '.join(having)}"
    close = get_close_matches(key, sorted({name for known in keys.values() for name in known}), n=1)
    return f"did you mean {close[0]}?" if close else "`python train.py --help` lists the keys"


def touches(key: str, other: str) -> bool:
    """Whether one of the keys is the other, or above it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def check_arguments(cfg: DictConfig) -> None:
    """Raise where a key next to a ``_target_`` that the stage uses is no argument of what it names.

    Sources are called before all else, if they are, and their arguments are judged then.
    """
    for used in used_keys(cfg) if cfg.stage.get("uses") is not None else []:
        node = None if used.endswith(".source") else OmegaConf.select(cfg, used, throw_on_missing=False)
        for path, called in targets(node, used) if isinstance(node, DictConfig) else []:
            try:
                parameters = inspect.signature(get_object(called["_target_"])).parameters
            except (ImportError, ValueError, TypeError, AttributeError, HydraException):
                continue  # is said where it is called
            if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
                continue
            for key in map(str, called):
                if key not in (*parameters, *INSTRUCTIONS, *ABOUT.get(path, ())):
                    close = get_close_matches(key, parameters, n=1)
                    raise InputError(
                        f"{path}.{key} is no argument of {called['_target_']}; "
                        f"{f'did you mean {close[0]}? ' if close else ''}It takes {', '.join(parameters)}"
                    )


def targets(node: DictConfig, path: str) -> Iterator[tuple[str, DictConfig]]:
    """The nodes with a ``_target_`` at and below ``node``, with their dotted keys."""
    if "_target_" in node and not OmegaConf.is_missing(node, "_target_") and not OmegaConf.is_interpolation(node):
        yield path, node
    for key in map(str, node):
        is_there = not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key)
        if is_there and key != "source" and OmegaConf.is_dict(node[key]):
            yield from targets(node[key], f"{path}.{key}")
