"""Headers of ``.npy`` files."""

from __future__ import annotations

import ast
import io
import math
import os
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from ._hdf5 import SIGNATURE

Header = tuple[tuple[int, ...], bool, np.dtype[Any]]

LENGTH_BYTES = {(1, 0): 2, (2, 0): 4, (3, 0): 4}
MOST_TEXT = 10_000  # as np.load; a header of numbers has hundreds


def read_header(file: IO[bytes]) -> Header:
    """Return shape, whether in Fortran order, and dtype; leave the file at its data.

    What `np.load` refuses is refused, and so are arrays without elements.
    """
    prefix = file.read(npy.MAGIC_LEN)
    length = file.read(LENGTH_BYTES.get((*prefix[-2:],), 0))
    size = int.from_bytes(length, "little")
    text = file.read(min(size, MOST_TEXT + 1))
    try:
        version = npy.read_magic(io.BytesIO(prefix))
        if version not in LENGTH_BYTES:
            raise ValueError(f"version {version} of the format")
        if size > MOST_TEXT:
            raise ValueError(f"a header of {size} bytes")
        if len(text) < size:
            raise ValueError(f"{len(text)} bytes of a header of {size}")
        shape, is_fortran, dtype = _parse(text, version)
    except Exception as error:  # of NumPy's parser, which is Python's: of any kind
        if prefix.startswith(SIGNATURE[: npy.MAGIC_LEN]):
            message = f"{file.name}: expected the name of a dataset, as {file.name}:/name"
        else:
            message = f"{file.name}: expected an .npy file of numbers, got {str(error)[:200]}"
        raise ValueError(message) from None
    need = math.prod(shape) * dtype.itemsize
    if need == 0:
        raise ValueError(f"{file.name}: expected an array with elements, got shape {shape}")
    have = os.fstat(file.fileno()).st_size - file.tell()
    if have < need:
        raise ValueError(f"{file.name}: expected {need} bytes of data, got {have}")
    return shape, is_fortran, dtype


def _parse(text: bytes, version: tuple[int, int]) -> Header:
    if version == (3, 0):
        ast.literal_eval(text.decode())  # it has UTF-8, and no numbers as Python 2 wrote them
    header = io.BytesIO(len(text).to_bytes(4, "little") + text)
    shape, is_fortran, dtype = npy.read_array_header_2_0(header)
    if any(isinstance(n, bool) or n < 0 for n in shape) or math.prod(shape) >= 1 << 60:
        raise ValueError(f"shape {shape}")
    np.empty((1,) * len(shape))  # knows the largest rank
    if dtype.hasobject or dtype.subdtype is not None:
        raise ValueError(f"dtype {dtype}")
    return shape, is_fortran, dtype


def write_header(
    file: IO[bytes], shape: tuple[int, ...], is_fortran: bool, dtype: np.dtype[Any]
) -> None:
    descr = npy.dtype_to_descr(dtype)
    header = {"descr": descr, "fortran_order": is_fortran, "shape": shape}
    npy.write_array_header_1_0(file, header)
