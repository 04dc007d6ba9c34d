"""Ghost Batch Norm: virtual batches, each with statistics of its own (Hoffer et al. 2017)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _arguments, _core
from .. import _check as check
from .._types import Array, DerivedContext, FusedGradients, MaybeArray, Param
from ._arrays import Laid, check_updated, delivered, lay
from ._back import Kept, kept, lay_back
from ._call import Call, Result
from ._parameters import Parameter, form_of, parameters_of

KEY = frozenset({"virtual_batch_size"})
_NORMS = ("batch", "batch_renorm", "whitening")


def needed(call: Call) -> bool:
    """Whether a call asks for virtual batches."""
    return "virtual_batch_size" in call.around


def stage(call: Call) -> Result:
    """Call the normalizer for so many samples at a time; running statistics take each in turn.

    If they are alike, all pass what the first one passes: then each is written where the caller
    wants it. Else nothing of the caller's is written before all are done.
    """
    from ._stages import numbered, proceed

    each = _size(call)
    laid = lay(call)
    x, n = laid.x, len(laid.x)
    given = parameters_of(call, x, form_of(call, x))
    check_updated(call)
    call.check(x)
    alike = n % each == 0 and "mask" not in call.around
    y, total = laid.y, laid.sum
    states = {} if alike else {name: a.copy() for name, a in call.states().items()}
    if not alike:
        y, total = _core.empty_like(x), None if total is None else _core.empty_like(x)
    whole = call.but(**states)
    cuts = [slice(start, start + each) for start in range(0, max(n, 1), each)]
    found = [proceed(_part(whole, laid, given, y, total, at)) for at in cuts]
    for name, a in states.items():
        call[name][...] = a
    ctx = None
    if laid.keep:
        own = kept(laid, given, numbered(call.around) is not None)
        ctx = _GhostContext([part.ctx for part in found], cuts, own, laid.sum, given)
    total = None if total is None else delivered(total, laid.sum_out)
    return Result(delivered(y, laid.out), total, ctx)


def checked_size(value: Any, name: str = "virtual_batch_size") -> int:
    """Return a number of samples; raise where it is none."""
    each = _arguments.integer(value, name)
    if each < 1:
        raise ValueError(f"{name}: expected an int of at least 1, got {each}")
    return each


def _size(call: Call) -> int:
    each = checked_size(call.around["virtual_batch_size"])
    norm = call.norm
    if norm not in _NORMS:
        raise ValueError(
            "virtual_batch_size: expected None, as the statistics are not those of the batch"
        )
    for name in ("lengths", "offsets", "moments"):
        if name in call.around:
            raise ValueError(f"{name}: expected None with virtual_batch_size")
    return each


def _part(call: Call, laid: Laid, given: dict[str, Parameter], y: Array, total: MaybeArray,
          at: slice) -> Call:  # fmt: skip
    x = laid.x
    around = {k: v for k, v in call.around.items() if k not in KEY}
    around |= {name: a[at] for name, a in laid.beside.items()}
    if "mask" in around:
        mask = _core.as_array(around["mask"], "mask")
        shape = np.broadcast_shapes(mask.shape, (len(x),) + (1,) * (x.ndim - 1))
        around["mask"] = np.broadcast_to(mask, shape)[at]
    if total is not None:
        around["sum_out"] = total[at]
    own = {name: parameter.cut((at,)) for name, parameter in given.items()}
    return call.but(around, x=x[at], out=y[at], **own)


class _GhostContext(DerivedContext):
    """The contexts of the virtual batches."""

    def __init__(self, parts: list[Any], cuts: list[slice], own: Kept, total: MaybeArray,
                 given: dict[str, Parameter]) -> None:  # fmt: skip
        self.parts, self.cuts, self.has_sum = parts, cuts, total is not None
        self._kept = own
        self.is_empty = all(getattr(part, "is_empty", False) for part in parts)
        self._of_samples = [name for name, parameter in given.items() if 0 in parameter.varies()]

    @check.as_the_core
    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None) -> FusedGradients:
        """As :func:`fastnorm.backward`; gradients of the parameters are added in float64."""
        from ..norms import backward

        laid = lay_back(self, self._kept.arrays["x"], self._kept, dy, out, ds)
        parts = []
        for at, ctx in zip(self.cuts, self.parts, strict=True):
            extra = None if laid.ds is None else laid.ds[at]
            parts.append(backward(laid.dy[at], ctx, ds=extra))
        return _joined(parts, out, ["x", "shortcut", "gate", *self._of_samples])


def _joined(parts: list[Any], out: MaybeArray, of_samples: list[str]) -> FusedGradients:
    """Gradients of parts of a batch as those of the batch."""
    found: dict[str, Any] = {}
    for name in parts[0]._fields:
        arrays = [getattr(part, name) for part in parts]
        if arrays[0] is None:
            continue
        if name in of_samples:
            found[name] = np.concatenate(arrays)
        else:
            total = np.sum([a.astype(np.float64) for a in arrays], axis=0)
            found[name] = total.astype(arrays[0].dtype)
    found["x"] = delivered(found["x"], out)
    return FusedGradients(**{"weight": None, "bias": None, **found})
