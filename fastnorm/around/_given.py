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
from .._types import Array, DerivedContext, Gradients, MaybeArray, Param
from ._call import Call, Result

NOT_WITH = ("mask", "lengths", "offsets", "virtual_batch_size", "weight_offset", "cast")


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
    if _core.NORMS[call["norm"]] != "batch":
        raise ValueError("moments: expected None; only batch norm takes those of other arrays")
    if not call["training"]:
        raise ValueError("moments: expected None when training is False")
    for name in NOT_WITH:
        if name in call.around:
            raise ValueError(f"{name}: expected None with moments")
    around = {k: v for k, v in call.around.items() if k != "moments"}
    if around:
        raise ValueError(f"{min(around)}: expected None with moments; call it apart")
    return _normalize(call.but({}), moments)


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


class GivenContext(DerivedContext):
    """Context of a batch norm by given moments."""

    def __init__(self, own: Any, rstd: Array, elements: float, count: float) -> None:
        self.own, self._rstd, self._elements, self._count = own, rstd, elements, count

    def gradient_sums(self, dy: ArrayLike) -> GradientSums:
        """Return this micro-batch's share."""
        return GradientSums(_core.measure_grad(dy, self.own, None), self._elements)

    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None,
                 sums: GradientSums | None = None) -> Gradients:  # fmt: skip
        """As :func:`fastnorm.backward`, with the sums of all micro-batches."""
        own = _core.measure_grad(dy, self.own, out)
        total = GradientSums(own, self._elements) if sums is None else sums
        if not isinstance(total, GradientSums):
            raise TypeError(f"sums: expected GradientSums, got {type(total).__name__}")
        if total.sums.shape != own.shape or not math.isclose(total.count, self._count):
            raise ValueError(
                f"sums: expected those of all {self._count:g} elements of a channel that the "
                f"moments are of, got {total.count:g}"
            )
        return _core.finish_backward(dy, self.own, own, total.sums, total.count, self._rstd, out)
