"""Calls with parameters that differ between samples or positions, and what they should give."""

import ml_dtypes
import numpy as np
from cases import (
    NORMS,
    TOLERANCE,
    assert_close,
    copy_running,
    is_last,
    make_input,
    uniform,
)

import fastnorm
from fastnorm import reference
from fastnorm.around._arrays import PIECE

# small, where parameters are applied to pieces, and large, where samples are calls of their own
SMALL = {"NC": (12, 24), "NLC": (3, 6, 35), "NCHW": (4, 6, 7, 7), "NHWC": (4, 6, 7, 7)}
LARGE = {"NCHW": (3, 6, 24, 29), "NHWC": (3, 6, 24, 29)}
HALVES = [np.float16, ml_dtypes.bfloat16]
CHANNEL_KINDS = [("NC", "C"), ("full", None), ("positions", "NC"), ("C", "samples"), (None, "full")]
AXIS_KINDS = [("samples", "C"), ("full", "samples"), ("positions", None), (None, "samples")]
NORMS = [norm for norm in NORMS if norm.name != "weight_norm"]


def shape_of(kind, x, axes):
    """The shape of a parameter: "C" is shared, "NC" and "samples" are one for each sample."""
    own = [n if a in axes else 1 for a, n in enumerate(x.shape)]
    return {
        "C": tuple(x.shape[a] for a in axes),
        "NC": (x.shape[0], x.shape[axes[0]]),
        "samples": (x.shape[0], *own[1:]),
        "positions": (1, *x.shape[1:]) if 0 not in axes else (x.shape[0], 1, *x.shape[2:]),
        "full": x.shape,
        "full but channels": tuple(1 if a in axes else n for a, n in enumerate(x.shape)),
    }[kind]


def viewed(value, x, axes):
    """A parameter, float64, as it broadcasts against x."""
    value = np.asarray(value, np.float64)
    own = [n if a in axes else 1 for a, n in enumerate(x.shape)]
    if value.ndim == x.ndim:
        return value
    return value.reshape(own if value.ndim == len(axes) else [x.shape[0], *own[1:]])


