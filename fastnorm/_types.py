"""Types that the compiled core and the Python modules share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:  # the core imports this module
    from ._core import Context

Array: TypeAlias = NDArray[Any]
MaybeArray: TypeAlias = Array | None
Param: TypeAlias = ArrayLike | None
Axes: TypeAlias = int | tuple[int, ...]
WithContext: TypeAlias = "tuple[Array, Context]"


class Gradients(NamedTuple):
    """Gradients of one normalization with respect to its input and its parameters.

    Attributes
    ----------
    x : ndarray
        Gradient of the input: its shape and dtype.
    weight : ndarray or None
        Gradient of the weight: its shape and dtype; None where no weight was given.
    bias : ndarray or None
        Gradient of the bias: its shape and dtype; None where no bias was given.
    """

    x: Array
    weight: Array | None
    bias: Array | None


class WeightGradients(NamedTuple):
    """Gradients of :func:`fastnorm.weight_norm`.

    Attributes
    ----------
    x : ndarray
        Gradient of v: its shape and dtype.
    g : ndarray
        Gradient of g: its shape and dtype.
    """

    x: Array
    g: Array


class SwitchableGradients(NamedTuple):
    """Gradients of :func:`fastnorm.switchable_norm`.

    Attributes
    ----------
    x : ndarray
        Gradient of the input: its shape and dtype.
    weight : ndarray or None
        Gradient of the weight, shape (C,); None where no weight was given.
    bias : ndarray or None
        Gradient of the bias, shape (C,); None where no bias was given.
    mean_logits : ndarray
        Gradient of the logits that mix the means, shape (3,), order (in, ln, bn).
    var_logits : ndarray
        Gradient of the logits that mix the variances, shape (3,), order (in, ln, bn).
    """

    x: Array
    weight: Array | None
    bias: Array | None
    mean_logits: Array
    var_logits: Array


class DerivedContext:
    """What a forward call that is made of others leaves for :func:`fastnorm.backward`."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype  # of y

    def grads(self, dy: Array) -> Gradients:
        """Gradients of ``sum(dy * y)``."""
        raise AssertionError("a context defines its gradients")

    def backward(self, dy: ArrayLike, out: MaybeArray) -> Gradients:
        """As :func:`fastnorm.backward`."""
        dy = np.asarray(dy)
        dy = dy.astype(dy.dtype.newbyteorder("="), copy=False)
        if dy.dtype != self.dtype:
            raise TypeError(f"dy: expected x's dtype {self.dtype}, got {dy.dtype}")
        if dy.shape != self.shape:
            raise ValueError(f"dy: expected y's shape {self.shape}, got {dy.shape}")
        if out is not None:
            raise TypeError(f"out: expected None after this forward, got {type(out).__name__}")
        return self.grads(dy)
