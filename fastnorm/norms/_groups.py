"""Groups of channels: arrays walked in chunks, multiplied by a matrix for each group.

A chunk is copied to a buffer that stays in the cache, so that no temporary has the array's size and
all passes but the first and the last are over the cache. The products are BLAS's: of (size, space)
planes where channels come first, of (rows, size) matrices where they come last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from .._types import Array

Index: TypeAlias = tuple[slice, ...]

CHUNK = 1 << 17  # elements, at most, of few channels
# Multiplications of a product: OpenBLAS does so many in the thread that asks for them. Threads that
# meet for every small product gain a tenth, and lose all where another process has their processor.
PRODUCT = 1 << 18
MANY, FEW = 256, 64  # values of a channel: at least for products larger than that; at least
SHORT = 16  # planes shorter than that are turned into rows where they are copied


class Groups:
    """Arrays of one shape, dense; channels first are planes, channels last or of few values rows.

    Vectors are (groups, size), matrices (groups, size, size), float64 but where they are applied.
    `parts`: of how many chunks, one behind the other along the channels, products are made.
    """

    def __init__(self, shape: tuple[int, ...], last: bool, size: int, parts: int = 1) -> None:
        channels = shape[-1] if last else shape[1]
        space = math.prod(shape[1:-1] if last else shape[2:])
        self._shape, self._last, self.rows = shape, last, last or space < SHORT
        self.size, self.groups = size, channels // size
        self.values = shape[0] * space  # of a channel
        self._samples, self._space = (1, self.values) if last else (shape[0], space)
        fitting = CHUNK // max(1, channels)
        values = max(FEW, min(fitting, max(MANY, PRODUCT // (parts * size * size))))
        self._wide = max(1, min(self._space, values))
        self._per = max(1, (values if self.rows else fitting) // self._wide)

    def of_parts(self, parts: int) -> Groups:
        """Return the same, for products of several parts."""
        return Groups(self._shape, self._last, self.size, parts)

    def view(self, array: Array) -> Array:
        """See (samples, space, groups, size) rows, or (samples, groups, size, space) planes."""
        if self._last:
            return array.reshape(self._samples, self._space, self.groups, self.size)
        array = array.reshape(self._samples, self.groups, self.size, self._space)
        return array.transpose(0, 3, 1, 2) if self.rows else array

    def _index(self, samples: slice, space: slice) -> Index:
        every = slice(None)
        return (samples, space) if self.rows else (samples, every, every, space)

    def walk(self) -> Iterator[tuple[Index, Index]]:
        """Go through the chunks: where one is in a view, and where in a buffer."""
        for i in range(0, self._samples, self._per):
            samples = slice(0, min(self._per, self._samples - i))
            for j in range(0, self._space, self._wide):
                space = slice(0, min(self._wide, self._space - j))
                at = self._index(slice(i, i + samples.stop), slice(j, j + space.stop))
                yield at, self._index(samples, space)

    def buffer(self, dtype: np.dtype[Any], parts: int = 1) -> Array:
        """Make room for a chunk, or for its parts."""
        samples, size = min(self._per, max(1, self._samples)), parts * self.size
        if self.rows:
            return np.empty((samples, self._wide, self.groups, size), dtype)
        return np.empty((samples, self.groups, size, self._wide), dtype)

    def part(self, chunk: Array, i: int) -> Array:
        """See one of the parts."""
        channels = slice(i * self.size, (i + 1) * self.size)
        return chunk[..., channels] if self.rows else chunk[:, :, channels]

    def spread(self, vector: Array) -> Array:
        """See a vector as it goes with a chunk."""
        return vector if self.rows else vector[..., np.newaxis]

    def _matrices(self, chunk: Array) -> Array:
        """Of rows: (groups, rows, size), which BLAS reads as they lie."""
        rows = chunk.shape[0] * chunk.shape[1]  # no -1, which none of no channels can be
        return chunk.reshape(rows, *chunk.shape[2:]).transpose(1, 0, 2)

    def sums(self, chunk: Array) -> Array:
        """Sum over each channel."""
        over = (0, 1) if self.rows else (0, 3)
        total: Array = chunk.sum(over, dtype=np.float64)
        return total

    def product(self, a: Array, b: Array) -> Array:
        """Sum of ``a_i b_j`` over the values of channels i and j; of a and a, half of the work."""
        if self.rows:
            first, second = self._matrices(a), self._matrices(b)
            return np.matmul(first.transpose(0, 2, 1), second).astype(np.float64, copy=False)
        total: Array = np.matmul(a, b.swapaxes(2, 3)).sum(0, dtype=np.float64)
        return total

    def apply(self, matrix: Array, chunk: Array, out: Array) -> None:
        """Multiply the channels of each value by the matrix of their group."""
        if self.rows:
            to = self._matrices(out)
            np.matmul(self._matrices(chunk), matrix.transpose(0, 2, 1), out=to)
        else:
            np.matmul(matrix, chunk, out=out)


def load(chunk: Array, center: Array | None, buffer: Array) -> Array:
    """Copy a chunk of an array, less the center of each channel, which has the buffer's dtype."""
    if center is not None and chunk.dtype == buffer.dtype:
        return np.subtract(chunk, center, out=buffer)
    np.copyto(buffer, chunk, casting="unsafe")
    if center is not None:
        buffer -= center
    return buffer


def store(buffer: Array, shift: Array, chunk: Array) -> None:
    """Write a buffer, plus the shift of each channel; 16 bits are those of float32, rounded."""
    if chunk.dtype.itemsize > 2:
        np.add(buffer, shift, out=chunk, casting="unsafe")
    else:
        buffer += shift
        np.copyto(chunk, buffer.astype(np.float32, copy=False), casting="unsafe")


def covariance(groups: Groups, view: Array) -> tuple[Array, Array]:
    """Mean of each channel, and biased covariance of each group, in one pass.

    x is counted from the mean of its first chunk. The first chunk is a share p of the values, so
    that its mean is at most ``sqrt((1 - p) / p)`` deviations from that of all, in every direction:
    what correcting for it takes away is at most 1 / p times the variance, of 16 digits.
    """
    buffer = groups.buffer(np.dtype(np.float64))
    shape = groups.groups, groups.size
    total, products = np.zeros(shape), np.zeros((*shape, groups.size))
    at, part = next(groups.walk())
    first = load(view[at], None, buffer[part])
    pivot = groups.sums(first) / (first.size // total.size)
    for at, part in groups.walk():
        chunk = load(view[at], None, buffer[part])
        chunk -= groups.spread(pivot)
        total += groups.sums(chunk)
        products += groups.product(chunk, chunk)
    delta = total / groups.values
    found = products / groups.values - delta[:, :, np.newaxis] * delta[:, np.newaxis]
    return pivot + delta, (found + found.transpose(0, 2, 1)) / 2
