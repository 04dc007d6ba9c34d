"""Masks and lengths: statistics and gradients of the valid elements alone.

A mask is a gather before and a scatter after: the valid elements are copied side by side, the
ordinary call takes these, and what it gives goes back into zeros. So what x holds elsewhere, NaN
too, is never looked at, and the result is that of a call on ``x[valid]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _arguments, _core
from .. import _check as check
from .._arguments import LAYOUTS
from .._types import Array, DerivedContext, FusedGradients, MaybeArray, Param
from ._arrays import delivered, dense, like
from ._call import Call, Result

KEYS = frozenset({"mask", "lengths"})
LIKE_X = ("shortcut", "gate", "residual")
_OVER_SAMPLES = ("batch", "batch_renorm")


def needed(call: Call) -> bool:
    """Whether there is a mask."""
    return not KEYS.isdisjoint(call.around)


@dataclass
class View:
    """x with the axes that a mask cannot cut behind the others: the channels, or a domain's.

    `last` are these axes.
    """

    shape: tuple[int, ...]
    last: tuple[int, ...]

    def of(self, a: Array) -> Array:
        """Return a view of an array of x's shape."""
        moved: Array = np.moveaxis(a, self.last, range(-len(self.last), 0))
        return moved


@dataclass
class Part:
    """Valid elements that one call of the normalizer takes.

    `index` picks them from the first axes of a view; `shape` is what the call sees. `pattern`: of
    a domain of which not all elements are valid, which are.
    """

    view: View
    index: Array
    shape: tuple[int, ...]
    pattern: MaybeArray = None

    def gather(self, a: Array) -> Array:
        """Return the valid elements of an array of x's shape."""
        return self.view.of(a)[self.index].reshape(self.shape)

    def scatter(self, found: Array, to: Array) -> None:
        """Write them back."""
        view = self.view.of(to)
        view[self.index] = found.reshape(view[self.index].shape)


# ---- what is valid ---------------------------------------------------------------------------


def valid_of(call: Call, x: Array, view: View) -> Array:
    """Return the mask, with the axes of the view, of which the last may have size 1."""
    if call.around.keys() >= KEYS:
        raise ValueError("mask, lengths: expected one of them, got both")
    mask = _mask_of(call.around["lengths"], call, x) if "lengths" in call.around else (
        _core.as_array(call.around["mask"], "mask"))  # fmt: skip
    if mask.dtype != np.bool_:
        raise TypeError(f"mask: expected dtype bool, got {mask.dtype}")
    try:
        fits = np.broadcast_shapes(mask.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"mask: expected a shape that broadcasts to {x.shape}, got {mask.shape}")
    mask = mask.reshape((1,) * (x.ndim - mask.ndim) + mask.shape)
    if "layout" in call.arguments and mask.shape[view.last[0]] != 1:
        raise ValueError(
            f"mask: expected size 1 along the channels, axis {view.last[0]}, got shape {mask.shape}"
        )
    return view.of(mask)


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
    if x.ndim < 3 and ("axis" not in call.arguments or x.ndim < 2):
        raise ValueError(f"lengths: expected x with a spatial axis, got shape {x.shape}")
    if "axis" in call.arguments and x.ndim == 2 and 1 in _arguments.axes(call["axis"], 2):
        raise ValueError(f"lengths: expected x with a spatial axis, got shape {x.shape}")
    return 2 if "layout" in call.arguments and LAYOUTS[call["layout"]][1] == 1 else 1


def view_of(call: Call, x: Array) -> View:
    """How x is looked at."""
    if "axis" in call.arguments:
        return View(x.shape, _arguments.axes(call["axis"], x.ndim))
    layout = call["layout"]
    known = LAYOUTS.get(layout) if isinstance(layout, str) else None
    if known is None or x.ndim < 2 or known[0] not in (0, x.ndim):
        _arguments.refuse_layout(layout, x.shape)
    if known[2] > 1:
        raise ValueError(f"layout: expected channels first or last with a mask, got {layout!r}")
    return View(x.shape, (known[1] % x.ndim,))


# ---- parts -----------------------------------------------------------------------------------


