"""Types that the compiled core and the Python modules share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:  # the core imports this module
    from ._core import Context

Array: TypeAlias = NDArray[Any]
MaybeArray: TypeAlias = Array | None
Param: TypeAlias = ArrayLike | None
Axes: TypeAlias = int | Sequence[int]
# Context, alone, is that of most normalizers, whose gradients are Gradients
WithContext: TypeAlias = "tuple[Array, Context]"
PlainContext: TypeAlias = "Context | DerivedContext"
AnyContext: TypeAlias = (
    "Context[Gradients | FilterResponseGradients | SwitchableGradients | WeightGradients]"
    "| DerivedContext"
)


class DerivedContext(ABC):
    """Context of a forward call that takes more than one call of the core to go back through.

    Attributes
    ----------
    has_sum : bool
        Whether the call had a residual, so that `backward` takes `ds`.
    """

    has_sum = False
    # no element counted, so that running statistics were left alone
    is_empty = False

    @property
    def inner(self) -> Any:
        """The context of the call that this one was made of, if it was one."""
        return None

    def fail(self, error: Exception) -> None:
        """Tell the other processes of a call, if there are any, before `error` is raised here.

        They would wait for this one in their `backward`.
        """
        if isinstance(self.inner, DerivedContext):
            self.inner.fail(error)

    @abstractmethod
    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None) -> Any:
        """Do what :func:`fastnorm.backward` documents."""


class RepeatableContext(DerivedContext):
    """One whose y can be made again from x and the statistics: it need not be kept."""

    @abstractmethod
    def output(self) -> Array:
        """Return what the forward call gave."""


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


class FilterResponseGradients(NamedTuple):
    """Gradients of :func:`fastnorm.filter_response_norm`.

    Attributes
    ----------
    x : ndarray
        Gradient of the input: its shape and dtype.
    weight, bias, tau : ndarray or None
        Gradients of the parameters, shape (C,); None where none was given.
    """

    x: Array
    weight: Array | None
    bias: Array | None
    tau: Array | None


class FusedGradients(NamedTuple):
    """Gradients of a normalizer with something around it: an activation, a shortcut, a gate...

    Attributes
    ----------
    x : ndarray
        Gradient of the input, and of the residual, where there was one: its shape and dtype.
    weight, bias : ndarray or None
        Gradients of the parameters; None where none was given.
    shortcut, gate : ndarray or None
        Gradients of these, shaped as x; None where none was given.
    tau, mean_logits, var_logits : ndarray or None
        Gradients of the parameters that :func:`fastnorm.filter_response_norm` and
        :func:`fastnorm.switchable_norm` have besides.
    """

    x: Array
    weight: Array | None
    bias: Array | None
    shortcut: Array | None = None
    gate: Array | None = None
    tau: Array | None = None
    mean_logits: Array | None = None
    var_logits: Array | None = None


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
