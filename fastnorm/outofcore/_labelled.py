"""pandas and xarray: the array inside, and the same kind around the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .._types import Array
from ._checks import extra, is_from, work_dtype

Wrap = Callable[[Any], Any]


def bare(x: Any, axis: Any) -> tuple[Any, Any, Wrap]:
    """Return the array inside x, the axis by numbers, and what makes a result like x."""
    if is_from(x, "xarray") and isinstance(x, extra("xarray", "xarray").DataArray):
        return x.data, _numbers(x, axis), lambda y: _like_xarray(x, y)
    if not is_from(x, "pandas"):
        return x, axis, lambda y: y
    pandas = extra("pandas", "pandas")
    if isinstance(x, pandas.DataFrame):
        return _values(x), axis, lambda y: _like_pandas(x, y)
    if isinstance(x, pandas.Series):
        table = x.to_frame()
        return _values(table)[:, 0], axis, lambda y: _like_pandas(table, y[:, None]).iloc[:, 0]
    return x, axis, lambda y: y


def _numbers(x: Any, axis: Any) -> Any:
    """Return the numbers of dimensions that are given by name."""
    if isinstance(axis, str):
        return _number(x, axis)
    if isinstance(axis, (tuple, list)):
        return tuple(_number(x, each) if isinstance(each, str) else each for each in axis)
    return axis


def _number(x: Any, name: str) -> int:
    if name not in x.dims:
        raise ValueError(f"axis: expected names among {x.dims}, got {name!r}")
    return int(x.dims.index(name))


def _like_xarray(x: Any, y: Any) -> Any:
    result = x.copy(data=y)
    result.encoding = {}  # how x was packed in a file would not fit these values
    return result


def _values(x: Any) -> Array:
    """Return the numbers of a DataFrame; what is NA is NaN."""
    dtypes = [_dtype(dtype, name) for name, dtype in zip(x.columns, x.dtypes, strict=True)]
    if len({*x.dtypes}) == 1 and isinstance(x.dtypes.iloc[0], np.dtype):
        values: Array = x.to_numpy()
        return values
    values = np.empty(x.shape, np.result_type(np.float16, *map(work_dtype, dtypes)), "F")
    for i, dtype in enumerate(dtypes):
        values[:, i] = x.iloc[:, i].to_numpy(work_dtype(dtype), na_value=np.nan)
    return values


def _dtype(dtype: Any, name: Any) -> np.dtype[Any]:
    """Return NumPy's dtype of the values of a column."""
    if isinstance(dtype, extra("pandas", "pandas").SparseDtype):
        dtype = dtype.subtype
    bare = getattr(dtype, "numpy_dtype", dtype)  # pandas' own with NA have one
    if not isinstance(bare, np.dtype):
        bare = np.dtype(object)
    work_dtype(bare, where=f"column {name!r}")
    return bare


def _like_pandas(x: Any, y: Array) -> Any:
    pandas = extra("pandas", "pandas")
    result = pandas.DataFrame(y, index=x.index, columns=range(x.shape[1]))
    wanted = {i: _result(dtype) for i, dtype in enumerate(x.dtypes)}
    result = result.astype({i: dtype for i, dtype in wanted.items() if dtype != y.dtype})
    result.columns = x.columns
    return result.__finalize__(x)  # its attrs


def _result(dtype: Any) -> Any:
    """Return the dtype of a scaled column: one that knows NA if the column's does."""
    work = work_dtype(_dtype(dtype, ""))
    if getattr(dtype, "na_value", None) is not extra("pandas", "pandas").NA:
        return work
    return "Float64" if work.itemsize == 8 else "Float32"
