"""The normalizers as layers: parameters, running statistics, train and eval, gradients.

State names and shapes are torch's: a checkpoint loads as it is once its tensors are arrays.
A layer keeps the context of its last call for `backward`, and with it that call's input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import functional as F
from ._core import Context
from ._layer import ChannelNorm, Norm, check_channels, count
from ._types import AnyContext, Array

__all__ = [
    "BatchNorm",
    "BatchRenorm",
    "GroupNorm",
    "InstanceNorm",
    "InstanceRenorm",
    "LayerNorm",
    "RMSNorm",
    "SwitchableNorm",
    "batch_renorm_d_max",
    "batch_renorm_r_max",
]

Schedule: TypeAlias = float | Callable[[int], float]


class BatchNorm(ChannelNorm):
    """Batch Norm over the channels of (N, C, *) or (N, *, C).

    Parameters
    ----------
    num_features : int
        C.
    eps : float
        Added to the variance.
    momentum : float or None
        Weight of a batch in the running statistics; None: the average of all batches.
    affine : bool
        Whether there are a weight and a bias, of shape (C,).
    track_running_stats : bool
        Whether there are running statistics; without, batch statistics serve in eval too.
    ddof : int
        Of the variance that ``running_var`` takes: 1 as torch, 0 as Keras and ONNX.
    layout : str
        "NCHW", "NHWC", ..., "channels_first" or "channels_last".
    dtype : dtype
        float32, of an input in float32, float16 or bfloat16; or float64, of one in float64.

    References
    ----------
    Ioffe, Szegedy: Batch Normalization, 2015. arXiv:1502.03167

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> layer = fastnorm.BatchNorm(3)
    >>> y = layer(np.random.default_rng(0).standard_normal((8, 3, 4, 4), dtype=np.float32))
    >>> dx = layer.backward(np.ones_like(y))
    >>> dx.shape, sorted(layer.grads), int(layer.buffers["num_batches_tracked"])
    ((8, 3, 4, 4), ['bias', 'weight'], 1)
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1,
                 affine: bool = True, track_running_stats: bool = True, *, ddof: int = 1,
                 layout: str = "NCHW", dtype: DTypeLike = np.float32) -> None:  # fmt: skip
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, ddof, layout, dtype
        )

    def _forward(self, x: ArrayLike) -> tuple[Array, AnyContext]:
        return F.batch_norm(
            x, training=self.training or not self.buffers, return_ctx=True, **self._common()
        )


def batch_renorm_r_max(step: int) -> float:
    """Return r_max of the Batch Renorm paper: 1 up to step 5000, then linear to 3 at 40000."""
    return float(np.interp(step, [5000, 40000], [1.0, 3.0]))


def batch_renorm_d_max(step: int) -> float:
    """Return d_max of the Batch Renorm paper: 0 up to step 5000, then linear to 5 at 25000."""
    return float(np.interp(step, [5000, 25000], [0.0, 5.0]))


def _at(schedule: Schedule, step: int) -> float:
    return schedule(step) if callable(schedule) else schedule


