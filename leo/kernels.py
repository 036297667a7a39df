"""The functions of ``leo.steps`` in C (``kernels.c``), each in one pass over memory.

They give the same numbers but for rounding; their random numbers are others, of the same distributions. None is needed:
where there is a C compiler, ``kernels.c`` is compiled for this processor at its first use, which takes about two
seconds, and kept in the user's cache folder; else, or after ``use(False)``, torch does it all. ``leo.steps`` says what
each function is given and gives.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from leo import steps
from leo.dropout import threshold_and_scale
from leo.steps import STDDEV_FLOOR, glorot_stddev

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
TYPES = {torch.float32: "float", torch.float64: "double"}  # double is for tests: its exp is the library's

_wanted = True


def use(wanted: bool) -> None:
    """Whether the kernels may be used in this process, where they can be; at first they may."""
    global _wanted  # a setting of the process, as torch's number of threads is
    _wanted = wanted


def serve(*tensors: Tensor) -> bool:
    """Whether the kernels can take ``tensors``: dense, of one type, on the processor, where they can be compiled."""
    first = tensors[0]
    return (
        _wanted
        and first.device.type == "cpu"
        and all(tensor.dtype == first.dtype and tensor.is_contiguous() for tensor in tensors)
        and not torch.compiler.is_exporting()
        and not torch.compiler.is_compiling()
        and first.dtype in TYPES
        and library(first.dtype) is not None
    )


@cache
def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The compiled kernels for numbers of ``dtype``; None where they cannot be made here, which is logged once."""
    try:
        return ctypes.CDLL(str(compiled(TYPES[dtype])))
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # RuntimeError: nobody's home folder
        reason = getattr(error, "stderr", None) or str(error)
        log.info("torch alone does the updates, as the C kernels cannot be compiled here: %s", reason.strip())
        return None


def compiled(real: str) -> Path:
    """The shared library of ``kernels.c`` for this processor, in the cache folder; made where it is not there yet.

    Raises OSError where there is no compiler, CalledProcessError where it fails.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise OSError("there is no C compiler (cc)")
    gomp = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))  # torch's own: one pool of threads
    arguments = [*FLAGS, f"-DREAL={real}", *map(str, gomp), "-lm"]
    processor = Path("/proc/cpuinfo")
    flags = (
        [line for line in processor.read_text().splitlines() if line.startswith("flags")] if processor.exists() else []
    )
    known = [SOURCE.read_text(encoding="utf-8"), compiler, *arguments, platform.processor(), *flags[:1]]
    name = f"kernels-{hashlib.sha256(repr(known).encode()).hexdigest()[:16]}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leo"
    if not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as made:
            command = [compiler, str(SOURCE), *arguments, "-o", f"{made}/{name}"]
            subprocess.run(command, check=True, capture_output=True, text=True)
            Path(made, name).replace(folder / name)
    return folder / name


def call(name: str, *arguments: Tensor | float | int | None, of: torch.dtype | None = None) -> None:
    """The kernel ``name`` of the library for numbers of type ``of`` (None: that of the first tensor).

    Tensors go by address (None: a null pointer), numbers as C's long or double; then the number of threads.
    """
    dtype = of or next(argument for argument in arguments if isinstance(argument, Tensor)).dtype
    values = [_as_c(argument) for argument in arguments]
    getattr(library(dtype), name)(*values, ctypes.c_int(torch.get_num_threads()))


def _as_c(argument: Tensor | float | int | None) -> object:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if argument is None:
        return ctypes.c_void_p()
    return ctypes.c_double(argument) if isinstance(argument, float) else ctypes.c_long(argument)


def steps_for(*tensors: Tensor | None) -> ModuleType:
    """This module where it can take ``tensors`` (None: there is none), else ``leo.steps``."""
    return sys.modules[__name__] if serve(*(tensor for tensor in tensors if tensor is not None)) else steps


def random_bits(*shape: int, device: torch.device, generator: torch.Generator) -> Tensor:
    bits = torch.empty(shape, dtype=torch.int16, device=device)
    call("leo_random_bits", seed(generator), bits.numel(), bits, of=torch.float32)  # the same in every library
    return bits


def normal(*shape: int, like: Tensor, generator: torch.Generator) -> Tensor:
    draws = like.new_empty(shape)
    call("leo_normal", seed(generator), draws.numel(), draws)
    return draws


def seed(generator: torch.Generator) -> int:
    """For the kernels' generator, by a draw of torch's: what is drawn is known from the latter's state."""
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator))


