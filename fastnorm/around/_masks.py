"""Masks and lengths: statistics and gradients of the valid elements alone.

A mask is a gather before and a scatter after: the valid elements are copied side by side, the
ordinary call takes these, and what it gives goes back into zeros. So what x holds elsewhere, NaN
too, is never looked at, and the result is that of a call on ``x[valid]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from .. import _arguments, _core
from .. import _check as check
from .._arguments import LAYOUTS
from .._types import Array, FusedGradients, MaybeArray, Param
from ._arrays import BESIDE, Like, beside_of, delivered, dense
from ._back import DerivedFromCore, Kept, checked_back
from ._call import Call, Result
from ._parameters import Parameter, form_of, parameters_of

Index: TypeAlias = tuple[Array, ...]

AFFINE = ("weight", "bias", "tau")
KEYS = frozenset({"mask", "lengths"})
_OVER_SAMPLES = ("batch", "batch_renorm", "sync_batch", "whitening")


def needed(call: Call) -> bool:
    """Whether there is a mask."""
    return not KEYS.isdisjoint(call.around)


@dataclass
class View:
    """x with the axes that a mask cannot cut behind the others: the channels, or a domain's.

    `last` are these axes. Where they are the last ones anyway, the others are one: a row of x
    (B, T, C) has one number.
    """

    shape: tuple[int, ...]
    last: tuple[int, ...]

    @property
    def lead(self) -> int:
        """How many axes a mask can cut."""
        return len(self.shape) - len(self.last)

    @property
    def shape_of_lead(self) -> tuple[int, ...]:
        """Return their sizes."""
        return tuple(n for a, n in enumerate(self.shape) if a not in self.last)

    @property
    def is_flat(self) -> bool:
        """Whether they are one axis in `of`."""
        return self.last == tuple(range(self.lead, len(self.shape)))

    def moved(self, a: Array) -> Array:
        """Return an array of x's rank, with all axes of its own."""
        return np.moveaxis(a, self.last, range(-len(self.last), 0))

    def of(self, a: Array) -> Array:
        """Return a view of a dense array of x's shape."""
        if not self.is_flat:
            return self.moved(a)
        return a.reshape(math.prod(a.shape[: self.lead]), *a.shape[self.lead :])

    def index(self, valid: Array) -> Index:
        """Return where in `of` the positions are that count; in order."""
        return (np.flatnonzero(valid),) if self.is_flat else np.nonzero(valid)