class BatchRenorm(ChannelNorm):
    """Batch Renorm: Batch Norm whose training output is what inference would give.

    Parameters
    ----------
    num_features, eps, momentum, affine, ddof, layout, dtype
        As in :class:`BatchNorm`; ddof is 0, as in the paper.
    r_max, d_max : float or callable
        Bounds of the corrections; a callable takes the number of batches seen so far. The
        default is the paper's schedule, which begins as Batch Norm.

    Notes
    -----
    The paper averages the standard deviation; here ``running_var`` averages the variance, so that
    a checkpoint of Batch Norm loads.

    References
    ----------
    Ioffe: Batch Renormalization, 2017. arXiv:1702.03275

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> layer = fastnorm.BatchRenorm(3, r_max=2.0, d_max=lambda step: min(step / 1000, 1.0))
    >>> layer(np.ones((4, 3, 2, 2), np.float32)).shape
    (4, 3, 2, 2)
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1,
                 affine: bool = True, *, r_max: Schedule = batch_renorm_r_max,
                 d_max: Schedule = batch_renorm_d_max, ddof: int = 0, layout: str = "NCHW",
                 dtype: DTypeLike = np.float32) -> None:  # fmt: skip
        super().__init__(num_features, eps, momentum, affine, True, ddof, layout, dtype)
        self.r_max, self.d_max = r_max, d_max

    def _forward(self, x: ArrayLike) -> tuple[Array, Context]:
        step = int(self.buffers["num_batches_tracked"])
        return F.batch_renorm(
            x, training=self.training, r_max=_at(self.r_max, step), d_max=_at(self.d_max, step),
            return_ctx=True, **self._common(),
        )  # fmt: skip


class LayerNorm(Norm):
    """Layer Norm.

    Parameters
    ----------
    normalized_shape : int or tuple of int
        Sizes of the normalized axes: the shape of weight and bias.
    eps : float
        Added to the variance.
    elementwise_affine : bool
        Whether there is a weight, and, with `bias`, a bias.
    bias : bool
        Whether there is a bias.
    axis : int or tuple of int, optional
        The normalized axes; as in torch the last ones by default. ``LayerNorm(C, axis=1)``
        normalizes the channels of an NCHW image.
    dtype : dtype
        float32, of an input in float32, float16 or bfloat16; or float64, of one in float64.

    References
    ----------
    Ba, Kiros, Hinton: Layer Normalization, 2016. arXiv:1607.06450

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> fastnorm.LayerNorm(4)(np.array([[1, 2, 3, 4]], np.float32)).round(2)
    array([[-1.34, -0.45,  0.45,  1.34]], dtype=float32)
    """

    def __init__(self, normalized_shape: int | tuple[int, ...], eps: float = 1e-5,
                 elementwise_affine: bool = True, bias: bool = True, *,
                 axis: int | tuple[int, ...] | None = None,
                 dtype: DTypeLike = np.float32) -> None:  # fmt: skip
        super().__init__(dtype)
        self.eps, self.axis = eps, axis
        self.elementwise_affine = elementwise_affine
        self.normalized_shape, self._axes = _normalized(normalized_shape, axis)
        self.bias = elementwise_affine and bias
        self._affine(self.normalized_shape, elementwise_affine, self.bias)

    def _check(self, x: ArrayLike) -> None:
        _check_normalized(x, self.normalized_shape, self._axes)

    def _forward(self, x: ArrayLike) -> tuple[Array, Context]:
        return F.layer_norm(x, **self.params, axis=self._axes, eps=self.eps, return_ctx=True)


class RMSNorm(Norm):
    """RMS Norm: Layer Norm without the mean.

    Parameters
    ----------
    normalized_shape, eps, elementwise_affine, axis, dtype
        As in :class:`LayerNorm`; there is no bias.

    References
    ----------
    Zhang, Sennrich: Root Mean Square Layer Normalization, 2019. arXiv:1910.07467

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> fastnorm.RMSNorm(2)(np.array([[3, 4]], np.float32)).round(3)
    array([[0.849, 1.131]], dtype=float32)
    """

    def __init__(self, normalized_shape: int | tuple[int, ...], eps: float = 1e-6,
                 elementwise_affine: bool = True, *, axis: int | tuple[int, ...] | None = None,
                 dtype: DTypeLike = np.float32) -> None:  # fmt: skip
        super().__init__(dtype)
        self.eps, self.axis = eps, axis
        self.elementwise_affine = elementwise_affine
        self.normalized_shape, self._axes = _normalized(normalized_shape, axis)
        self._affine(self.normalized_shape, elementwise_affine, False)

    def _check(self, x: ArrayLike) -> None:
        _check_normalized(x, self.normalized_shape, self._axes)

    def _forward(self, x: ArrayLike) -> tuple[Array, Context]:
        return F.rms_norm(x, **self.params, axis=self._axes, eps=self.eps, return_ctx=True)


def _normalized(
    shape: int | tuple[int, ...], axis: int | tuple[int, ...] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    sizes = tuple(count(n, "normalized_shape") for n in sizes)
    axes = tuple(range(-len(sizes), 0)) if axis is None else axis
    axes = tuple(axes) if isinstance(axes, (tuple, list)) else (axes,)
    if len(axes) != len(sizes):
        raise ValueError(
            f"axis: expected {len(sizes)} axes for normalized_shape {sizes}, got {axes}"
        )
    return sizes, axes


def _check_normalized(x: ArrayLike, sizes: tuple[int, ...], axes: tuple[int, ...]) -> None:
    shape = np.shape(x)
    if all(-len(shape) <= a < len(shape) for a in axes):
        found = tuple(shape[a] for a in sorted(a % len(shape) for a in axes))
        if found != sizes:
            raise ValueError(
                f"x: expected sizes {sizes} along the normalized axes, got shape {shape}"
            )


class InstanceNorm(ChannelNorm):
    """Instance Norm.

    Parameters
    ----------
    num_features, eps, momentum, ddof, layout, dtype
        As in :class:`BatchNorm`.
    affine : bool
        Whether there are a weight and a bias; as in torch, not by default.
    track_running_stats : bool
        Whether running statistics are kept, and used in eval; as in torch, not by default.

    Notes
    -----
    ``momentum=None`` averages over all batches, as everywhere; torch's InstanceNorm never updates
    its running statistics then.

    References
    ----------
    Ulyanov, Vedaldi, Lempitsky: Instance Normalization, 2016. arXiv:1607.08022

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> x = np.arange(8, dtype=np.float32).reshape(1, 2, 4)
    >>> fastnorm.InstanceNorm(2)(x)[0, 1].round(2)
    array([-1.34, -0.45,  0.45,  1.34], dtype=float32)
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1,
                 affine: bool = False, track_running_stats: bool = False, *, ddof: int = 1,
                 layout: str = "NCHW", dtype: DTypeLike = np.float32) -> None:  # fmt: skip
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, ddof, layout, dtype
        )

    def _forward(self, x: ArrayLike) -> tuple[Array, Context]:
        return F.instance_norm(
            x, use_input_stats=self.training or not self.buffers, return_ctx=True, **self._common()
        )


