"""Errors that users can cause. ``train.py`` shows their message in one line; every other error keeps its traceback."""

import errno
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

# What a file system refuses. A file that is missing is no such case: a program that looks for it in the wrong place is
# wrong itself, and where a user can cause it there is a MissingFileError.
_REFUSED = {
    errno.EACCES: "may not be read or written; change its permissions, or choose another folder",
    errno.EPERM: "may not be changed; change its permissions, or choose another folder",
    errno.EROFS: "is on a file system that may only be read; choose another folder",
    errno.ENOSPC: "cannot be written, as the disk is full; make room, then give the same command again",
    errno.EDQUOT: "cannot be written, as your quota is used up; make room, then give the same command again",
    errno.ENAMETOOLONG: "has a name that is too long for the file system; choose a shorter one",
}
_QUOTE = (
    "quote a value with other characters than a to z, 0 to 9 and / - + . _ : * ? @ %, once for the shell and once for "
    "Hydra: \"key='a=b, c'\" (docs/faq.md has more)"
)
_AGAIN = "give the same command again: finished runs are skipped, the others go on from their last checkpoints"
_FULL, _RAISES = "HYDRA_FULL_ERROR", "LEO_HYDRA_RAISES"  # the second: the first was not set by the user


class InputError(ValueError):
    """A configuration, a file or data cannot be used. The message names the value, the limit and the fix."""


class MissingFileError(InputError, FileNotFoundError):
    """A file that a command needs is missing. The message says what makes it."""


def users_message(error: BaseException) -> str | None:
    """What a user reads of ``error``; None where it is no user's mistake, and its traceback must be shown."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, InstantiationException):
        return of_instantiation(error)
    if isinstance(error, HydraException):
        return of_hydra(error)
    if isinstance(error, OmegaConfBaseException):
        if isinstance(error.__cause__, InputError):  # of a resolver
            return str(error.__cause__)
        # A key that code asks for and no configuration has is a mistake of the code.
        return None if isinstance(error, ConfigAttributeError | ConfigKeyError) else in_one_line(error)
    if isinstance(error, OSError) and error.errno in _REFUSED:
        return f"{error.filename or 'a file'} {_REFUSED[error.errno]} ({error.strerror})"
    if isinstance(error, BrokenProcessPool):
        killed = re.search(r"exit codes of the workers are \{(.*?)\}", str(error))
        return (
            f"a process of this sweep was killed{f' ({killed[1]})' if killed else ''}, and joblib ended the others; "
            f"{_AGAIN}; where memory was short, with hydra.launcher.n_jobs=1"
        )
    return of_submitit(error) if raised_in(error, "submitit") else None


def of_submitit(error: BaseException) -> str | None:
    """What is wrong where a job cannot be submitted or was killed; None where its traceback is in ``error``."""
    text = in_one_line(error)
    killed = re.match(r"Job (\S+) \(task: \d+\) with path (\S+)/\S+ has not produced any output \(state: (.*?)\)", text)
    if killed:
        return f"job {killed[1]} ended without a result (state {killed[3]}; its output is in {killed[2]}); {_AGAIN}"
    return None if "failed during processing with trace" in text else f"no job could be submitted: {text}"


def of_instantiation(error: InstantiationException) -> str | None:
    """What is wrong with a ``_target_`` or its arguments; None where the error is within what was called."""
    cause, text = error.__cause__, str(error)
    key = text.rpartition("full_key: ")[2] if "full_key: " in text else ""
    if isinstance(cause, InputError):
        return str(cause)
    if isinstance(cause, OmegaConfBaseException):
        return in_one_line(cause)
    if cause is None or isinstance(cause, ImportError):
        return f"{key}: {in_one_line(cause or error)}".lstrip(": ")
    if isinstance(cause, TypeError) and raised_in(cause, "hydra"):  # the call itself
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(cause))
        return f"{key}.{unknown[1]}: {cause}; leave it out" if unknown else f"{key}: {cause}; check its keys"
    return None


def raised_in(error: BaseException, package: str) -> bool:
    """Whether the code that raised ``error`` is in ``package``, not in something that it has called."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_globals.get("__name__", "").startswith(f"{package}.")


def of_hydra(error: HydraException) -> str:
    """Hydra's message in a line, with what a user can do."""
    text = str(error) or str(error.__cause__)
    if isinstance(error, OverrideParseException):
        key, sign, value = str(error.override).partition("=")
        if not sign or not re.fullmatch(r"[+~]*[\w/@.]+", key):
            return f"{error.override!r} cannot be understood: give key=value; {_QUOTE}"
        text = QuotedString(value, Quote.single).with_quotes()
        quoted = re.sub(r'(["$`\\])', r"\\\1", f"{key}={text}")  # of what a shell changes between double quotes
        return f'{error.override!r} cannot be understood; where the value is one text, give "{quoted}": {_QUOTE}'
    absent = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    if isinstance(error, MissingConfigException) and absent:
        group, choice = absent.groups()
        options = re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE)
        given = {argument.lstrip("+").partition("=")[0] for argument in sys.argv[1:]}
        if group not in given and (folders := [str(folder) for folder in Path(group).parents if str(folder) in given]):
            from runner.conf_folder import CONF

            group, choice = folders[0], f"{group[len(folders[0]) + 1 :]}/{choice}"
            files = (Path(CONF) / group).rglob("*.yaml")
            options = sorted(path.relative_to(Path(CONF) / group).with_suffix("").as_posix() for path in files)
        close = get_close_matches(choice, options, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        if group == "extractor":
            hint += f"where an extractor's file lies is said by stage.extractor={choice}. "
        return f"{group}={choice} does not exist; {hint}The choices are {', '.join(options)}"
    unknown = re.match(r"Could not override '([^']+)'", text)
    if unknown:
        from runner.config import hint_at  # composes configurations, for this message alone

        inner = re.search(r"full_key: (\S+)", str(error.__cause__))  # of a value with braces, the key in them
        key = inner[1] if inner and inner[1].startswith(unknown[1]) else unknown[1]
        return f"{key} is no key of this configuration; {hint_at(key)}"
    sweep = re.match(r"Ambiguous value for argument '([^']+)'", text)
    if sweep:
        key, _, value = sweep[1].partition("=")
        return f"{sweep[1]!r} is several values: for a run each, add -m; for a list, {key}=[{value}]; {_QUOTE}"
    return in_one_line(text)


def in_one_line(error: BaseException | str) -> str:
    """The message without line breaks and without the type of the configuration's node."""
    return " ".join(re.sub(r"\n\s*object_type=\w+", "", str(error)).split())


@contextmanager
def hydra_raises() -> Iterator[None]:
    """Within, Hydra raises errors rather than print what it makes of them."""
    if _FULL not in os.environ:
        os.environ.update({_FULL: "1", _RAISES: "1"})
    yield


@contextmanager
def users_environment() -> Iterator[None]:
    """Within, the environment is as the user has it, for processes that are started there."""
    is_changed = os.environ.pop(_RAISES, None) is not None
    if is_changed:
        del os.environ[_FULL]
    try:
        yield
    finally:
        if is_changed:
            os.environ.update({_FULL: "1", _RAISES: "1"})


def end_with_message(error: Exception) -> NoReturn:
    """End the program with the line that a user reads of ``error``, or with its traceback."""
    said = users_message(error)
    if said is None or (_FULL in os.environ and _RAISES not in os.environ):
        raise error
    sys.exit(f"error: {said}\n({_FULL}=1 shows where)")


class FolderInUseError(InputError):
    """Another process holds a run folder."""
