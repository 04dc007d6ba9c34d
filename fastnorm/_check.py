"""Checks of arguments before the compiled core sees them; each message names its argument."""

from __future__ import annotations

import functools
import math
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _core
from ._arguments import LAYOUTS
from ._arguments import is_int as _is_int
from ._types import Array

_LARGEST = sys.float_info.max
_MOST = sys.maxsize // 8  # float64 elements that an array can be said to have

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def as_the_core(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Let NumPy compute as the C library does.

    With the rounding that the promises need, whatever the program has set, and without warnings or
    errors of overflow and underflow.
    """

    @functools.wraps(function)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with _core.FloatMode(), np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return call


def integer(value: int, name: str) -> int:
    """Return an int."""
    if not _is_int(value):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    return int(value)


def count(value: int, name: str) -> int:
    """Return an int of at least 1, and not more than an array can have elements."""
    value = integer(value, name)
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    if value > _MOST:
        raise ValueError(f"{name}: expected at most {_MOST}, got {value}")
    return value


def number(value: float, name: str, low: float = 0.0, high: float = _LARGEST) -> float:
    """Return a number from `low` to `high`, by default a finite one."""
    if not _is_int(value) and not isinstance(value, (float, np.floating)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        result = float(value)
    except OverflowError:  # of an int
        result = math.inf
    if not low <= result <= high or (high == _LARGEST and math.isinf(result)):
        wanted = f" of at least {low:g}" if high >= _LARGEST else f" in [{low:g}, {high:g}]"
        wanted = "" if low == -math.inf else wanted
        raise ValueError(f"{name}: expected a finite number{wanted}, got {result:g}")
    return result


def flag(value: bool, name: str) -> bool:
    """Return a bool; 0 and 1 are accepted, as by the functions."""
    if not isinstance(value, (bool, np.bool_)) and not (_is_int(value) and value in (0, 1)):
        got = f"{value!r:.100}" if _is_int(value) else type(value).__name__
        raise TypeError(f"{name}: expected a bool, got {got}")
    return bool(value)


def ddof(value: int) -> int:
    """Return 0 or 1."""
    if not _is_int(value):
        raise TypeError(f"ddof: expected 0 or 1, got {type(value).__name__}")
    if value not in (0, 1):
        raise ValueError(f"ddof: expected 0 or 1, got {value}")
    return int(value)


def layout(value: str) -> str:
    """Return the name of a layout."""
    if not isinstance(value, str):
        raise TypeError(f"layout: expected a str, got {type(value).__name__}")
    if value not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {value!r}")
    return value


def float_dtype(value: DTypeLike) -> np.dtype[Any]:
    """Return float32 or float64; not of None, which is float64 to NumPy and float32 to torch."""
    try:
        dtype = None if value is None else np.dtype(value)
    except (TypeError, ValueError, SyntaxError):
        dtype = None
    if dtype is None or dtype not in (np.float32, np.float64):
        got = repr(value) if dtype is None else dtype
        raise TypeError(f"dtype: expected float32 or float64, got {got}")
    return dtype


def layer_dtype(array: Array, name: str) -> None:
    """Raise where an array is of no dtype that a layer can have."""
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name}: expected dtype float32 or float64, got {array.dtype}")


def ints(value: int | Sequence[int], name: str) -> tuple[int, ...]:
    """Return one int, or a tuple or list of them, as a tuple."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not values:
        raise ValueError(f"{name}: expected at least one int, got {value!r}")
    if not all(map(_is_int, values)):
        raise TypeError(f"{name}: expected an int or a tuple of ints, got {value!r:.100}")
    if len(values) > 64 or any(abs(int(v)) > sys.maxsize for v in values):
        raise ValueError(f"{name}: expected at most 64 ints of 64 bits, got {value!r:.100}")
    return tuple(map(int, values))


def array(value: ArrayLike, name: str) -> Array:
    """Return an array without a mask, which may be of any dtype but object."""
    result = _core.as_array(value, name)
    if result.dtype == object and not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected an array of numbers, got {type(value).__name__}")
    return result


def gradient(dy: ArrayLike, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return dy of y's shape and dtype, in native byte order."""
    result = array(dy, "dy")
    result = result.astype(result.dtype.newbyteorder("="), copy=False)
    if result.dtype != dtype:
        raise TypeError(f"dy: expected x's dtype {dtype}, got {result.dtype}")
    if result.shape != shape:
        raise ValueError(f"dy: expected y's shape {shape}, got {result.shape}")
    return result


def keeping_mask(value: Any, depth: int = 0) -> Any:
    """Return a masked array for what NumPy would take without its mask; all else as it is.

    Such are a dask array of masked arrays, a list with one in it, and an object that makes one.
    """
    if isinstance(value, (np.ndarray, float, int)):
        return value
    if hasattr(value, "_meta") and hasattr(value, "compute"):
        found = value.compute()
    elif isinstance(value, (list, tuple, deque)) and depth < 64:  # what NumPy can take
        items = [keeping_mask(item, depth + 1) for item in value]
        masked = any(isinstance(item, np.ma.MaskedArray) for item in items)
        found = np.ma.array(items) if masked else value
    elif hasattr(value, "__array__") and not hasattr(value, "shape"):
        found = np.asanyarray(value)
    else:
        return value
    return found if isinstance(found, np.ma.MaskedArray) else value


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is a float of NumPy's or ml_dtypes' bfloat16."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def floats(value: ArrayLike, name: str) -> Array:
    """Return an array of floats; of a tensor of torch too, on any device, with its gradient left.

    bfloat16 tensors come as float32, which holds their values: NumPy has no such type.
    """
    result = array(detached(value, name), name)
    if not is_float(result.dtype):
        raise TypeError(f"{name}: expected an array of floats, got {result.dtype}")
    return result


def detached(value: Any, name: str) -> Any:
    """Return a tensor of torch as one that NumPy can read, and all else as it is."""
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        try:
            value = value.detach().cpu()
        except NotImplementedError as error:  # of the device "meta", where there is no data
            raise TypeError(f"{name}: expected a tensor with values, got {error}") from None
        if str(value.dtype) == "torch.bfloat16":  # of which NumPy can make nothing
            value = value.float()  # which holds the same values
    return value


def memory(x: Array) -> tuple[Any, ...]:
    """Where the values of an array lie, and as what: for `unchanged`."""
    return x.ctypes.data, x.dtype, x.shape, x.strides


def unchanged(x: Array, was: tuple[Any, ...]) -> Array:
    """Return x; raise where its memory, dtype, shape or strides are not as they were."""
    if memory(x) != was:
        raise ValueError(
            "ctx: expected x as it was in the forward call, got one whose memory, dtype, shape or "
            "strides have been changed since"
        )
    return x


def rounded(values: Array, dtype: np.dtype[Any], name: str) -> Array:
    """Return the values in `dtype`, each of which it must be able to hold."""
    with np.errstate(all="ignore"):
        result = values.astype(dtype, order="C")
    lost = np.isfinite(values) & ~np.isfinite(result)
    if lost.any():
        raise ValueError(
            f"{name}: expected values that {dtype} can hold, got {values[lost].flat[0]:g}"
        )
    return result
