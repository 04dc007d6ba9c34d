"""The normalizers as layers: parameters, running statistics, train and eval, gradients.

State names and shapes are torch's: a checkpoint loads as it is; so do those of others, whose names
are known. Arguments are checked when a layer is made.
A layer keeps the context of its last call for `backward`, and with it that call's input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _check as check
from . import functional as F
from ._arguments import LAYOUTS
from ._axis_layers import LayerNorm, RMSNorm
from ._check import count
from ._core import Context
from ._layer import ChannelNorm, Norm, check_channels
from ._types import AnyContext, Array, DerivedContext, Gradients, MaybeArray

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
        Whether there are a weight and, with `bias`, a bias, of shape (C,).
    track_running_stats : bool
        Whether there are running statistics; without, batch statistics serve in eval too.
    bias : bool
        Whether there is a bias where there is a weight.
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
                 affine: bool = True, track_running_stats: bool = True, *, bias: bool = True,
                 ddof: int = 1, layout: str = "NCHW",
                 dtype: DTypeLike = np.float32) -> None:  # fmt: skip
        super().__init__(
            num_features, eps, momentum, affine, bias, track_running_stats, ddof, layout, dtype
        )

    def _forward(self, x: ArrayLike) -> tuple[Array, AnyContext]:
        return F.batch_norm(
            x, training=self.training or not self.buffers, return_ctx=True, **self._common()
        )


def batch_renorm_r_max(step: int) -> float:
    """Return r_max of the Batch Renorm paper: 1 up to step 5000, then linear to 3 at 40000."""
    return float(np.interp(check.number(step, "step"), [5000, 40000], [1.0, 3.0]))


def batch_renorm_d_max(step: int) -> float:
    """Return d_max of the Batch Renorm paper: 0 up to step 5000, then linear to 5 at 25000."""
    return float(np.interp(check.number(step, "step"), [5000, 25000], [0.0, 5.0]))


def _schedule(value: Schedule, name: str, low: float) -> Schedule:
    """Check a number now; what a callable returns is checked by the function that it goes to."""
    return value if callable(value) else check.number(value, name, low, np.inf)


def _at(schedule: Schedule, step: int) -> float:
    return schedule(step) if callable(schedule) else schedule


class BatchRenorm(ChannelNorm):
    """Batch Renorm: Batch Norm whose training output is what inference would give.

    Parameters
    ----------
    num_features, eps, momentum, affine, bias, ddof, layout, dtype
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
                 d_max: Schedule = batch_renorm_d_max, bias: bool = True, ddof: int = 0,
                 layout: str = "NCHW", dtype: DTypeLike = np.float32) -> None:  # fmt: skip
        super().__init__(num_features, eps, momentum, affine, bias, True, ddof, layout, dtype)
        self.r_max, self.d_max = _schedule(r_max, "r_max", 1.0), _schedule(d_max, "d_max", 0.0)

    def _forward(self, x: ArrayLike) -> tuple[Array, Context]:
        step = int(self.buffers["num_batches_tracked"])
        return F.batch_renorm(
            x, training=self.training, r_max=_at(self.r_max, step), d_max=_at(self.d_max, step),
            return_ctx=True, **self._common(),
        )  # fmt: skip


class _OneSample(DerivedContext):
    """Context of a call with one sample, without the axis of samples."""

    def __init__(self, ctx: Context, shape: tuple[int, ...]) -> None:
        self._ctx, self._shape = ctx, shape

    def backward(self, dy: ArrayLike, out: MaybeArray) -> Gradients:
        """As :func:`fastnorm.backward`; a layer has no `out`."""
        dy = check.array(dy, "dy")
        if dy.shape != self._shape:
            raise ValueError(f"dy: expected x's shape {self._shape}, got {dy.shape}")
        grads = F.backward(dy[None], self._ctx)._asdict()
        return Gradients(grads["x"][0], grads["weight"], grads["bias"])


class _InstanceLayer(ChannelNorm):
    """Statistics of each sample: x may be one alone, ``(C, L)``.

    In a layout of any number of dimensions only two are one sample, since ``(N, C)`` has a single
    value in each instance; three could be ``(N, C, L)`` or ``(C, H, W)``, and are the first. In a
    layout that has its number, as "NC" and "NCDHW", one less is one sample.
    """

    def _normalize(self, x: ArrayLike) -> tuple[Array, Context]:
        """Return what the functional form returns with `return_ctx`, of samples."""
        raise AssertionError("a layer defines its call")

    def _is_one_sample(self, x: Array) -> bool:
        rank = LAYOUTS.get(self.layout, (0, 1, 1))[0]
        return x.ndim == (rank - 1 if rank else 2)

    def _check_sizes(self, x: Array) -> None:
        super()._check_sizes(x[None] if self._is_one_sample(x) else x)

    def _forward(self, x: ArrayLike) -> tuple[Array, AnyContext]:
        x = check.array(x, "x")
        if not self._is_one_sample(x):
            return self._normalize(x)
        y, ctx = self._normalize(x[None])
        return y[0], _OneSample(ctx, x.shape)


