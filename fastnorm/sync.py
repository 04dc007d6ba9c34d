"""Sync Batch Norm: Batch Norm over the samples of several processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _core
from ._reduce import allreduce
from ._types import Array, Gradients, MaybeArray, Param, PlainContext, RepeatableContext
from .around import Around, AroundSettings, Outside, is_wide, run
from .comm import Communicator, SingleProcess
from .norms import BatchNorm, batch_norm

__all__ = ["SyncBatchNorm", "SyncContext", "sync_batch_norm"]


@overload
def sync_batch_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, comm: Communicator | None = ...,
    running_mean: MaybeArray = ..., running_var: MaybeArray = ..., training: bool = ...,
    momentum: float = ..., eps: float = ..., ddof: int = ..., layout: str = ...,
    out: MaybeArray = ..., return_ctx: Literal[False] = ...,
) -> Array: ...  # fmt: skip
@overload
def sync_batch_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, comm: Communicator | None = ...,
    running_mean: MaybeArray = ..., running_var: MaybeArray = ..., training: bool = ...,
    momentum: float = ..., eps: float = ..., ddof: int = ..., layout: str = ...,
    out: MaybeArray = ..., return_ctx: Literal[True],
) -> tuple[Array, PlainContext]: ...  # fmt: skip
@overload
def sync_batch_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, comm: Communicator | None = ...,
    running_mean: MaybeArray = ..., running_var: MaybeArray = ..., training: bool = ...,
    momentum: float = ..., eps: float = ..., ddof: int = ..., layout: str = ...,
    out: MaybeArray = ..., return_ctx: bool,
) -> Array | tuple[Array, PlainContext]: ...  # fmt: skip
@overload
def sync_batch_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, comm: Communicator | None = ...,
    running_mean: MaybeArray = ..., running_var: MaybeArray = ..., training: bool = ...,
    momentum: float = ..., eps: float = ..., ddof: int = ..., layout: str = ...,
    out: MaybeArray = ..., return_ctx: bool = ..., **around: Unpack[Around],
) -> Any: ...  # fmt: skip
def sync_batch_norm(
    x: ArrayLike, weight: Param = None, bias: Param = None, *, comm: Communicator | None = None,
    running_mean: MaybeArray = None, running_var: MaybeArray = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5, ddof: int = 1, layout: str = "NCHW",
    out: MaybeArray = None, return_ctx: bool = False, **around: Unpack[Around],
) -> Array | tuple[Array, PlainContext]:  # fmt: skip
    """Batch Norm of the samples of all ranks together, each of which holds some.

    In training all ranks must call it at the same point, and :func:`backward` too. Each call is
    one collective of ``2 * C + 1`` numbers (backward: ``2 * C``) in float64. Inference is local.

    Parameters
    ----------
    x : array_like, float32, float64, float16 or bfloat16
        This rank's samples, ``(N, C, *)`` or, by `layout`, ``(N, *, C)``. N and the spatial sizes
        may differ from rank to rank, and N may be 0; C and the dtype may not.
    weight, bias : array_like, shape (C,), optional
        Scale and shift of each channel; x's dtype. Also (N, C), of each sample, or of x's number of
        dimensions, broadcasting against x: of each position; on all ranks or on none.
    comm : Communicator, optional
        The ranks: :class:`fastnorm.comm.MPICommunicator`, one of
        :func:`fastnorm.comm.local_communicators`, or your own. None: this process alone.
    running_mean, running_var, training, momentum, eps, ddof, layout, out, return_ctx
        As in :func:`batch_norm`, and the same on all ranks where they are numbers.
    **around
        A mask or lengths, which may differ from rank to rank, an activation, a shortcut, a gate or
        a residual: see :class:`fastnorm.Around`. In training they are passes of their own.

    Returns
    -------
    y : ndarray
        Shape and dtype of x. Statistics have the same bits on every rank.

    Raises
    ------
    TypeError, ValueError
        As :func:`batch_norm`, on all ranks, with the numbers of those that had bad input; ranks
        whose calls differ; one value per channel on all ranks together. Nothing was written. A
        `comm` that is no communicator: on this rank.

    Notes
    -----
    Ranks' (count, mean, M2) merge in rank order, from 9 ranks on in a tree where `comm` can send
    in pairs. :func:`backward` returns the gradient of the sum of all ranks' losses by x; those by
    weight and bias are this rank's share, as in torch's SyncBatchNorm: data-parallel training adds
    them up over the ranks as it does all gradients.

    References
    ----------
    Peng et al.: MegDet: A Large Mini-Batch Object Detector, 2017. arXiv:1711.07240

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from fastnorm.comm import local_communicators
    >>> def normalize(comm):
    ...     x = np.array([[2.0 * comm.rank]])  # a single sample on each rank: 0 and 2
    ...     return fastnorm.sync_batch_norm(x, comm=comm, training=True).round(3)
    >>> with ThreadPoolExecutor(2) as ranks:  # processes, usually
    ...     list(ranks.map(normalize, local_communicators(2)))
    [array([[-1.]]), array([[1.]])]
    """
    if isinstance(training, (bool, np.bool_, int)) and not training:
        local: Array | tuple[Array, PlainContext] = batch_norm(
            x,
            weight,
            bias,
            running_mean=running_mean,
            running_var=running_var,
            training=training,
            momentum=momentum,
            eps=eps,
            ddof=ddof,
            layout=layout,
            out=out,
            return_ctx=return_ctx,
            **around,
        )
        return local
    entry = _Entry(comm)
    arguments: dict[str, Any] = {
        "x": x, "weight": weight, "bias": bias, "running_mean": running_mean,
        "running_var": running_var, "training": training, "momentum": momentum, "eps": eps,
        "ddof": ddof, "layout": layout, "out": out, "return_ctx": return_ctx,
    }  # fmt: skip
    try:
        if around or is_wide(arguments):
            result: Array | tuple[Array, PlainContext] = run(
                entry, {"norm": "sync_batch", **arguments}, around
            )
            return result
    except Exception as error:
        entry.tell(error)
        raise
    return _Training(None, **arguments).normalize(_communicator(comm))


_BATCH = _core.NORMS.index("batch")


@dataclass
class _Entry(Outside):
    """What :func:`fastnorm.around.run` calls in place of the core."""

    comm: Communicator | None
    met: bool = False  # whether the ranks have met

    def check(self, norm: str, **arguments: Any) -> None:
        """Raise what is wrong on this rank, without meeting the others."""
        _core.channel_norm(_BATCH, **arguments)

    def normalize(self, *, norm: str, **arguments: Any) -> Any:  # type: ignore[override]
        """Meet the other ranks."""
        comm, self.met = _communicator(self.comm), True
        return _Training(None, **arguments).normalize(comm)

    def tell(self, error: Exception) -> None:
        """Raise on all ranks where this one has met none yet: they would wait for it."""
        if not self.met and isinstance(self.comm, Communicator):
            self.met = True
            _fail(self.comm, error)


@dataclass(slots=True)
class _Failed:
    """What is wrong on this rank, where it has nothing to contribute."""

    error: Exception

    def measure(self) -> tuple[str, Array]:
        """Raise it."""
        raise self.error


def _fail(comm: Communicator, error: Exception) -> None:
    """Raise it on all ranks."""
    allreduce(comm, _Failed(error).measure, np.add)


def _communicator(comm: Communicator | None) -> Communicator:
    if comm is None:
        return SingleProcess()
    if not isinstance(comm, Communicator):
        raise TypeError(
            "comm: expected a Communicator (rank, size, allgather), as fastnorm.comm."
            f"MPICommunicator(), got {type(comm).__name__}"
        )
    return comm


@dataclass(slots=True)
class _Training:
    """A call in training, with the arguments of batch norm; `check` is what a layer asks of x.

    A class, and so is `_Backward`: where memory is missing CPython 3.11 loses what a function in a
    function, or functools.partial, holds.
    """

    check: Callable[[Any], None] | None
    x: Any
    weight: Param
    bias: Param
    running_mean: MaybeArray
    running_var: MaybeArray
    training: bool
    momentum: float
    eps: float
    ddof: int
    layout: str
    out: MaybeArray
    return_ctx: bool
    words: str = ""
    ctx: Any = None

    def measure(self) -> tuple[str, Array]:
        """Contribute this rank's moments.

        All that can be wrong must come to light here, where the other ranks get to know it.
        """
        if self.check is not None:
            self.check(self.x)
        self.ctx = _core.start_batch_norm(
            self.x, self.weight, self.bias, self.running_mean, self.running_var, self.training,
            self.momentum, self.eps, self.ddof, self.layout, self.out, self.return_ctx,
        )  # fmt: skip
        moments, channels, dtype = _core.measure_started(self.ctx)
        numbers = f"eps={float(self.eps)}, momentum={float(self.momentum)}, ddof={int(self.ddof)}"
        self.words = f"{channels} channels, {dtype}, {numbers}"
        return "forward: " + self.words, moments

    def normalize(self, comm: Communicator) -> Array | tuple[Array, PlainContext]:
        """Normalize by the statistics of all ranks."""
        moments = allreduce(comm, self.measure, _core.merge_moments)[1]
        # all that needs memory comes before y and the running statistics are written
        ctx = SyncContext(comm, self.words, int(moments[0]), self.ctx)
        result, ctx.rstd_of_all = _core.finish_batch_norm(
            self.ctx, moments, self.out, self.return_ctx
        )
        return (result[0], ctx) if self.return_ctx else result


class SyncContext(RepeatableContext):
    """What :func:`sync_batch_norm` in training leaves for :func:`backward`.

    Attributes
    ----------
    count : int
        Elements of a channel on all ranks.
    mean, var, rstd : ndarray, float64, shape (C,)
        Those of all ranks, as of a :class:`Context`.
    """

    rstd_of_all: Array

    def __init__(self, comm: Communicator, call: str, count: int, own: _core.Context) -> None:
        self.count = count
        self._comm, self.call, self.own = comm, call, own

    @property
    def mean(self) -> Array:
        """Means of the channels."""
        return self.own.mean

    @property
    def var(self) -> Array:
        """Biased variances of the channels."""
        return self.own.var

    @property
    def rstd(self) -> Array:
        """One over the root of variance and eps."""
        return self.own.rstd

    def output(self) -> Array:
        """Return y; without meeting the other ranks."""
        return _core.output_again(self.own)

    def fail(self, error: Exception) -> None:
        """Raise it on all ranks."""
        _fail(self._comm, error)

    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None) -> Gradients:
        """Sum over the ranks what their means need; one collective."""
        own, summed = allreduce(self._comm, _Backward(self, dy, out).measure, np.add)
        return _core.finish_backward(dy, self.own, own, summed, self.count, self.rstd_of_all, out)


@dataclass(slots=True)
class _Backward:
    """A call of backward."""

    ctx: SyncContext
    dy: ArrayLike
    out: MaybeArray

    def measure(self) -> tuple[str, Array]:
        """Contribute this rank's sums."""
        return "backward: " + self.ctx.call, _core.measure_grad(self.dy, self.ctx.own, self.out)


