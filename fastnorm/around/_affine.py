"""Weights and biases that differ between samples or positions.

Where they differ between samples, whose statistics are their own, each sample is one call of the
core, with its weight. `_conditional` is batch norm in training. For all others `_pointwise` applies
them to what the core has normalized.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _check as check
from .. import _core
from .._core import Context
from .._types import Array, Gradients, MaybeArray, Param
from . import _conditional, _pointwise
from ._arrays import BESIDE, Index, Laid, check_updated, check_written, computed_in, dense, lay
from ._back import DerivedFromCore, gradients_of, kept, lay_back, made, others_of
from ._call import Call, Result
from ._parameters import Form, Parameter, check_rest, form_of, is_wide, parameters_of
from ._stages import in_the_core, numbered

# a call of the core takes as long as some thousands of elements
LEAST_SLICE = 1 << 12

# whose samples share statistics in training
_COUPLED = {"batch", "batch_renorm", "switchable", "sync_batch", "whitening"}


def needed(call: Call) -> bool:
    """Whether a parameter has more dimensions than a shared one, or x is rounded before them."""
    return "rounds" in call.around or is_wide(call.arguments)


def stage(call: Call) -> Result:
    """Normalize with parameters that differ."""
    with _core.FloatMode(), np.errstate(all="ignore"):
        return _normalize(call)


def _normalize(call: Call) -> Result:
    around = numbered(call.around)
    numbers = None if around is None else around[:3]
    x = dense(call["x"], "x")
    form = form_of(call, x)
    given = parameters_of(call, x, form)
    check_updated(call)
    check_rest(call, form, x)
    if _is_conditional(call, form, given):
        check_written(call, x)
        entry = _conditional.Conditional(call.entry, form, given, call.states())
        return in_the_core(replace(call.but(x=x), entry=entry))
    laid = lay(call.but(x=x))
    lead = _lead(call, form, given)
    if lead is None:
        return _pointwise.run(call, laid, form, given, numbers, _is_coupled(call))
    return _by_slices(call, laid, given, numbers, lead)


def _is_coupled(call: Call) -> bool:
    """Whether samples share statistics, or running ones are updated from all of them."""
    if "axis" in call.arguments:
        return False
    shares = call.norm in _COUPLED
    return bool(call["training"]) and (shares or call["running_mean"] is not None)


def _is_conditional(call: Call, form: Form, given: dict[str, Parameter]) -> bool:
    """Whether it is a batch norm in training, of samples that are worth a call each."""
    if call.norm != "batch" or not call["training"] or "rounds" in call.around or 0 in form.x:
        return False
    of_samples = {axis for p in given.values() for axis in p.varies()} == {0}
    return of_samples and _fit_blocks(form, given) and math.prod(form.x[1:]) >= LEAST_SLICE


def _fit_blocks(form: Form, given: dict[str, Parameter]) -> bool:
    """Whether the core takes rows of them, where x lies in blocks: not those with x's rank."""
    return not form.is_blocked or all(p.value.ndim < len(form.x) for p in given.values())


def _lead(call: Call, form: Form, given: dict[str, Parameter]) -> int | None:
    """How many axes from the first on are gone through one by one, or None where that is no way.

    Of x (B, T, C) and a weight (B, 1, C) one: x[0] is a call with the weight of shape (C,).
    """
    varies = [axis for parameter in given.values() for axis in parameter.varies()]
    lead = 1 + max(varies, default=-1)
    if "rounds" in call.around or lead > min(form.axes) or (lead and _is_coupled(call)):
        return None
    if 0 in form.x:
        return None
    if call.norm == "sync_batch":  # ranks meet as often, whether they have one sample or more
        return None
    if form.of_channels and lead > 1:  # positions of channels last
        return None
    if form.is_blocked:
        return lead if _fit_blocks(form, given) else None
    return lead if not lead or math.prod(form.x[lead:]) >= LEAST_SLICE else None


# ---- sample by sample ------------------------------------------------------------------------


def _by_slices(call: Call, laid: Laid, given: dict[str, Parameter], numbers: Any,
               lead: int) -> Result:  # fmt: skip
    others, wide = others_of(call), computed_in(laid.x.dtype)
    copies = {name: a.astype(wide) for name, a in others.items()}
    contexts: list[tuple[Index, Context[Any]]] = []
    for first in np.ndindex(*laid.x.shape[:lead]):
        index = tuple(slice(i, i + 1) for i in first)
        own: dict[str, Any] = {name: p.core(index) for name, p in given.items()} | copies
        own |= {"x": laid.x[index], "out": laid.y[index], "return_ctx": laid.keep}
        around = None if numbers is None else (*numbers, *laid.around(index))
        found = call.entry(**{**call.arguments, **own}, around=around)
        if laid.keep:
            contexts.append((index, found[-1]))
    y, total = laid.delivered()
    if not laid.keep:
        return Result(y, total)
    return Result(y, total, Slices(laid, contexts, given, others, gradients_of(call, numbers)))


class Slices(DerivedFromCore):
    """Contexts of slices of x, each with its own parameters."""

    def __init__(self, laid: Laid, contexts: list[tuple[Index, Context[Any]]],
                 given: dict[str, Parameter], others: dict[str, Array],
                 kind: type[Any]) -> None:  # fmt: skip
        self._x, self._contexts, self._given = laid.normalized, contexts, given
        self._others, self._kind, self.has_sum = others, kind, laid.sum is not None
        self._beside = [name for name in BESIDE[:2] if name in laid.beside]
        self._kept = kept(laid, given, kind is not Gradients)

    @check.as_the_core
    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None) -> Any:
        """As :func:`fastnorm.backward`."""
        from ..norms import backward

        laid = lay_back(self, self._x, self._kept, dy, out, ds)
        sums = {name: parameter.total() for name, parameter in self._given.items()}
        others = {name: np.zeros(a.shape) for name, a in self._others.items()}
        beside = {name: np.zeros_like(self._x) for name in self._beside}
        for index, ctx in self._contexts:
            total = None if laid.ds is None else laid.ds[index]
            found = backward(laid.dy[index], ctx, laid.dx[index], ds=total)
            for name, parameter in self._given.items():
                parameter.add_core(sums[name], index, getattr(found, name))
            for name, array in others.items():
                array += getattr(found, name)
            for name, array in beside.items():
                array[index] = getattr(found, name)
        grads = {name: p.gradient(sums[name]) for name, p in self._given.items()}
        grads |= {name: a.astype(self._others[name].dtype) for name, a in others.items()}
        return made(self._kind, laid.result(), {**grads, **beside})

    def statistic(self, name: str) -> Array:
        """Put those of the slices together; running ones are the same in all."""
        parts: list[Array] = [getattr(ctx, name) for _, ctx in self._contexts]
        lead, form = len(self._contexts[0][0]), next(iter(self._given.values())).form
        if not lead or (form.of_channels and parts[0].ndim == 1):
            return parts[0]
        shape = (*self._x.shape[:lead], *parts[0].shape[lead:])
        return np.concatenate([part.reshape(-1) for part in parts]).reshape(shape)
