"""Arguments of the functions where they are not what they usually are: converted, or refused.

The compiled core looks at each argument and asks here where it is not the usual one at once. A
message names the argument, what was expected and what was given.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, NoReturn, TypeAlias

import numpy as np

# Names of layouts: dimensions of x (0: any from 2 on), axis of the channels, channels of a block.
LAYOUTS: dict[str, tuple[int, int, int]] = {
    "channels_first": (0, 1, 1), "channels_last": (0, -1, 1), "NCHW": (0, 1, 1),
    "NHWC": (0, -1, 1), "NC": (2, 1, 1), "NCL": (3, 1, 1), "NLC": (3, -1, 1),
    "NCDHW": (5, 1, 1), "NDHWC": (5, -1, 1),
    **{f"NC{space}{block}c": (3 + len(space), 1, block)
       for space in ("L", "HW", "DHW") for block in (8, 16)},
}  # fmt: skip

Array: TypeAlias = np.ndarray[Any, Any]
Shape: TypeAlias = tuple[int, ...]


def shown(value: object) -> str:
    """Return a value for a message: one short line, also where its repr is long or raises."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of an int of thousands of digits, or of a class of the caller's
        text = f"one of type {type(value).__name__}"
    return text if len(text) <= 120 else text[:117] + "..."


# ---- arrays ----------------------------------------------------------------------------------


def computed(value: Any) -> Any:
    """Return the array of a lazy one of dask, of which NumPy would make one without its mask."""
    return value.compute() if hasattr(value, "_meta") and hasattr(value, "compute") else value


def no_mask(value: object, name: str, depth: int = 0) -> None:
    """Raise where a mask would be lost: masked values would count as data."""
    if isinstance(value, (list, tuple, deque)) and depth < 64:  # what NumPy can take
        for item in value:
            if not isinstance(item, (float, int)):
                no_mask(computed(item), name, depth + 1)
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: expected an array without a mask, got a masked array; use "
            f"{name}.filled(value), or {name}.data where nothing is masked"
        )


def array(value: Any, name: str) -> Array:
    """Return `value` itself, or the array that NumPy makes of it; no masked one."""
    if type(value) is np.ndarray:  # at once: NumPy imports np.ma only now, which needs memory
        return value
    no_mask(value, name)
    try:
        found: Array = np.asanyarray(computed(value))  # an ndarray is itself
    except MemoryError:
        raise
    except Exception as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(
            f"{name}: expected an array, got {shown(value)}, of which NumPy makes none: "
            f"{shown(error)}"
        ) from error
    no_mask(found, name)
    return found


def refuse_dtype(name: str, dtype: np.dtype[Any]) -> NoReturn:
    """Refuse a dtype without kernels."""
    if dtype.name in ("float32", "float64", "float16", "bfloat16"):
        raise TypeError(
            f"{name}: expected a dtype that this build has kernels for (FASTNORM_DTYPES cut it), "
            f"got {dtype}"
        )
    raise TypeError(f"{name}: expected dtype float32, float64, float16 or bfloat16, got {dtype}")


def is_parameter_type(dtype: np.dtype[Any], x: np.dtype[Any]) -> bool:
    """Tell whether it is x's dtype, or float32 where x has 16 bits and is computed in float32."""
    single, double = np.dtype(np.float32).num, np.dtype(np.float64).num
    return dtype.num == x.num or (dtype.num == single and x.num != double)


def refuse_parameter(value: Any, name: str, dtype: np.dtype[Any], shape: Shape) -> NoReturn:
    """Refuse a parameter of another dtype or shape."""
    if value is None:
        raise ValueError(f"{name}: expected an array of shape {shape}, got None")
    if not is_parameter_type(value.dtype, dtype):
        wanted = dtype if dtype.itemsize > 2 else f"{dtype} or float32"
        raise TypeError(f"{name}: expected dtype {wanted}, got {value.dtype}")
    raise ValueError(f"{name}: expected shape {shape}, got {value.shape}")


def refuse_state(value: Any, name: str) -> NoReturn:
    """Refuse running statistics that cannot be updated as they lie."""
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"{name}: expected an ndarray, which is updated in place, got {type(value).__name__}"
        )
    lacking = ""
    for flag_name in ("writeable", "c_contiguous", "aligned"):
        if not getattr(value.flags, flag_name):
            lacking += f", {flag_name}=False"
    raise ValueError(
        f"{name}: expected a writeable, C-contiguous, aligned array, which is updated in place, "
        f"got one with {lacking[2:] or 'another byte order'}"
    )


