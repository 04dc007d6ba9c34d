"""The two passes over a source, block by block: statistics, and scaling with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._types import Array
from ._checks import BLOCK_BYTES, block_elements, extra, work_dtype
from ._groups import by_group
from ._scaling import METHODS, Statistics, apply, masked_as
from ._sources import Index, Source
from ._tables import add, checked, flip, flipped

Update = Callable[[int], Any]


@dataclass(frozen=True)
class Pass:
    """How a source is walked; tables have an axis of groups, and one for each axis of features."""

    source: Source
    axes: tuple[int, ...]  # that share statistics, as x has them
    method: str
    elements: int  # of a block at most
    work: np.dtype[Any]
    codes: Array | None = None  # the number of each row's group

    @classmethod
    def over(
        cls,
        source: Source,
        argument: str,
        axes: tuple[int, ...],
        method: str,
        codes: Array | None,
        result: np.dtype[Any] | None = None,
        block_bytes: int = BLOCK_BYTES,
    ) -> Pass:
        where = None if source.name == argument else source.name
        work = work_dtype(source.dtype, result, argument=argument, where=where)
        elements = block_elements(block_bytes, source.dtype, work)
        return cls(source, axes, method, elements, work, codes)

    def table_shape(self, labels: Array | None) -> tuple[int, ...]:
        features = (n for i, n in enumerate(self.source.logical_shape) if i not in self.axes)
        return (1 if labels is None else len(labels), *features)

    def measure(self, table: Statistics, update: Update = lambda size: None) -> None:
        """Add the statistics of the source to those in the table."""
        axes = self._stored_axes()
        stored = flipped(table) if self.source.transposed else table
        for index, block in self.source.blocks(self.elements, self.work):
            features = self._features(index, axes)
            for group, _, part in self._by_group(index, block):
                add(stored, (group, *features), METHODS[self.method](part, axes))
            update(block.size * self.source.dtype.itemsize)

    def scaled(
        self, table: Statistics, update: Update = lambda size: None
    ) -> Iterator[tuple[Index, Array]]:
        """Give the blocks, scaled, and where they are in the source as it lies."""
        axes = self._stored_axes()
        whole: Any = checked(table, self.source.name)
        if self.source.transposed:
            whole = tuple(map(flip, whole))
        for index, block in self.source.blocks(self.elements, self.work):
            features = self._features(index, axes)
            for group, where, part in self._by_group(index, block):
                own: Any = tuple(np.asarray(v[(group, *features)], order="C") for v in whole)
                apply(part, own, axes, self.method, part)
                if part is not block:
                    block[where] = part
            yield index, block
            update(block.size * self.source.dtype.itemsize)

    def in_memory(self, table: Statistics) -> Array:
        """Return all of an array, scaled; masked if it is."""
        y = np.empty(self.source.shape, self.work)
        for index, block in self.scaled(table):
            y[index] = block
        x = self.source.array
        if isinstance(x, np.ma.MaskedArray):
            y = masked_as(y, x)
        return y.T if self.source.transposed else y

    def _stored_axes(self) -> tuple[int, ...]:
        last = len(self.source.shape) - 1
        return tuple(sorted(last - i for i in self.axes)) if self.source.transposed else self.axes

    def _features(self, index: Index, axes: tuple[int, ...]) -> Index:
        return tuple(s for i, s in enumerate(index) if i not in axes)

    def _by_group(self, index: Index, block: Array) -> Iterator[tuple[int, Any, Array]]:
        rows = len(self.source.shape) - 1 if self.source.transposed else 0
        return by_group(block, None if self.codes is None else self.codes[index[rows]], rows)


@contextmanager
def progress_bar(show: bool, total: int) -> Iterator[Update]:
    if not show:
        yield lambda size: None
        return
    with extra("tqdm", "scale").tqdm(total=total, unit="B", unit_scale=True) as bar:
        yield bar.update