class Case:
    """A call with parameters of given kinds, and what it should give."""

    def __init__(self, norm, layout, kinds, dtype, rng, shapes=SMALL, around=False):
        self.norm = norm
        self.x = make_input(rng, shapes[layout], layout, dtype)
        self.args, self.kwargs = norm.arguments(rng, self.x, layout)
        if norm.channels:
            self.axes = (self.x.ndim - 1 if is_last(layout) else 1,)
        else:
            given = norm.axis if isinstance(norm.axis, tuple) else (norm.axis,)
            self.axes = tuple(sorted(a % self.x.ndim for a in given))
        self.first = int(norm.name == "group_norm")
        names = ["weight"] if norm.name == "rms_norm" else ["weight", "bias"]
        self.given = {}
        for i, (name, kind) in enumerate(zip(names, kinds, strict=False)):
            value = None
            if kind is not None:
                value = uniform(rng, shape_of(kind, self.x, self.axes), dtype)
            self.args[self.first + i] = self.given[name] = value
        self.dy, *arrays = (rng.standard_normal(self.x.shape).astype(dtype) for _ in range(4))
        names = ("shortcut", "gate", "residual")
        self.around = dict(zip(names, arrays, strict=True)) if around else {}
        if around:
            self.around |= {"activation": "relu", "gate_activation": "relu"}

    def forward(self, **more):
        own = copy_running(self.kwargs)
        function = getattr(fastnorm, self.norm.name)
        found = function(self.x, *self.args, **{**own, **self.around, "return_ctx": True, **more})
        return found, own

    def run(self, **more):
        """y, the gradients, and the running statistics."""
        found, own = self.forward(**more)
        return found[0], fastnorm.backward(self.dy, found[-1]), own

    def oracle(self):
        """y, gradients by name, and running statistics, in float64."""
        own = {k: np.asarray(v, np.float64) if k.startswith("running") else v
               for k, v in copy_running(self.kwargs).items()}  # fmt: skip
        beside = {n: self.around[n].astype(np.float64) if self.around else default
                  for n, default in (("shortcut", 0), ("gate", 1), ("residual", 0))}  # fmt: skip
        args = list(self.args)
        for i in range(len(self.given)):
            args[self.first + i] = None
        x = self.x.astype(np.float64) + beside["residual"]
        _, cache = getattr(reference, self.norm.name)(x, *args, **own)
        x_hat = cache.from_canonical(cache.x_hat)
        views = {n: viewed(v, x, self.axes) for n, v in self.given.items() if v is not None}
        u = x_hat * views.get("weight", 1) + views.get("bias", 0) + (x if cache.adds_x else 0)
        tau = -np.inf if cache.tau is None else viewed(args[2], x, self.axes)
        v = np.maximum(u, tau) + beside["shortcut"]
        a = np.maximum(v, 0) if self.around else v
        gate = np.maximum(beside["gate"], 0)
        g = self.dy.astype(np.float64) * gate * (v > 0 if self.around else 1)
        grads = {"gate": self.dy.astype(np.float64) * a * (gate > 0), "shortcut": g}
        grads["tau"] = None
        if cache.tau is not None:
            grads["tau"] = self._summed(np.where(u > tau, 0, g), tau).ravel()
        g = np.where(u > tau, g, 0)
        for name, view in views.items():
            product = g * x_hat if name == "weight" else g
            grads[name] = self._summed(product, view).reshape(self.given[name].shape)
        dx, *logits = cache.grad_x(cache.to_canonical(g * views.get("weight", 1)))
        grads["x"] = cache.from_canonical(dx) + (g if cache.adds_x else 0)
        grads |= dict(zip(("mean_logits", "var_logits"), logits, strict=False))
        return a * gate, grads, own

    @staticmethod
    def _summed(product, view):
        return product.sum(tuple(a for a, n in enumerate(view.shape) if n == 1), keepdims=True)

    def check(self):
        y, grads, own = self.run()
        want_y, want, want_own = self.oracle()
        y_tol, stat_tol, grad_tol = TOLERANCE[self.x.dtype]
        assert y.dtype == self.x.dtype
        assert_close(y, want_y, y_tol, "y")
        fused = {"shortcut", "gate"} if self.around else set()
        named = {n for n, v in self.given.items() if v is not None} | {"x"} | fused
        named |= {"tau"} if want["tau"] is not None else want.keys() & {"mean_logits", "var_logits"}
        for name, got in zip(grads._fields, grads, strict=True):
            assert (got is not None) == (name in named), name
            if got is not None:
                assert got.dtype == self.x.dtype, name
                assert_close(got, want[name], grad_tol, f"gradient of {name}")
        for name in ("running_mean", "running_var"):
            if name in own:
                assert_close(own[name], want_own[name], stat_tol, name)


def same(got, want):
    """Whether arrays have the same bytes, where zeros and NaN may have either sign."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    np.testing.assert_array_equal(got.astype(np.float64), want.astype(np.float64))
    return True


TRAINING = {"training": True}
CALLS = {
    "slices": ("layer_norm", (3, 5, 1100), {"weight": (3, 1, 1100), "bias": (1100,)}, {}),
    "pieces": ("layer_norm", (2, 180, 400), {"weight": (1, 180, 400), "bias": (2, 1, 400)}, {}),
    "coupled": ("batch_norm", (3, 6, 60, 70), {"weight": (3, 6), "bias": (3, 6)}, TRAINING),
}  # fmt: skip
assert 2 * PIECE > 180 * 400 > PIECE < 3 * 6 * 60 * 70  # several pieces
BESIDE = ("shortcut", "gate", "residual")


def call_of(name, rng, dtype=np.float32):
    function, shape, params, more = CALLS[name]
    arrays = {n: rng.standard_normal(s).astype(dtype) for n, s in params.items()}
    arrays |= {n: rng.standard_normal(shape).astype(dtype) for n in ("x", *BESIDE)}
    more = {**more, "activation": "relu", "gate_activation": "relu"}
    return getattr(fastnorm, function), arrays, more
