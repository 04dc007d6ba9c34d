"""Weights and biases that differ between samples or positions, as they broadcast against x."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _arguments, _core
from .._types import Array, MaybeArray
from ._arrays import Index, computed_in, dense, overlap
from ._call import Call

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """How the parameters of a normalizer lie along x.

    Attributes
    ----------
    x : tuple of int
        Shape of x.
    axes : tuple of int
        Axes of x that a shared parameter extends along: those of layer norm, or the channels; in
        blocks of channels two, (1, 4) of NCHW16c.
    shared : tuple of int
        Shape of a parameter that all samples share: (C,), without the padding of blocks.
    of_channels : bool
        Whether it may be (N, C) too.
    """

    x: Shape
    axes: Shape
    shared: Shape
    of_channels: bool

    @property
    def padded(self) -> Shape:
        """Sizes of x along `axes`."""
        return tuple(self.x[a] for a in self.axes)

    @property
    def is_blocked(self) -> bool:
        """Whether x lies in blocks of channels."""
        return len(self.axes) > len(self.shared)

    def zero_padding(self, *arrays: MaybeArray) -> None:
        """Let what is behind the last channel of blocks be 0, whatever the activation of 0 is."""
        last = self.shared[0] % self.x[-1] if self.is_blocked else 0
        for a in arrays:
            if last and a is not None:
                a[:, -1, ..., last:] = 0

    def view(self, value: Array, name: str) -> Array:
        """Return a parameter with x's number of dimensions, with 1 where it does not vary."""
        if value.shape == self.shared:
            return self._along(value, 1)
        if self.of_channels and value.shape == (self.x[0], *self.shared):
            return self._along(value, self.x[0])
        sizes = zip(value.shape, self.x, strict=False)
        if value.ndim == len(self.x) and all(n in (1, m) for n, m in sizes):
            return value
        samples = f"not ({self.x[0]}, {self.shared[0]}) and " if self.of_channels else ""
        raise ValueError(
            f"{name}: expected shape {self.shared}, got {value.shape}, which is {samples}none of "
            f"{len(self.x)} dimensions that broadcasts against x's {self.x}"
        )

    def _along(self, value: Array, samples: int) -> Array:
        shape = [self.x[a] if a in self.axes else 1 for a in range(len(self.x))]
        if self.is_blocked:
            value = value.reshape(samples, self.shared[0])
            padding = int(np.prod(self.padded)) - value.shape[1]
            value = np.pad(value, ((0, 0), (0, padding)))
        if 0 not in self.axes:
            shape[0] = samples
        return value.reshape(shape)

    def core(self, view: Array) -> Array:
        """Return what the core takes, of a view that does not vary but along `axes`."""
        shape = [self.x[a] if a in self.axes else 1 for a in range(len(self.x))]
        flat = np.ascontiguousarray(np.broadcast_to(view, shape)).reshape(-1)
        return flat[: int(np.prod(self.shared))].reshape(self.shared)


def is_wide(arguments: Mapping[str, Any]) -> bool:
    """Whether a parameter has more dimensions than a shared one."""
    axis = arguments.get("axis")
    shared = len(axis) if isinstance(axis, (tuple, list)) else 1
    for name in ("weight", "bias"):
        value = arguments[name]
        if value is not None and _core.as_array(value, name).ndim > shared:
            return True
    return False


def form_of(call: Call, x: Array) -> Form:
    """Return how the parameters of a call lie along x; raise where axis or layout is wrong."""
    if "axis" in call.arguments:
        axes = _arguments.axes(call["axis"], x.ndim)
        return Form(x.shape, axes, tuple(x.shape[a] for a in axes), False)
    layout = call["layout"]
    rank, axis, block = (
        _arguments.LAYOUTS.get(layout, (-1, 1, 1)) if isinstance(layout, str) else (-1, 1, 1)
    )
    if rank not in (0, x.ndim) or x.ndim < 2:
        _arguments.refuse_layout(layout, x.shape)
    if block == 1:
        axis %= x.ndim
        return Form(x.shape, (axis,), (x.shape[axis],), True)
    return Form(x.shape, (1, x.ndim - 1), (_channels_in_blocks(call, x, block),), True)


def check_rest(call: Call, form: Form, x: Array) -> None:
    """Let the core check what are no arrays as large as x."""
    if 0 in form.axes:  # then there is one call, of all of x, before anything is written
        return
    weight = np.zeros(form.shared, x.dtype) if form.is_blocked else None
    call.check(x, weight=weight)


