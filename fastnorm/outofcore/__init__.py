"""Larger than memory: dask arrays and ``.npy`` files, block by block.

Two passes: the first merges the statistics of the blocks, the second scales each block with them.
NaN is a missing value, as in scikit-learn's scalers: statistics leave it out, and it stays NaN.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import DTypeLike

from .._types import Array, Axes
from ..moments import Moments
from . import _dask
from ._npy import Index, Source, open_source, replacing, write_header
from ._scaling import METHODS, apply, check_method, coefficients, extra, normalize_axes, work_dtype

__all__ = ["moments", "scale", "scale_file"]

BLOCK_BYTES = 64 << 20

Key: TypeAlias = tuple[tuple[int, int], ...]


def moments(
    x: Any, axis: Axes | None = None, *, block_bytes: int = BLOCK_BYTES, progress: bool = False
) -> Moments:
    """Moments of an array that need not fit the memory.

    Parameters
    ----------
    x : dask.array.Array, str, os.PathLike or ndarray
        A dask array, whose chunks are merged as a tree; the name of an ``.npy`` file; or an array,
        such as a memory-mapped one. float16, float32, float64, integers or booleans; of any shape
        but ().
    axis : int or tuple of int, optional
        Axes whose elements share a mean; by default all but the last, of a vector its only one.
    block_bytes : int
        Size of the blocks of a file or an array; dask has chunks of its own.
    progress : bool
        Show a progress bar. Needs tqdm: the extra ``scale``.

    Returns
    -------
    Moments
        In the shape of the other axes, with counts in that shape: NaN does not count.

    Raises
    ------
    TypeError, ValueError
        An argument of another type; an axis that x does not have; a file that is no ``.npy`` or
        is cut short; an array without elements in a file.
    OSError
        The file cannot be read.

    References
    ----------
    Chan, Golub, LeVeque: Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances, 1979. STAN-CS-79-773

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0], [8.0, 20.0]])
    >>> found = fastnorm.outofcore.moments(x, block_bytes=16)  # a row at a time
    >>> found.mean, found.var(ddof=1)
    (array([ 4., 20.]), array([ 13., 100.]))
    """
    if _dask.is_dask(x):
        axes = normalize_axes(axis, x.ndim)
        with _dask.progress_bar(progress):
            packed = _dask.statistics(x, axes, "standard").compute()
        return cast(Moments, _dask.unpack(packed, axes))
    with open_source(x) as source:
        axes = _stored_axes(axis, source)
        work = work_dtype(source.dtype)
        elements = _elements(block_bytes, source.dtype, work)
        with _progress_bar(progress, source.nbytes) as update:
            parts = _statistics(source, axes, "standard", elements, work, update)
        whole = _join(parts, [n for i, n in enumerate(source.shape) if i not in axes])
    return Moments(whole.count.T, whole.mean.T, whole.m2.T) if source.transposed else whole


def scale(x: Any, axis: Axes | None = None, *, method: str = "standard") -> Any:
    """Scale each feature of a dask array, lazily.

    The statistics are part of the graph, a tree reduction over the chunks. Computing the result
    makes each chunk of x twice, so that few of them are in memory at a time: about two for each
    worker. ``dask.diagnostics.ProgressBar`` shows how far it is.

    Parameters
    ----------
    x : dask.array.Array
        float16, float32, float64; integers and booleans count as float64.
    axis : int or tuple of int, optional
        Axes whose elements share statistics; by default all but the last, of a vector its only one.
    method : {"standard", "minmax"}
        Standard: mean 0 and (biased) variance 1. Min-max: from 0 to 1. A constant feature becomes
        0, as by scikit-learn's scalers.

    Returns
    -------
    dask.array.Array
        Shape, chunks and dtype of x; float64 for integers. Computing it raises a ValueError
        where x holds infinity.

    Raises
    ------
    TypeError, ValueError
        x is no dask array or of another dtype; an axis that it does not have; an unknown method.

    Examples
    --------
    >>> import dask.array, fastnorm
    >>> x = dask.array.from_array([[1.0, 5.0], [3.0, 5.0], [5.0, 5.0]], chunks=(2, 1))
    >>> fastnorm.outofcore.scale(x, method="minmax").compute()
    array([[0. , 0. ],
           [0.5, 0. ],
           [1. , 0. ]])
    """
    check_method(method)
    if not _dask.is_dask(x):
        raise TypeError(f"x: expected a dask array, got {type(x).__name__}")
    axes = normalize_axes(axis, x.ndim)
    x = x.astype(work_dtype(x.dtype), copy=False)
    packed = _dask.statistics(x, axes, method)
    chunk = partial(_dask.scale_chunk, axes=axes, method=method)
    again = _dask.after(packed, x)
    return again.map_blocks(chunk, packed, dtype=x.dtype, meta=x._meta)


def scale_file(
    source: str | os.PathLike[str] | Array,
    target: str | os.PathLike[str],
    *,
    method: str = "standard",
    axis: Axes | None = None,
    dtype: DTypeLike | None = None,
    block_bytes: int = BLOCK_BYTES,
    progress: bool = False,
) -> None:
    """Scale each feature of an ``.npy`` file that need not fit the memory, into another.

    The output is written beside `target` under another name and takes its name when it is complete:
    whatever happens, `target` is what it was or the whole result. Files in Fortran order are read,
    and written, as they lie. Memory: 1 block, below 4 where NaN is left out or where other axes lie
    between those of `axis`; and 24 bytes for each feature, up to 150 while statistics merge.

    Parameters
    ----------
    source : str, os.PathLike or ndarray
        An ``.npy`` file, or an array, such as a memory-mapped one. float16, float32, float64,
        integers or booleans, of any shape but () and without 0.
    target : str or os.PathLike
        The ``.npy`` file to write, apart from `source`.
    method : {"standard", "minmax"}
        Standard: mean 0 and (biased) variance 1. Min-max: from 0 to 1. A constant feature becomes
        0, as by scikit-learn's scalers.
    axis : int or tuple of int, optional
        Axes whose elements share statistics; by default all but the last, of a vector its only one.
    dtype : dtype, optional
        float16, float32 or float64, of the output; by default that of the source, float64 for
        integers.
    block_bytes : int
        Size of a block.
    progress : bool
        Show a progress bar. Needs tqdm: the extra ``scale``.

    Raises
    ------
    TypeError, ValueError
        An argument of another type or without meaning; a file that is no ``.npy`` or is cut short;
        an array without elements, or with infinity; source and target the same file.
    OSError
        A file cannot be read or written.

    Examples
    --------
    >>> import os, tempfile, numpy as np, fastnorm
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source, target = os.path.join(folder, "in.npy"), os.path.join(folder, "out.npy")
    ...     np.save(source, np.array([[1, 10], [3, 30], [5, 20]]))
    ...     fastnorm.outofcore.scale_file(source, target, method="minmax")
    ...     np.load(target)
    array([[0. , 0. ],
           [0.5, 1. ],
           [1. , 0.5]])
    """
    check_method(method)
    with open_source(source) as x:
        axes = _stored_axes(axis, x)
        work = work_dtype(x.dtype, dtype, "source")
        result = work if dtype is None else np.dtype(dtype)
        elements = _elements(block_bytes, x.dtype, work)
        with replacing(target, source) as file, _progress_bar(progress, 2 * x.nbytes) as update:
            parts = _statistics(x, axes, method, elements, work, update)
            centers = {key: coefficients(part) for key, part in parts.items()}
            write_header(file, x, result)
            for index, block in x.blocks(elements, work):
                apply(block, centers[_key(index, axes)], axes, method, block)
                file.write(block.astype(result, copy=False).data)
                update(block.size * x.dtype.itemsize)


# ---- files -----------------------------------------------------------------------------------


def _stored_axes(axis: Axes | None, source: Source) -> tuple[int, ...]:
    """Return the axes as they lie in the file."""
    rank = len(source.shape)
    axes = normalize_axes(axis, rank)
    return tuple(sorted(rank - 1 - i for i in axes)) if source.transposed else axes


def _elements(block_bytes: int, *dtypes: np.dtype[Any]) -> int:
    if isinstance(block_bytes, bool) or not isinstance(block_bytes, (int, np.integer)):
        raise TypeError(f"block_bytes: expected an int, got {type(block_bytes).__name__}")
    if block_bytes < 1:
        raise ValueError(f"block_bytes: expected at least 1, got {block_bytes}")
    return max(1, int(block_bytes) // max(dtype.itemsize for dtype in dtypes))


def _key(index: Index, axes: tuple[int, ...]) -> Key:
    """Which features a block holds."""
    return tuple((s.start, s.stop) for i, s in enumerate(index) if i not in axes)


def _statistics(
    source: Source,
    axes: tuple[int, ...],
    method: str,
    elements: int,
    work: np.dtype[Any],
    update: Callable[[int], Any],
) -> dict[Key, Any]:
    """Statistics of each group of features that blocks hold."""
    parts: dict[Key, Any] = {}
    for index, block in source.blocks(elements, work):
        key, found = _key(index, axes), METHODS[method](block, axes)
        parts[key] = parts[key] + found if key in parts else found
        update(block.size * source.dtype.itemsize)
    return parts


def _join(parts: dict[Key, Moments], shape: list[int]) -> Moments:
    """Put groups of features side by side."""
    whole = Moments(np.empty(shape, np.int64), np.empty(shape), np.empty(shape))
    for key, part in parts.items():
        index = tuple(slice(*ends) for ends in key)
        whole.count[index], whole.mean[index], whole.m2[index] = part.count, part.mean, part.m2
    return whole


@contextmanager
def _progress_bar(show: bool, total: int) -> Iterator[Callable[[int], Any]]:
    if not show:
        yield lambda size: None
        return
    with extra("tqdm", "scale").tqdm(total=total, unit="B", unit_scale=True) as bar:
        yield bar.update
