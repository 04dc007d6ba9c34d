"""Fitted statistics as a value that can be kept in a file, and tables of them by group."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np

from .._types import Array
from ..statistics.extremes import Extremes
from ..statistics.moments import Moments
from ._checks import (
    AnyAxes,
    Name,
    check_method,
    is_name,
    naming,
    normalize_axes,
    open_regular,
    text_of,
    work_dtype,
)
from ._scaling import METHODS, Statistics, coefficients
from ._tables import change
from ._targets import parse_target, replacing

FORMAT, VERSION = "fastnorm.outofcore.Stats", 1


@dataclass(frozen=True, eq=False)
class Stats:
    """What scaling needs to know of data: found by `fit`, used by `scale` and `scale_file`.

    Attributes
    ----------
    method : {"standard", "minmax"}
        What the statistics are for.
    axis : tuple of int
        Axes of the data that shared statistics. The features have the shape of the others.
    dtype : dtype
        Of the data that were measured. Others may be scaled with them.
    statistics : Moments or Extremes
        ``count``, ``mean`` and ``m2``, or ``low`` and ``high``, of each feature, in float64; with
        groups, an axis for them comes first.
    groups : ndarray or None
        The label of each group.

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> stats = fastnorm.outofcore.fit(np.array([[1.0, 10.0], [3.0, 30.0]]))
    >>> again = fastnorm.outofcore.Stats.from_json(stats.to_json())
    >>> again.statistics.mean, again.axis, again.shape
    (array([ 2., 20.]), (0,), (2,))
    """

    method: str
    axis: tuple[int, ...]
    dtype: np.dtype[Any]
    statistics: Statistics
    groups: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the features."""
        last: Array = getattr(self.statistics, fields(self.statistics)[-1].name)
        return last.shape[0 if self.groups is None else 1 :]

    def to_json(self) -> str:
        """Text that `from_json` takes back, every float exactly."""
        statistics = {
            field.name: _to_list(getattr(self.statistics, field.name))
            for field in fields(self.statistics)
        }
        return json.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "method": self.method,
                "axis": self.axis,
                "shape": self.shape,
                "dtype": self.dtype.name,
                "groups": None if self.groups is None else self.groups.tolist(),
                "statistics": statistics,
            },
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, text: str, name: str = "text") -> Stats:
        """Take back what `to_json` gave.

        Raises
        ------
        ValueError
            Text that is something else, or of another version; it begins with `name`.
        """
        try:
            return cls._from_fields(json.loads(text, parse_constant=_refuse))
        except (ValueError, TypeError, OverflowError, RecursionError, SyntaxError) as error:
            raise ValueError(f"{name}: expected statistics of fastnorm, got {error}") from None

    def save(self, file: Name) -> None:
        """Write `to_json` into a file, which appears, or is replaced, when it is complete."""
        target = parse_target(file, "file")
        with replacing([target]) as unfinished:
            self._write(unfinished[target.path], target.name)

    def _write(self, file: Path, name: str) -> None:
        with naming(name):
            file.write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, file: Name) -> Stats:
        """Read what `save` wrote.

        Raises
        ------
        OSError, ValueError
            The file cannot be read, or holds something else.
        """
        name = text_of("file", file)
        with open_regular(name) as stream, naming(name):
            raw = stream.read()
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            message = f"{name}: expected statistics of fastnorm, got {error}"
            raise ValueError(message) from None
        return cls.from_json(text, name)

    @classmethod
    def _from_fields(cls, values: Any) -> Stats:
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError("another format")
        if values.get("version") != VERSION:
            raise ValueError(f"version {values.get('version')!r}, not {VERSION}")
        names = {"format", "version", "method", "axis", "shape", "dtype", "groups", "statistics"}
        if values.keys() != names:
            raise ValueError(f"the fields {sorted(values)}")
        method, axis, shape = values["method"], values["axis"], values["shape"]
        if not isinstance(method, str) or method not in METHODS:
            raise ValueError(f"the method {method!r}")
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"the shape {shape!r}")
        if not isinstance(axis, list) or normalize_axes(axis, len(axis) + len(shape)) != (*axis,):
            raise ValueError(f"the axis {axis!r}")
        if not isinstance(values["dtype"], str):
            raise ValueError(f"the dtype {values['dtype']!r}")
        dtype = np.dtype(values["dtype"])
        work_dtype(dtype, argument="dtype")
        groups = _labels(values["groups"])
        whole = (*shape,) if groups is None else (len(groups), *shape)
        return cls(
            method, (*axis,), dtype, _statistics(method, values["statistics"], whole), groups
        )


