"""`scale_file`: files that need not fit the memory, into others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from .._types import Array
from ._blocks import Pass, progress_bar
from ._checks import (
    BLOCK_BYTES,
    AnyAxes,
    Name,
    check_flag,
    naming,
    normalize_axes,
    result_dtype,
)
from ._groups import settle_groups
from ._hdf5 import SUFFIXES, write_dataset
from ._npy import write_header
from ._sources import Index, Source, check_source, identity, open_source
from ._stats import Stats, check_fit, from_table, settle, to_table
from ._tables import checked, empty_table
from ._targets import Target, check_distinct, parse_target, replacing


def scale_file(
    source: Any,
    target: Any,
    *,
    method: str | None = None,
    axis: AnyAxes | None = None,
    dtype: DTypeLike | None = None,
    stats: Stats | Name | None = None,
    save_stats: Name | None = None,
    groups: Any = None,
    block_bytes: int = BLOCK_BYTES,
    progress: bool = False,
) -> None:
    """Scale each feature of a file that need not fit the memory, into another.

    The output is written beside `target` under another name and takes its name when it is complete:
    whatever happens, `target` is what it was or the whole result. What it replaces hands down its
    mode. Files in Fortran order are read, and written, as they lie. Memory: 1 block, below 4 where
    NaN is left out or where other axes lie between those of `axis`; and 24 bytes for each feature
    of each group, up to 150 while statistics merge.

    Parameters
    ----------
    source : str, os.PathLike, ndarray or h5py.Dataset, or a list or tuple of these
        An ``.npy`` file; an HDF5 dataset, also by name, as ``file.h5:/group/name``; an array, such
        as a memory-mapped one. float16, float32, float64, integers or booleans, of any shape but ()
        and without 0. Several have statistics in common, and features of one shape.
    target : str or os.PathLike, or a list or tuple of these
        The ``.npy`` file to write, apart from `source`, or the dataset, ``file.h5:/name``: other
        datasets of the file stay (the file is copied), and one of HDF5 hands down its attributes
        and how it is stored. One for each source: all appear at the end.
    method : {"standard", "minmax"}, optional
        Standard, the default: mean 0 and (biased) variance 1. Min-max: from 0 to 1. A constant
        feature becomes 0, as by scikit-learn's scalers. What is masked becomes NaN.
    axis : int, tuple or list of int, optional
        Axes whose elements share statistics; by default all but the last, of a vector its only one.
    dtype : dtype, optional
        float16, float32 or float64, of the output; by default that of the source, float64 for
        integers.
    stats : Stats or name of a file, optional
        Statistics of other data, from `fit` or `save_stats`, instead of those of the source.
    save_stats : str or os.PathLike, optional
        File for the statistics, in JSON; it appears with the target.
    groups : array_like or name of a file, optional
        A label for each row of the source, along axis 0, which must be among `axis`: each group
        gets statistics of its own. Integers, booleans or text, or a file of these. For several
        sources a list: the same label is the same group in all.
    block_bytes : int
        Size of a block.
    progress : bool
        Show a progress bar. Needs tqdm: the extra ``scale``.

    Raises
    ------
    TypeError, ValueError
        An argument of another type or without meaning; a file that is no ``.npy`` or is cut short,
        or that cannot be read twice, as a pipe; an array without elements, or with infinity; source
        and target the same file; statistics for other features, groups or methods.
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
    known, stats_name, method = settle(stats, method)
    check_flag("progress", progress)
    result = result_dtype(dtype)
    sources, targets = _pairs(source, target)
    each_groups = _each_groups(groups, source)
    outputs = list(targets)
    if save_stats is not None:
        if known is not None:
            raise ValueError("stats, save_stats: expected one of them, got both")
        outputs.append(parse_target(save_stats, "save_stats"))
    given = [("source", x) for x in sources] + [("groups", x) for x in each_groups or []]
    inputs = [(what, *found) for what, x in [*given, ("stats", stats)] for found in identity(x)]
    check_distinct(outputs, inputs)
    with ExitStack() as stack:
        opened = [stack.enter_context(open_source(each, "source")) for each in sources]
        axes = _common_axes(opened, axis, known, stats_name)
        names, rows = [x.name for x in opened], [x.logical_shape[0] for x in opened]
        labels, codes = settle_groups(known, stats_name, axes, each_groups, names, rows)
        walks = [
            Pass.over(x, "source", axes, method, each, result, block_bytes)
            for x, each in zip(opened, codes, strict=True)
        ]
        unfinished = stack.enter_context(replacing(outputs))
        total = sum(x.nbytes for x in opened) * (1 if known is not None else 2)
        update = stack.enter_context(progress_bar(progress, total))
        if known is not None:
            table = to_table(known)
        else:
            table = empty_table(method, walks[0].table_shape(labels))
            for walk in walks:
                walk.measure(table, update)
                checked(table, walk.source.name)
        for walk, each in zip(walks, targets, strict=True):
            wanted = walk.work if result is None else result
            with _writing(each, unfinished[each.path], walk.source, wanted) as write:
                for index, block in walk.scaled(table, update):
                    write(index, block.astype(wanted, copy=False))
        if save_stats is not None:
            dtypes = np.result_type(*(x.dtype for x in opened))
            found = from_table(method, axes, dtypes, table, labels)
            found._write(unfinished[outputs[-1].path], outputs[-1].name)


