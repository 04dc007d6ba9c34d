"""What whitening computes: statistics of groups of channels, y, and the way back.

Statistics, and all that is made of them, are float64. The two products with the array's elements
are done in float32 where x has no more, unless its digits would be lost in them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _check as check
from .. import _core
from .._arguments import LAYOUTS
from .._types import Array, Gradients, MaybeArray, Param, RepeatableContext
from ._groups import Groups, covariance, load, store
from ._roots import InverseRoot, NewtonSchulz, Root

# In float32 an element of y, a sum of terms, loses 2**-24 of their magnitudes. So it is float64
# where these add up to so many deviations or more: where channels are nearly multiples of others.
MOST_TERMS = 32.0


@check.as_the_core
def whiten(
    x: ArrayLike, weight: Param, bias: Param, running_mean: MaybeArray, running_cov: MaybeArray,
    training: bool, group_size: int, momentum: float, eps: float, layout: str, out: MaybeArray,
    return_ctx: bool, iterations: int | None,
) -> Array | tuple[Array, RepeatableContext]:  # fmt: skip
    """Check, measure, write: by `iterations` steps, or with None by the inverse root."""
    ctx, dense, size, params, running, types = _core.start_whitening(
        x, weight, bias, running_mean, running_cov, training, momentum, eps, group_size, layout,
        out, return_ctx,
    )  # fmt: skip
    groups = Groups(dense.shape, LAYOUTS[layout][1] == -1, size)
    moved: list[Array] = []
    if dense.size == 0:
        mean, cov = np.zeros((groups.groups, size)), np.zeros((groups.groups, size, size))
    elif training:
        mean, cov = covariance(groups, groups.view(dense))
        moved = _moved(running, mean, cov, groups.values, float(momentum))
    else:
        mean, cov = _read(running, groups)
    eps = float(eps)
    root = InverseRoot(cov, eps) if iterations is None else NewtonSchulz(cov, eps, iterations)
    call = Whitened(ctx, dense, groups, params, types, mean, cov, root, bool(training))
    y = _core.target(dense, out)
    call.write(y)
    y = _core.deliver(y, out)
    for state, value in zip((running_mean, running_cov), moved, strict=False):
        np.copyto(state, value)  # type: ignore[arg-type]
    return (y, call) if return_ctx else y


def _rounded(values: Array, like: np.dtype[Any]) -> Array:
    """float64 in another dtype; 16 bits are float32, rounded, as everywhere."""
    if like.itemsize == 2:
        values = values.astype(np.float32)
    return values.astype(like)


def _moved(running: tuple[MaybeArray, ...], mean: Array, cov: Array, values: int,
           momentum: float) -> list[Array]:  # fmt: skip
    """Make the running statistics after the batch, whose covariance they take unbiased."""
    found = []
    for state, batch in zip(running, (mean, cov * (values / (values - 1))), strict=True):
        if state is not None:
            old, new = state.astype(np.float64), batch.reshape(state.shape)
            found.append(_rounded((1 - momentum) * old + momentum * new, state.dtype))
    return found


def _read(running: tuple[MaybeArray, ...], groups: Groups) -> tuple[Array, Array]:
    mean, cov = (np.asarray(state, np.float64) for state in running)
    return mean.reshape(groups.groups, groups.size), (cov + cov.transpose(0, 2, 1)) / 2


class Whitened(RepeatableContext):
    """A call, and what it leaves for :func:`fastnorm.backward`.

    Attributes
    ----------
    mean : ndarray, float64, shape (C,)
        What was subtracted.
    matrix : ndarray, float64, shape (groups, group_size, group_size)
        W of each group: ``y = weight * W (x - mean) + bias``.
    """

    def __init__(
        self, ctx: _core.Context, x: Array, groups: Groups, params: tuple[MaybeArray, ...],
        types: tuple[Any, ...], mean: Array, cov: Array, root: Root, trains: bool,
    ) -> None:  # fmt: skip
        self._ctx, self._x, self._groups, self._types = ctx, x, groups, types
        self._like = x.shape, x.dtype
        # copies: y may be written over them
        self._weight, self._bias = (
            None if p is None else p.astype(np.float64).reshape(mean.shape) for p in params
        )
        self._mean, self._root, self._trains = mean, root, trains
        self._working = self._precision(np.diagonal(cov, axis1=1, axis2=2))
        # what is subtracted from each element, and what is left of the mean, which shifts y
        self._center = mean.astype(self._working)
        self._rest = mean - self._center
        self.mean, self.matrix = mean.reshape(-1), root.matrix

    def _precision(self, variances: Array) -> np.dtype[Any]:
        """Choose what the elements are multiplied in."""
        std, sizes = np.sqrt(np.maximum(variances, 0)), np.abs(self._root.matrix)
        terms = (sizes * std[:, np.newaxis]).sum(2)
        # NaN is passed over: another group's must not decide
        limits = ((terms, MOST_TERMS), (std, 1e15), (sizes, 1e8))
        single = all(np.fmax.reduce(a, None, initial=0) <= most for a, most in limits)
        return np.dtype(np.float32 if single and self._x.dtype != np.float64 else np.float64)

    def _spread(self, vector: Array) -> Array:
        return self._groups.spread(vector.astype(self._working))

    @check.as_the_core
    def output(self) -> Array:
        """Return y."""
        _core.check_grad_out(self._x, self._ctx, None)  # that x is where it was
        y = _core.empty_like(self._x)
        self.write(y)
        return y

    def write(self, y: Array) -> None:
        """Compute y, chunk by chunk: y may be x."""
        groups, matrix = self._groups, self._root.matrix
        if self._weight is not None:
            matrix = self._weight[..., np.newaxis] * matrix
        shift = -_times(matrix, self._rest)
        if self._bias is not None:
            shift += self._bias
        before, after = groups.buffer(self._working), groups.buffer(self._working)
        center, shift, matrix = (
            self._spread(self._center), self._spread(shift), matrix.astype(self._working)
        )  # fmt: skip
        x, y = groups.view(self._x), groups.view(y)
        for at, part in groups.walk():
            chunk = load(x[at], center, before[part])
            groups.apply(matrix, chunk, after[part])
            store(after[part], shift, y[at])

    @check.as_the_core
    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None) -> Gradients:
        """Go back, as :func:`fastnorm.backward`."""
        dy = check.gradient(dy, *self._like)
        dy = np.require(dy, requirements=["C", "A"])
        _core.check_grad_out(dy, self._ctx, out)
        sums, products = self._measure_gradient(dy)
        dx = _core.target(dy, out)
        self._write_gradient(dy, sums, products, dx)
        dweight, dbias = (
            None if kind is None else _rounded(value.reshape(-1), kind)
            for kind, value in zip(
                self._types, ((self._root.matrix * products).sum(2), sums), strict=True
            )
        )
        return Gradients(_core.deliver(dx, out), dweight, dbias)

    def _measure_gradient(self, dy: Array) -> tuple[Array, Array]:
        """Sum dy, and dy (x - mean)^T."""
        groups = self._groups
        sums, products = np.zeros(self._mean.shape), np.zeros(self._root.matrix.shape)
        if not (self._trains or any(kind is not None for kind in self._types)):
            return sums, products
        buffers = groups.buffer(self._working), groups.buffer(self._working)
        center, x, dy = self._spread(self._center), groups.view(self._x), groups.view(dy)
        for at, part in groups.walk():
            gradient = load(dy[at], None, buffers[0][part])
            chunk = load(x[at], center, buffers[1][part])
            sums += groups.sums(gradient)
            products += groups.product(gradient, chunk)
        return sums, products - sums[..., np.newaxis] * self._rest[:, np.newaxis]

    def _write_gradient(self, dy: Array, sums: Array, products: Array, dx: Array) -> None:
        """Compute dx, chunk by chunk: dx may be dy.

        In training it is a product with dy and x - mean together, less its mean.
        """
        groups, matrix = self._groups, self._root.matrix
        if self._weight is not None:
            matrix = matrix * self._weight[:, np.newaxis]
            products = products * self._weight[..., np.newaxis]
        parts, shift = 1, np.zeros(sums.shape)
        if self._trains and groups.values:
            dcov = self._root.gradient(products) * (2 / groups.values)
            shift = -_times(matrix, sums / groups.values) - _times(dcov, self._rest)
            parts, matrix = 2, np.concatenate((matrix, dcov), 2)
        groups = groups.of_parts(parts)
        before, after = groups.buffer(self._working, parts), groups.buffer(self._working)
        center, shift, matrix = (
            self._spread(self._center), self._spread(shift), matrix.astype(self._working)
        )  # fmt: skip
        x, dy, dx = groups.view(self._x), groups.view(dy), groups.view(dx)
        for at, part in groups.walk():
            chunk = before[part]
            load(dy[at], None, groups.part(chunk, 0))
            if parts == 2:
                load(x[at], center, groups.part(chunk, 1))
            groups.apply(matrix, chunk, after[part])
            store(after[part], shift, dx[at])


def _times(matrices: Array, vectors: Array) -> Array:
    """Multiply each vector by its matrix."""
    found: Array = (matrices @ vectors[..., np.newaxis])[..., 0]
    return found
