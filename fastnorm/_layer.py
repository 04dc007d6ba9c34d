"""What all layers share: parameters, buffers, train and eval, backward, state."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import functional as F
from ._types import AnyContext, Array


class Layer:
    """What all layers share: parameters, buffers, train and eval, state.

    Attributes
    ----------
    params : dict of str to ndarray
        What an optimizer updates, in place: ``weight``, ``bias`` and, in Switchable Norm, the
        logits.
    grads : dict of str to ndarray
        Gradients of `params` from the last `backward`.
    buffers : dict of str to ndarray
        Running statistics; updated in place by calls in training.
    training : bool
        Set by `train` and `eval`.
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise TypeError(f"dtype: expected float32 or float64, got {self.dtype}")
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}
        self.buffers: dict[str, Array] = {}
        self.training = True
        self._ctx: AnyContext | None = None

    def train(self, mode: bool = True) -> Self:
        """Use batch statistics, and update the running ones; ``mode=False`` is `eval`."""
        self.training = bool(mode)
        return self

    def eval(self) -> Self:
        """Use the running statistics."""
        return self.train(False)

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters and buffers, by torch's names."""
        return {name: array.copy() for name, array in {**self.params, **self.buffers}.items()}

    def load_state_dict(self, state: Mapping[str, ArrayLike], strict: bool = True) -> None:
        """Load parameters and buffers, in place.

        Parameters
        ----------
        state : mapping of str to array_like
            As `state_dict` returns it, or torch's with NumPy arrays. Floats of another precision
            are converted. ``num_batches_tracked`` may be missing, as in old checkpoints.
        strict : bool
            Whether missing and unexpected names are an error.

        Raises
        ------
        ValueError
            Missing or unexpected names, a wrong shape, a negative count of batches; nothing was
            loaded.
        TypeError
            A value that is no array of numbers; nothing was loaded.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected a mapping, got {type(state).__name__}")
        own = {**self.params, **self.buffers}
        missing = own.keys() - state.keys() - {"num_batches_tracked"}
        unexpected = state.keys() - own.keys()
        if strict and (missing or unexpected):
            raise ValueError(
                f"state: expected {sorted(own)}, got {sorted(state, key=str)} "
                f"(missing {sorted(missing)}, unexpected {sorted(unexpected, key=str)})"
            )
        values = {k: loadable(k, state[k], own[k]) for k in own if k in state}
        for name, value in values.items():
            own[name][...] = value

    def __getstate__(self) -> dict[str, Any]:
        """Return what copy and pickle take: all but the context, which belongs to one call."""
        return {**self.__dict__, "_ctx": None}

    def __repr__(self) -> str:
        fields = []
        for name, parameter in signature(type(self)).parameters.items():
            value = getattr(self, name)
            if parameter.default is Parameter.empty:
                fields.append(f"{value!r}")
            elif parameter.kind is not Parameter.KEYWORD_ONLY or value != parameter.default:
                fields.append(f"{name}={value if name == 'dtype' else repr(value)}")
        return f"{type(self).__name__}({', '.join(fields)})"


class Norm(Layer):
    """A layer that normalizes its input, by one function, with one context to go back through."""

    def _affine(self, shape: int | tuple[int, ...], weight: bool = True, bias: bool = True) -> None:
        if weight:
            self.params["weight"] = np.ones(shape, self.dtype)
        if bias:
            self.params["bias"] = np.zeros(shape, self.dtype)

    def _check(self, x: ArrayLike) -> None:
        """Raise where the sizes of x are not the layer's; without a weight nothing else would."""
        raise AssertionError("a layer checks its input")

    def _forward(self, x: ArrayLike) -> tuple[Array, AnyContext]:
        """Return what the functional form returns with `return_ctx`."""
        raise AssertionError("a layer defines its forward call")

    def __call__(self, x: ArrayLike) -> Array:
        """Normalize x."""
        self._ctx = None  # after a call that fails there is nothing to go back through
        self._check(x)
        y, self._ctx = self._forward(x)
        # an empty batch leaves the running statistics alone, so their average must not count it
        if self.training and y.size and "num_batches_tracked" in self.buffers:
            self.buffers["num_batches_tracked"] += 1
        return y

    def backward(self, dy: ArrayLike) -> Array:
        """Return the gradient of the last call's input and fill `grads`.

        Parameters
        ----------
        dy : array_like
            Gradient of the last call's output: its shape and dtype.

        Returns
        -------
        ndarray
            Gradient of the input.

        Raises
        ------
        RuntimeError
            Without a call before.
        """
        if self._ctx is None:
            raise RuntimeError(
                f"{type(self).__name__}.backward: expected a call of the layer before"
            )
        grads = F.backward(dy, self._ctx)
        found = grads._asdict()
        self.grads = {name: found[name] for name in self.params}
        return grads.x


def count(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return int(value)


def loadable(name: str, given: ArrayLike, target: Array) -> Array:
    """`given` with the dtype of `target`, which it can be written to."""
    value = np.asarray(given)
    integer = target.dtype.kind == "i"
    if value.dtype.kind not in ("iu" if integer else "f") and (
        integer or value.dtype.name != "bfloat16"
    ):
        raise TypeError(f"state[{name!r}]: expected {target.dtype}, got {value.dtype}")
    if value.shape != target.shape:
        raise ValueError(f"state[{name!r}]: expected shape {target.shape}, got {value.shape}")
    value = value.astype(target.dtype)
    if name == "num_batches_tracked" and value < 0:
        raise ValueError(f"state[{name!r}]: expected a count from 0 to 2**63 - 1, got {given!r}")
    if not target.flags.writeable:
        raise ValueError(f"{name}: expected a writeable array to load into, got a read-only one")
    return value


def check_channels(x: ArrayLike, channels: int, layout: str) -> None:
    shape = np.shape(x)
    axis = -1 if layout == "channels_last" or str(layout).endswith("C") else 1
    if str(layout).endswith("c"):  # blocks: the function compares them with the parameters
        return
    if len(shape) >= 2 and shape[axis] != channels:
        raise ValueError(f"x: expected {channels} channels in {layout}, got shape {shape}")


class ChannelNorm(Norm):
    """A layer over `num_features` channels, in a layout, that may track running statistics."""

    def __init__(
        self, num_features: int, eps: float, momentum: float | None, affine: bool, track: bool,
        ddof: int, layout: str, dtype: DTypeLike,
    ) -> None:  # fmt: skip
        super().__init__(dtype)
        self.num_features = count(num_features, "num_features")
        self.eps, self.momentum, self.ddof, self.layout = eps, momentum, ddof, layout
        self.affine, self.track_running_stats = affine, track
        if affine:
            self._affine(self.num_features)
        if track:
            self.buffers["running_mean"] = np.zeros(self.num_features, self.dtype)
            self.buffers["running_var"] = np.ones(self.num_features, self.dtype)
            self.buffers["num_batches_tracked"] = np.zeros((), np.int64)

    def _check(self, x: ArrayLike) -> None:
        check_channels(x, self.num_features, self.layout)

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
