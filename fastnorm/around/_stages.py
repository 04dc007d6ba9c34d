"""Which stage a call goes through first, and the last one: the compiled core; what layers keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .. import _check as check
from .. import activations
from ._call import Call, Result, public
from ._keywords import Around, AroundSettings

# keywords that the core does
IN_THE_CORE = frozenset((
    "activation", "slope", "shortcut", "gate", "gate_activation", "residual", "sum_out",
))  # fmt: skip


def run(entry: Callable[..., Any], arguments: Mapping[str, Any], around: Any) -> Any:
    """Call a normalizer with keywords around it, or with parameters of more than the channels."""
    given = around or {}
    for name in given:
        if name not in Around.__annotations__:
            raise TypeError(f"got an unexpected keyword argument {name!r}")
    some = {name: value for name, value in given.items() if value is not None}
    return public(proceed(Call(entry, arguments, some)))


def proceed(call: Call) -> Result:
    """Go on with the next stage that a call needs."""
    for needed, stage in STAGES:
        if needed(call):
            return stage(call)
    return in_the_core(call)


def in_the_core(call: Call) -> Result:
    around = numbered(call.around)
    found = call.entry(**call.arguments, around=around)
    if "residual" in call.around:
        return Result(*found)
    return Result(found[0], None, found[1]) if isinstance(found, tuple) else Result(found)


def numbered(around: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Return what the core takes: numbers of activations, and arrays. None if there is nothing."""
    get = around.get
    activation, slope, gate_activation = get("activation"), get("slope"), get("gate_activation")
    shortcut, gate, residual, total = get("shortcut"), get("gate"), get("residual"), get("sum_out")
    if total is not None and residual is None:
        raise ValueError("sum_out: expected None, as there is no residual")
    if gate_activation is not None and gate is None:
        raise ValueError("gate_activation: expected None, as there is no gate")
    number = 0 if activation is None else activations.number(activation)
    of_gate = "silu" if gate_activation is None else gate_activation
    leak = 0.01 if slope is None else activations.finite(slope)
    if not number and shortcut is gate is residual is None:
        return None
    of_gate = activations.number(of_gate, "gate_activation")
    return number, of_gate, leak, shortcut, gate, residual, total


def at_once(around: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Return what the core takes, or None where a stage comes first: where others are given."""
    return numbered(around) or () if around.keys() <= IN_THE_CORE else None


from . import (  # noqa: E402  (which need this module)
    _affine,
    _blocked,
    _ghost,
    _given,
    _masks,
    _packed,
    _quantized,
    _weights,
)

# Stages, from the outermost on: whether a call is one of theirs, and what they do with it. They
# finish with `proceed`, of a call that is no longer one of theirs.
STAGES: tuple[tuple[Callable[[Call], bool], Callable[[Call], Result]], ...] = (
    (_quantized.needed, _quantized.stage),
    (_ghost.needed, _ghost.stage),
    (_weights.needed, _weights.stage),
    (_packed.needed, _packed.stage),
    (_blocked.needed, _blocked.stage),
    (_masks.needed, _masks.stage),
    (_given.needed, _given.stage),
    (_affine.needed, _affine.stage),
)


# ---- of layers -------------------------------------------------------------------------------


def settings(around: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a layer is made with; raise where a call would, or where one is no setting."""
    for name in around:
        if name in AroundSettings.__annotations__:
            continue
        if name in Around.__annotations__:
            raise TypeError(f"{name}: expected in a call of the layer, as it goes with an input")
        raise TypeError(f"got an unexpected keyword argument {name!r}")
    given = {name: value for name, value in around.items() if value is not None}
    for name, value in given.items():
        CHECKS[name](value, name)
    return given


def _finite(value: Any, name: str) -> float:
    return check.number(value, name, low=-float("inf"))


CHECKS: dict[str, Callable[[Any, str], object]] = {
    "activation": activations.number,
    "slope": _finite,
    "gate_activation": activations.number,
    "weight_offset": _finite,
    "cast": _weights.checked_cast,
    "virtual_batch_size": _ghost.checked_size,
}
