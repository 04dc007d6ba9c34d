"""Datasets in HDF5 files, by the name ``file.h5:/path/of/the/dataset``."""

from __future__ import annotations

import io
import os
import posixpath
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .._types import Array
from ._checks import extra, is_from, naming

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SUFFIXES = (".h5", ".hdf5", ".hdf", ".he5")

# Attributes that tell how values are stored, or belong to what other datasets say of this one: of
# scaled values they would be wrong.
NOT_OF_VALUES = {
    "CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates",
    "_FillValue", "missing_value", "scale_factor", "add_offset", "valid_min", "valid_max",
    "valid_range", "_Unsigned",
}  # fmt: skip


def split_name(name: str) -> tuple[str, str | None]:
    """Split ``file.h5:/dataset``; of another name the second part is None."""
    file, colon, dataset = name.partition(":/")
    if not colon or not file or os.path.isdir(file + ":"):
        return name, None
    return file, posixpath.normpath("/" + dataset.lstrip("/"))


def is_dataset(x: Any) -> bool:
    return is_from(x, "h5py") and isinstance(x, extra("h5py", "hdf5").Dataset)


@contextmanager
def open_dataset(file: str, dataset: str) -> Iterator[Any]:
    h5py = extra("h5py", "hdf5")
    name = f"{file}:{dataset}"
    with _errors(name):
        opened = h5py.File(file, "r")
    try:
        with _errors(name):
            found = opened.get(dataset)
        if not isinstance(found, h5py.Dataset):
            kind = "nothing" if found is None else f"a {type(found).__name__}"
            raise ValueError(f"{name}: expected a dataset, got {kind}")
        yield found
    finally:
        opened.close()


@contextmanager
def write_dataset(
    path: Path, name: str, dataset: str, shape: tuple[int, ...], dtype: np.dtype[Any], like: Any
) -> Iterator[Callable[[tuple[slice, ...], Array], None]]:
    """Write a dataset into a file, stored as `like` is if that is one; give what writes a part.

    The file may be of no bytes. Errors have the name that the caller knows the dataset by.
    """
    with naming(name):
        file = _Writer(path, "r+")
    try:
        with _signals_wait(), _errors(name):
            opened = extra("h5py", "hdf5").File(file, "r+" if path.stat().st_size else "w")
        try:
            with _signals_wait(), _errors(name, file):
                made = _create(opened, dataset, shape, dtype, like)

            def write(index: tuple[slice, ...], block: Array) -> None:
                with _signals_wait(), _errors(name, file):
                    made[index] = block

            yield write
        finally:
            with _signals_wait(), _errors(name, file):
                opened.close()
    finally:
        file.close()


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Let signals wait for the end: what their handlers raise in the midst of HDF5, it loses."""
    waiting: list[int] = []
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    ours = {number: handler for number, handler in handlers.items() if callable(handler)}
    if threading.current_thread() is not threading.main_thread():
        ours = {}  # handlers run in the main thread alone
    try:
        for number in ours:
            signal.signal(number, lambda number, frame: waiting.append(number))
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        for sent in dict.fromkeys(waiting):
            signal.raise_signal(sent)


class _Writer(io.FileIO):
    """The file that HDF5 writes into.

    HDF5 cannot close a file that it could not write, and then ends the process: an error waits
    here, and what is written after it is dropped.
    """

    error: BaseException | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        while left and self.error is None:
            left = left[self._try(super().write, left) or 0 :]
        return memoryview(data).nbytes

    def truncate(self, size: int | None = None) -> int:
        return int(self._try(super().truncate, size) or 0)

    def _try(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except BaseException as error:
            self.error = self.error or error


def _create(
    file: Any, dataset: str, shape: tuple[int, ...], dtype: np.dtype[Any], like: Any
) -> Any:
    h5py = extra("h5py", "hdf5")
    if dataset in file:
        if not isinstance(file[dataset], h5py.Dataset):
            raise ValueError(
                f"expected the name of a dataset, got a {type(file[dataset]).__name__}"
            )
        del file[dataset]
    if not is_dataset(like):
        return file.create_dataset(dataset, shape, dtype)
    names = ("chunks", "maxshape", "compression", "compression_opts", "shuffle", "fletcher32")
    storage = {name: getattr(like, name) for name in names} if like.chunks else {}
    made = file.create_dataset(dataset, shape, dtype, **storage)
    for key, value in like.attrs.items():
        if key not in NOT_OF_VALUES:
            made.attrs[key] = value
    return made


@contextmanager
def _errors(name: str, file: _Writer | None = None) -> Iterator[None]:
    """Name the dataset in h5py's errors; raise those that wait in the file."""
    try:
        with naming(name):
            yield
            if file is not None and file.error is not None:
                raise file.error
    except (KeyError, RuntimeError, TypeError, ValueError) as error:  # of damaged files
        raise ValueError(f"{name}: {error.args[0] if error.args else error}") from error
