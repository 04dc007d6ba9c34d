"""Deployment: Batch Norm folded into the linear map before or behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from . import _check as check
from ._state import named
from ._types import Array, Param
from .norms import BatchNorm, BatchRenorm

__all__ = ["Folded", "FoldedBefore", "fold_batch_norm", "fold_batch_norm_before"]

FoldableNorm: TypeAlias = BatchNorm | BatchRenorm | Mapping[str, Any]
Padding: TypeAlias = int | str | Sequence[int] | Sequence[Sequence[int]]


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


class FoldedBefore(NamedTuple):
    """What :func:`fold_batch_norm_before` returns.

    Attributes
    ----------
    weight : ndarray
        Shape and dtype of the weight given.
    bias : ndarray
        Shape ``(O,)``, O the output channels; dtype of the weight given.
    padding_value : ndarray
        Shape ``(C,)``, C the input channels: with what the input must be padded, where it was
        padded with 0 before. NaN where `bn` makes 0 of no value, which is an error with padding.
    """

    weight: Array
    bias: Array
    padding_value: Array


@check.as_the_core
def fold_batch_norm(
    weight: ArrayLike, bias: Param, bn: FoldableNorm, *, axis: int = 0, groups: int = 1,
    eps: float | None = None,
) -> Folded:  # fmt: skip
    """Fold the Batch Norm that follows a convolution or a linear layer into its weight and bias.

    ``bn(conv(x, weight, bias))`` in inference is ``conv(x, *fold_batch_norm(weight, bias, bn))``,
    with any padding, stride, dilation and groups: a normalizer less in the deployed network.

    Parameters
    ----------
    weight : array_like, float32, float64, float16 or bfloat16
        Weight whose axis `axis` counts the C output channels: ``(O, I, kh, kw)``, ``(O, I)``, ...;
        a tensor of torch will do; in bfloat16 it counts as float32.
    bias : array_like or None
        Shape ``(C,)``; None means 0.
    bn : BatchNorm, BatchRenorm or mapping of str to array_like
        A layer in eval, where both are Batch Norm with the running statistics; or a state dict
        with ``running_mean`` and ``running_var`` and, where the normalizer has them, ``weight``
        and ``bias``, all of shape ``(C,)``, in any names that ``BatchNorm.load_state_dict`` knows.
    axis : int
        Axis of the output channels: 0 in torch's layouts; 1 for a transposed convolution
        ``(I, O / groups, kh, kw)``; -1 for ``HWIO`` and ``(in, out)``.
    groups : int
        Groups of a transposed convolution, whose axis 1 has the output channels of one of them.
        Those of other convolutions do not matter, as `axis` counts all outputs.
    eps : float, optional
        What the normalizer of a state dict adds to the variance: 1e-5 if not given, as in torch,
        flax and ONNX (Keras: 1e-3). A layer has its own.

    Returns
    -------
    Folded
        New weight and bias, computed in float64, in the dtype of `weight`.

    Raises
    ------
    TypeError
        `bn` that is none of these, an array of another dtype, or a masked one.
    ValueError
        A layer in training or without running statistics, a missing, an unknown or a doubled name,
        a wrong shape, an axis that `weight` does not have, groups that do not divide the I input
        channels, ``running_var + eps`` that is not above 0, results too large for the dtype.

    See Also
    --------
    fold_batch_norm_before : for one in front of a convolution or a linear layer

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
    given = check.floats(weight, "weight")
    axis = _axis(axis, given)
    groups = check.count(groups, "groups")
    transposed = axis == 1 and groups > 1
    if transposed and given.shape[0] % groups:
        raise ValueError(
            f"groups: expected a divisor of the {given.shape[0]} input channels on axis 0 of "
            f"weight, got {groups}"
        )
    channels = given.shape[axis] * (groups if transposed else 1)
    where = f"axis {axis}" + (f" in {groups} groups" if transposed else "")
    with _in_float64():
        mean, scale, shift = _affine(bn, eps, channels, where)
        new_bias = (_vector(bias, "bias", channels, where, 0.0) - mean) * scale + shift
        first = axis
        if transposed:  # an input channel has the outputs of its group
            first = 0
            scale = np.repeat(scale.reshape(groups, -1), given.shape[0] // groups, axis=0)
        scale = scale.reshape(*scale.shape, *[1] * (given.ndim - first - scale.ndim))
        new_weight = given.astype(np.float64) * scale
    return Folded(
        check.rounded(new_weight, given.dtype, "weight"),
        check.rounded(new_bias, given.dtype, "bias"),
    )


@check.as_the_core
def fold_batch_norm_before(
    weight: ArrayLike, bias: Param, bn: FoldableNorm, *, axis: int = 0, groups: int = 1,
    padding: Padding = 0, eps: float | None = None,
) -> FoldedBefore:  # fmt: skip
    """Fold the Batch Norm in front of a convolution or a linear layer into its weight and bias.

    ``conv(bn(x), weight, bias)`` in inference is ``conv(x, folded.weight, folded.bias)``, with any
    stride and dilation, where nothing is padded. A convolution that pads with zeros pads what `bn`
    gives: x must then be padded with what `bn` makes 0 of, ``padding_value``, a number for each
    channel. Padding that repeats values of x (reflect, replicate, circular) stays as it is, and
    needs no `padding` here.

    Parameters
    ----------
    weight : array_like, float32, float64, float16 or bfloat16
        Weight of a linear layer or a convolution that is not transposed: ``(O, I / groups, kh,
        kw)``, ``(O, I)``, or, by `axis`, ``(kh, kw, I / groups, O)``, ``(I, O)``. A tensor of
        torch will do; in bfloat16 it counts as float32. Keras's depthwise kernels,
        ``(kh, kw, I, M)``, are none of these: turn them into ``(I * M, 1, kh, kw)``.
    bias : array_like or None
        Shape ``(O,)``; None means 0.
    bn : BatchNorm, BatchRenorm or mapping of str to array_like
        As in :func:`fold_batch_norm`, of the C = I input channels.
    axis : int
        Axis of the output channels, 0 or -1; the input channels are beside it.
    groups : int
        Groups of the convolution.
    padding : int, sequence of int or str
        Zeros that the convolution pads with: torch's argument, "same" and "valid" included. It only
        matters whether there are any.
    eps : float, optional
        As in :func:`fold_batch_norm`.

    Returns
    -------
    FoldedBefore
        New weight and bias and what to pad with, computed in float64, in the dtype of `weight`.

    Raises
    ------
    TypeError
        As in :func:`fold_batch_norm`.
    ValueError
        As in :func:`fold_batch_norm`; another axis, as that of a transposed convolution, whose
        outputs at the border and between strides take part of the kernel, so that no one bias does
        for all; padding where `bn` makes 0 of no value, as its weight is 0 and its bias is not.

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> rng = np.random.default_rng(0)
    >>> x, kernel = rng.standard_normal((1, 2, 9)), rng.standard_normal((1, 2, 3))
    >>> bn = fastnorm.BatchNorm(2, dtype=np.float64)
    >>> _ = bn(x)  # running statistics
    >>> folded = fastnorm.fold_batch_norm_before(kernel, None, bn.eval(), padding=1)
    >>> padded = np.empty((1, 2, 11))
    >>> padded[...] = folded.padding_value[:, None]
    >>> padded[:, :, 1:-1] = x
    >>> def convolve(x, weight, bias=0.0):
    ...     windows = np.lib.stride_tricks.sliding_window_view(x, 3, axis=2)
    ...     return np.einsum("nilk,oik->nol", windows, weight) + np.reshape(bias, (-1, 1))
    >>> want = convolve(np.pad(bn(x), ((0, 0), (0, 0), (1, 1))), kernel)
    >>> np.allclose(convolve(padded, folded.weight, folded.bias), want)
    True
    """
    given = check.floats(weight, "weight")
    axis = _axis(axis, given)
    if given.ndim < 2 or axis not in (0, given.ndim - 1):
        raise ValueError(
            "axis: expected 0 or -1, beside the input channels of a linear layer or of a "
            f"convolution that is not transposed, got {axis} for weight of shape {given.shape}"
        )
    outputs, groups = given.shape[axis], check.count(groups, "groups")
    if outputs % groups:
        raise ValueError(
            f"groups: expected a divisor of the {outputs} output channels, got {groups}"
        )
    pads = _pads(padding)
    inner = 1 if axis == 0 else axis - 1
    where = f"axis {inner}" + (f" in {groups} groups" if groups > 1 else "")
    with _in_float64():
        mean, scale, shift = _affine(bn, eps, given.shape[inner] * groups, where)
        shift -= mean * scale
        # (O, I / groups, *): rows of the same group have the same input channels
        rows = np.moveaxis(given.astype(np.float64), (axis, inner), (0, 1))
        each = (np.repeat(v.reshape(groups, -1), outputs // groups, 0) for v in (scale, shift))
        factor, added = (v.reshape(*v.shape, *[1] * (given.ndim - 2)) for v in each)
        new_weight = np.moveaxis(rows * factor, (0, 1), (axis, inner))
        new_bias = _vector(bias, "bias", outputs, f"axis {axis}", 0.0)
        new_bias += (rows * added).sum(tuple(range(1, given.ndim)))
    return FoldedBefore(
        check.rounded(new_weight, given.dtype, "weight"),
        check.rounded(new_bias, given.dtype, "bias"),
        _padding_value(scale, shift, given.dtype, pads),
    )


def _pads(padding: Padding) -> bool:
    """Whether a convolution's argument `padding` means any."""
    if isinstance(padding, str):
        if padding.lower() not in ("same", "valid"):
            raise ValueError(f"padding: expected an int, 'same' or 'valid', got {padding!r}")
        return padding.lower() == "same"
    array = check.array(padding, "padding")
    if array.dtype.kind not in "iu" or not array.size:
        raise TypeError(f"padding: expected an int, ints, 'same' or 'valid', got {padding!r}")
    if (array < 0).any():
        raise ValueError(f"padding: expected at least 0, got {padding!r}")
    return bool(array.any())


def _padding_value(scale: Array, shift: Array, dtype: np.dtype[Any], pads: bool) -> Array:
    """For each channel, the value of which ``scale * value + shift`` makes 0."""
    value: Array = np.where(shift == 0, 0.0, -shift / scale).astype(dtype)
    value[~np.isfinite(value)] = np.nan
    lost = np.flatnonzero(np.isnan(value))
    if pads and lost.size:
        raise ValueError(
            f"padding: expected none, as bn makes 0 of no value that {dtype} holds in channel(s) "
            f"{lost.tolist()}, whose weight is 0 or nearly so"
        )
    return value


@contextmanager
def _in_float64() -> Iterator[None]:
    """Make an overflow an error."""
    try:
        with np.errstate(over="raise"):
            yield
    except FloatingPointError:
        raise ValueError("bn: expected results that float64 can hold, got larger ones") from None


def _affine(
    bn: FoldableNorm, eps: float | None, channels: int, where: str
) -> tuple[Array, Array, Array]:
    """Batch Norm in inference, ``(x - mean) * scale + shift``: these, in float64, of shape (C,)."""
    state, eps = _state(bn, eps)

    def vector(name: str, default: float) -> Array:
        given, value = state.get(name, (name, None))
        return _vector(value, f"bn[{given!r}]", channels, where, default)

    mean, shift = vector("running_mean", 0.0), vector("bias", 0.0)
    var = vector("running_var", 1.0) + eps
    if not (var > 0).all():
        raise ValueError(
            f"bn[{state['running_var'][0]!r}]: expected running_var + eps above 0, got {var.min()}"
        )
    return mean, vector("weight", 1.0) / np.sqrt(var), shift


def _vector(value: Param, name: str, channels: int, where: str, default: float) -> Array:
    if value is None:
        return np.full(channels, default)
    array = check.floats(value, name)
    if array.shape != (channels,):
        raise ValueError(
            f"{name}: expected shape {(channels,)}, as weight has {channels} channels on {where}, "
            f"got {array.shape}"
        )
    return array.astype(np.float64)


def _axis(axis: int, weight: Array) -> int:
    axis = check.integer(axis, "axis")
    if not -weight.ndim <= axis < weight.ndim:
        raise ValueError(f"axis: expected an axis of shape {weight.shape}, got {axis}")
    return axis % weight.ndim


def _state(bn: FoldableNorm, eps: float | None) -> tuple[dict[str, tuple[str, Any]], float]:
    """Parameters and running statistics of `bn`, with the names given, and its eps."""
    if isinstance(bn, (BatchNorm, BatchRenorm)):
        if bn.training:
            raise ValueError("bn: expected a layer in eval, got one in training: call bn.eval()")
        if eps is not None:
            raise ValueError(f"eps: expected None, as the layer has its own {bn.eps}, got {eps}")
        state = named({**bn.params, **bn.buffers}, "bn")
        eps = bn.eps
    elif isinstance(bn, Mapping):
        state, eps = named(bn, "bn"), check.number(1e-5 if eps is None else eps, "eps")
    else:
        raise TypeError(
            f"bn: expected a BatchNorm, a BatchRenorm or a mapping, got {type(bn).__name__}"
        )
    names = sorted((name for name, _ in state.values()), key=str)
    known = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    unknown = sorted((name for key, (name, _) in state.items() if key not in known), key=str)
    if unknown:
        raise ValueError(f"bn: expected {', '.join(known)}, or other names of these, got {names} "
                         f"(unexpected {unknown})")  # fmt: skip
    missing = {n for n in ("running_mean", "running_var") if state.get(n, (n, None))[1] is None}
    if missing:
        raise ValueError(f"bn: expected running statistics, got {names} without "
                         f"{sorted(missing)}")  # fmt: skip
    return state, eps