class GroupNorm(Norm):
    """Group Norm.

    Parameters
    ----------
    num_groups : int
        Divides `num_channels`; 1 is Layer Norm over channels and space, `num_channels` is
        Instance Norm.
    num_channels : int
        C.
    eps, affine, layout, dtype
        As in :class:`BatchNorm`.

    References
    ----------
    Wu, He: Group Normalization, 2018. arXiv:1803.08494

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> fastnorm.GroupNorm(2, 4)(np.ones((1, 4, 3, 3), np.float32)).max()
    np.float32(0.0)
    """

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True,
                 *, layout: str = "NCHW", dtype: DTypeLike = np.float32) -> None:  # fmt: skip
        super().__init__(dtype)
        self.num_groups = count(num_groups, "num_groups")
        self.num_channels = count(num_channels, "num_channels")
        if num_channels % num_groups:
            raise ValueError(
                f"num_groups: expected a divisor of the {num_channels} channels, got {num_groups}"
            )
        self.eps, self.affine, self.layout = eps, affine, layout
        if affine:
            self._affine(self.num_channels)

    def _check(self, x: ArrayLike) -> None:
        check_channels(x, self.num_channels, self.layout)

    def _forward(self, x: ArrayLike) -> tuple[Array, Context]:
        params = self.params
        if not params and self.layout.endswith("c"):  # tells padding from channels
            params = {"weight": np.ones(self.num_channels, self.dtype)}
        return F.group_norm(
            x, self.num_groups, **params, eps=self.eps, layout=self.layout, return_ctx=True
        )


class SwitchableNorm(ChannelNorm):
    """Switchable Norm: instance, layer and batch statistics mixed by learned weights.

    Parameters
    ----------
    num_features, eps, momentum, ddof, layout, dtype
        As in :class:`BatchNorm`; ddof is 0, as in the paper. ``params`` has ``mean_logits`` and
        ``var_logits`` of shape (3,), in the order instance, layer, batch, which start at 1.

    References
    ----------
    Luo, Ren, Peng, Zhang, Li: Differentiable Learning-to-Normalize via Switchable Normalization,
    2018. arXiv:1806.10779

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> layer = fastnorm.SwitchableNorm(3)
    >>> y = layer(np.random.default_rng(0).standard_normal((4, 3, 5, 5), dtype=np.float32))
    >>> dx = layer.backward(y)
    >>> sorted(layer.grads)
    ['bias', 'mean_logits', 'var_logits', 'weight']
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, *,
                 ddof: int = 0, layout: str = "NCHW",
                 dtype: DTypeLike = np.float32) -> None:  # fmt: skip
        super().__init__(num_features, eps, momentum, True, True, ddof, layout, dtype)
        self.params["mean_logits"] = np.ones(3, self.dtype)
        self.params["var_logits"] = np.ones(3, self.dtype)

    def _forward(self, x: ArrayLike) -> tuple[Array, Context]:
        return F.switchable_norm(x, training=self.training, return_ctx=True, **self._common())


class InstanceRenorm(ChannelNorm):
    """Instance Renorm: instance statistics, corrected toward the running ones.

    Parameters
    ----------
    num_features, eps, momentum, affine, ddof, layout, dtype
        As in :class:`BatchNorm`; ddof is 0.
    r_max, d_max : float or callable
        As in :class:`BatchRenorm`.
    blend : float
        From 0, plain Instance Norm, to 1, the whole correction.

    References
    ----------
    The identity of Ioffe: Batch Renormalization, 2017, arXiv:1702.03275, applied to instance
    statistics.

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> fastnorm.InstanceRenorm(2, blend=0.0)(np.arange(8, dtype=np.float32).reshape(1, 2, 4))[0, 0]
    ... # doctest: +ELLIPSIS
    array([-1.341..., -0.447...,  0.447...,  1.341...], dtype=float32)
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1,
                 affine: bool = True, *, r_max: Schedule = 3.0, d_max: Schedule = 5.0,
                 blend: float = 1.0, ddof: int = 0, layout: str = "NCHW",
                 dtype: DTypeLike = np.float32) -> None:  # fmt: skip
        super().__init__(num_features, eps, momentum, affine, True, ddof, layout, dtype)
        self.r_max, self.d_max, self.blend = r_max, d_max, blend

    def _forward(self, x: ArrayLike) -> tuple[Array, Context]:
        step = int(self.buffers["num_batches_tracked"])
        return F.instance_renorm(
            x, training=self.training, r_max=_at(self.r_max, step), d_max=_at(self.d_max, step),
            blend=self.blend, return_ctx=True, **self._common(),
        )  # fmt: skip
