"""Outputs in 8 bits: y divided by a scale, and rounded to nearest even.

``q = round(y / scale)``, a division of float32, of a y that was rounded to x's dtype as without. An
int8 lies in [-128, 127]: 200.0 / 1 is 127. A float8 takes what is beyond its largest number as
that: 448 of float8_e4m3fn, 57344 of float8_e5m2. NaN is NaN there, and 0 as an int8.

A piece of y at a time is normalized, and quantized while it is in the cache: there is no y of x's
size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import _arguments, _core
from .._types import Array, MaybeArray
from ._arrays import BESIDE, Index, Laid, delivered, lay, overlap, pieces
from ._call import Call, Result
from ._parameters import Form, Parameter, check_rest, form_of, parameters_of
from ._stages import IN_THE_CORE, numbered, proceed

# the largest magnitude of each dtype
MOST = {"int8": 127.0, "float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}

# elements of a piece: 128 KB of float32
PIECE = 1 << 15

_NORMS = ("layer", "rms", "batch")

# keywords that are the same for a piece, or are cut with x
IN_PIECES = IN_THE_CORE | {"weight_offset", "cast"}


def needed(call: Call) -> bool:
    """Whether y is quantized."""
    return "out_dtype" in call.around or "scale" in call.around


def stage(call: Call) -> Result:
    """Normalize and quantize, piece by piece."""
    with _core.FloatMode(), np.errstate(all="ignore"):
        return _quantize(call)


def _quantize(call: Call) -> Result:
    dtype = _dtype(call)
    out, around = call["out"], dict(call.around)
    scale = around.pop("scale", None)
    del around["out_dtype"]
    call = call.but(around, out=None, return_ctx=False)
    numbers = numbered(around)
    laid = lay(call, has_y=False)
    form = form_of(call, laid.x)
    given = parameters_of(call.but(out=out), laid.x, form)
    check_rest(call, form, laid.x)
    q = _place(call, laid, out, np.empty(laid.x.shape, dtype) if out is None else out, dtype)
    scales = Scales(scale, form, laid.x, MOST[dtype.name])
    _by_pieces(call, laid, form, given, numbers, scales, q)
    total = None if laid.sum is None else delivered(laid.sum, laid.sum_out)
    return Result(delivered(q, out), total, None, scales.found)


def _by_pieces(call: Call, laid: Laid, form: Form, given: dict[str, Parameter], numbers: Any,
               scales: Scales, q: Array) -> None:  # fmt: skip
    """Normalize a piece into y, and quantize that."""
    # whether the core does it all: to look at a piece, the stages take as long as to normalize it
    is_plain = call.around.keys() <= IN_THE_CORE and all(
        parameter.value.shape == form.shared for parameter in given.values()
    )
    y = np.empty(0, laid.x.dtype)
    for index in _pieces(call, form, laid.x):
        x = laid.x[index]
        if y.size < x.size:  # the first one
            y = np.empty(x.size, laid.x.dtype)
        part = y[: x.size].reshape(x.shape)
        piece = _piece(call, laid, form, given, index, part)
        if is_plain:
            beside = None if numbers is None else (*numbers[:3], *laid.around(index))
            call.entry(**piece, around=beside)
        else:
            arrays = zip((*BESIDE, "sum_out"), laid.around(index), strict=True)
            own = {name: a for name, a in arrays if a is not None}
            proceed(Call(call.entry, piece, {**call.around, **own}))
        _round(part.astype(np.float32, copy=False), scales, index, q[index])


def _round(y: Array, scales: Scales, index: Index, q: Array) -> None:
    """Write y, which is lost, to q."""
    if not y.size:
        return
    view, find = scales.of(index), scales.found is not None
    rows = tuple(n for n, m in zip(view.shape, y.shape, strict=True) if n == m)
    by_rows = view.shape == rows + (1,) * (view.ndim - len(rows))
    if not by_rows:  # rows are not behind one another
        if find:
            view[...] = scales.largest(y)
        np.divide(y, view, out=y)
        view, find = np.ones(1, np.float32), False
    dense = q if q.flags.c_contiguous else np.empty(q.shape, q.dtype)
    _core.quantize(list(MOST).index(q.dtype.name), y, np.ascontiguousarray(view), find, dense)
    if dense is not q:
        q[...] = dense


class Scales:
    """What y is divided by: given, or found for each row.

    Attributes
    ----------
    found : ndarray or None
        Those that were not given: x's shape without the normalized axes, float32.
    """

    def __init__(self, given: Any, form: Form, x: Array, most: float) -> None:
        self.found: MaybeArray = None
        self._over, self._most = form.axes, np.float32(most)
        if given is not None:
            self._view = _given(given, form, x)
            return
        if form.of_channels:
            raise ValueError(
                "scale: expected a number, or an array of one for each channel, for batch norm, "
                "whose outputs have no rows, got None"
            )
        self.found = np.ones(_arguments.without(x.shape, form.axes), np.float32)
        kept = [1 if a in form.axes else n for a, n in enumerate(x.shape)]
        self._view = self.found.reshape(kept)

    def of(self, index: Index) -> Array:
        """Return what broadcasts against a piece of y."""
        sizes = zip(index, self._view.shape, strict=False)
        return self._view[tuple(i if n > 1 else slice(None) for i, n in sizes)]

    def largest(self, y: Array) -> Array:
        """Find those of a piece."""
        ends = y.max(self._over, keepdims=True), -y.min(self._over, keepdims=True)
        found: Array = np.maximum(*ends) / self._most
        found[found == 0] = 1  # of zeros, and where the quotient is too small for a float32
        return found


# ---- checks ----------------------------------------------------------------------------------


def _dtype(call: Call) -> np.dtype[Any]:
    """Return that of the output, where the call can have it."""
    if "out_dtype" not in call.around:
        raise ValueError("scale: expected None, as there is no out_dtype")
    wanted = call.around["out_dtype"]
    dtype = _named(wanted)
    if dtype is None or dtype.name not in MOST:
        raise TypeError(
            f"out_dtype: expected one of {', '.join(MOST)}, got {_arguments.shown(wanted)}"
        )
    norm = call.norm
    if norm not in _NORMS:
        raise ValueError(
            f"out_dtype: expected None for this normalizer, got {dtype}: only layer_norm, "
            "rms_norm and batch_norm in inference have outputs of 8 bits"
        )
    if norm == "batch" and _arguments.flag(call["training"], "training"):
        raise ValueError(f"out_dtype: expected None in training, got {dtype}")
    if _arguments.flag(call["return_ctx"], "return_ctx"):
        raise ValueError(
            f"return_ctx: expected False with out_dtype {dtype}, as what is rounded has no gradient"
        )
    return dtype


def _named(wanted: Any) -> np.dtype[Any] | None:
    """Return a dtype; of the names that NumPy knows only with ml_dtypes too."""
    if isinstance(wanted, str) and wanted in MOST and wanted != "int8":
        try:
            import ml_dtypes
        except ImportError:
            raise TypeError(
                f"out_dtype: expected int8, as the package ml_dtypes is missing, got {wanted!r}"
            ) from None
        wanted = getattr(ml_dtypes, wanted)
    try:
        dtype: np.dtype[Any] = np.dtype(wanted)
        return dtype
    except Exception:
        return None


def _given(value: Any, form: Form, x: Array) -> Array:
    """Return scales as they broadcast against x, float32."""
    given = _core.as_array(value, "scale")
    if given.dtype.kind not in "fiu" and given.dtype.name != "bfloat16":
        raise TypeError(f"scale: expected numbers, got {given.dtype}")
    scale = given.astype(np.float32)
    wrong = ~((scale > 0) & np.isfinite(scale))
    if wrong.any():
        got = float(given[wrong].flat[0])
        raise ValueError(f"scale: expected finite float32 numbers above 0, got {got:g}")
    if form.of_channels and scale.shape == form.shared:
        view = form.view(scale, "scale")
        return np.where(view == 0, np.float32(1), view)  # of the padding of blocks
    view = scale.reshape((1,) * (x.ndim - scale.ndim) + scale.shape)
    own = [n if (a in form.axes) == form.of_channels else 1 for a, n in enumerate(x.shape)]
    if view.ndim != x.ndim or any(
        n not in (1, most) for n, most in zip(view.shape, own, strict=True)
    ):
        raise ValueError(
            f"scale: expected a shape that broadcasts against {tuple(own)}, got {scale.shape}"
        )
    return view


def _place(call: Call, laid: Laid, out: MaybeArray, q: Array, dtype: np.dtype[Any]) -> Array:
    """Return where to write: `out`, or another array where x or what is beside it lies there."""
    if out is None:
        return q
    _arguments.check_out(out, dtype, laid.x.shape)
    if overlap(out, laid.sum_out):
        _arguments.refuse_shared("sum_out", "out")
    for name, state in call.states().items():
        if overlap(out, state):
            _arguments.refuse_shared("out", name)
    read = (laid.x, *laid.beside.values())
    return np.empty(q.shape, dtype) if any(overlap(out, a) for a in read) else out


# ---- pieces ----------------------------------------------------------------------------------


def _pieces(call: Call, form: Form, x: Array) -> Iterator[Index]:
    """Rows side by side; of batch norm samples, their channels, or in NHWC their positions.

    All of x where a stage is around that has arrays of its own, as masks.
    """
    if not x.size or call.around.keys() - IN_PIECES:
        return iter([()])
    if not form.of_channels:
        lead = min(form.axes)
    elif form.is_blocked:
        lead = 1
    else:
        lead = 2 if form.axes == (1,) else x.ndim - 1
    return pieces(x.shape, lead, PIECE)


def _piece(call: Call, laid: Laid, form: Form, given: dict[str, Parameter], index: Index,
           y: Array) -> dict[str, Any]:  # fmt: skip
    """Return the arguments of a piece, into y."""
    own: dict[str, Any] = {name: parameter.cut(index) for name, parameter in given.items()}
    if form.of_channels and len(index) > 1 and form.axes == (1,):
        for name in ("running_mean", "running_var"):
            own[name] = _core.as_array(call[name], name)[index[1]]
    return {**call.arguments, **own, "x": laid.x[index], "out": y}
