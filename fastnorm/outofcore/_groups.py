"""Labels of rows: which group each belongs to, and the rows of each group in a block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .._check import keeping_mask
from .._types import Array
from ._checks import is_name, text_of
from ._sources import open_source
from ._stats import Stats, label_array


def settle_groups(
    stats: Stats | None,
    name: str,
    axes: tuple[int, ...],
    groups: Sequence[Any] | None,
    sources: Sequence[str],
    rows: Sequence[int],
) -> tuple[Array | None, Sequence[Array | None]]:
    """Return the labels of all groups, and for each source the number of each row's group.

    `groups` has the labels of each source. The groups are those of `stats`, called `name`, if there
    are any.
    """
    if stats is not None and (stats.groups is None) != (groups is None):
        what = "None, as {} has no groups" if stats.groups is None else "labels, as {} has groups"
        raise ValueError(
            f"groups: expected {what.format(name)}, got " + ("None" if groups is None else "labels")
        )
    if groups is None:
        return None, [None] * len(sources)
    if 0 not in axes:
        raise ValueError(
            "groups: expected axis 0, of the rows, among the axes that share statistics, got axis "
            f"{axes}"
        )
    labels = [read_labels(*each) for each in zip(groups, sources, rows, strict=True)]
    every = np.concatenate(labels)
    if len({each.dtype.kind == "U" for each in labels}) > 1 or every.dtype.kind == "f":
        raise TypeError("groups: expected labels of one type for all sources")
    found, codes = np.unique(every, return_inverse=True)
    if stats is not None and stats.groups is not None:
        number = {label: i for i, label in enumerate(stats.groups.tolist())}
        for label in found.tolist():
            if label not in number:
                raise ValueError(f"groups: expected labels that {name} has, got {label!r}")
        codes = np.array([number[label] for label in found.tolist()])[codes]
        found = stats.groups
    return found, np.split(codes.reshape(-1), np.cumsum(rows)[:-1])


def read_labels(groups: Any, source: str, rows: int) -> Array:
    """Return labels as a vector of integers, booleans or text."""
    if np.isnan(rows):
        raise ValueError("groups: expected x of known length, as x.compute_chunk_sizes() makes it")
    where = ""
    groups = keeping_mask(groups)
    if is_name(groups):
        where = f" in {text_of('groups', groups)}"
        with open_source(groups, "groups") as opened:
            labels = opened.whole()
    elif np.ma.getmaskarray(groups).any() if isinstance(groups, np.ma.MaskedArray) else False:
        raise ValueError("groups: expected a label for each row, got masked ones")
    else:
        labels = np.asarray(groups, object if isinstance(groups, (list, tuple)) else None)
    if labels.shape != (rows,):
        raise ValueError(
            f"groups: expected a vector of {rows} labels, one for each row of {source}, got shape "
            f"{labels.shape}{where}"
        )
    if labels.dtype.kind in "OST":  # to text of a fixed length, or to integers
        try:
            labels = label_array([_text(label) for label in labels.tolist()])
        except (TypeError, UnicodeDecodeError) as error:
            raise TypeError(f"groups: expected integers or strings, got {error}{where}") from None
    if labels.dtype.kind not in "iubU":
        raise TypeError(f"groups: expected integers or strings, got {labels.dtype}{where}")
    return labels


def _text(label: Any) -> Any:
    return label.decode() if isinstance(label, bytes) else label


def by_group(block: Array, codes: Array | None, axis: int) -> Iterator[tuple[int, Any, Array]]:
    """Rows of each group in a block: its number, where they are, and the rows, copied.

    A block of one group is given as it is; else at most a quarter of the block at a time, so that
    the copies and what is made of them need no more memory than the block. Rows lie along `axis`.
    """
    if codes is None or (len(codes) and (codes == codes[0]).all()):
        yield 0 if codes is None else int(codes[0]), ..., block
        return
    order = np.argsort(codes, kind="stable")
    ends = np.flatnonzero(np.diff(codes[order], append=-1)) + 1
    most = max(1, len(codes) // 4)
    for first, end in zip([0, *ends], ends, strict=False):
        for start in range(first, end, most):
            rows = order[start : min(start + most, end)]
            index = (*(slice(None),) * axis, rows)
            yield int(codes[rows[0]]), index, np.take(block, rows, axis)
