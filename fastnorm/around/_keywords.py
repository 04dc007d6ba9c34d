"""The keywords that every normalizer takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from numpy.typing import ArrayLike, DTypeLike

from .._types import Array

if TYPE_CHECKING:
    from ..statistics.moments import Moments


class AroundSettings(TypedDict, total=False):
    """Those of :class:`Around` that are no arrays: a layer may have them from the start."""

    activation: str | None
    slope: float
    gate_activation: str | None
    weight_offset: float
    cast: str | None
    virtual_batch_size: int | None


class Around(AroundSettings, total=False):
    """What stands around a normalizer in the same pass; each is None where it is not wanted.

    ``s = x + residual``, ``y = activation(norm(s) + shortcut) * gate_activation(gate)``. Each stage
    rounds to x's dtype, so that the bits are those of calls one by one.

    Attributes
    ----------
    activation : str
        "relu", "leaky_relu", "relu6", "hardswish", "sigmoid", "tanh", "silu", "gelu" (by erf) or
        "gelu_tanh": see :mod:`fastnorm.activations`.
    slope : float
        Of "leaky_relu" below 0; 0.01.
    shortcut : array_like, x's shape and dtype
        Added before the activation, as in a residual block of ResNet.
    gate : array_like, x's shape and dtype
        y is multiplied by its activation, as in Mamba-2 and Qwen3-Next.
    gate_activation : str
        "silu", or another of those above.
    residual : array_like, x's shape and dtype
        Added to x before it is normalized. The function returns ``(y, s)``, with `return_ctx`
        ``(y, s, ctx)``. Others call this skip layer norm, fused add RMS norm or prenorm.
    sum_out : ndarray
        Where to write s: x, the residual, or an array apart from both.
    mask : array_like of bool
        What counts: True for valid elements. It broadcasts against x, with size 1 along the
        channels (in blocks along both of their axes); for the normalizers of axes to any shape.
        Statistics and gradients are those of the valid elements; y and dx are 0 elsewhere, whatever
        x holds there. The gradients are a :class:`FusedGradients`.
    lengths : array_like of int, shape (N,)
        Instead of a mask: of each sample, how many elements along the first spatial axis count; for
        the normalizers of axes that is the first axis behind the samples that is not normalized.
    offsets : array_like of int, shape (samples + 1,)
        x is (total, C): samples of different lengths behind one another, of which sample i is
        ``x[offsets[i]:offsets[i + 1]]``. For instance and group norm without running statistics;
        weight and bias may be (samples, C).
    weight_offset : float
        Added to the weight, in the dtype that is computed in: 1 for checkpoints that store the
        weight less 1, as Gemma's.
    cast : {"before_weight"}
        Round to x's dtype before the product with the weight, the product before the bias is added,
        and the sum, as Llama does in 16 bits; of float32 and float64 it changes nothing. Gradients
        are those of a call without weight and bias and of these steps.
    moments : Moments
        Statistics that come from elsewhere, as of several micro-batches, instead of those of x.
        Beside an activation, a shortcut and a gate, which are passes of their own then.
    virtual_batch_size : int
        Ghost batch norm: so many samples at a time have statistics of their own. Of batch norm,
        batch renorm and whitening.
    out_dtype : dtype
        Of y: int8, or float8_e4m3fn and float8_e5m2 of the package ml_dtypes. y, in x's dtype, is
        divided in float32 by `scale`, rounded to nearest even, and at most the largest number: 127
        (at least -128), 448 or 57344. NaN is NaN, in int8 0. Of layer norm, RMS norm, and batch
        norm in inference.
    scale : float or array_like
        What y is divided by, above 0; float32. An array broadcasts against y, with size 1 along the
        normalized axes; of batch norm it is one for each channel. Without, layer and RMS norm bring
        the largest magnitude of each row to the largest number, and return the scales behind y: of
        x's shape without the normalized axes, 1 for a row of zeros.
    """

    shortcut: ArrayLike | None
    gate: ArrayLike | None
    residual: ArrayLike | None
    sum_out: Array | None
    mask: ArrayLike | None
    lengths: ArrayLike | None
    offsets: ArrayLike | None
    moments: Moments | None
    out_dtype: DTypeLike | None
    scale: Any