@dataclass
class Part:
    """Valid elements that one call of the normalizer takes.

    `index` picks them from the first axes of a view; `shape` is what the call sees. `pattern`: of
    a domain of which not all elements are valid, which are.
    """

    view: View
    index: Index
    shape: tuple[int, ...]
    pattern: MaybeArray = None

    def gather(self, a: Array) -> Array:
        """Return the valid elements of an array of x's shape."""
        of = self.view.of(a)
        if len(self.index) > 1 or self.pattern is not None:
            return of[self.index].reshape(self.shape)
        (rows,) = self.index
        found = _core.empty_like(np.broadcast_to(np.zeros((), a.dtype), (len(rows), *of.shape[1:])))
        # clip: as they are all there, NumPy need not make a copy in case that one is not
        np.take(of, rows, 0, out=found, mode="clip")
        return found.reshape(self.shape)

    def scatter(self, found: Array, to: Array) -> None:
        """Write them back."""
        of = self.view.of(to)
        if self.pattern is None:
            found = found.reshape(len(self.index[0]), *of.shape[len(self.index) :])
        of[self.index] = found

    def domains(self, lead: tuple[int, ...]) -> Array:
        """Return the numbers of its domains, of which each element of these axes has one."""
        axes = self.view.shape_of_lead
        first = [a[:, 0] if a.ndim > 1 else a for a in self.index]  # the others are of a pattern
        flat = self.view.is_flat
        rows = first[0] if flat else np.ravel_multi_index(first[: len(axes)], axes)
        each = max(1, len(rows) // max(1, self.shape[0]))  # elements of a domain that have a row
        return rows[::each] * math.prod(lead) // math.prod(axes)


# ---- what is valid ---------------------------------------------------------------------------


def valid_of(call: Call, x: Array, view: View) -> Array:
    """Return the mask, with the axes of the view, of which the last may have size 1."""
    if call.around.keys() >= KEYS:
        raise ValueError("mask, lengths: expected one of them, got both")
    mask = _mask_of(call.around["lengths"], call, x) if "lengths" in call.around else (
        _core.as_array(call.around["mask"], "mask"))  # fmt: skip
    mask = checked_mask(mask, x)
    if "layout" in call.arguments and mask.shape[view.last[0]] != 1:
        raise ValueError(
            f"mask: expected size 1 along the channels, axis {view.last[0]}, got shape {mask.shape}"
        )
    return view.moved(mask)


def checked_mask(mask: Array, x: Array) -> Array:
    """Return a mask with x's number of dimensions; raise where it does not broadcast to x."""
    if mask.dtype != np.bool_:
        raise TypeError(f"mask: expected dtype bool, got {mask.dtype}")
    try:
        fits = np.broadcast_shapes(mask.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"mask: expected a shape that broadcasts to {x.shape}, got {mask.shape}")
    return mask.reshape((1,) * (x.ndim - mask.ndim) + mask.shape)


def _mask_of(lengths: Any, call: Call, x: Array) -> Array:
    lengths = _core.as_array(lengths, "lengths")
    axis = _first_spatial(call, x)
    if lengths.dtype.kind not in "iu":
        raise TypeError(f"lengths: expected integers, got {lengths.dtype}")
    if lengths.shape != x.shape[:1]:
        raise ValueError(f"lengths: expected shape {x.shape[:1]}, got {lengths.shape}")
    if lengths.size and not (lengths.min() >= 0 and lengths.max() <= x.shape[axis]):
        raise ValueError(
            f"lengths: expected at least 0 and at most {x.shape[axis]}, the size of axis {axis}, "
            f"got {_arguments.shown(lengths.tolist())}"
        )
    mask: Array = np.arange(x.shape[axis]) < lengths[:, None]
    return np.expand_dims(mask, tuple(i for i in range(1, x.ndim) if i != axis))


def _first_spatial(call: Call, x: Array) -> int:
    """Return the first axis behind the samples that is not the channels'.

    For layer norm: that is not normalized; axis 1 where all are.
    """
    of_axes = "axis" in call.arguments
    over = _arguments.axes(call["axis"], x.ndim) if of_axes else ()
    if x.ndim < 2 or (x.ndim == 2 and (not of_axes or 1 in over)):
        raise ValueError(f"lengths: expected x with a spatial axis, got shape {x.shape}")
    if of_axes:
        return next((axis for axis in range(1, x.ndim) if axis not in over), 1)
    return 2 if LAYOUTS[call["layout"]][1] == 1 else 1


def view_of(call: Call, x: Array) -> View:
    """How x is looked at."""
    if "axis" in call.arguments:
        return View(x.shape, _arguments.axes(call["axis"], x.ndim))
    layout = call["layout"]
    known = LAYOUTS.get(layout) if isinstance(layout, str) else None
    if known is None or x.ndim < 2 or known[0] not in (0, x.ndim):
        _arguments.refuse_layout(layout, x.shape)
    return View(x.shape, (known[1] % x.ndim,))


# ---- parts -----------------------------------------------------------------------------------


def parts_of(call: Call, view: View, valid: Array) -> list[Part]:
    """Cut the valid elements into parts that the normalizer sees as it would see all of x.

    There is one at least, which may be empty: it is looked at as any other.
    """
    shape = view.moved(np.broadcast_to(np.False_, view.shape)).shape
    if "axis" in call.arguments:
        return _of_domains(view, valid, shape)
    positions = np.broadcast_to(valid[..., 0], shape[:-1])
    index = view.index(positions)
    if call.norm in _OVER_SAMPLES or not _is_of_samples(call):
        return [Part(view, index, (len(index[0]), shape[-1]))]
    counts = positions.sum(tuple(range(1, positions.ndim)))
    starts = np.cumsum(counts) - counts
    return [
        # samples 1 and 4 of 3 elements, from 5 and 20 on: elements 5, 6, 7, 20, 21, 22
        Part(view, _some(index, starts[counts == count], count),
             (int((counts == count).sum()), count, shape[-1]))
        for count in np.unique(counts[counts > 0]).tolist()
    ] or [Part(view, index, (0, 1, shape[-1]))]  # fmt: skip


def _some(index: Index, starts: Array, count: int) -> Index:
    which = (starts[:, None] + np.arange(count)).reshape(-1)
    return tuple(a[which] for a in index)


def _is_of_samples(call: Call) -> bool:
    """Whether statistics are those of a sample: not where running ones serve."""
    return bool(call["training"]) or call.norm != "instance"


def _of_domains(view: View, valid: Array, shape: tuple[int, ...]) -> list[Part]:
    lead, domain = shape[: view.lead], shape[view.lead :]
    if valid.shape[view.lead :] == (1,) * len(domain):  # domains count as a whole, or not at all
        whole = np.broadcast_to(valid.reshape(valid.shape[: view.lead]), lead)
        index = view.index(whole)
        return [Part(view, index, (len(index[0]), *domain))]
    rows = np.broadcast_to(valid, shape).reshape(math.prod(lead), math.prod(domain))
    patterns, which, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    order = np.split(np.argsort(which.reshape(-1), kind="stable"), np.cumsum(counts))[:-1]
    parts = []
    for pattern, some in zip(patterns, order, strict=True):
        if pattern.any():
            first = (some,) if view.is_flat else np.unravel_index(some, lead)
            index = (*(a[:, None] for a in first), *np.nonzero(pattern.reshape(domain)))
            parts.append(Part(view, index, (len(some), int(pattern.sum())), pattern))
    return parts or [Part(view, view.index(np.zeros(lead, bool)), (0, *domain))]


# ---- the call --------------------------------------------------------------------------------


@check.as_the_core
def stage(call: Call) -> Result:
    """Call the normalizer on the valid elements."""
    from . import _masked_statistics as statistics
    from ._stages import proceed

    x = dense(call["x"], "x")
    view = view_of(call, x)
    valid = valid_of(call, x, view)
    beside, keep = beside_of(call, x)
    # in the dtype that is computed in, so that the sums of several parts are rounded once
    given = parameters_of(call, x, form_of(call, x), AFFINE)
    plain = call.without(KEYS).but(x=x)
    if call.norm == "switchable":
        return statistics.switchable(plain, view, valid, given, beside)
    plain, update = statistics.without_running(plain)
    # all that needs memory of x's size comes before running statistics are written
    y, total = zeros_like(x), zeros_like(x) if "residual" in beside else None
    made = []
    for part in parts_of(call, view, valid):
        compact = _compact(plain, part, given, beside)
        made.append((part, proceed(compact.but(return_ctx=keep or update is not None))))
    for part, found in made:
        part.scatter(found.y, y)
        if total is not None and found.sum is not None:
            part.scatter(found.sum, total)
    if update is not None:
        update(made, view, valid, x if total is None else total)
    y = delivered(y, call["out"])
    if total is not None:
        total = delivered(total, call.around.get("sum_out"))
    contexts = [(part, found.ctx) for part, found in made]
    of_channels = "layout" in call.arguments
    ctx = MaskedContext(contexts, x, given, beside, of_channels) if keep else None
    return Result(y, total, ctx)


def _is_wide(parameter: Parameter) -> bool:
    """Whether it differs between samples or positions."""
    return parameter.value.shape != parameter.form.shared


def _compact(call: Call, part: Part, given: dict[str, Parameter], beside: dict[str, Array]) -> Call:
    """Return the call of one part."""
    around = {k: v for k, v in call.around.items() if k != "sum_out"}
    around |= {name: part.gather(a) for name, a in beside.items()}
    arguments: dict[str, Any] = {"x": part.gather(call["x"]), "out": None}
    if "layout" in call.arguments:
        arguments["layout"] = "NC" if len(part.shape) == 2 else "NLC"
    else:
        arguments["axis"] = tuple(range(1, len(part.shape)))
    for name, parameter in given.items():
        if _is_wide(parameter):
            arguments[name] = part.gather(np.broadcast_to(parameter.view, part.view.shape))
        else:
            own = parameter.core(())
            arguments[name] = own if part.pattern is None else own.reshape(-1)[part.pattern]
    return call.but(around, **arguments)


def zeros_like(x: Array) -> Array:
    """Return zeros, from the cache of buffers."""
    found = _core.empty_like(x)
    found.reshape(-1).view(np.uint8)[...] = 0
    return found


class MaskedContext(DerivedFromCore):
    """Context of a call with a mask: those of its parts, which hold copies of the valid elements.

    Statistics of a domain without a valid element are NaN.

    What :func:`fastnorm.backward` returns is a :class:`FusedGradients`, whatever is around. What dy
    holds where the mask is False, NaN too, is not looked at; the gradients are 0 there.
    """

    def __init__(
        self, parts: list[Any], x: Array, given: dict[str, Parameter], beside: dict[str, Array],
        of_channels: bool,
    ) -> None:  # fmt: skip
        self._parts, self._given, self.has_sum = parts, given, "residual" in beside
        self._beside = [name for name in BESIDE[:2] if name in beside]
        self._like, self._of_channels = Like(x.shape, x.dtype), of_channels
        self._kept = Kept({name: own.value for name, own in given.items()})
        self.is_empty = not any(part.shape[0] for part, _ in parts)

    @property
    def inner(self) -> Any:
        """Of the first part: ranks of sync batch norm have one."""
        return self._parts[0][1]

    def statistic(self, name: str) -> Array:
        """Put those of the parts together: of domains, or of the channels of all samples."""
        found: list[tuple[Part, Array]] = [(p, getattr(ctx, name)) for p, ctx in self._parts]
        part, values = found[0]
        if values.ndim == 1 and self._of_channels:
            return values
        lead = self._like.shape[:1] if self._of_channels else part.view.shape_of_lead
        whole: Array = np.full((math.prod(lead), *values.shape[1:]), np.nan)
        for part, values in found:
            whole[part.domains(lead)] = values
        return whole.reshape(*lead, *whole.shape[1:])

    @check.as_the_core
    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None) -> FusedGradients:
        """As :func:`fastnorm.backward`."""
        from ..norms import backward

        g, extra = checked_back(self, self._like, self._kept, dy, out, ds)
        found = []
        for part, ctx in self._parts:
            more = None if extra is None else part.gather(extra)
            found.append((part, backward(part.gather(g), ctx, ds=more)))
        arrays = {}
        for name in ("x", *self._beside):
            arrays[name] = zeros_like(g)
            for part, grads in found:
                part.scatter(getattr(grads, name), arrays[name])
        sums = {name: self._sum(name, found) for name in self._given}
        dx = delivered(arrays.pop("x"), out)
        return FusedGradients(
            dx, sums.pop("weight", None), sums.pop("bias", None), **arrays, **sums
        )

    def _sum(self, name: str, found: list[Any]) -> Array:
        """Return the gradient of a parameter, of all parts, added in float64."""
        own = self._given[name]
        total = own.total() if _is_wide(own) else np.zeros(own.form.shared)
        for part, grads in found:
            a = getattr(grads, name).astype(np.float64)
            if _is_wide(own):
                whole = np.zeros(self._like.shape)
                part.scatter(a, whole)
                own.add(total, (), whole)
            elif part.pattern is not None:
                total.reshape(-1)[part.pattern] += a
            else:
                total += a
        return own.gradient(total)