def parts_of(call: Call, x: Array, view: View, valid: Array) -> Iterator[Part]:
    """Cut the valid elements into parts that the normalizer sees as it would see all of x."""
    shape = view.of(x).shape
    lead = len(shape) - len(view.last)
    if "axis" in call.arguments:
        yield from _of_domains(view, valid, shape, lead)
        return
    index = np.broadcast_to(valid[..., 0], shape[:-1])
    if _core.NORMS[call["norm"]] in _OVER_SAMPLES or not _is_of_samples(call):
        yield Part(view, index, (int(index.sum()), shape[-1]))  # ranks meet though it be empty
        return
    counts = index.reshape(shape[0], -1).sum(1)
    for count in np.unique(counts[counts > 0]).tolist():
        some = index & (counts == count).reshape(-1, *(1,) * (index.ndim - 1))
        yield Part(view, some, (int((counts == count).sum()), count, shape[-1]))


def _is_of_samples(call: Call) -> bool:
    """Whether statistics are those of a sample: not where running ones serve."""
    return bool(call["training"]) or _core.NORMS[call["norm"]] != "instance"


def _of_domains(view: View, valid: Array, shape: tuple[int, ...], lead: int) -> Iterator[Part]:
    domain = shape[lead:]
    if valid.shape[lead:] == (1,) * len(domain):  # domains count as a whole, or not at all
        index = np.broadcast_to(valid.reshape(valid.shape[:lead]), shape[:lead])
        if index.any():
            yield Part(view, index, (int(index.sum()), *domain))
        return
    every = np.broadcast_to(valid, shape).reshape(*shape[:lead], -1)
    rows = every.reshape(-1, every.shape[-1])
    patterns, which = np.unique(rows, axis=0, return_inverse=True)
    which = which.reshape(shape[:lead])
    for i, pattern in enumerate(patterns):
        if pattern.any():
            index = (which == i)[(..., *[None] * len(domain))] & pattern.reshape(domain)
            yield Part(view, index, (int((which == i).sum()), int(pattern.sum())), pattern)


# ---- the call --------------------------------------------------------------------------------


@check.as_the_core
def stage(call: Call) -> Result:
    """Call the normalizer on the valid elements."""
    from . import _masked_statistics as statistics
    from ._stages import proceed

    x = dense(call["x"], "x")
    view = view_of(call, x)
    valid = valid_of(call, x, view)
    beside = {n: like(call.around[n], n, x) for n in LIKE_X if n in call.around}
    keep = _arguments.flag(call["return_ctx"], "return_ctx")
    _check_outputs(call, x, keep and "residual" not in beside)
    plain = call.without(KEYS).but(x=x)
    if _core.NORMS[call["norm"]] == "switchable":
        return statistics.switchable(plain, x, view, valid, keep)
    bare, update = statistics.without_running(plain)
    made = []
    for part in parts_of(call, x, view, valid):
        compact = _compact(bare, part, x, beside, keep or update is not None)
        made.append((part, proceed(compact)))
    if not made:
        _check_call(bare, x, beside)
    if update is not None:
        update(made, x, view, valid)
    y = _joined([(p, r.y) for p, r in made], x, call["out"])
    total = None
    if "residual" in beside:
        sums = [(p, r.sum) for p, r in made]
        total = _joined(sums, x, call.around.get("sum_out"))
    contexts = [(p, r.ctx) for p, r in made]
    ctx = MaskedContext(contexts, x, call, sorted(beside), total is not None) if keep else None
    return Result(y, total, ctx)


def _check_outputs(call: Call, x: Array, reads_x: bool) -> None:
    for name, out in (("out", call["out"]), ("sum_out", call.around.get("sum_out"))):
        if out is not None:
            _arguments.check_out(out, x, x.shape, name)
    if reads_x and call["out"] is not None and _arguments.may_overlap(call["out"], x):
        _arguments.refuse_out_over_x()


def _compact(call: Call, part: Part, x: Array, beside: dict[str, Array], keep: bool) -> Call:
    """Return the call of one part."""
    around = {k: v for k, v in call.around.items() if k != "sum_out"}
    around |= {name: part.gather(a) for name, a in beside.items()}
    arguments: dict[str, Any] = {"x": part.gather(x), "out": None, "return_ctx": keep}
    if "layout" in call.arguments:
        arguments["layout"] = "NC" if len(part.shape) == 2 else "NLC"
    else:
        arguments["axis"] = tuple(range(1, len(part.shape)))
    for name in ("weight", "bias"):
        if call[name] is not None:
            arguments[name] = gathered_parameter(call[name], name, part, x, call)
    return call.but(around, **arguments)