def settle(stats: Stats | Name | None, method: str | None) -> tuple[Stats | None, str, str]:
    """Return the statistics that are given, what to call them, and the method."""
    if method is not None:
        check_method(method)
    if stats is None:
        return None, "stats", "standard" if method is None else method
    if not isinstance(stats, Stats) and not is_name(stats):
        raise TypeError(
            f"stats: expected Stats or the name of their file, got {type(stats).__name__}"
        )
    name = "stats" if isinstance(stats, Stats) else text_of("stats", stats)
    stats = stats if isinstance(stats, Stats) else Stats.load(name)
    if method not in (None, stats.method):
        raise ValueError(f"method: expected {stats.method!r}, as {name} has, got {method!r}")
    return stats, name, stats.method


def check_fit(
    stats: Stats, name: str, axis: AnyAxes | None, shape: tuple[int, ...], where: str
) -> tuple[int, ...]:
    """Return the axes of statistics that are for features such as those in `where`."""
    rank = len(stats.axis) + len(stats.shape)
    features = tuple(n for i, n in enumerate(shape) if i not in stats.axis)
    if len(shape) != rank or features != stats.shape:
        raise ValueError(
            f"{name}: expected statistics for {where}, of shape {shape}, got those of features of "
            f"shape {stats.shape} with axis {stats.axis}"
        )
    if axis is not None and normalize_axes(axis, rank) != stats.axis:
        raise ValueError(f"axis: expected {stats.axis}, as {name} has, got {axis!r}")
    return stats.axis


def from_table(
    method: str,
    axes: tuple[int, ...],
    dtype: np.dtype[Any],
    table: Statistics,
    groups: Array | None,
) -> Stats:
    found = table if groups is not None else change(lambda values: values[0, ...], table)
    return Stats(method, axes, np.dtype(dtype.name), found, groups)


def to_table(stats: Stats) -> Statistics:
    if stats.groups is not None:
        return stats.statistics
    shape = stats.shape
    return change(lambda values: np.broadcast_to(values, shape)[np.newaxis], stats.statistics)


# ---- JSON ---------------------------------------------------------------------------------------


def _refuse(constant: str) -> None:
    raise ValueError(f"the number {constant}")


def _to_list(values: Any) -> Any:
    values = np.asarray(values)
    missing = np.isnan(values)  # which JSON cannot say
    with_none: Array = np.where(missing, cast(Any, None), values) if missing.any() else values
    return with_none.tolist()


def label_array(labels: list[Any]) -> Array:
    """Return labels of one type, none of which NumPy may change, as an array."""
    kinds: list[Any] = [str, (bool, np.bool_), (int, np.integer)]
    kind = next((k for k in kinds if all(isinstance(label, k) for label in labels)), None)
    if kind is kinds[2]:
        for dtype in (np.int64, np.uint64):  # a list of both would become float64
            with suppress(OverflowError):
                return np.array(labels, dtype)
    if kind is None or kind is kinds[2]:
        raise TypeError("labels that are not all text, all booleans or all integers of 64 bits")
    return np.array(labels)


def _labels(labels: Any) -> Array | None:
    if labels is None:
        return None
    if not isinstance(labels, list) or not labels or len({*labels}) < len(labels):
        raise ValueError("groups that are no list of different labels")
    return label_array(labels)


def _statistics(method: str, values: Any, shape: tuple[int, ...]) -> Statistics:
    kind: Any = Extremes if method == "minmax" else Moments
    names = [field.name for field in fields(kind)]
    if not isinstance(values, dict) or [*values] != names:
        raise ValueError(f"statistics that are not {', '.join(names)}")
    whole = ("count", "exponent")  # but a count of weights
    arrays = {name: np.array(values[name], None if name in whole else float) for name in names}
    for name, array in arrays.items():
        if array.dtype.kind not in "if" or array.shape != shape:
            raise ValueError(f"{name} that is not of shape {shape}")
        if name == "exponent" and array.dtype.kind != "i" and array.size:
            raise ValueError("exponent that is no integer")
        if name in ("count", "m2") and (array < 0).any():
            raise ValueError(f"{name} that is negative")
    if method == "minmax" and (arrays["low"] > arrays["high"]).any():
        raise ValueError("low that is above high")
    found: Statistics = kind(**arrays)
    coefficients(found)  # refuses infinity
    return found
