"""Pickles of others, read without running what they name: numpy arrays, numbers, texts and plain containers only."""

import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from runner.errors import InputError, MissingFileError


def load(path: Path) -> Any:
    """The content of the pickle at ``path``; texts of Python 2 are read as Latin-1.

    Anything but arrays and plain containers is refused before it is made. Memory: the size of the file; twice that
    while one that Python 2 wrote is read.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist")
    with path.open("rb") as file:
        try:
            return _Unpickler(file, encoding="latin1").load()
        except _RefusedError as error:
            raise InputError(f"{path}: {error}") from None
        except Exception as error:  # damaged bytes may mean any instruction, so any error
            raise InputError(
                f"{path} is truncated or not a pickle ({type(error).__name__}: {error}); fetch it again"
            ) from error


def text(value: str | bytes) -> str:
    """A text that Python 2 or 3 may have written."""
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def by_text(content: Any, path: Path) -> dict[str, Any]:
    """The dictionary ``content`` of ``path`` with texts as keys."""
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, expected a dictionary")
    return {text(key): value for key, value in content.items()}


class _RefusedError(Exception):
    pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known_as = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")  # numpy 2, Python 2
        allowed = _ALLOWED.get((known_as, name))
        if allowed is None:
            raise _RefusedError(
                f"it asks for {module}.{name}; only arrays and plain containers are read from a pickle, as others "
                f"could run code"
            )
        return allowed


class _Array(np.ndarray):
    """An array to be filled; the type of its elements is made anew, so that no bytes can pass for objects."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *_, shape, dtype, is_fortran, content = state
        super().__setstate__((1, shape, dtype.make(), is_fortran, content))


class _Dtype:
    """The type of an array's elements, by numpy's code and byte order; one with fields is refused."""

    order: Any

    def __init__(self, code: str, align: bool, copy: bool) -> None:
        if not re.fullmatch(r"[a-zA-Z]\d*", code):
            raise _RefusedError(f"an array of type {code!r} is not read from a pickle")
        self.code, self.order = code, "="  # until its state says more

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def make(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(self.order)


def _reconstruct(kind: str, shape: tuple[int], code: str) -> np.ndarray:
    return np.ndarray.__new__(_Array, (0,), np.uint8)


def _from_buffer(content: bytes, dtype: _Dtype, shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray:
    return np.frombuffer(content, dtype.make()).reshape(shape, order=order)


def _scalar(dtype: _Dtype, content: bytes | str) -> Any:
    return np.frombuffer(content.encode("latin1") if isinstance(content, str) else content, dtype.make())[0]


def _encode(content: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes, the one codec that is needed."""
    return content.encode("latin1")


# Nothing of numpy itself: numpy.ndarray, called with bytes for a buffer, would take them for addresses of objects.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "bytes"): bytes,
    ("builtins", "bytearray"): bytearray,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
}