def _spread(a: Array, x: Array, call: Call) -> Array:
    """Return a parameter of samples or positions as an array that broadcasts against x."""
    if "layout" in call.arguments and a.ndim == 2 and x.ndim > 2:
        axis = LAYOUTS[call["layout"]][1] % x.ndim
        return a.reshape(a.shape[0], *(a.shape[1] if i == axis else 1 for i in range(1, x.ndim)))
    return a


def is_wide(a: Array, call: Call, part: Part) -> bool:
    """Whether it differs between samples or positions."""
    return a.ndim > (1 if "layout" in call.arguments else len(part.view.last))


def gathered_parameter(value: Any, name: str, part: Part, x: Array, call: Call) -> Array:
    """Return the parameter of the valid elements."""
    a = _core.as_array(value, name)
    if is_wide(a, call, part):
        try:
            return part.gather(np.broadcast_to(_spread(a, x, call), x.shape))
        except ValueError:
            _arguments.refuse_parameter(a, name, x.dtype, x.shape)
    if part.pattern is not None:
        return np.ascontiguousarray(a.reshape(-1)[part.pattern])
    return a


def _check_call(call: Call, x: Array, beside: dict[str, Array]) -> None:
    """Raise what the normalizer would, where no element is valid: of a call on no samples."""
    none = {name: a[:0] for name, a in beside.items()}
    rest = {k: v for k, v in call.around.items() if k not in ("sum_out", *LIKE_X)}
    narrow = {n: None for n in ("weight", "bias") if np.ndim(call[n]) > 1}
    if "axis" in call.arguments:
        call = call.but(axis=_arguments.axes(call["axis"], x.ndim))
        if 0 in call["axis"]:
            return
    call.but({**rest, **none}, x=x[:0], out=None, return_ctx=False, **narrow)
    from ._stages import proceed

    proceed(call.but({**rest, **none}, x=x[:0], out=None, return_ctx=False, **narrow))


def _joined(parts: list[tuple[Part, Any]], x: Array, out: MaybeArray) -> Array:
    """Return an array like x of the parts, with zeros elsewhere."""
    whole = np.zeros(x.shape, x.dtype)
    for part, found in parts:
        part.scatter(found, whole)
    return delivered(whole, out)


class MaskedContext(DerivedContext):
    """Context of a call with a mask: those of its parts."""

    def __init__(self, parts: list[Any], x: Array, call: Call, beside: list[str],
                 has_sum: bool) -> None:  # fmt: skip
        self._parts, self._beside, self.has_sum = parts, beside, has_sum
        self._shape, self._dtype = x.shape, x.dtype
        self._like = np.broadcast_to(np.zeros((), x.dtype), x.shape)
        self._call = call.but({}, x=None, out=None)
        names = ("weight", "bias", "tau")
        given = {n: self._call.arguments.get(n) for n in names}
        self._params = {n: _core.as_array(a, n) for n, a in given.items() if a is not None}

    @check.as_the_core
    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None) -> FusedGradients:
        """As :func:`fastnorm.backward`; dy of what is not valid is not looked at."""
        from ..norms import backward

        g = like(dy, "dy", self._like)
        extra = None if ds is None else like(ds, "ds", self._like)
        if out is not None:
            _arguments.check_out(out, g, self._shape)
        found = []
        for part, ctx in self._parts:
            more = None if extra is None else part.gather(extra)
            found.append((part, backward(part.gather(g), ctx, ds=more)))
        arrays = {
            name: _joined([(p, getattr(r, name)) for p, r in found], self._like, None)
            for name in self._beside
            if name != "residual"
        }
        sums = {name: self._sum(name, found) for name in self._params}
        dx = _joined([(p, r.x) for p, r in found], self._like, out)
        return FusedGradients(
            dx, sums.pop("weight", None), sums.pop("bias", None), **arrays, **sums
        )

    def _sum(self, name: str, found: list[Any]) -> Array:
        """Return the gradient of a parameter, of all parts, added in float64."""
        own = self._params[name]
        total = np.zeros(own.shape)
        for part, grads in found:
            a = getattr(grads, name).astype(np.float64)
            if name != "tau" and is_wide(own, self._call, part):
                whole = np.zeros(self._shape)
                part.scatter(a, whole)
                shape = _spread(own, self._like, self._call).shape
                shape = (1,) * (whole.ndim - len(shape)) + shape
                axes = tuple(i for i, n in enumerate(shape) if n == 1)
                total += whole.sum(axes, keepdims=True).reshape(own.shape)
            elif part.pattern is not None:
                total.reshape(-1)[part.pattern] += a
            else:
                total += a
        return total.astype(own.dtype)
