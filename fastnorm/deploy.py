"""Deployment: Batch Norm folded into the linear map before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ._types import Array, Param
from .layers import BatchNorm, BatchRenorm

__all__ = ["Folded", "fold_batch_norm"]

FoldableNorm: TypeAlias = BatchNorm | BatchRenorm | Mapping[str, ArrayLike]


class Folded(NamedTuple):
    """Weight and bias of a convolution or a linear layer that has swallowed its Batch Norm.

    Attributes
    ----------
    weight : ndarray
        Shape and dtype of the weight given.
    bias : ndarray
        Shape ``(C,)``, dtype of the weight given.
    """

    weight: Array
    bias: Array


def fold_batch_norm(
    weight: ArrayLike, bias: Param, bn: FoldableNorm, *, axis: int = 0, eps: float | None = None
) -> Folded:
    """Fold the Batch Norm that follows a convolution or a linear layer into its weight and bias.

    ``bn(conv(x, weight, bias))`` in inference is ``conv(x, *fold_batch_norm(weight, bias, bn))``,
    with any padding, stride, dilation and groups: a normalizer less in the deployed network.

    Parameters
    ----------
    weight : array_like, float32, float64, float16 or bfloat16
        Weight whose axis `axis` counts the C output channels: ``(O, I, kh, kw)``, ``(O, I)``, ...
    bias : array_like or None
        Shape ``(C,)``; None means 0.
    bn : BatchNorm, BatchRenorm or mapping of str to array_like
        A layer in eval, where both are Batch Norm with the running statistics; or a state dict
        with ``running_mean`` and ``running_var`` and, where the normalizer has them, ``weight``
        and ``bias``, all of shape ``(C,)``.
    axis : int
        Axis of the output channels: 0 in torch's layouts; 1 for a transposed convolution
        ``(I, O, kh, kw)`` of one group; -1 for ``HWIO`` and ``(in, out)``.
    eps : float, optional
        What the normalizer of a state dict adds to the variance, 1e-5 if not given. A layer has
        its own.

    Returns
    -------
    Folded
        New weight and bias, computed in float64, in the dtype of `weight`.

    Raises
    ------
    TypeError
        `bn` that is none of these, or an array of another dtype.
    ValueError
        A layer in training or without running statistics, a missing or a wrong shape, an axis
        that `weight` does not have, ``running_var + eps`` that is not above 0.

    References
    ----------
    Jacob et al.: Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, 2017, section 3.2. arXiv:1712.05877

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> rng = np.random.default_rng(0)
    >>> x, weight = rng.standard_normal((5, 3)), rng.standard_normal((4, 3))
    >>> bn = fastnorm.BatchNorm(4, dtype=np.float64)
    >>> _ = bn(x @ weight.T)  # running statistics
    >>> folded = fastnorm.fold_batch_norm(weight, None, bn.eval())
    >>> np.allclose(x @ folded.weight.T + folded.bias, bn(x @ weight.T))
    True
    """
    state, eps = _state(bn, eps)
    given = _floats("weight", weight)
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
        raise TypeError(f"axis: expected an int, got {type(axis).__name__}")
    if not -given.ndim <= axis < given.ndim:
        raise ValueError(f"axis: expected an axis of shape {given.shape}, got {axis}")
    channels = given.shape[axis]

    def vector(name: str, value: Param, default: float) -> Array:
        if value is None:
            return np.full(channels, default)
        array = _floats(name, value)
        if array.shape != (channels,):
            raise ValueError(
                f"{name}: expected shape {(channels,)}, as weight has {channels} channels on axis "
                f"{axis}, got {array.shape}"
            )
        return array.astype(np.float64)

    old_bias = vector("bias", bias, 0.0)
    mean = vector("bn['running_mean']", state["running_mean"], 0.0)
    var = vector("bn['running_var']", state["running_var"], 1.0) + eps
    scale = vector("bn['weight']", state.get("weight"), 1.0)
    shift = vector("bn['bias']", state.get("bias"), 0.0)
    if not (var > 0).all():
        raise ValueError(f"bn['running_var']: expected running_var + eps above 0, got {var.min()}")
    scale /= np.sqrt(var)
    along = np.expand_dims(scale, tuple(a for a in range(given.ndim) if a != axis % given.ndim))
    return Folded(
        (given.astype(np.float64) * along).astype(given.dtype),
        ((old_bias - mean) * scale + shift).astype(given.dtype),
    )


def _state(bn: FoldableNorm, eps: float | None) -> tuple[Mapping[str, ArrayLike], float]:
    """Parameters and running statistics of `bn` by name, and its eps."""
    if isinstance(bn, (BatchNorm, BatchRenorm)):
        if bn.training:
            raise ValueError("bn: expected a layer in eval, got one in training: call bn.eval()")
        if eps is not None:
            raise ValueError(f"eps: expected None, as the layer has its own {bn.eps}, got {eps}")
        state: Mapping[str, ArrayLike] = {**bn.params, **bn.buffers}
        eps = bn.eps
    elif isinstance(bn, Mapping):
        state, eps = bn, 1e-5 if eps is None else eps
        if isinstance(eps, bool) or not isinstance(eps, (int, float, np.number)):
            raise TypeError(f"eps: expected a number, got {type(eps).__name__}")
        if not 0 <= eps < np.inf:
            raise ValueError(f"eps: expected a finite number of at least 0, got {eps}")
    else:
        raise TypeError(
            f"bn: expected a BatchNorm, a BatchRenorm or a mapping, got {type(bn).__name__}"
        )
    missing = {name for name in ("running_mean", "running_var") if state.get(name) is None}
    if missing:
        raise ValueError(f"bn: expected running statistics, got {sorted(state)} without "
                         f"{sorted(missing)}")  # fmt: skip
    return state, float(eps)


def _floats(name: str, value: ArrayLike) -> Array:
    array = np.asarray(value)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name}: expected an array of floats, got {array.dtype}")
    return array
