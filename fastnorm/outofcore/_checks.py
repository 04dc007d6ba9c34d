"""Checks of arguments, and what is imported only where it is needed."""

from __future__ import annotations

import importlib
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from .._types import Axes
from ._scaling import METHODS

AnyAxes: TypeAlias = Axes | list[int]
Name: TypeAlias = str | os.PathLike[str]

BLOCK_BYTES = 64 << 20
FLOATS = [np.dtype(name) for name in ("float16", "float32", "float64")]


def normalize_axes(axis: AnyAxes | None, rank: int, name: str = "x") -> tuple[int, ...]:
    """Return the axes that share statistics, in order, none of them negative."""
    if rank == 0:
        raise ValueError(f"{name}: expected at least 1 dimension, got a scalar")
    if axis is None:
        return tuple(range(max(rank - 1, 1)))
    axes = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    if not all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in axes):
        raise TypeError(f"axis: expected an int or a tuple of ints, got {axis!r}")
    if not axes:
        raise ValueError(f"axis: expected at least one axis, got {axis!r}")
    if not all(-rank <= i < rank for i in axes):
        raise ValueError(
            f"axis: expected axes in [{-rank}, {rank}) for {name} of {rank} dimensions, got "
            f"{axis!r}"
        )
    distinct = {int(i) % rank for i in axes}
    if len(distinct) < len(axes):
        raise ValueError(f"axis: expected distinct axes, got {axis!r}")
    return tuple(sorted(distinct))


def work_dtype(
    dtype: np.dtype[Any],
    result: DTypeLike | None = None,
    *,
    argument: str = "x",
    where: str | None = None,
) -> np.dtype[Any]:
    """In which dtype x is scaled: no narrower than x and the result."""
    if dtype.kind not in "iub" and dtype.newbyteorder("=") not in FLOATS:
        raise TypeError(
            f"{argument}: expected float16, float32, float64, integers or booleans, got {dtype}"
            + (f" in {where}" if where else "")
        )
    work = np.dtype(np.float64) if dtype.kind in "iub" else dtype.newbyteorder("=")
    return work if result is None else np.result_type(work, result)


def result_dtype(dtype: DTypeLike | None) -> np.dtype[Any] | None:
    try:
        known = None if dtype is None else np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError):  # whatever NumPy says of what is no dtype
        known = np.dtype(object)
    if known is not None and known not in FLOATS:
        raise TypeError(f"dtype: expected float16, float32 or float64, got {dtype!r}")
    return known


def block_elements(block_bytes: int, *dtypes: np.dtype[Any]) -> int:
    if isinstance(block_bytes, bool) or not isinstance(block_bytes, (int, np.integer)):
        raise TypeError(f"block_bytes: expected an int, got {type(block_bytes).__name__}")
    if block_bytes < 1:
        raise ValueError(f"block_bytes: expected at least 1, got {block_bytes}")
    return max(1, int(block_bytes) // max(dtype.itemsize for dtype in dtypes))


def check_method(method: str) -> None:
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")


def check_flag(argument: str, value: bool) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{argument}: expected True or False, got {type(value).__name__}")


def is_name(x: Any) -> bool:
    return isinstance(x, (str, os.PathLike))


def text_of(argument: str, name: Any) -> str:
    """Return the name of a file as text that the system takes."""
    if not is_name(name):
        raise TypeError(f"{argument}: expected the name of a file, got {type(name).__name__}")
    text = os.fsdecode(name)
    if not text or "\0" in text:
        raise ValueError(f"{argument}: expected the name of a file, got {text!r}")
    return text


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Give errors of the system the name that the caller knows the file by."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise OSError(f"{name}: {error}") from error
        # makes the subclass that belongs to the number
        raise OSError(error.errno, error.strerror or str(error), name) from error


@contextmanager
def open_regular(name: str) -> Iterator[IO[bytes]]:
    """Open a file that can be read twice; a pipe would block, and be empty after once."""
    with ExitStack() as stack:
        with naming(name):
            file = stack.enter_context(open(name, "rb", opener=_open_at_once))
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(
                f"{name}: expected a regular file, which can be read again, got a pipe or a device"
            )
        yield file


def _open_at_once(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)  # not when someone writes into the pipe


def is_from(x: Any, package: str) -> bool:
    """Whether the type of x comes from a package, which need not be installed."""
    return any(kind.__module__.partition(".")[0] == package for kind in type(x).__mro__)


def extra(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        message = f'{error.name} is missing: pip install "fastnorm-cpu[{extra}]"'
        raise ModuleNotFoundError(message, name=error.name) from error
