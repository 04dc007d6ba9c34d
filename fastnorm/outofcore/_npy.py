"""Arrays that are read in blocks, and ``.npy`` files that appear only when they are complete.

Files are read and written, not mapped: a file that shrinks or a full disk is then an error, where
a mapping would end the process, and a limit on the address space may be below the file's size.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.lib import format as npy

from .._types import Array

Index: TypeAlias = tuple[slice, ...]


@dataclass(frozen=True)
class Source:
    """An array or a file in C order; one in Fortran order is seen as its transpose."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    transposed: bool
    array: Array | None = None
    file: Any = None
    start: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def blocks(self, elements: int, dtype: np.dtype[Any]) -> Iterator[tuple[Index, Array]]:
        """Blocks of at most so many elements, in the order of the file, converted to `dtype`.

        All use the same memory, which the caller may overwrite.
        """
        room = np.empty(min(elements, math.prod(self.shape)), dtype)
        if self.file is not None:
            self.file.seek(self.start)
        for index in split(self.shape, room.size):
            shape = tuple(s.stop - s.start for s in index)
            block = room[: math.prod(shape)]
            if self.array is not None:
                np.copyto(block.reshape(shape), self.array[index])
            else:
                self._read(block)
            yield index, block.reshape(shape)

    def _read(self, block: Array) -> None:
        """Read what comes next in the file; what is to be converted, by pieces that fit a cache."""
        step = block.size if block.dtype == self.dtype else 1 << 16
        for start in range(0, block.size, step):
            piece = block[start : start + step]
            raw = piece if piece.dtype == self.dtype else np.empty(piece.shape, self.dtype)
            if self.file.readinto(raw.view(np.uint8)) != raw.nbytes:
                raise ValueError(f"{self.file.name}: the file was cut short while it was read")
            if raw is not piece:
                np.copyto(piece, raw)


def split(shape: tuple[int, ...], elements: int) -> Iterator[Index]:
    """Pieces that lie in one piece in an array in C order, in that order."""
    axis = next(i for i in range(len(shape)) if math.prod(shape[i + 1 :]) <= elements)
    step = max(1, elements // math.prod(shape[axis + 1 :]))
    for outer in np.ndindex(*shape[:axis]):
        head = [slice(i, i + 1) for i in outer]
        for start in range(0, shape[axis], step):
            piece = slice(start, min(start + step, shape[axis]))
            yield (*head, piece, *(slice(0, n) for n in shape[axis + 1 :]))


@contextmanager
def open_source(source: str | os.PathLike[str] | Array) -> Iterator[Source]:
    """Open what is read: an array, or an ``.npy`` file by its name."""
    if isinstance(source, np.ndarray):
        transposed = source.flags.f_contiguous and not source.flags.c_contiguous
        array = source.T if transposed else source
        _check_not_empty("source", array.shape)
        yield Source(array.shape, array.dtype, transposed, array=array)
        return
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"source: expected an array or the name of an .npy file, got {type(source).__name__}"
        )
    with open(source, "rb") as file:
        yield _read_header(file)


def _read_header(file: IO[bytes]) -> Source:
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    try:
        version = npy.read_magic(file)
        if version not in readers:
            raise ValueError(f"version {version} of the format")
        shape, fortran, dtype = readers[version](file)
    except ValueError as error:
        raise ValueError(f"{file.name}: expected an .npy file of numbers, got {error}") from None
    _check_not_empty(file.name, shape)
    if fortran:
        shape = shape[::-1]
    source = Source(shape, dtype, fortran, file=file, start=file.tell())
    have = os.fstat(file.fileno()).st_size - source.start
    if not dtype.hasobject and have < source.nbytes:
        raise ValueError(f"{file.name}: expected {source.nbytes} bytes of data, got {have}")
    return source


def _check_not_empty(name: str, shape: tuple[int, ...]) -> None:
    if math.prod(shape) == 0:
        raise ValueError(f"{name}: expected an array with elements, got shape {shape}")


@contextmanager
def replacing(
    target: str | os.PathLike[str], source: str | os.PathLike[str] | Array
) -> Iterator[IO[bytes]]:
    """Open a file that takes the name `target` when all is written, and else disappears."""
    if not isinstance(target, (str, os.PathLike)):
        raise TypeError(f"target: expected the name of a file, got {type(target).__name__}")
    path = Path(os.path.realpath(target))
    if path.exists():
        if not path.is_file():
            raise ValueError(f"target: expected the name of a file, got {path}")
        name = getattr(source, "filename", None) if isinstance(source, np.ndarray) else source
        if name is not None and path.samefile(name):
            raise ValueError(f"target: expected another file than the source, got {path}")
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(unfinished, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_header(file: IO[bytes], like: Source, dtype: np.dtype[Any]) -> None:
    """Write the header of an array that lies as the source does."""
    shape = like.shape[::-1] if like.transposed else like.shape
    descr = npy.dtype_to_descr(dtype)
    header = {"descr": descr, "fortran_order": like.transposed, "shape": shape}
    npy.write_array_header_1_0(file, header)