def decode(parameters: Tensor, eps: Tensor, num_way: int) -> tuple[Tensor, Tensor]:
    weights, slope = torch.empty_like(eps), torch.empty_like(eps)
    num_rows, num_features = eps.shape
    offset = 1 - glorot_stddev(num_way, num_features)
    call("leo_decode", parameters, eps, offset, STDDEV_FLOOR, num_rows, num_features, weights, slope)
    return weights, slope


def gradient(
    weights: Tensor, slope: Tensor | None, images: Tensor, num_tasks: int, num_way: int, factor: Tensor, labels: None
) -> Tensor:
    _, num_images, num_features = images.shape
    p = images.new_empty(num_tasks, num_images, num_way)
    num_codes = len(weights) // (num_tasks * num_way)
    sizes = num_tasks, num_way, num_codes, num_images, num_features
    call("leo_gradient", weights, slope, images, *sizes, p, factor)
    return p


def hessian(
    to_factor: Tensor, slope: Tensor | None, images: Tensor, p: Tensor, factor: Tensor, out: Tensor, labels: None
) -> None:
    (num_tasks, num_images, num_features), num_way = images.shape, p.shape[2]
    num_codes = len(to_factor) // (num_tasks * num_way)
    sizes = num_tasks, num_way, num_codes, num_images, num_features
    call("leo_hessian", to_factor, slope, images, p, factor, *sizes, out)


def weight_step(weights: Tensor, rate: Tensor, images: Tensor, stepped: Tensor, labels: None) -> tuple[Tensor, Tensor]:
    (num_tasks, num_images, num_features), num_way = images.shape, weights.shape[1]
    p, gradient = images.new_empty(num_tasks, num_images, num_way), torch.empty_like(weights)
    sizes = num_tasks, num_way, num_images, num_features
    call("leo_weight_step", weights, rate, rate_step(rate), images, *sizes, p, gradient, stepped)
    return p, gradient


def weight_step_backward(
    to_weights: Tensor, to_rate: Tensor, rate: Tensor, images: Tensor, p: Tensor, gradient: Tensor, labels: None
) -> None:
    (num_tasks, num_images, num_features), num_way = images.shape, p.shape[2]
    sizes = num_tasks, num_way, num_images, num_features
    call("leo_weight_step_backward", to_weights, to_rate, rate, rate_step(rate), images, p, gradient, *sizes)


def rate_step(rate: Tensor) -> int:
    """From the rates of a class to those of the next: 0 where all classes have the same ones."""
    return rate.shape[1] if rate.ndim == 2 else 0


def dropout(x: Tensor, rate: float, bits: Tensor) -> Tensor:
    out = x.new_empty(bits.shape)
    call("leo_dropout", x, bits, *threshold_and_scale(rate), bits.numel() // x.numel(), x.numel(), out)
    return out


def query(weights: Tensor, images: Tensor, bits: Tensor | None, rate: float) -> tuple[Tensor, Tensor, Tensor]:
    num_tasks, num_way, num_query, num_features = images.shape
    loss, correct = (images.new_empty(num_tasks, num_way, num_query) for _ in range(2))
    to_weights = torch.empty_like(weights)
    threshold, scale = threshold_and_scale(rate)
    sizes = num_tasks, num_way, num_query, num_features
    call("leo_query", weights, images, bits, threshold, scale, *sizes, loss, correct, to_weights)
    return loss.mean(), correct.mean(), to_weights


def pairs(halves: Tensor) -> Tensor:
    num_tasks, num_images, width = halves.shape
    met = halves.new_empty(num_tasks, num_images, num_images, width // 2)
    call("leo_pairs", halves, num_tasks, num_images, width // 2, met)
    return met


def pairs_backward(to_pairs: Tensor, met: Tensor) -> Tensor:
    num_tasks, num_images, _, width = met.shape
    to_halves = met.new_empty(num_tasks, num_images, 2 * width)
    call("leo_pairs_backward", to_pairs, met, num_tasks, num_images, width, to_halves)
    return to_halves


def pair_means(hidden: Tensor, num_way: int) -> Tensor:
    num_tasks, num_images, _, width = hidden.shape
    means = hidden.new_empty(num_tasks, num_way, width)
    call("leo_pair_means", hidden, num_tasks * num_way, num_images // num_way * num_images, width, means)
    return means


def pair_means_backward(to_means: Tensor, hidden: Tensor) -> Tensor:
    (num_tasks, num_images, _, width), num_way = hidden.shape, to_means.shape[1]
    to_hidden = torch.empty_like(hidden)
    num_pairs = num_images // num_way * num_images
    call("leo_pair_means_backward", to_means, hidden, num_tasks * num_way, num_pairs, width, to_hidden)
    return to_hidden
