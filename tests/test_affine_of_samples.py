"""Weights and biases that differ between samples or positions: adaptive instance norm, conditional
batch norm, SPADE, AdaLN."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
from cases import NORMS, TOLERANCE, assert_close, copy_running, is_last, make_input, uniform

import fastnorm
from fastnorm import reference

LAYOUTS = {"NC": (12, 6), "NLC": (3, 6, 35), "NCHW": (4, 6, 7, 7), "NHWC": (4, 6, 7, 7)}
LARGE = {"NCHW": (3, 6, 31, 37), "NHWC": (3, 6, 31, 37)}  # whose samples are calls of their own
HALVES = [np.float16, ml_dtypes.bfloat16]

# for each normalizer and layout, shapes of weight and bias: "n" is as large as x, "1" is 1, "c" is
# the shared one
PAIRS = [
    ("NC", "NC"),
    ("NC", "C"),
    ("full", None),
    ("positions", "NC"),
    (None, "samples"),
    ("C", "full"),
]
AXIS_PAIRS = [("samples", "samples"), ("samples", "C"), ("full", None), ("positions", "full")]


def shape_of(kind, x, layout, axes):
    """The shape of a parameter of a kind."""
    own = [n if a in axes else 1 for a, n in enumerate(x.shape)]
    if kind == "C":
        return tuple(x.shape[a] for a in axes)
    if kind == "NC":
        return (x.shape[0], x.shape[axes[0]])
    if kind == "samples":
        return (x.shape[0], *own[1:])
    if kind == "positions":  # and for all samples
        return (1, *x.shape[1:]) if 0 not in axes else (x.shape[0], 1, *x.shape[2:])
    return x.shape


def viewed(value, kind, x, axes):
    """A parameter, float64, as it broadcasts against x."""
    own = [n if a in axes else 1 for a, n in enumerate(x.shape)]
    value = np.asarray(value, np.float64)
    if kind == "C":
        return value.reshape(own)
    return value.reshape(x.shape[0], *own[1:]) if kind == "NC" else value


class Case:
    """A call with parameters of given kinds, and what it should give."""

    def __init__(self, norm, layout, kinds, dtype, rng, shapes=LAYOUTS):
        self.norm, self.kinds = norm, kinds
        self.x = make_input(rng, shapes[layout], layout, dtype)
        args, self.kwargs = norm.arguments(rng, self.x, layout)
        if norm.channels:
            self.axes = (self.x.ndim - 1 if is_last(layout) else 1,)
        else:
            given = norm.axis if isinstance(norm.axis, tuple) else (norm.axis,)
            self.axes = tuple(sorted(a % self.x.ndim for a in given))
        names = ["weight"] if norm.name == "rms_norm" else ["weight", "bias"]
        first = norm.name == "group_norm"
        for i, name in enumerate(names):
            kind = kinds[i]
            value = (
                None
                if kind is None
                else rng.uniform(0.5, 1.5, shape_of(kind, self.x, layout, self.axes)).astype(dtype)
            )
            args[first + i] = value
        self.args, self.given = args, dict(zip(names, args[first:], strict=False))
        self.around, self.dy = {}, rng.standard_normal(self.x.shape).astype(dtype)

    def run(self, **more):
        own = copy_running(self.kwargs)
        function = getattr(fastnorm, self.norm.name)
        found = function(self.x, *self.args, **own, **self.around, return_ctx=True, **more)
        return *found[:-1], fastnorm.backward(self.dy, found[-1]), own

    def oracle(self):
        """y, gradients by name, and running statistics, in float64."""
        own = {
            k: np.asarray(v, np.float64) if k.startswith("running") else v
            for k, v in copy_running(self.kwargs).items()
        }
        args = list(self.args)
        at = self.norm.name == "group_norm"
        for i in range(len(self.given)):
            args[at + i] = None
        x = self.x + np.asarray(self.around.get("residual", 0), np.float64)
        _, cache = getattr(reference, self.norm.name)(x, *args, **own)
        x_hat = cache.from_canonical(cache.x_hat)
        views = {
            n: viewed(v, k, self.x, self.axes)
            for (n, v), k in zip(self.given.items(), self.kinds, strict=False)
            if v is not None
        }
        u = x_hat * views.get("weight", 1) + views.get("bias", 0) + (x if cache.adds_x else 0)
        tau = viewed(args[2], "C", self.x, self.axes) if cache.tau is not None else -np.inf
        v = np.maximum(u, tau) + self.around.get("shortcut", np.zeros(()))
        a = np.maximum(v, 0) if "activation" in self.around else v
        gate = np.asarray(self.around.get("gate", np.ones(())), np.float64)
        y = a * np.maximum(gate, 0)
        grads = {"gate": self.dy * a * (gate > 0)}
        g = self.dy * np.maximum(gate, 0) * (1 if "activation" not in self.around else v > 0)
        grads |= {"shortcut": g, "tau": np.where(u > tau, 0, g)}
        g = np.where(u > tau, g, 0)
        grads |= {"weight": g * x_hat, "bias": g}
        dx, *logits = cache.grad_x(cache.to_canonical(g * views.get("weight", 1)))
        grads["x"] = cache.from_canonical(dx) + (g if cache.adds_x else 0)
        grads |= dict(zip(("mean_logits", "var_logits"), logits, strict=False))
        for name, view in views.items():
            over = tuple(a for a, n in enumerate(view.shape) if n == 1)
            grads[name] = grads[name].sum(over).reshape(self.given[name].shape)
        if cache.tau is not None:
            over = tuple(a for a in range(x.ndim) if a not in self.axes)
            grads["tau"] = grads["tau"].sum(over)
        return y, grads, own

    def check(self, y, grads, own):
        want_y, want, want_own = self.oracle()
        y_tol, stat_tol, grad_tol = TOLERANCE[self.x.dtype]
        assert y.dtype == self.x.dtype
        assert_close(y, want_y, y_tol, "y")
        given = {
            **self.given,
            **self.around,
            "x": self.x,
            **dict.fromkeys([f for f in grads._fields if "logits" in f or f == "tau"], True),
        }
        for name, got in zip(grads._fields, grads, strict=True):
            if given.get(name) is None or (name == "tau" and name not in want):
                assert got is None, name
            elif got is not None:
                assert got.dtype == self.x.dtype, name
                assert_close(got, want[name], grad_tol, f"gradient of {name}")
            else:
                assert name in ("tau", "mean_logits", "var_logits") and len(self.args) < 3
        for name in ("running_mean", "running_var"):
            if name in own:
                assert_close(own[name], want_own[name], stat_tol, name)


def all_cases():
    for norm in NORMS:
        if norm.name == "weight_norm":
            continue
        for shapes, layouts in ((LAYOUTS, LAYOUTS), (LARGE, LARGE)):
            for layout in layouts if norm.channels else ["NCHW"]:
                if norm.spatial and layout == "NC":
                    continue
                for kinds in PAIRS if norm.channels else AXIS_PAIRS:
                    if norm.name == "rms_norm":
                        kinds = kinds[:1]
                    if kinds == (None,):
                        continue
                    yield norm, layout, kinds, shapes


@pytest.mark.parametrize(
    "case", all_cases(), ids=lambda c: f"{c[0].id}-{c[1]}-{c[2]}-{c[3] is LARGE}"
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_against_the_oracle(case, dtype, rng):
    norm, layout, kinds, shapes = case
    own = Case(norm, layout, kinds, dtype, rng, shapes)
    own.check(*own.run())