def check_out(out: Any, dtype: np.dtype[Any], shape: Shape, name: str = "out") -> None:
    """Raise where `out` cannot take what is of this dtype and shape."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name}: expected an ndarray, got {type(out).__name__}")
    no_mask(out, name)
    if out.dtype.num != dtype.num:
        raise TypeError(f"{name}: expected dtype {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError(f"{name}: expected a writeable array, got a read-only one")


def refuse_gradient(dy: Array, name: str, dtype: np.dtype[Any], shape: Shape) -> NoReturn:
    """Refuse a gradient, or another array, that is not like x."""
    if dy.shape != shape:
        raise ValueError(f"{name}: expected x's shape {shape}, got {dy.shape}")
    raise TypeError(f"{name}: expected x's dtype {dtype}, got {dy.dtype}")


# ---- memory that is shared -------------------------------------------------------------------


def may_overlap(a: Array, b: Array) -> bool:
    """Tell whether strided arrays share memory, as far as NumPy finds out with little work."""
    try:
        return np.shares_memory(a, b, max_work=1000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def refuse_shared(name: str, apart_from: str, why: str = "") -> NoReturn:
    """Refuse an array that shares memory with another."""
    raise ValueError(
        f"{name}: expected an array apart from {apart_from}, {why}got one that shares memory with "
        "it"
    )


def refuse_out_over_x() -> NoReturn:
    """Refuse an `out` over x where backward will read x."""
    raise ValueError(
        "out: expected an array apart from x when return_ctx is True, since backward reads x; got "
        "one that shares memory with it"
    )


def refuse_changed(name: str) -> NoReturn:
    """Refuse a context whose array is not what it was."""
    raise ValueError(
        f"ctx: expected {name} as it was in the forward call, got one whose memory, dtype, shape "
        "or strides have been changed since"
    )


# ---- numbers and flags -----------------------------------------------------------------------


def number(value: Any, name: str, low: float, high: float) -> float:
    """Return a number as a float; what float() would take besides is refused."""
    none = isinstance(value, (bool, np.bool_, str, bytes, complex, np.complexfloating))
    if isinstance(value, np.ndarray):
        none = value.ndim > 0 or value.dtype.kind not in "fiu"
    try:
        if none or not (hasattr(value, "__float__") or hasattr(value, "__index__")):
            raise TypeError
        found = float(value)
    except MemoryError:
        raise
    except OverflowError:  # of an int
        found = math.nan
    except Exception:
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None
    if not low <= found <= high or (found == math.inf and name == "eps"):
        wanted = f"in [{low:g}, {high:g}]" if high != math.inf else f"of at least {low:g}"
        raise ValueError(f"{name}: expected a finite number {wanted}, got {shown(value)}")
    return found


def is_int(value: object) -> bool:
    """Tell whether it is no bool, and no timedelta64, which is an integer to NumPy."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.timedelta64))


def integer(value: Any, name: str) -> int:
    """Return an int, of any size."""
    if not is_int(value):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    return int(value)


def flag(value: Any, name: str) -> bool:
    """Return a bool."""
    if not isinstance(value, (np.bool_, int)) or value not in (0, 1):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")
    return bool(value)


def ddof(value: Any) -> int:
    """Return 0 or 1."""
    if not isinstance(value, (int, np.integer)) or value not in (0, 1):
        raise ValueError(f"ddof: expected 0 or 1, got {shown(value)}")
    return int(value)


def groups(value: Any, channels: int) -> int:
    """Return a number of groups."""
    found = integer(value, "num_groups")
    if not 1 <= found < 2**63 or channels % found:
        raise ValueError(
            f"num_groups: expected a positive divisor of the {channels} channels, got "
            f"{shown(value)}"
        )
    return found


def group_size(value: Any, channels: int) -> int:
    """Return the channels of a group: all of them where they are fewer."""
    found = integer(value, "group_size")
    if found < 1 or (found < channels and channels % found):
        raise ValueError(
            f"group_size: expected a positive divisor of the {channels} channels, or at least as "
            f"many, got {shown(value)}"
        )
    return max(1, min(found, channels))


def iterations(value: Any) -> int:
    """Return a number of iterations."""
    found = integer(value, "iterations")
    if not 1 <= found <= 1000:
        raise ValueError(f"iterations: expected 1 to 1000, got {shown(value)}")
    return found


# ---- axes and layouts ------------------------------------------------------------------------


