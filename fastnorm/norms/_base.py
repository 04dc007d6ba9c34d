"""What all layers share: parameters, buffers, train and eval, backward, state."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any, Self, Unpack

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import _check as check
from .. import _core
from .._arguments import LAYOUTS
from .._state import loadable, named
from .._types import AnyContext, Array, Param
from ..around import Around, AroundSettings, settings
from ._gradients import backward


class Layer:
    """What all layers share: parameters, buffers, train and eval, state.

    Attributes
    ----------
    params : dict of str to ndarray
        What an optimizer updates, in place: ``weight``, ``bias`` and what else is
        learned.
    grads : dict of str to ndarray
        Gradients of `params` from the last `backward`.
    input_grads : dict of str to ndarray
        Those of ``shortcut`` and ``gate``, where the last call had them.
    buffers : dict of str to ndarray
        Running statistics; updated in place by calls in training.
    training : bool
        Set by `train` and `eval`.
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self.dtype = check.float_dtype(dtype)
        self.params: dict[str, Any] = {}
        self.grads: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}
        self.training = True
        self.input_grads: dict[str, Array] = {}
        self._ctx: AnyContext | None = None

    def train(self, mode: bool = True) -> Self:
        """Use batch statistics, and update the running ones; ``mode=False`` is `eval`."""
        self.training = check.flag(mode, "mode")
        return self

    def eval(self) -> Self:
        """Use the running statistics."""
        return self.train(False)

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters and buffers, by torch's names."""
        return {name: array.copy() for name, array in self._arrays().items()}

    def _arrays(self) -> dict[str, Array]:
        return {**self.params, **self.buffers}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Load parameters and buffers, in place.

        Parameters
        ----------
        state : mapping of str to array_like
            As `state_dict` returns it, or torch's, with its tensors or with arrays, or in the names
            that Keras, flax, TensorFlow, ONNX, MXNet or Paddle have for the same (see the table in
            the README). Floats of another precision are converted. ``num_batches_tracked`` may be
            missing, as in old checkpoints.
        strict : bool
            Whether missing and unexpected names are an error.

        Raises
        ------
        ValueError
            Missing or unexpected names, two names of the same thing, a wrong shape, a value too
            large for the layer's dtype, a negative count of batches; nothing was loaded.
        TypeError
            A value that is no array of numbers, or a masked array; nothing was loaded.
        """
        own = self._arrays()
        given = named(state, "state")
        missing = own.keys() - given.keys() - {"num_batches_tracked"}
        unexpected = [name for key, (name, _) in given.items() if key not in own]
        if check.flag(strict, "strict") and (missing or unexpected):
            raise ValueError(
                f"state: expected {sorted(own)}, got {sorted(state, key=str)} "
                f"(missing {sorted(missing)}, unexpected {sorted(unexpected, key=str)})"
            )
        found = {key: given[key] for key in own if key in given}
        values = {k: loadable(f"state[{name!r}]", v, own[k]) for k, (name, v) in found.items()}
        for key in values:
            if not own[key].flags.writeable:
                raise ValueError(
                    f"{key}: expected a writeable array to load into, got a read-only one"
                )
        for key, value in values.items():
            own[key][...] = value

    def __getstate__(self) -> dict[str, Any]:
        """Return what copy and pickle take: all but the context, which belongs to one call."""
        return {**self.__dict__, "_ctx": None}

    def __repr__(self) -> str:
        fields = []
        for name, parameter in signature(type(self)).parameters.items():
            value = getattr(self, name)
            if parameter.kind is Parameter.VAR_KEYWORD:
                fields += [f"{key}={each!r}" for key, each in value.items()]
                continue
            if parameter.default is Parameter.empty:
                fields.append(f"{value!r}")
            elif parameter.kind is not Parameter.KEYWORD_ONLY or value != parameter.default:
                fields.append(f"{name}={value if name == 'dtype' else repr(value)}")
        return f"{type(self).__name__}({', '.join(fields)})"


class Norm(Layer):
    """A layer that normalizes its input, by one function, with one context to go back through."""

    def __init__(self, dtype: DTypeLike, **around: Unpack[AroundSettings]) -> None:
        super().__init__(dtype)
        self.around = settings(around)

    def _affine(self, shape: int | tuple[int, ...], weight: bool = True, bias: bool = True) -> None:
        if weight:
            offset = self.around.get("weight_offset", 0)
            self.params["weight"] = np.full(shape, 1 - offset, self.dtype)
        if bias:
            self.params["bias"] = np.zeros(shape, self.dtype)

    def _check(self, x: ArrayLike) -> None:
        """Raise where x is not what the layer is made for: the functions would blame its arrays."""
        array = check.array(x, "x")
        self._check_dtype(array.dtype)
        self._check_sizes(array)
        count = self.buffers.get("num_batches_tracked")
        if self.training and count is not None and not count.flags.writeable:
            raise ValueError("num_batches_tracked: expected a writeable array, got a read-only one")

    def _check_sizes(self, x: Array) -> None:
        """Raise where the sizes of x are not the layer's; without a weight nothing else would."""
        raise AssertionError("a layer checks its input")

    def _check_dtype(self, dtype: np.dtype[Any]) -> None:
        if _is_computed_in(dtype, self.dtype):
            return
        own = {a.dtype for name, a in self._arrays().items() if name != "num_batches_tracked"}
        if own != {self.dtype}:  # a layer without any takes every float
            return
        single = self.dtype == np.float32
        message = (
            f"x: expected dtype {'float32, float16 or bfloat16' if single else 'float64'}, as the "
            f"layer is of {self.dtype}, got {dtype}: convert x"
        )
        other = np.dtype(np.float64 if single else np.float32)
        if _is_computed_in(dtype, other):
            message += f", or make the layer with dtype=np.{other}"
        raise TypeError(message)

    def _forward(self, x: ArrayLike, **around: Any) -> Any:
        """Return what the functional form returns with `return_ctx`."""
        raise AssertionError("a layer defines its forward call")

    def __call__(self, x: ArrayLike, **around: Unpack[Around]) -> Any:
        """Normalize x.

        Parameters
        ----------
        x : array_like
            Input.
        **around
            What stands around it in the same pass: see :class:`fastnorm.Around`. It goes before
            what the layer was made with; None takes that away.

        Returns
        -------
        y : ndarray
            Output; with a residual ``(y, s)``.
        """
        self._ctx = None  # after a call that fails there is nothing to go back through
        self._check(x)
        counts = self.training and "num_batches_tracked" in self.buffers
        *found, self._ctx = self._forward(x, **{**self.around, **around})
        # an empty batch leaves the running statistics alone, so their average must not count it
        if counts and found[0].size and not getattr(self._ctx, "is_empty", False):
            _core.count_up(self.buffers["num_batches_tracked"])
        return tuple(found) if len(found) > 1 else found[0]

    def backward(self, dy: ArrayLike, ds: Param = None) -> Array:
        """Return the gradient of the last call's input and fill `grads`.

        Parameters
        ----------
        dy : array_like
            Gradient of the last call's output: its shape and dtype.
        ds : array_like, optional
            Gradient of the sum that a call with a residual returned.

        Returns
        -------
        ndarray
            Gradient of the input, and of the residual. Those of a shortcut and a gate are in
            `input_grads`.

        Raises
        ------
        RuntimeError
            Without a call before.
        """
        if self._ctx is None:
            raise RuntimeError(
                f"{type(self).__name__}.backward: expected a call of the layer before"
            )
        ctx: Any = self._ctx
        grads: Any = backward(dy, ctx, ds=ds)
        found = grads._asdict()
        self.grads = {name: found[name] for name in self.params}
        beside = {name: found.get(name) for name in ("shortcut", "gate")}
        self.input_grads = {name: a for name, a in beside.items() if a is not None}
        dx: Array = grads.x
        return dx


