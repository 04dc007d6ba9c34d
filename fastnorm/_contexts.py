"""What a context shows of its statistics, and how it is pickled."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from . import _core
from ._arguments import is_parameter_type, without
from ._types import Array, MaybeArray


class State(NamedTuple):
    """All that a context is made of: what is pickled."""

    problem: dict[str, Any]  # fn_problem of fastnorm.h
    shape: tuple[int, ...]
    over: tuple[int, ...] | None  # the axes of layer norm
    axes: tuple[int, ...] | None  # a permutation that makes them adjacent
    param_shape: tuple[int, ...]
    x: Array
    params: list[MaybeArray]
    types: list[np.dtype[Any] | None]  # of the parameters' gradients
    statistics: Array
    # numbers of activation and gate_activation, slope, shortcut, gate, whether x is a sum
    around: tuple[int, int, float, MaybeArray, MaybeArray, bool] | None = None

    @property
    def norm(self) -> str:
        """Name of the normalizer."""
        return _core.NORMS[int(self.problem["norm"])]

    @property
    def blocked(self) -> bool:
        """Whether x lies in blocks of channels."""
        return bool(self.problem["layout"] == _core.BLOCKED)

    @property
    def channels(self) -> int:
        """How many there are, with those that fill up the last block."""
        channels, block = int(self.problem["c"]), int(self.problem["block"])
        return -(-channels // block) * block if self.blocked else channels


# ---- statistics ------------------------------------------------------------------------------


def shown(state: tuple[Any, ...], name: str) -> Array:
    """Return "mean", "var" or "rstd"."""
    of = State(*state)
    with _core.FloatMode(), np.errstate(all="ignore"):  # infinities; eps=0 and a constant domain
        if name == "mean":
            found = _mean(of)
        elif name == "var":
            found = _squared(_std(of))
        elif of.norm == "global_response":
            length = _std(of)
            found = length / (length.sum(1, keepdims=True) / length.shape[1] + of.problem["eps"])
        else:
            sigma = _sigma(_std(of), of.problem["eps"])
            found = 1 / np.maximum(sigma, of.problem["sigma_min"])
    found = np.array(found)
    found.setflags(write=False)
    return found


def _domains(of: State) -> tuple[int, ...]:
    """Return the shape of the statistics, with the channels that fill up the last block."""
    if of.over is not None:
        return without(of.shape, of.over)
    if of.norm == "weight":
        return (of.channels,) if of.param_shape else ()
    if of.norm == "group":
        return (of.shape[0], of.problem["groups"])
    if of.norm in ("batch", "batch_renorm") or (
        of.norm == "instance" and not of.problem["training"]
    ):
        return (of.channels,)
    return (of.shape[0], of.channels)


def _statistic(of: State, i: int) -> Array:
    """Return the means (i = 0), or the deviations (1)."""
    shape = _domains(of)
    size = math.prod(shape)
    if of.x.size == 0:
        found = np.full(shape, math.nan)
    else:
        found = of.statistics[i * size : (i + 1) * size].reshape(shape)
    return found[..., : of.problem["c"]] if of.blocked else found


def _mixed(of: State, i: int, instance: Array, logits: Array) -> Array:
    """Mix the statistics of switchable norm by the softmax of the logits.

    They are those of the instances, the samples (from the means, i = 0, or the deviations, whose
    squares are mixed, on) and the channels.
    """
    samples, channels = _domains(of)
    at = 2 * samples * channels + i * samples
    layer = of.statistics[at : at + samples]
    at = 2 * samples * (channels + 1) + i * channels
    batch = of.statistics[at : at + of.problem["c"]]
    if i:
        layer, batch = _squared(layer), _squared(batch)
    weights = _core.softmax3(*logits)
    mixed: Array = weights[0] * instance + weights[1] * layer[:, None] + weights[2] * batch
    return mixed


def _squared(std: Array) -> Array:
    """Return variances. One below 0, as others' rounding may leave it, has a std below 0."""
    squared: Array = std * np.abs(std)
    return squared


def _mean(of: State) -> Array:
    mean, logits = _statistic(of, 0), of.params[3]
    return mean if logits is None or not of.x.size else _mixed(of, 0, mean, logits)


def _std(of: State) -> Array:
    std, logits = _statistic(of, 1), of.params[4]
    if logits is None or not of.x.size:
        return std
    var = _mixed(of, 1, _squared(std), logits)
    return np.copysign(np.sqrt(np.abs(var)), var)


def _sigma(std: Array, eps: float) -> Array:
    """``sqrt(std**2 + eps)``, where the square may be no float64; as fn_sigma in C."""
    var = _squared(std) + eps
    most, least = np.maximum(std, math.sqrt(eps)), np.minimum(std, math.sqrt(eps))
    scaled = most * np.sqrt(1 + np.square(least / most))
    plain = (var > 2.0**-960) & (var < 2.0**960) | ~(std >= 0)
    return np.where(plain, np.sqrt(var), np.where(most == 0, 0, scaled))


# ---- pickles ---------------------------------------------------------------------------------


def restore(*state: Any) -> _core.Context:
    """Return a context from its pickle.

    What could make the C library read or write beside its arrays is checked.
    """
    of = State(*state)
    computed = np.dtype(np.float64 if of.x.dtype == np.float64 else np.float32)
    params: list[MaybeArray] = []
    fits = math.prod(of.shape) == of.x.size
    fits = fits and of.problem["n"] * of.channels * of.problem["s"] == of.x.size
    wanted = of.problem["s" if of.over is not None else "c"]
    fits = fits and math.prod(of.param_shape) == wanted
    fits = fits and (of.axes is None or sorted(of.axes) == list(range(len(of.shape))))
    for i, (param, kind) in enumerate(zip(of.params, of.types, strict=True)):
        params.append(None if param is None else np.require(param, computed, ["C", "A"]))
        if param is not None:
            fits = fits and np.shape(param) == (of.param_shape if i < 3 else (3,))
            fits = fits and kind is not None and is_parameter_type(kind, of.x.dtype)
    around = of.around
    if around is not None:
        beside = [None if a is None else np.require(a, None, ["C", "A"]) for a in around[3:5]]
        fits = fits and 0 <= around[0] < 10 and 0 <= around[1] < 10
        fits = fits and all(
            a is None or (a.shape, a.dtype) == (of.x.shape, of.x.dtype) for a in beside
        )
        around = (*around[:3], beside[0], beside[1], around[5])
    ctx = _core.made_context(*of._replace(params=params, around=around)) if fits else None
    if ctx is None:
        raise ValueError("statistics: expected those of the pickled context")
    return ctx
