"""Tables: statistics whose first axis is that of groups, also where there is but one group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, cast

import numpy as np

from .._types import Array
from ..statistics.extremes import Extremes
from ..statistics.moments import Moments
from ._scaling import Statistics, coefficients


def empty_table(method: str, shape: tuple[int, ...]) -> Statistics:
    kind: Any = Extremes if method == "minmax" else Moments
    return change(lambda values: np.array(np.broadcast_to(values, shape)), kind.empty(shape))


def add(table: Statistics, index: Any, found: Any) -> None:
    """Add statistics to some of a table's, in place."""
    total = change(lambda values: values[index], table) + found
    for field in fields(table):
        getattr(table, field.name)[index] = getattr(total, field.name)


def flipped(table: Statistics) -> Statistics:
    """Return a view of the table for the transpose of the data."""
    return change(flip, table)


def flip(values: Array) -> Array:
    return values.transpose(0, *range(values.ndim - 1, 0, -1))


def checked(table: Statistics, name: str) -> tuple[Array, ...]:
    """Return coefficients; say of which data they cannot be had."""
    try:
        return coefficients(table)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def change(function: Callable[[Array], Array], found: Statistics) -> Statistics:
    """Return statistics with every array changed."""
    changed = (function(getattr(found, field.name)) for field in fields(found))
    return cast(Statistics, cast(Any, type(found))(*changed))