class InstanceNorm(_InstanceLayer):
    """Instance Norm.

    Parameters
    ----------
    num_features, eps, momentum, bias, ddof, layout, dtype
        As in :class:`BatchNorm`.
    affine : bool
        Whether there are a weight and a bias; as in torch, not by default.
    track_running_stats : bool
        Whether running statistics are kept, and used in eval; as in torch, not by default.

    Notes
    -----
    x of two dimensions is one sample ``(C, L)``, or ``(L, C)`` with channels last, and so are y and
    dx: ``(N, C)`` has one value in each instance, and needs ``layout="NC"``. x of three dimensions
    is ``(N, C, L)``: of one image ``(C, H, W)`` give ``x[None]``. In a layout that has its number
    of dimensions, as "NCDHW", one less is one sample.

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
                 affine: bool = False, track_running_stats: bool = False, *, bias: bool = True,
                 ddof: int = 1, layout: str = "NCHW",
                 dtype: DTypeLike = np.float32) -> None:  # fmt: skip
        super().__init__(
            num_features, eps, momentum, affine, bias, track_running_stats, ddof, layout, dtype
        )

    def _normalize(self, x: ArrayLike) -> tuple[Array, Context]:
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
    eps, affine, bias, layout, dtype
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
                 *, bias: bool = True, layout: str = "NCHW",
                 dtype: DTypeLike = np.float32) -> None:  # fmt: skip
        super().__init__(dtype)
        self.num_groups = count(num_groups, "num_groups")
        self.num_channels = count(num_channels, "num_channels")
        if num_channels % num_groups:
            raise ValueError(
                f"num_groups: expected a divisor of the {num_channels} channels, got {num_groups}"
            )
        self.eps, self.layout = check.number(eps, "eps"), check.layout(layout)
        self.affine, self.bias = check.flag(affine, "affine"), check.flag(bias, "bias")
        if self.affine:
            self._affine(self.num_channels, bias=self.bias)

    def _check_sizes(self, x: Array) -> None:
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
    num_features, eps, momentum, bias, ddof, layout, dtype
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
                 bias: bool = True, ddof: int = 0, layout: str = "NCHW",
                 dtype: DTypeLike = np.float32) -> None:  # fmt: skip
        super().__init__(num_features, eps, momentum, True, bias, True, ddof, layout, dtype)
        self.params["mean_logits"] = np.ones(3, self.dtype)
        self.params["var_logits"] = np.ones(3, self.dtype)

    def _forward(self, x: ArrayLike) -> tuple[Array, Context]:
        arguments = {"bias": None, **self._common()}
        return F.switchable_norm(x, training=self.training, return_ctx=True, **arguments)


class InstanceRenorm(_InstanceLayer):
    """Instance Renorm: instance statistics, corrected toward the running ones.

    Parameters
    ----------
    num_features, eps, momentum, affine, bias, ddof, layout, dtype
        As in :class:`BatchNorm`; ddof is 0.
    r_max, d_max : float or callable
        As in :class:`BatchRenorm`.
    blend : float
        From 0, plain Instance Norm, to 1, the whole correction.

    Notes
    -----
    x may be one sample ``(C, L)``, as in :class:`InstanceNorm`.

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
                 blend: float = 1.0, bias: bool = True, ddof: int = 0, layout: str = "NCHW",
                 dtype: DTypeLike = np.float32) -> None:  # fmt: skip
        super().__init__(num_features, eps, momentum, affine, bias, True, ddof, layout, dtype)
        self.r_max, self.d_max = _schedule(r_max, "r_max", 1.0), _schedule(d_max, "d_max", 0.0)
        self.blend = check.number(blend, "blend", 0.0, 1.0)

    def _normalize(self, x: ArrayLike) -> tuple[Array, Context]:
        step = int(self.buffers["num_batches_tracked"])
        return F.instance_renorm(
            x, training=self.training, r_max=_at(self.r_max, step), d_max=_at(self.d_max, step),
            blend=self.blend, return_ctx=True, **self._common(),
        )  # fmt: skip