def _pairs(source: Any, target: Any) -> tuple[list[Any], list[Target]]:
    """Return sources and the target of each."""
    sources = list(source) if isinstance(source, (list, tuple)) else [source]
    for each in sources:
        check_source(each, "source")
    targets = target if isinstance(source, (list, tuple)) else [target]
    if not sources:
        raise ValueError(f"source: expected at least one, got {source}")
    if not isinstance(targets, (list, tuple)) or len(targets) != len(sources):
        raise ValueError(
            f"target: expected a list of {len(sources)}, one for each source, got {target!r}"
        )
    parsed = [parse_target(each) for each in targets]
    for each in parsed:
        if each.dataset is None and each.name.lower().endswith(SUFFIXES):
            raise ValueError(
                f"target: expected the name of a dataset, as {each.name}:/name, got {each.name}"
            )
    return sources, parsed


def _each_groups(groups: Any, source: Any) -> list[Any] | None:
    """Return the labels of each source."""
    if groups is None or not isinstance(source, (list, tuple)):
        return None if groups is None else [groups]
    if not isinstance(groups, (list, tuple)) or len(groups) != len(source):
        many = f" of {len(groups)}" if isinstance(groups, (list, tuple)) else ""
        raise ValueError(
            f"groups: expected a list of {len(source)}, one for each source, got "
            f"{type(groups).__name__}{many}"
        )
    return list(groups)


def _common_axes(
    sources: Sequence[Source], axis: AnyAxes | None, known: Stats | None, stats_name: str
) -> tuple[int, ...]:
    """Return the axes that share statistics; features have one shape."""
    first = sources[0]
    axes = normalize_axes(axis, len(first.shape), first.name)
    if known is not None:
        for each in sources:
            axes = check_fit(known, stats_name, axis, each.logical_shape, each.name)
    for each in sources[1:]:
        shapes = [
            [n for i, n in enumerate(x.logical_shape) if i not in axes] for x in (first, each)
        ]
        if len(first.shape) != len(each.shape) or shapes[0] != shapes[1]:
            raise ValueError(
                f"source: expected features of one shape, got shape {first.logical_shape} of "
                f"{first.name} and {each.logical_shape} of {each.name}"
            )
    return axes


@contextmanager
def _writing(
    target: Target, path: Path, source: Source, dtype: np.dtype[Any]
) -> Iterator[Callable[[Index, Array], Any]]:
    """Give what writes a block of the result, in the order of the source."""
    if target.dataset is not None:
        shape = source.logical_shape
        with write_dataset(path, target.name, target.dataset, shape, dtype, source.array) as write:
            if source.transposed:
                yield lambda index, block: write(index[::-1], block.T)
            else:
                yield write
        return
    with naming(target.name):
        file = open(path, "r+b")  # noqa: SIM115  (closed below, where an error has the name too)
    try:
        with naming(target.name):
            write_header(file, source.logical_shape, source.transposed, dtype)

        def write_next(index: Index, block: Array) -> None:
            with naming(target.name):
                file.write(block.data)

        yield write_next
    finally:
        with naming(target.name):
            file.close()
