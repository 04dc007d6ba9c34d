"""What is read block by block: arrays, ``.npy`` files, HDF5 datasets.

Files are read and written, not mapped: a file that shrinks or a full disk is then an error, where
a mapping would end the process, and a limit on the address space may be below the file's size.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .._types import Array
from ._checks import is_name, naming, open_regular, text_of
from ._hdf5 import is_dataset, open_dataset, split_name
from ._npy import read_header

Index: TypeAlias = tuple[slice, ...]


@dataclass(frozen=True)
class Source:
    """An array or a file in C order; one in Fortran order is seen as its transpose."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    transposed: bool = False
    array: Any = None  # an ndarray or an HDF5 dataset
    file: Any = None  # an .npy file
    start: int = 0  # of the data in it
    chunks: tuple[int, ...] | None = None

    @property
    def logical_shape(self) -> tuple[int, ...]:
        return self.shape[::-1] if self.transposed else self.shape

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def blocks(self, elements: int, dtype: np.dtype[Any]) -> Iterator[tuple[Index, Array]]:
        """Blocks of at most so many elements, in the order of the file, converted to `dtype`.

        All use the same memory, which the caller may overwrite. What is masked becomes NaN.
        """
        room = np.empty(min(elements, math.prod(self.shape)), dtype)
        if self.file is not None:
            self.file.seek(self.start)
        for index in split(self.shape, room.size, self.chunks):
            shape = tuple(s.stop - s.start for s in index)
            block = room[: math.prod(shape)]
            with naming(self.name):
                if self.file is not None:
                    self._read(block)
                else:
                    self._copy(index, block.reshape(shape))
            yield index, block.reshape(shape)

    def whole(self) -> Array:
        """Return all of it, as it is."""
        with naming(self.name):
            if self.file is None:
                array = np.asarray(self.array[...])
            else:
                array = np.empty(self.shape, self.dtype)
                self.file.seek(self.start)
                self._read(array.reshape(-1))
        return array.T if self.transposed else array

    def _copy(self, index: Index, block: Array) -> None:
        piece = self.array[index]
        np.copyto(block, np.ma.getdata(piece))
        if np.ma.getmask(piece) is not np.ma.nomask:
            block[np.ma.getmask(piece)] = np.nan

    def _read(self, block: Array) -> None:
        """Read what comes next in the file; what is to be converted, by pieces that fit a cache."""
        step = block.size if block.dtype == self.dtype else 1 << 16
        for start in range(0, block.size, step):
            piece = block[start : start + step]
            raw = piece if piece.dtype == self.dtype else np.empty(piece.shape, self.dtype)
            if self.file.readinto(raw.view(np.uint8)) != raw.nbytes:
                raise ValueError(f"{self.name}: the file was cut short while it was read")
            if raw is not piece:
                np.copyto(piece, raw)


def split(
    shape: tuple[int, ...], elements: int, chunks: tuple[int, ...] | None = None
) -> Iterator[Index]:
    """Pieces that lie in one piece in an array in C order, in that order; whole chunks if any."""
    axis = next(i for i in range(len(shape)) if math.prod(shape[i + 1 :]) <= elements)
    step = max(1, elements // math.prod(shape[axis + 1 :]))
    if chunks is not None and step > chunks[axis]:
        step -= step % chunks[axis]
    for outer in np.ndindex(*shape[:axis]):
        head = [slice(i, i + 1) for i in outer]
        for start in range(0, shape[axis], step):
            piece = slice(start, min(start + step, shape[axis]))
            yield (*head, piece, *(slice(0, n) for n in shape[axis + 1 :]))


@contextmanager
def open_source(x: Any, argument: str) -> Iterator[Source]:
    """Open what is read: an array, or a file or an HDF5 dataset, also by its name."""
    check_source(x, argument)
    if isinstance(x, np.ndarray):
        is_fortran = x.flags.f_contiguous and not x.flags.c_contiguous
        array = x.T if is_fortran else x
        source = Source(argument, array.shape, array.dtype, is_fortran, array=array)
        yield _with_elements(source)
    elif is_dataset(x):
        if not x:
            raise ValueError(f"{argument}: expected an open dataset, got a closed one")
        yield _dataset_source(x)
    else:
        name = text_of(argument, x)
        file, dataset = split_name(name)
        with open_regular(file) as opened:
            if dataset is None:
                shape, is_fortran, dtype = read_header(opened)
                stored = shape[::-1] if is_fortran else shape
                yield Source(name, stored, dtype, is_fortran, file=opened, start=opened.tell())
                return
        with open_dataset(file, dataset) as found:
            yield _dataset_source(found)


def check_source(x: Any, argument: str) -> None:
    if not isinstance(x, np.ndarray) and not is_name(x) and not is_dataset(x):
        raise TypeError(
            f"{argument}: expected an array or the name of an .npy file or an HDF5 dataset, got "
            f"{type(x).__name__}"
        )


def identity(x: Any) -> list[tuple[str, str | None]]:
    """Return which file, and which dataset in it, an input is, as far as that is known."""
    if is_name(x):
        return [split_name(os.fsdecode(x))]
    if is_dataset(x):
        return [(x.file.filename, None)] if x else []  # it is open, all of it
    name = getattr(x, "filename", None)  # of a mapped file
    return [] if name is None else [(os.fsdecode(name), None)]


def _dataset_source(dataset: Any) -> Source:
    name = f"{dataset.file.filename}:{dataset.name}"
    shape = dataset.shape if dataset.shape is not None else (0,)  # without a dataspace
    source = Source(name, shape, dataset.dtype, array=dataset, chunks=dataset.chunks)
    return _with_elements(source)


def _with_elements(source: Source) -> Source:
    if math.prod(source.shape) == 0:
        raise ValueError(
            f"{source.name}: expected an array with elements, got shape {source.logical_shape}"
        )
    return source
