"""Activations of arrays: what :func:`fastnorm.batch_norm` and its like take as ``activation=``.

Vector code with the same bits on every instruction set: within 2 ulp of the exact value in float32
and 1 ulp in float16 and bfloat16, in the tails too, down to the smallest denormal number. NaN
stays NaN, infinities have their limits, and -0 is kept where the function passes through 0. What
is monotone stays so, but for the last digit of silu in float32 and float64.

Every function takes an array_like of float32, float64, float16 or bfloat16 of any shape, and `out`,
an array of its shape and dtype, which may be x. It raises a TypeError for another dtype and a
ValueError for another shape.
"""

from __future__ import annotations

from numpy.typing import ArrayLike

from . import _check as check
from . import _core
from ._arguments import shown
from ._types import Array, MaybeArray

__all__ = [
    "NAMES",
    "backward",
    "gelu",
    "gelu_tanh",
    "hardswish",
    "leaky_relu",
    "relu",
    "relu6",
    "sigmoid",
    "silu",
    "tanh",
]

NAMES = (
    "relu", "leaky_relu", "relu6", "hardswish", "sigmoid", "tanh", "silu", "gelu", "gelu_tanh",
)  # fmt: skip
_PLACES = {name: place for place, name in enumerate(NAMES, 1)}


def number(name: object, argument: str = "activation") -> int:
    """Return the place of an activation in fn_activation of fastnorm.h, where 0 is the identity."""
    if not isinstance(name, str):
        raise TypeError(f"{argument}: expected a str, got {type(name).__name__}")
    place = _PLACES.get(name)
    if place is None:
        raise ValueError(f"{argument}: expected one of {', '.join(NAMES)}, got {shown(name)}")
    return place


def finite(slope: float) -> float:
    """Return a slope."""
    return check.number(slope, "slope", low=-float("inf"))


def relu(x: ArrayLike, *, out: MaybeArray = None) -> Array:
    """``max(x, 0)``.

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> fastnorm.activations.relu(np.array([-2.0, 3.0]))
    array([0., 3.])
    """
    return _core.activate(number("relu"), 0.0, x, out)


def leaky_relu(x: ArrayLike, slope: float = 0.01, *, out: MaybeArray = None) -> Array:
    """``x`` above 0, else ``slope * x``.

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> fastnorm.activations.leaky_relu(np.array([-2.0, 3.0]), 0.25)
    array([-0.5,  3. ])
    """
    return _core.activate(number("leaky_relu"), finite(slope), x, out)


def relu6(x: ArrayLike, *, out: MaybeArray = None) -> Array:
    """``min(max(x, 0), 6)``.

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> fastnorm.activations.relu6(np.array([-2.0, 3.0, 8.0]))
    array([0., 3., 6.])
    """
    return _core.activate(number("relu6"), 0.0, x, out)


def hardswish(x: ArrayLike, *, out: MaybeArray = None) -> Array:
    """``x * min(max(x + 3, 0), 6) / 6``.

    References
    ----------
    Howard et al.: Searching for MobileNetV3, 2019. arXiv:1905.02244

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> fastnorm.activations.hardswish(np.array([-4.0, 0.0, 1.5, 4.0]))
    array([-0.   ,  0.   ,  1.125,  4.   ])
    """
    return _core.activate(number("hardswish"), 0.0, x, out)


def sigmoid(x: ArrayLike, *, out: MaybeArray = None) -> Array:
    """``1 / (1 + exp(-x))``.

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> fastnorm.activations.sigmoid(np.array([-2.0, 0.0])).round(3)
    array([0.119, 0.5  ])
    """
    return _core.activate(number("sigmoid"), 0.0, x, out)


def tanh(x: ArrayLike, *, out: MaybeArray = None) -> Array:
    """Hyperbolic tangent of x.

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> fastnorm.activations.tanh(np.array([-2.0, 0.0])).round(3)
    array([-0.964,  0.   ])
    """
    return _core.activate(number("tanh"), 0.0, x, out)


def silu(x: ArrayLike, *, out: MaybeArray = None) -> Array:
    """``x * sigmoid(x)``, also called swish.

    References
    ----------
    Elfwing, Uchibe, Doya: Sigmoid-Weighted Linear Units, 2017. arXiv:1702.03118

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> fastnorm.activations.silu(np.array([-2.0, 2.0])).round(3)
    array([-0.238,  1.762])
    """
    return _core.activate(number("silu"), 0.0, x, out)


def gelu(x: ArrayLike, *, out: MaybeArray = None) -> Array:
    """``x * P(x)``, P the share of a standard normal distribution below x: ``(1 + erf(x / 2**0.5)) / 2``.

    References
    ----------
    Hendrycks, Gimpel: Gaussian Error Linear Units, 2016. arXiv:1606.08415

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> fastnorm.activations.gelu(np.array([-2.0, 2.0])).round(3)
    array([-0.046,  1.954])
    """  # noqa: E501
    return _core.activate(number("gelu"), 0.0, x, out)


def gelu_tanh(x: ArrayLike, *, out: MaybeArray = None) -> Array:
    """GELU by tanh: ``x * (1 + tanh((2 / pi)**0.5 * (x + 0.044715 * x**3))) / 2``.

    Notes
    -----
    In float64 the relative error grows to 1e-13 in the far tail, below -5.

    References
    ----------
    Hendrycks, Gimpel: Gaussian Error Linear Units, 2016. arXiv:1606.08415

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> fastnorm.activations.gelu_tanh(np.array([-2.0, 2.0])).round(3)
    array([-0.045,  1.955])
    """
    return _core.activate(number("gelu_tanh"), 0.0, x, out)


def backward(
    dy: ArrayLike, x: ArrayLike, activation: str, *, slope: float = 0.01, out: MaybeArray = None
) -> Array:
    """Gradient of ``sum(dy * activation(x))``: dy times the derivative at x.

    Parameters
    ----------
    dy, x : array_like, float32, float64, float16 or bfloat16
        Of one shape and dtype.
    activation : str
        One of `NAMES`.
    slope : float
        Of "leaky_relu".
    out : ndarray, optional
        Where to write the gradient; it may be dy or x.

    Returns
    -------
    ndarray
        x's shape and dtype. At the bends of relu and relu6 it is 0, of leaky_relu ``slope * dy``.

    Raises
    ------
    TypeError
        A wrong dtype; an activation that is no str.
    ValueError
        A wrong shape; an unknown activation; a slope that is not finite.

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> fastnorm.activations.backward(np.array([5.0, 5.0]), np.array([-1.0, 1.0]), "relu")
    array([0., 5.])
    """
    return _core.activate_grad(number(activation), finite(slope), dy, x, out)
