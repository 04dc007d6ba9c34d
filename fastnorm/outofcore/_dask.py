"""Statistics of dask arrays, by a tree reduction, and scaling with them, lazily."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np

from .._types import Array, Axes
from ..moments import Moments
from ._scaling import METHODS, Extremes, Statistics, apply, coefficients, extra, work_dtype


def is_dask(x: Any) -> bool:
    # without dask there is no dask array; only where there may be one is it imported
    is_from_dask = any(kind.__module__.startswith("dask.") for kind in type(x).__mro__)
    return is_from_dask and isinstance(x, extra("dask.array", "dask").Array)


def progress_bar(show: bool) -> AbstractContextManager[Any]:
    if not show:
        return nullcontext()
    bar: AbstractContextManager[Any] = extra("dask.diagnostics", "dask").ProgressBar()
    return bar


def statistics(x: Any, axes: tuple[int, ...], method: str) -> Any:
    """One element for each feature, with a field for each of the statistics'.

    The axes stay, of length 1.
    """
    dtype = _packed_dtype(Extremes if method == "minmax" else Moments)
    return extra("dask.array", "dask").reduction(
        x.astype(work_dtype(x.dtype), copy=False),
        chunk=partial(_measure, method=method),
        aggregate=_merge,
        axis=axes,
        keepdims=True,
        concatenate=False,
        dtype=dtype,
        meta=np.empty((0,) * x.ndim, dtype),
    )


def unpack(packed: Array, axes: tuple[int, ...] = ()) -> Any:
    """Statistics of the fields, without the axes."""
    kind: Any = Moments if "m2" in (packed.dtype.names or ()) else Extremes
    return kind(*(packed[field.name].squeeze(axes) for field in fields(kind)))


def after(first: Any, x: Any) -> Any:
    """Return x, to be made anew once `first` is there; else all of it would wait in memory."""
    manipulation = extra("dask.graph_manipulation", "dask")
    return manipulation.bind(x, first, seed=first.name)


def scale_chunk(x: Array, packed: Array, *, axes: tuple[int, ...], method: str) -> Array:
    return apply(x, coefficients(unpack(packed, axes)), axes, method, None)


def _packed_dtype(kind: type[Statistics]) -> np.dtype[Any]:
    return np.dtype([(field.name, np.float64) for field in fields(kind)])


def _pack(found: Statistics, axis: Axes = ()) -> Array:
    values = [getattr(found, field.name) for field in fields(found)]
    packed = np.empty(np.broadcast_shapes(*map(np.shape, values)), _packed_dtype(type(found)))
    for field, value in zip(fields(found), values, strict=True):
        packed[field.name] = value
    return np.expand_dims(packed, axis)


def _measure(x: Array, axis: Axes, keepdims: bool, method: str) -> Array:
    return _pack(METHODS[method](x, axis), axis)


def _merge(parts: Any, axis: Axes, keepdims: bool) -> Array:
    """Merge what dask gives: lists, nested as deep as there are axes."""
    if not isinstance(parts, list):
        packed: Array = parts
        return packed
    first, *others = (unpack(_merge(part, axis, keepdims)) for part in parts)
    return _pack(sum(others, first))
