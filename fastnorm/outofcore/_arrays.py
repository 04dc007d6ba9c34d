"""`moments`, `fit` and `scale`: of what need not fit the memory, to what is kept in it or lazy."""

from __future__ import annotations

import os
from typing import Any, cast

import numpy as np

from ..statistics.moments import Moments
from . import _dask
from ._blocks import Pass, progress_bar
from ._checks import (
    BLOCK_BYTES,
    AnyAxes,
    Name,
    check_flag,
    check_method,
    is_name,
    normalize_axes,
    work_dtype,
)
from ._groups import settle_groups
from ._hdf5 import is_dataset
from ._labelled import bare
from ._sources import open_source
from ._stats import Stats, check_fit, from_table, settle, to_table
from ._tables import checked, empty_table


def moments(
    x: Any, axis: AnyAxes | None = None, *, block_bytes: int = BLOCK_BYTES, progress: bool = False
) -> Moments:
    """Moments of an array that need not fit the memory.

    Parameters
    ----------
    x : array, file or labelled array
        A dask array, whose chunks are merged as a tree; the name of an ``.npy`` file or, as
        ``file.h5:/name``, of an HDF5 dataset, or such a dataset; an array, such as a memory-mapped
        or a masked one; a DataFrame, Series or DataArray. float16, float32, float64, integers or
        booleans; of any shape but ().
    axis : int, tuple or list of int, optional
        Axes whose elements share a mean; by default all but the last, of a vector its only one.
        Those of a DataArray also by name.
    block_bytes : int
        Size of the blocks of a file or an array; dask has chunks of its own.
    progress : bool
        Show a progress bar. Needs tqdm: the extra ``scale``.

    Returns
    -------
    Moments
        In the shape of the other axes, with counts in that shape: NaN does not count, nor what is
        masked.

    Raises
    ------
    TypeError, ValueError
        An argument of another type; an axis that x does not have; a file that is no ``.npy`` or is
        cut short, or that cannot be read twice, as a pipe; an array without elements in a file.
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
    found = _fit(x, axis, "standard", None, block_bytes, progress)
    return cast(Moments, found.statistics)


def fit(
    x: Any,
    axis: AnyAxes | None = None,
    *,
    method: str = "standard",
    groups: Any = None,
    block_bytes: int = BLOCK_BYTES,
    progress: bool = False,
) -> Stats:
    """Statistics to scale with: these data, or others.

    Parameters
    ----------
    x, axis, block_bytes, progress
        As of `moments`.
    method : {"standard", "minmax"}
        As of `scale`.
    groups : array_like or name of a file, optional
        As of `scale`.

    Returns
    -------
    Stats
        Which `scale` and `scale_file` take, and which can be saved.

    Raises
    ------
    TypeError, ValueError, OSError
        As `moments`; infinity in x.

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> stats = fastnorm.outofcore.fit(np.array([[0.0], [4.0]]), method="minmax")
    >>> fastnorm.outofcore.scale(np.array([[3.0], [2.0]]), stats=stats)
    array([[0.75],
           [0.5 ]])
    """
    check_method(method)
    stats = _fit(x, axis, method, groups, block_bytes, progress)
    checked(stats.statistics, os.fsdecode(x) if is_name(x) else "x")
    return stats


def scale(
    x: Any,
    axis: AnyAxes | None = None,
    *,
    method: str | None = None,
    stats: Stats | Name | None = None,
    groups: Any = None,
) -> Any:
    """Scale each feature of an array, a table or, lazily, a dask array.

    The statistics of a dask array are part of the graph, a tree reduction over the chunks.
    Computing the result makes each chunk of x twice, so that few of them are in memory at a time:
    about two for each worker. ``dask.diagnostics.ProgressBar`` shows how far it is.

    Parameters
    ----------
    x : dask.array.Array, ndarray, pandas.DataFrame, pandas.Series or xarray.DataArray
        float16, float32, float64; integers and booleans count as float64. NaN, NA and what is
        masked are left out of the statistics, and stay so. A Dataset of xarray by its variables:
        ``dataset.map(scale, keep_attrs=True)``.
    axis : int, tuple or list of int, optional
        Axes whose elements share statistics; by default all but the last, of a vector its only one.
        Those of a DataArray also by name.
    method : {"standard", "minmax"}, optional
        Standard, the default: mean 0 and (biased) variance 1. Min-max: from 0 to 1. A constant
        feature becomes 0, as by scikit-learn's scalers.
    stats : Stats or name of a file, optional
        Statistics of other data, from `fit`, instead of those of x; by those of min-max x may come
        out below 0 and above 1. They have a method and an axis.
    groups : array_like or name of a file, optional
        A label for each row of x, along axis 0, which must be among `axis`: each group gets
        statistics of its own. Integers, booleans or text; in order, whatever their index says.

    Returns
    -------
    type of x
        Shape, chunks and dtype of x, float64 for integers; with the mask, index, columns,
        coordinates and attributes of x. Computing a dask array raises a ValueError where x holds
        infinity.

    Raises
    ------
    TypeError, ValueError
        x is none of these or of another dtype; an axis that it does not have; an unknown method;
        statistics for other features, groups or methods; labels that are not one for each row;
        infinity, where there are no `stats`: by those it stays infinity.

    Examples
    --------
    >>> import dask.array, fastnorm
    >>> x = dask.array.from_array([[1.0, 5.0], [3.0, 5.0], [5.0, 5.0]], chunks=(2, 1))
    >>> fastnorm.outofcore.scale(x, method="minmax").compute()
    array([[0. , 0. ],
           [0.5, 0. ],
           [1. , 0. ]])
    """
    known, name, method = settle(stats, method)
    if is_name(x) or is_dataset(x):
        raise TypeError(f"x: expected an array, got {type(x).__name__}: scale_file scales files")
    bare_x, axis, like = bare(x, axis)
    is_lazy = _dask.is_dask(bare_x)
    if not is_lazy and not isinstance(bare_x, np.ndarray):
        raise TypeError(
            "x: expected a dask array, an ndarray, a DataFrame, a Series or a DataArray, got "
            f"{type(x).__name__}"
        )
    work_dtype(bare_x.dtype)
    axes = normalize_axes(axis, bare_x.ndim)
    if known is not None:
        axes = check_fit(known, name, axis, bare_x.shape, "x")
    as_list = None if groups is None else [groups]
    labels, (codes,) = settle_groups(known, name, axes, as_list, ["x"], [bare_x.shape[0]])
    table = None if known is None else to_table(known)
    if is_lazy:
        count = 1 if labels is None else len(labels)
        return like(_dask.scaled(bare_x, axes, method, codes, count, table))
    with open_source(bare_x, "x") as source:
        walk = Pass.over(source, "x", axes, method, codes)
        if table is None:
            table = empty_table(method, walk.table_shape(labels))
            walk.measure(table)
        return like(walk.in_memory(table))


def _fit(
    x: Any, axis: AnyAxes | None, method: str, groups: Any, block_bytes: int, progress: bool
) -> Stats:
    check_flag("progress", progress)
    x, axis, _ = bare(x, axis)
    as_list = None if groups is None else [groups]
    if _dask.is_dask(x):
        work_dtype(x.dtype)
        axes = normalize_axes(axis, x.ndim)
        labels, (codes,) = settle_groups(None, "", axes, as_list, ["x"], [x.shape[0]])
        count = 1 if labels is None else len(labels)
        with _dask.progress_bar(progress):
            packed = _dask.statistics(x, axes, method, codes, count).compute()
        return from_table(method, axes, x.dtype, _dask.unpack(packed, axes), labels)
    with open_source(x, "x") as source:
        axes = normalize_axes(axis, len(source.shape), source.name)
        rows = [source.logical_shape[0]]
        labels, (codes,) = settle_groups(None, "", axes, as_list, [source.name], rows)
        walk = Pass.over(source, "x", axes, method, codes, block_bytes=block_bytes)
        table = empty_table(method, walk.table_shape(labels))
        with progress_bar(progress, source.nbytes) as update:
            walk.measure(table, update)
    return from_table(method, axes, source.dtype, table, labels)
