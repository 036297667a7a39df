"""Pickles of others, read without running what they name: numpy arrays, numbers, texts and plain containers only."""

import codecs
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


def load(path: Path) -> Any:
    """The content of the pickle at ``path``; texts of Python 2 are read as Latin-1.

    Anything but arrays and plain containers is refused before it is made. Memory: the size of the file; twice that
    while one that Python 2 wrote is read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    with path.open("rb") as file:
        try:
            return _Unpickler(file, path).load()
        except _RefusedError as error:
            raise ValueError(str(error)) from None
        except Exception as error:  # damaged bytes may mean any instruction, so any error
            raise ValueError(
                f"{path} is truncated or not a pickle ({type(error).__name__}: {error}); fetch it again"
            ) from error


def text(value: str | bytes) -> str:
    """A text that Python 2 or 3 may have written."""
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def by_text(content: Any, path: Path) -> dict[str, Any]:
    """The dictionary ``content`` of ``path`` with texts as keys."""
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dictionary")
    return {text(key): value for key, value in content.items()}


class _RefusedError(Exception):
    pass


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        known_as = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")  # numpy 2, Python 2
        allowed = _ALLOWED.get((known_as, name))
        if allowed is None:
            raise _RefusedError(
                f"{self.path} asks for {module}.{name}; only arrays and plain containers are read from a pickle, "
                f"as others could run code"
            )
        return allowed


def _encode(value: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes; no other codec is needed."""
    return codecs.latin_1_encode(value)[0] if encoding == "latin1" else value.encode("ascii")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy.core.multiarray", "scalar"): np._core.multiarray.scalar,  # type: ignore[attr-defined]
    ("numpy.core.numeric", "_frombuffer"): np._core.numeric._frombuffer,  # type: ignore[attr-defined]
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): bytes,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "bytearray"): bytearray,
}