class SyncBatchNorm(BatchNorm):
    """Batch Norm over the samples of all ranks of a communicator.

    In training all ranks must call the layer, and its `backward`, at the same points; in eval each
    is on its own. Where the ranks begin with the same state, they keep the same state.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, bias, ddof, layout, dtype, **around
        As in :class:`BatchNorm`.
    comm : Communicator, optional
        As in :func:`sync_batch_norm`. Copies of the layer share it.

    Notes
    -----
    `grads` of weight and bias are this rank's share: see :func:`sync_batch_norm`.

    References
    ----------
    Peng et al.: MegDet: A Large Mini-Batch Object Detector, 2017. arXiv:1711.07240

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> layer = fastnorm.SyncBatchNorm(3)  # comm=fastnorm.comm.MPICommunicator() under mpiexec
    >>> y = layer(np.random.default_rng(0).standard_normal((8, 3, 4, 4), dtype=np.float32))
    >>> layer.backward(np.ones_like(y)).shape
    (8, 3, 4, 4)
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1,
                 affine: bool = True, track_running_stats: bool = True, *,
                 comm: Communicator | None = None, bias: bool = True, ddof: int = 1,
                 layout: str = "NCHW", dtype: DTypeLike = np.float32,
                 **around: Unpack[AroundSettings]) -> None:  # fmt: skip
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats,
            bias=bias, ddof=ddof, layout=layout, dtype=dtype, **around,
        )  # fmt: skip
        self.comm = comm
        _communicator(comm)

    def _synchronizes(self) -> bool:
        return self.training or not self.buffers

    def _check(self, x: ArrayLike) -> None:
        if not self._synchronizes():  # else it is checked where the other ranks get to know
            super()._check(x)

    def _forward(self, x: ArrayLike, **around: Any) -> Any:
        if not self._synchronizes():
            return super()._forward(x, **around)
        if around:
            try:
                super()._check(x)
                call = partial(sync_batch_norm, x, comm=self.comm, training=True, return_ctx=True,
                               **self._common(), **around)  # fmt: skip
            except Exception as error:
                _Entry(self.comm).tell(error)
                raise
            return call()
        common = {"weight": None, "bias": None, "running_mean": None, "running_var": None}
        training = _Training(
            super()._check, x, training=True, out=None, return_ctx=True,
            **{**common, **self._common()},
        )  # fmt: skip
        return training.normalize(_communicator(self.comm))

    def __call__(self, x: ArrayLike, **around: Unpack[Around]) -> Any:
        """Normalize x."""
        y = super().__call__(x, **around)
        # a rank without samples counts the others' batch, or its cumulative average would differ
        ctx: Any = self._ctx
        none = not np.size(y) or getattr(ctx, "is_empty", False)
        while ctx is not None and not isinstance(ctx, SyncContext):
            ctx = getattr(ctx, "inner", None)
        if none and ctx is not None and ctx.count and self.training and self.buffers:
            _core.count_up(self.buffers["num_batches_tracked"])
        return y

    def backward(self, dy: ArrayLike, ds: Param = None) -> Array:
        """As `Norm.backward`; without a call before, all ranks raise."""

        def fail() -> tuple[str, Array]:
            raise RuntimeError("SyncBatchNorm.backward: expected a call of the layer before")

        if self._ctx is None and self._synchronizes():  # where the other ranks may wait
            allreduce(_communicator(self.comm), fail, np.add)
        return super().backward(dy, ds)
