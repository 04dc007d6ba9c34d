"""Statistics of dask arrays, by a tree reduction, and scaling with them, lazily."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np

from .._types import Array, Axes
from ..statistics.extremes import Extremes
from ..statistics.moments import Moments
from ._checks import extra, is_from, work_dtype
from ._groups import by_group
from ._scaling import METHODS, Statistics, apply, masked_as
from ._tables import add, checked, empty_table


def is_dask(x: Any) -> bool:
    return is_from(x, "dask") and isinstance(x, extra("dask.array", "dask").Array)


def progress_bar(show: bool) -> AbstractContextManager[Any]:
    if not show:
        return nullcontext()
    bar: AbstractContextManager[Any] = extra("dask.diagnostics", "dask").ProgressBar()
    return bar


def statistics(
    x: Any, axes: tuple[int, ...], method: str, codes: Array | None = None, count: int = 1
) -> Any:
    """One element for each feature, with a field for each of the statistics', of all groups.

    The axes stay, of length 1.
    """
    dtype = _packed_dtype(Extremes if method == "minmax" else Moments, count)
    meta = np.empty((0,) * x.ndim, dtype)
    parts = extra("dask.array", "dask").map_blocks(
        partial(_measure, axes=axes, method=method, count=count),
        x.astype(work_dtype(x.dtype), copy=False),
        *_codes_like(x, codes),
        chunks=tuple((1,) * len(c) if i in axes else c for i, c in enumerate(x.chunks)),
        dtype=dtype,
        meta=meta,
    )
    return extra("dask.array", "dask").reduction(
        parts,
        chunk=_keep,
        aggregate=_merge,
        axis=axes,
        keepdims=True,
        concatenate=False,
        dtype=dtype,
        meta=meta,
    )


def scaled(
    x: Any,
    axes: tuple[int, ...],
    method: str,
    codes: Array | None,
    count: int,
    known: Statistics | None,
) -> Any:
    """Scale with known statistics, a table, or with those of x."""
    dask_array = extra("dask.array", "dask")
    x = x.astype(work_dtype(x.dtype), copy=False)
    if known is None:
        packed = statistics(x, axes, method, codes, count)
        source = _after(packed, x)
    else:
        chunks = tuple((1,) if i in axes else c for i, c in enumerate(x.chunks))
        packed, source = dask_array.from_array(pack(known, axes), chunks), x
    return dask_array.map_blocks(
        partial(_scale, axes=axes, method=method),
        source,
        packed,
        *_codes_like(x, codes),
        chunks=x.chunks,
        dtype=x.dtype,
        meta=x._meta,
    )


def pack(table: Statistics, axes: Axes) -> Array:
    """Return one element for each feature, with the axes, of length 1."""
    values = {field.name: np.moveaxis(getattr(table, field.name), 0, -1) for field in fields(table)}
    *shape, count = next(iter(values.values())).shape
    packed = np.empty(shape, _packed_dtype(type(table), count))
    for name, value in values.items():
        packed[name] = value
    return np.expand_dims(packed, axes)


def unpack(packed: Array, axes: tuple[int, ...]) -> Any:
    """Return the table, without the axes."""
    kind: Any = Moments if "m2" in (packed.dtype.names or ()) else Extremes
    table = kind(*(np.moveaxis(packed[field.name].squeeze(axes), -1, 0) for field in fields(kind)))
    return replace(table, exponent=table.exponent.astype(int)) if kind is Moments else table


def _packed_dtype(kind: type[Statistics], count: int) -> np.dtype[Any]:
    return np.dtype([(field.name, np.float64, (count,)) for field in fields(kind)])


def _codes_like(x: Any, codes: Array | None) -> list[Any]:
    """Return the numbers of groups in the chunks of the rows of x, if there are groups."""
    if codes is None:
        return []
    chunks = (x.chunks[0], *((1,) * (x.ndim - 1)))
    shaped = codes.reshape(-1, *((1,) * (x.ndim - 1)))
    return [extra("dask.array", "dask").from_array(shaped, chunks)]


def _after(first: Any, x: Any) -> Any:
    """Return x, to be made anew once `first` is there; else all of it would wait in memory."""
    manipulation = extra("dask.graph_manipulation", "dask")
    return manipulation.bind(x, first, seed=first.name)


def _filled(x: Array) -> Array:
    """Return what is masked as NaN."""
    return x.filled(np.nan) if isinstance(x, np.ma.MaskedArray) else x


def _measure(
    x: Array, codes: Array | None = None, *, axes: tuple[int, ...], method: str, count: int
) -> Array:
    features = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    table = empty_table(method, (count, *features))
    rows = None if codes is None else codes.reshape(-1)
    for group, _, part in by_group(_filled(x), rows, 0):
        add(table, (group, ...), METHODS[method](part, axes))
    return pack(table, axes)


def _scale(
    x: Array, packed: Array, codes: Array | None = None, *, axes: tuple[int, ...], method: str
) -> Array:
    whole = checked(unpack(packed, axes), "x")
    bare = _filled(x)
    rows = None if codes is None else codes.reshape(-1)
    y = np.empty_like(bare)
    for group, where, part in by_group(bare, rows, 0):
        own: Any = tuple(np.asarray(values[group, ...], order="C") for values in whole)
        if part is bare:
            y = apply(part, own, axes, method, None)
        else:
            y[where] = apply(part, own, axes, method, None)
    if isinstance(x, np.ma.MaskedArray):
        return masked_as(y, x)
    return y


def _keep(packed: Array, axis: Axes, keepdims: bool) -> Array:
    return packed


def _merge(parts: Any, axis: Axes, keepdims: bool) -> Array:
    """Merge what dask gives: lists, nested as deep as there are axes."""
    if not isinstance(parts, list):
        packed: Array = parts
        return packed
    first, *others = (_merge(part, axis, keepdims) for part in parts)
    total = unpack(first, ())
    for other in others:
        total = total + unpack(other, ())
    return pack(total, ())
