"""The one backward of all normalizers."""

from __future__ import annotations

from typing import NoReturn, TypeAlias, TypeVar, overload

from numpy.typing import ArrayLike

from .. import _core
from .._core import Context
from .._types import (
    AnyContext,
    DerivedContext,
    FilterResponseGradients,
    FusedGradients,
    Gradients,
    MaybeArray,
    Param,
    SwitchableGradients,
    WeightGradients,
)
from ..around._given import GivenContext, GradientSums

__all__ = ["backward", "gradient_sums"]

AnyGradients: TypeAlias = (
    Gradients | FilterResponseGradients | SwitchableGradients | WeightGradients
)
G = TypeVar("G", bound=AnyGradients)


@overload
def backward(dy: ArrayLike, ctx: Context[G], out: MaybeArray = ..., *, ds: Param = ...) -> G: ...
@overload
def backward(
    dy: ArrayLike,
    ctx: DerivedContext,
    out: MaybeArray = ...,
    *,
    ds: Param = ...,
    sums: GradientSums | None = ...,
) -> Gradients: ...
def backward(
    dy: ArrayLike,
    ctx: AnyContext,
    out: MaybeArray = None,
    *,
    ds: Param = None,
    sums: GradientSums | None = None,
) -> AnyGradients | FusedGradients:
    """Gradients of ``sum(dy * y)`` for the forward call that made `ctx`.

    Parameters
    ----------
    dy : array_like
        Gradient of y: its shape and dtype.
    ctx : Context or DerivedContext
        From a forward with ``return_ctx=True``, in training or in inference. It refers to x and
        the parameters, which must be unchanged since. It can be used again.
    out : ndarray, optional
        Where to write the gradient of x. It may share memory with dy, but not with x, weight or
        logits, nor with bias or tau where there is a tau. Not after :func:`cosine_norm`.

    ds : array_like, optional
        After a call with a residual: gradient of the sum that it returned. It joins that of x.

    sums : GradientSums, optional
        After a batch norm by given moments: those of all micro-batches, of :func:`gradient_sums`.

    Returns
    -------
    Gradients, FilterResponseGradients, SwitchableGradients, WeightGradients or FusedGradients
        Named tuple ``(x, weight, bias)``, after :func:`switchable_norm` with ``mean_logits`` and
        ``var_logits``, after :func:`filter_response_norm` with ``tau``; a parameter that was not
        given has None. ``(x, g)`` after :func:`weight_norm`. After a call with something around it
        ``shortcut`` and ``gate`` too.

    Raises
    ------
    TypeError
        `ctx` is not a context; dy or `out` of another dtype than y.
    ValueError
        dy or `out` of another shape than y; `out` that overlaps what it must not; x or a parameter
        whose memory, dtype, shape or strides have changed since the forward.

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> x, weight = np.array([[1.0, 2.0, 4.0]]), np.ones(3)
    >>> y, ctx = fastnorm.layer_norm(x, weight, return_ctx=True)
    >>> grads = fastnorm.backward(np.array([[1.0, 0.0, 0.0]]), ctx)
    >>> grads.x.round(3)
    array([[ 0.229, -0.344,  0.115]])
    >>> grads.weight.round(3), grads.bias
    (array([-1.069,  0.   ,  0.   ]), None)
    >>> ctx.mean.round(3), ctx.rstd.round(3)
    (array([2.333]), array([0.802]))
    """
    if type(ctx) is Context and sums is None:  # at once: isinstance of the others takes 0.3 us
        return _core.backward(dy, ctx, out, ds)
    if isinstance(ctx, GivenContext):
        if ds is not None and not ctx.has_sum:
            _refuse(ctx, "ds: expected None, as the forward call had no residual")
        return ctx.backward(dy, out, ds, sums)
    if sums is not None:
        _refuse(ctx, "sums: expected None, as the forward call was given no moments")
    if isinstance(ctx, DerivedContext):
        if ds is None:
            return ctx.backward(dy, out)
        if not ctx.has_sum:
            _refuse(ctx, "ds: expected None, as the forward call had no residual")
        return ctx.backward(dy, out, ds)
    return _core.backward(dy, ctx, out, ds)


def _refuse(ctx: object, message: str) -> NoReturn:
    """Raise an error, on all processes of the call."""
    error = ValueError(message)
    if isinstance(ctx, DerivedContext):
        ctx.fail(error)
    raise error


def gradient_sums(dy: ArrayLike, ctx: AnyContext) -> GradientSums:
    """Sum of a micro-batch what a batch norm by given moments needs to go back.

    The exact batch norm of K micro-batches takes two sweeps forward, of which the first adds their
    :class:`Moments`, and two sweeps backward, of which the first adds these sums.

    Parameters
    ----------
    dy : array_like
        Gradient of the micro-batch's y.
    ctx : DerivedContext
        Of a :func:`batch_norm` with ``moments=``.

    Returns
    -------
    GradientSums
        They can be added; the sum of all goes to :func:`backward` as ``sums=``.

    Raises
    ------
    TypeError
        A context of another call.

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> parts = np.split(np.arange(24.0).reshape(4, 6), 2)
    >>> total = fastnorm.Moments.merge(fastnorm.Moments.from_array(x, layout="NC") for x in parts)
    >>> calls = [fastnorm.batch_norm(x, training=True, moments=total, return_ctx=True)
    ...          for x in parts]
    >>> sums = [fastnorm.gradient_sums(x, ctx) for x, (_, ctx) in zip(parts, calls)]
    >>> dx = [fastnorm.backward(x, ctx, sums=sums[0] + sums[1]).x
    ...       for x, (_, ctx) in zip(parts, calls)]
    >>> bool(np.abs(dx).max() < 1e-6)  # y does not change with x along itself
    True
    """
    if not isinstance(ctx, GivenContext):
        raise TypeError(
            f"ctx: expected that of a batch_norm with moments, got {type(ctx).__name__}"
        )
    return ctx.gradient_sums(dy)
