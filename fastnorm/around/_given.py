"""Statistics that come from elsewhere: batch norm of several micro-batches as of one batch.

Two sweeps forward: the moments of all micro-batches are added, then each is normalized by the
total. Two sweeps backward: the gradient sums of all are added, then each gets its dx.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _core
from .._types import Array, FusedGradients, Gradients, MaybeArray, Param
from ._arrays import Like, beside_of, delivered, dense, parameters_apart
from ._back import Kept, Wrapping, checked_back, kept_behind
from ._call import Call, Result
from ._parameters import Form, form_of
from ._separate import Behind

# what may be around, in calls of its own; a residual is added before its moments are taken
BEHIND = ("activation", "slope", "shortcut", "gate", "gate_activation")


@dataclass(frozen=True, eq=False)
class GradientSums:
    """What the gradient of x takes from a whole batch, of one micro-batch; they can be added.

    Parameters
    ----------
    sums : ndarray, float64, shape (2 * C,)
        Sums of dy, and of dy * (x - mean), of each channel.
    count : float
        Elements of a channel.
    """

    sums: Array
    count: float

    def __add__(self, other: GradientSums) -> GradientSums:
        if not isinstance(other, GradientSums):
            return NotImplemented
        if self.sums.shape != other.sums.shape:
            raise ValueError(
                f"sums: expected those of {self.sums.size // 2} channels, got "
                f"{other.sums.size // 2}"
            )
        return GradientSums(self.sums + other.sums, self.count + other.count)


def needed(call: Call) -> bool:
    """Whether the statistics are given."""
    return "moments" in call.around


def stage(call: Call) -> Result:
    """Normalize by given moments."""
    from ..statistics.moments import Moments

    moments = call.around["moments"]
    if not isinstance(moments, Moments):
        raise TypeError(f"moments: expected Moments, got {type(moments).__name__}")
    if call.norm != "batch":
        raise ValueError("moments: expected None; only batch norm takes those of other arrays")
    if not call["training"]:
        raise ValueError("moments: expected None when training is False")
    for name in call.around:
        if name not in (*BEHIND, "moments"):
            name = "cast" if name == "rounds" else name
            raise ValueError(f"{name}: expected None with moments")
    return _with_behind(call, moments)


def _with_behind(call: Call, moments: Any) -> Result:
    from ._stages import numbered

    numbers = numbered(call.around)
    if numbers is None:
        return _normalize(call.but({}), moments)
    x = dense(call["x"], "x")
    beside, _ = beside_of(call, x)
    plain = call.but({}, x=x, out=None, **parameters_apart(call))
    found = _normalize(plain, moments)
    behind = Behind(numbers[:3])
    behind.forward(found.y, beside.get("shortcut"), beside.get("gate"), found.y)
    form = form_of(call, x)
    form.zero_padding(found.y)
    if isinstance(found.ctx, GivenContext):
        found.ctx.put(behind, kept_behind(beside, plain["bias"]), form, x.dtype)
    return found._replace(y=delivered(found.y, call["out"]))


def _normalize(call: Call, moments: Any) -> Result:
    """With nothing around."""
    names = ("weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "ddof",
             "layout", "out", "return_ctx")  # fmt: skip
    started = _core.start_batch_norm(call["x"], *(call[name] for name in names))
    own, channels, _ = _core.measure_started(started)
    if moments.mean.shape != (channels,):
        raise ValueError(
            f"moments: expected those of {channels} channels, got shape {moments.mean.shape}"
        )
    if np.ndim(moments.count):
        raise ValueError("moments: expected one count for all channels, got one for each")
    packed = np.empty(1 + 2 * channels)
    packed[0] = moments.count
    packed[1 : 1 + channels] = moments.mean
    packed[1 + channels :] = np.ldexp(np.sqrt(moments.m2), moments.exponent)
    found, rstd = _core.finish_batch_norm(started, packed, call["out"], call["return_ctx"])
    if not isinstance(found, tuple):
        return Result(found)
    return Result(found[0], None, GivenContext(started, rstd, own[0], float(moments.count)))


class GivenContext(Wrapping):
    """Context of a batch norm by given moments, and of what is behind it."""

    behind: Behind | None = None

    def __init__(self, own: Any, rstd: Array, elements: float, count: float) -> None:
        super().__init__(own)
        self._rstd, self._elements, self._count = rstd, elements, count

    def put(self, behind: Behind, kept: Kept, form: Form, dtype: np.dtype[Any]) -> None:
        """Put something behind the normalizer, and what is beside it."""
        self.behind, self._kept = behind, kept
        self._form, self._like = form, Like(form.x, dtype)

    def gradient_sums(self, dy: ArrayLike) -> GradientSums:
        """Return this micro-batch's share."""
        g = self._back(dy, None)[0]
        return GradientSums(_core.measure_grad(g, self.inner, None), self._elements)

    def _back(self, dy: ArrayLike, out: MaybeArray) -> tuple[Any, MaybeArray, MaybeArray]:
        """Return the gradients of what the norm gave, of the shortcut and of the gate."""
        if self.behind is None:
            return dy, None, None
        g, _ = checked_back(self, self._like, self._kept, dy, out, None)
        beside = self._kept.arrays
        u = _core.output_again(self.inner)
        found = self.behind.backward(g, u, beside.get("shortcut"), beside.get("gate"))
        self._form.zero_padding(*found[1:])
        return found

    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None,
                 sums: GradientSums | None = None) -> Gradients | FusedGradients:  # fmt: skip
        """As :func:`fastnorm.backward`, with the sums of all micro-batches."""
        dy, *beside = self._back(dy, out)
        own = _core.measure_grad(dy, self.inner, out)
        total = GradientSums(own, self._elements) if sums is None else sums
        if not isinstance(total, GradientSums):
            raise TypeError(f"sums: expected GradientSums, got {type(total).__name__}")
        if total.sums.shape != own.shape or not math.isclose(total.count, self._count):
            raise ValueError(
                f"sums: expected those of all {self._count:g} elements of a channel that the "
                f"moments are of, got {total.count:g}"
            )
        grads = _core.finish_backward(dy, self.inner, own, total.sums, total.count, self._rstd, out)
        return grads if self.behind is None else FusedGradients(*grads, *beside)