def _channels_in_blocks(call: Call, x: Array, block: int) -> int:
    """How many are no padding: as many as there are parameters, (C,) or (N, C)."""
    rows = {}
    for name in ("weight", "bias", "running_mean", "tau"):
        value = call.arguments.get(name)
        if value is not None:
            found = _core.as_array(value, name)
            one = np.broadcast_to(0.0, found.shape[1:])  # of (N, C), N may be 0
            rows[name] = found if found.ndim < 2 else one if found.ndim == 2 else None
    return _arguments.blocked_channels(
        x.shape, block, rows.get("weight"), rows.get("bias"), rows.get("running_mean"),
        rows.get("tau"),
    )  # fmt: skip


class Parameter:
    """A weight or a bias, and sums for its gradient.

    Attributes
    ----------
    value : ndarray
        As it was given, or a copy where it lies in memory that will be written.
    view : ndarray
        In the dtype that is computed in, with x's number of dimensions.
    """

    def __init__(self, value: Any, name: str, x: Array, form: Form, *written: Any) -> None:
        given = _core.as_array(value, name)
        if not _arguments.is_parameter_type(given.dtype, x.dtype):
            _arguments.refuse_parameter(given, name, x.dtype, form.shared)
        self.value = dense(given, name)
        if any(overlap(to, self.value) for to in written):
            self.value = self.value.copy()
        self.form = form
        self.view = form.view(self.value, name).astype(computed_in(x.dtype), copy=False)

    def varies(self) -> list[int]:
        """Axes along which it differs, but for those of a shared one."""
        return [
            a for a, n in enumerate(self.view.shape) if n != 1 and a not in self.form.axes
        ]  # fmt: skip

    def _index(self, index: Index) -> Index:
        return tuple(
            part if size != 1 else slice(None)
            for part, size in zip(index, self.view.shape, strict=False)
        )

    def part(self, index: Index) -> Array:
        """Return what broadcasts against a piece of x."""
        part: Array = self.view[self._index(index)]
        return part

    def core(self, index: Index) -> Array:
        """Return what the core takes for a piece in which it does not vary but along its axes."""
        return self.form.core(self.part(index))

    @property
    def is_whole(self) -> bool:
        """Whether it is as large as x, so that its gradient is no sum."""
        return self.view.shape == self.form.x

    @property
    def sums_in(self) -> np.dtype[Any]:
        """In which the gradient is summed."""
        return np.dtype(self.view.dtype if self.is_whole else np.float64)

    def total(self) -> Array:
        """Return zeros, for the sums that make the gradient."""
        return np.zeros(self.view.shape, self.sums_in)

    def rows(self) -> Array:
        """Return one row of the channels for each sample, or one for all: (N, C) or (1, C).

        Of one that differs between samples at most.
        """
        own = [self.form.x[a] if a in self.form.axes else n for a, n in enumerate(self.view.shape)]
        rows = np.broadcast_to(self.view, own).reshape(own[0], -1)
        return rows[:, : self.form.shared[0]]

    def cut(self, index: Index) -> Array:
        """Return it as a call of a piece of x takes it."""
        value, form = self.value, self.form
        if value.shape == form.shared:
            is_cut = form.of_channels and form.axes == (1,) and len(index) > 1
            return value[index[1]] if is_cut else value
        if value.ndim < len(form.x):  # (N, C)
            is_cut = form.axes == (1,) and len(index) > 1
            return value[index[:2]] if is_cut else value[index[:1]]
        sizes = zip(index, value.shape, strict=False)
        return value[tuple(i if n > 1 else slice(None) for i, n in sizes)]

    def add(self, total: Array, index: Index, product: Array) -> None:
        """Add what a piece brings: an array of the piece's shape, of the dtype `sums_in`."""
        to = total[self._index(index)]
        over = tuple(a for a, n in enumerate(to.shape) if n == 1 and product.shape[a] != 1)
        to += product.sum(over, keepdims=True) if over else product

    def add_core(self, total: Array, index: Index, gradient: Array) -> None:
        """Add the core's gradient of what `core` returned."""
        self.add(total, index, self.form._along(gradient.astype(np.float64), 1))

    def gradient(self, total: Array) -> Array:
        """Return the sums as the parameter was given: in its shape and dtype.

        16 bits are those of float32 rounded, as in the core.
        """
        if self.form.is_blocked and self.value.ndim < len(self.form.x):
            rows = total.reshape(total.shape[0], int(np.prod(self.form.padded)))
            total = rows[:, : self.form.shared[0]]
        found: Array = total.reshape(self.value.shape).astype(self.view.dtype, copy=False)
        return found.astype(self.value.dtype, copy=False)


def parameters_of(
    call: Call, x: Array, form: Form, names: tuple[str, ...] = ("weight", "bias")
) -> dict[str, Parameter]:
    """Return those that are given: checked, and apart from what is written."""
    written = (call["out"], call.around.get("sum_out"))
    given = {name: call.arguments.get(name) for name in names}
    return {
        name: Parameter(value, name, x, form, *written)
        for name, value in given.items()
        if value is not None
    }
