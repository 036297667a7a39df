"""Errors that users can cause. ``train.py`` shows their message in one line; every other error keeps its traceback."""


class InputError(ValueError):
    """A configuration, a file or data cannot be used. The message names the value, the limit and the fix."""


class MissingFileError(InputError, FileNotFoundError):
    """A file that a command needs is missing. The message says what makes it."""


class FolderInUseError(InputError):
    """Another process holds a run folder."""