def _is_computed_in(x: np.dtype[Any], own: np.dtype[Any]) -> bool:
    """Whether an x of one dtype goes with parameters of the other, float32 or float64."""
    if x.itemsize == 2:
        return own == np.float32 and check.is_float(x)
    return x.newbyteorder("=") == own


def check_channels(x: ArrayLike, channels: int, layout: str) -> None:
    """Raise where x has not these channels in this layout, which a layer has checked."""
    shape = check.array(x, "x").shape
    rank, axis, block = LAYOUTS.get(layout, (0, 1, 1))
    if rank and len(shape) != rank:
        raise ValueError(f"x: expected {rank} dimensions in {layout}, got shape {shape}")
    blocks = -(-channels // block)
    if len(shape) >= 2 and (shape[axis] != blocks or block not in (1, shape[-1])):
        raise ValueError(f"x: expected {channels} channels in {layout}, got shape {shape}")


class ChannelNorm(Norm):
    """A layer over `num_features` channels, in a layout."""

    def __init__(
        self, num_features: int, eps: float, layout: str, dtype: DTypeLike,
        **around: Unpack[AroundSettings],
    ) -> None:  # fmt: skip
        super().__init__(dtype, **around)
        self.num_features = check.count(num_features, "num_features")
        self.eps, self.layout = check.number(eps, "eps"), check.layout(layout)

    def _check_sizes(self, x: Array) -> None:
        check_channels(x, self.num_features, self.layout)


class RunningNorm(ChannelNorm):
    """One that may track running statistics."""

    def __init__(
        self, num_features: int, eps: float, momentum: float | None, affine: bool, bias: bool,
        track: bool, ddof: int, layout: str, dtype: DTypeLike, **around: Unpack[AroundSettings],
    ) -> None:  # fmt: skip
        super().__init__(num_features, eps, layout, dtype, **around)
        self.momentum = None if momentum is None else check.number(momentum, "momentum", 0.0, 1.0)
        self.affine, self.bias = check.flag(affine, "affine"), check.flag(bias, "bias")
        self.track_running_stats = check.flag(track, "track_running_stats")
        self.ddof = check.ddof(ddof)
        if self.affine:
            self._affine(self.num_features, bias=self.bias)
        if self.track_running_stats:
            self.buffers["running_mean"] = np.zeros(self.num_features, self.dtype)
            self.buffers["running_var"] = np.ones(self.num_features, self.dtype)
            self.buffers["num_batches_tracked"] = np.zeros((), np.int64)

    def _common(self) -> dict[str, Any]:
        """Arguments that all functions of channels with running statistics take."""
        momentum = self.momentum
        if momentum is None:  # the cumulative average
            momentum = 1.0 / (int(self.buffers.get("num_batches_tracked", 0)) + 1)
        running = {k: v for k, v in self.buffers.items() if k.startswith("running")}
        return {
            **self.params, **running, "momentum": momentum, "eps": self.eps, "ddof": self.ddof,
            "layout": self.layout,
        }  # fmt: skip
