"""State dicts of other frameworks: what they call things, and their values as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from . import _check as check
from ._types import Array

# Names of torch, which are the layers' own, and what others call the same. README has this table.
NAMES = {
    "weight": ("gamma", "scale", "Scale"),
    "bias": ("beta", "offset", "B"),
    "running_mean": ("moving_mean", "mean", "input_mean", "_mean"),
    "running_var": (
        "moving_variance", "moving_var", "variance", "var", "input_var", "_variance",
    ),
    "weight_g": ("parametrizations.weight.original0",),
    "weight_v": ("parametrizations.weight.original1",),
}  # fmt: skip
_OWN = {other: own for own, others in NAMES.items() for other in others}
_COLLECTIONS = ("params", "batch_stats")  # of flax


def named(state: Mapping[str, Any], argument: str) -> dict[str, tuple[str, Any]]:
    """Return (name given, value) by the layers' own names, of a state in anybody's names.

    Raises
    ------
    TypeError
        No mapping.
    ValueError
        Two names of the same thing.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"{argument}: expected a mapping, got {type(state).__name__}")
    found: dict[str, tuple[str, Any]] = {}
    for name, value in _items(state):
        plain = name.removesuffix(":0") if isinstance(name, str) else name  # TensorFlow's
        own = _OWN.get(plain, plain)
        if own in found:
            raise ValueError(
                f"{argument}: expected one {own}, got {found[own][0]!r} and {name!r}, two names "
                "of the same"
            )
        found[own] = (name, value)
    return found


def _items(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in state.items():
        if name in _COLLECTIONS and isinstance(value, Mapping):
            yield from value.items()
        else:
            yield name, value


def loadable(name: str, given: Any, target: Array) -> Array:
    """`given`, which messages call `name`, as `target` can take it."""
    value = check.array(check.detached(given, name), name)
    integer = target.dtype.kind == "i"
    if not (value.dtype.kind in "iu" if integer else check.is_float(value.dtype)):
        raise TypeError(f"{name}: expected {target.dtype}, got {value.dtype}")
    if target.ndim == 0 and value.size == 1:
        value = value.reshape(())
    if value.shape != target.shape:
        raise ValueError(f"{name}: expected shape {target.shape}, got {value.shape}")
    value = check.rounded(value, target.dtype, name)
    if integer and value < 0:  # num_batches_tracked
        raise ValueError(f"{name}: expected a count from 0 to 2**63 - 1, got {given!r}")
    return value