def axes(axis: Any, rank: int) -> Shape:
    """Return axes from 0 on, in order."""
    if rank == 0:
        raise ValueError("x: expected at least 1 dimension, got a scalar")
    values = axis if isinstance(axis, (tuple, list)) else (axis,)
    if not values:
        raise ValueError(f"axis: expected at least one axis, got {axis!r}")
    found = []
    for value in values:
        if not is_int(value):
            raise TypeError("axis: expected an int or a tuple of ints, got " + shown(axis))
        if not -rank <= value < rank:
            raise ValueError(
                f"axis: expected axes in [{-rank}, {rank}) for x of {rank} dimensions, got "
                f"{shown(axis)}"
            )
        found.append(int(value) % rank)
    if len(set(found)) != len(found):
        raise ValueError(f"axis: expected distinct axes, got {shown(axis)}")
    return tuple(sorted(found))


def without(shape: Shape, axes: Shape) -> Shape:
    """Return a shape less some axes."""
    return tuple(np.delete(shape, axes).tolist())


def refuse_layout(layout: Any, shape: Shape) -> NoReturn:
    """Refuse a layout, or an x of one dimension."""
    rank = len(shape)
    if rank < 2:
        raise ValueError(
            f"x: expected at least 2 dimensions (samples, channels), got shape {shape}"
        )
    if not isinstance(layout, str):
        raise TypeError(f"layout: expected a str, got {type(layout).__name__}")
    choices = ""
    for name, (dimensions, _, _) in LAYOUTS.items():
        if dimensions in (0, rank):
            choices += f", {name}"
    raise ValueError(
        f"layout: expected one of {choices[2:]} for {rank} dimensions, got {shown(layout)}"
    )


def blocked_channels(shape: Shape, block: int, weight: Any, bias: Any, mean: Any, tau: Any) -> int:
    """How many of the channels in the blocks are no padding: as many as there are parameters."""
    most = shape[1] * block
    if shape[-1] != block:
        raise ValueError(
            f"x: expected blocks of {block} channels along the last axis, got shape {shape}"
        )
    named = (("weight", weight), ("bias", bias), ("running_mean", mean), ("tau", tau))
    for name, value in named:
        if value is not None:
            channels = value.size if type(value) is np.ndarray else array(value, name).size
            if not most - block < channels <= most:
                raise ValueError(
                    f"{name}: expected {most - block + 1} to {most} channels for x of shape "
                    f"{shape}, got {channels}"
                )
            return channels
    return most


def weight_axis(axis: Any, g: Any, shape: Shape) -> tuple[int, Shape]:
    """Return the axis of weight norm, and the shape of g; the rank and (), where it is None."""
    rank = len(shape)
    if rank == 0:
        raise ValueError("v: expected at least 1 dimension, got a scalar")
    if axis is None:
        return rank, ()
    if isinstance(axis, (tuple, list)):
        raise TypeError(f"axis: expected an int or None, got {shown(axis)}")
    (first,) = axes(axis, rank)
    kept = (1,) * first + shape[first : first + 1] + (1,) * (rank - first - 1)
    return first, kept if g is not None and g.shape == kept else shape[first : first + 1]


# ---- running statistics ----------------------------------------------------------------------


def refuse_running(
    mean: Any, second: Any, channels: int, why: str, name: str = "running_var",
    shape: Shape | None = None,
) -> NoReturn:  # fmt: skip
    """Refuse running statistics of which one or both are missing; `shape`: where they differ."""
    if mean is None and second is None:
        wanted = f"shape ({channels},)"
        if shape is not None:
            wanted = f"shapes ({channels},) and {shape}"
        raise ValueError(f"running_mean, {name}: expected arrays of {wanted} {why}, got None")
    raise ValueError(
        f"running_mean, {name}: expected both or neither, got only "
        + (name if mean is None else "running_mean")
    )


def refuse_momentum() -> NoReturn:
    """Refuse None."""
    raise TypeError(
        "momentum: expected a number, got None (the cumulative average belongs to the layers, "
        "which count batches)"
    )


def refuse_count(domain: str, values: int, of_channel: int, ddof: int, shape: Shape) -> NoReturn:
    """Refuse an update: the variance that running_var takes needs two values, more than ddof."""
    if values == 1:
        raise ValueError(
            f"x: expected more than one value for each {domain}, whose variance running_var "
            f"takes, got shape {shape}"
        )
    raise ValueError(
        f"ddof: expected less than the {of_channel} value(s) of a channel that update "
        f"running_var, got {ddof}"
    )


def refuse_single(shape: Shape) -> NoReturn:
    """Refuse a batch of one value of each channel, which has no covariance."""
    raise ValueError(
        f"x: expected more than one value for each channel in training, got shape {shape}"
    )
