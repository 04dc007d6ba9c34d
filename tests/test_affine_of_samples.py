"""Weights and biases that differ between samples or positions: adaptive instance norm, conditional
batch norm, SPADE, AdaLN."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
from cases import (
    NORMS,
    TOLERANCE,
    assert_close,
    copy_running,
    everywhere,
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


def of_norms(norms=NORMS):
    """(norm, layout, shapes)."""
    return [
        (norm, layout, shapes)
        for norm in norms
        for shapes in (SMALL, LARGE)
        for layout in (shapes if norm.channels else ["NCHW"])
        if not (norm.spatial and layout == "NC")
    ]


def kinds_of(norm, shapes):
    kinds = CHANNEL_KINDS if norm.channels else AXIS_KINDS
    if shapes is LARGE:  # those of samples
        kinds = [k for k in kinds if {"NC", "samples"} & set(k) and "full" not in k]
    return [k for k in kinds if norm.name != "rms_norm" or k[0] is not None]


def case_id(case):
    return f"{case[0].id}-{case[1]}-{'small' if case[2] is SMALL else 'large'}"


@pytest.mark.parametrize("case", of_norms(), ids=case_id)
def test_against_the_oracle(case, rng):
    norm, layout, shapes = case
    for kinds in kinds_of(norm, shapes):
        for dtype in (np.float32, np.float64):
            for around in (False, True) if dtype == np.float64 else (False,):
                Case(norm, layout, kinds, dtype, rng, shapes, around).check()


@pytest.mark.parametrize("case", of_norms(), ids=case_id)
def test_16_bits_are_float32_rounded(case, rng):
    """The product is of an x_hat in float32: y is within one step of the exact one."""
    norm, layout, shapes = case
    for dtype in HALVES:
        for kinds in kinds_of(norm, shapes)[:: 1 if shapes is SMALL else 2]:
            own = Case(norm, layout, kinds, dtype, rng, shapes)
            y, grads, running = own.run()
            want_y, want, _ = own.oracle()
            step = float(ml_dtypes.finfo(dtype).eps)
            error = np.abs(y.astype(np.float64) - want_y)
            assert (error <= 0.51 * step * np.maximum(np.abs(want_y), 2e-2)).all()
            for name, got in zip(grads._fields, grads, strict=True):
                if got is not None:
                    assert got.dtype == dtype
                    assert_close(got, want[name], step, name)
            wide = Case(norm, layout, kinds, np.float32, rng, shapes)
            wide.x, wide.dy = own.x.astype(np.float32), own.dy.astype(np.float32)
            wide.args = [
                a.astype(np.float32) if isinstance(a, np.ndarray) else a for a in own.args
            ]  # fmt: skip
            wide.kwargs = {
                k: v.astype(np.float32) if isinstance(v, np.ndarray) else v
                for k, v in own.kwargs.items()
            }  # fmt: skip
            wide_y, wide_grads, wide_running = wide.run()
            same(y, wide_y.astype(dtype))
            same(grads.x, wide_grads.x.astype(dtype))
            for name in running.keys() & {"running_mean", "running_var"}:
                same(running[name], wide_running[name].astype(dtype))
            # parameters may be float32 too
            own.args = [
                w if v is not None and np.ndim(v) else v
                for v, w in zip(own.args, wide.args, strict=True)
            ]  # fmt: skip
            y, grads, _ = own.run()
            same(y, wide_y.astype(dtype))
            for name in ("weight", "bias"):
                got, single = getattr(grads, name), getattr(wide_grads, name)
                assert got is single is None or got.dtype == np.float32
                if got is not None:  # sums whose order is another
                    assert_close(got, single, 1e-5, name)


def same(got, want):
    """Whether arrays have the same bytes, where zeros and NaN may have either sign."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    np.testing.assert_array_equal(got.astype(np.float64), want.astype(np.float64))
    return True


def separate(u, around, dy):
    """What stands behind u, one by one and each rounded, and back: y and gradients."""
    single, dtype = np.promote_types(u.dtype, np.float32), u.dtype
    if dtype.name == "bfloat16":
        single = np.float32
    zero = dtype.type(0)
    z, gate = around["shortcut"], around["gate"]
    v = (u.astype(single) + z.astype(single)).astype(dtype)
    a, b = np.maximum(v, zero).astype(single), np.maximum(gate, zero).astype(single)
    g = dy.astype(single)
    dv = np.where(v > zero, (g * b).astype(dtype), zero)
    return (a * b).astype(dtype), dv, np.where(gate > zero, (g * a).astype(dtype), zero)


@pytest.mark.parametrize("case", of_norms(), ids=case_id)
def test_what_is_around_is_as_separate_calls(case, rng):
    norm, layout, shapes = case
    dtypes = (np.float32, *HALVES) if shapes is SMALL else (ml_dtypes.bfloat16,)
    for dtype in dtypes:
        for kinds in kinds_of(norm, shapes)[:3]:
            own = Case(norm, layout, kinds, dtype, rng, shapes, around=True)
            (y, s, ctx), _ = own.forward()
            ds = own.around["gate"]
            grads = fastnorm.backward(own.dy, ctx, ds=ds)
            wide = np.float32
            x = (own.x.astype(wide) + own.around["residual"].astype(wide)).astype(dtype)
            same(s, x)
            alone = copy.copy(own)
            alone.x, alone.around = x, {}
            (u, plain), _ = alone.forward()
            want, dv, dgate = separate(u, own.around, own.dy)
            same(y, want)
            same(grads.shortcut, dv)
            same(grads.gate, dgate)
            found = fastnorm.backward(dv, plain)
            same(grads.x, (found.x.astype(wide) + ds.astype(wide)).astype(dtype))
            for name in found._fields[1:]:
                got, single = getattr(grads, name), getattr(found, name)
                assert got is single is None or same(got, single)


@pytest.mark.parametrize("dtype", [np.float32, *HALVES])
@pytest.mark.parametrize("name", fastnorm.activations.NAMES)
def test_every_activation_is_as_alone(name, dtype, rng):
    own = Case(NORMS[0], "NCHW", ("NC", "full"), dtype, rng, around=True)
    more = {"activation": name, "gate_activation": name, "slope": 0.3}
    (y, s, ctx), _ = own.forward(**more)
    grads = fastnorm.backward(own.dy, ctx)
    alone = copy.copy(own)
    alone.x, alone.around = s, {}
    (u, plain), _ = alone.forward()
    v = (u.astype(np.float32) + own.around["shortcut"].astype(np.float32)).astype(dtype)
    gate, act = own.around["gate"], fastnorm.activations
    slope = {"slope": 0.3} if name == "leaky_relu" else {}
    a, b = (getattr(act, name)(array, **slope) for array in (v, gate))
    same(y, (a.astype(np.float32) * b.astype(np.float32)).astype(dtype))
    g = own.dy.astype(np.float32)
    dv = act.backward((g * b.astype(np.float32)).astype(dtype), v, name, slope=0.3)
    same(grads.shortcut, dv)
    dgate = act.backward((g * a.astype(np.float32)).astype(dtype), gate, name, slope=0.3)
    same(grads.gate, dgate)
    same(grads.x, fastnorm.backward(dv, plain).x)


# ---- the same as others ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, *HALVES])
@pytest.mark.parametrize("layout", LARGE)
def test_samples_are_calls_of_their_own(layout, dtype, rng):
    """(N, C): each sample has the bytes of a call with its weight, in a batch of any size."""
    x, dy = (make_input(rng, LARGE[layout], layout, dtype) for _ in range(2))
    weight, bias = uniform(rng, (3, 6), dtype), uniform(rng, (3, 6), dtype)
    for name, more in (("group_norm", {"num_groups": 2}), ("instance_norm", {}),
                       ("filter_response_norm", {}), ("global_response_norm", {})):  # fmt: skip
        function = getattr(fastnorm, name)
        more = {**more, "layout": layout, "return_ctx": True}
        y, ctx = function(x, weight=weight, bias=bias, **more)
        grads = fastnorm.backward(dy, ctx)
        for n in range(3):
            one = slice(n, n + 1)
            want, own = function(x[one], weight=weight[n], bias=bias[n], **more)
            same(y[one], want)
            want = fastnorm.backward(dy[one], own)
            for got, expected in zip(grads, want, strict=True):
                if got is not None:
                    same(got[one] if got.ndim > 2 else got[n], expected)
            np.testing.assert_array_equal(ctx.rstd[one], own.rstd)
        half, _ = function(x[1:], weight=weight[1:], bias=bias[1:], **more)
        same(half, y[1:])


def test_many_channels_behind_positions(rng):
    """A position of channels last has enough of them for a call, but not its statistics."""
    x, weight = rng.standard_normal((2, 2, 3, 5000))
    y = fastnorm.instance_norm(x, weight, layout="NLC")
    np.testing.assert_allclose(y, fastnorm.instance_norm(x, layout="NLC") * weight, atol=1e-13)


def test_one_of_x_s_rank_is_as_a_shared_one(rng):
    x, dy = (rng.standard_normal((4, 6, 5, 5)).astype(np.float32) for _ in range(2))
    weight, states = uniform(rng, 6, x.dtype), {"running_mean": np.zeros(6, np.float32)}
    states["running_var"] = states["running_mean"] + 1
    own = {k: v.copy() for k, v in states.items()}
    y, ctx = fastnorm.batch_norm(x, weight, training=True, return_ctx=True, **states)
    wide = weight.reshape(1, 6, 1, 1)
    got, wide_ctx = fastnorm.batch_norm(x, wide, training=True, return_ctx=True, **own)
    same(got, y)
    want, found = fastnorm.backward(dy, ctx), fastnorm.backward(dy, wide_ctx)
    same(found.x, want.x)
    same(found.weight, want.weight.reshape(1, 6, 1, 1))
    for name in states:
        same(own[name], states[name])


def test_blocks_of_channels(rng):
    """As channels first, in their order; what is behind the last channel is 0."""
    shape, blocked = (3, 11, 9, 8), {"layout": "NCHW8c"}
    for dtype in (np.float32, ml_dtypes.bfloat16):
        arrays = [rng.standard_normal(shape).astype(dtype) for _ in range(3)]
        weight, bias = uniform(rng, (3, 11), dtype), uniform(rng, 11, dtype)
        x, z, dy = arrays
        xb, zb, dyb = (fastnorm.to_blocked(a, 8) for a in arrays)
        zb[:, -1, ..., 3:] = dyb[:, -1, ..., 3:] = 1
        states = {"running_mean": uniform(rng, 11, dtype), "running_var": uniform(rng, 11, dtype)}
        for name, more in (
            ("instance_norm", {}), ("batch_norm", {"training": True}), ("batch_norm", states),
            ("switchable_norm", {**states, "mean_logits": np.ones(3, dtype), "training": True,
                                 "var_logits": np.zeros(3, dtype)}),
            ("instance_norm", {"cast": "before_weight"}),
        ):  # fmt: skip
            for around in ({}, {"activation": "sigmoid", "shortcut": z}):
                more = {**more, **around, "weight": weight, "bias": bias, "return_ctx": True}
                own = {**copy_running(more), **({"shortcut": zb} if around else {}), **blocked}
                y, ctx = getattr(fastnorm, name)(x, **copy_running(more))
                yb, ctxb = getattr(fastnorm, name)(xb, **own)
                assert not yb[:, -1, ..., 3:].astype(np.float32).any()
                step = float(ml_dtypes.finfo(dtype).eps)
                assert_close(fastnorm.from_blocked(yb, 11), y, 16 * step, name)
                want, found = fastnorm.backward(dy, ctx), fastnorm.backward(dyb, ctxb)
                for field, got in zip(found._fields, found, strict=True):
                    if got is not None:
                        if got.ndim == 5:
                            assert not got[:, -1, ..., 3:].astype(np.float32).any()
                            got = fastnorm.from_blocked(got, 11)
                        assert_close(got, getattr(want, field), 40 * step, field)


def differences(function, *arrays, step=1e-6):
    """Gradients of a sum by central differences, in float64."""
    grads = []
    for a in arrays:
        grad = np.empty_like(a)
        for i in np.ndindex(a.shape):
            was = a[i]
            a[i] = was + step
            above = function()
            a[i] = was - step
            grad[i] = (above - function()) / (2 * step)
            a[i] = was
        grads.append(grad)
    return grads


@pytest.mark.parametrize("name", ["batch_norm", "switchable_norm", "group_norm", "layer_norm"])
def test_finite_differences(name, rng):
    x, dy, z, gate = (rng.standard_normal((3, 4, 2)) for _ in range(4))
    full, some = rng.standard_normal((3, 4, 2)), rng.standard_normal((3, 1, 1))
    more = {
        "batch_norm": {"training": True},
        "group_norm": {"num_groups": 2},
        "switchable_norm": {"mean_logits": np.ones(3), "var_logits": np.zeros(3), "training": True},
    }.get(name, {})
    function = getattr(fastnorm, name)

    def call(**keep):
        return function(
            x, weight=full, bias=some, **more, activation="relu", shortcut=z, gate=gate,
            gate_activation="relu", **keep,
        )  # fmt: skip

    grads = fastnorm.backward(dy, call(return_ctx=True)[1])
    want = differences(lambda: (call() * dy).sum(), x, full, some, z, gate)
    for got, expected in zip(grads[:5], want, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-7)


# ---- as torch --------------------------------------------------------------------------------


def of_torch(formula, names, dy, **arrays):
    """y and gradients of a formula by torch's autograd, in float64."""
    torch = pytest.importorskip("torch")
    tensors = {n: torch.tensor(a, dtype=torch.float64, requires_grad=n in names)
               for n, a in arrays.items()}  # fmt: skip
    y = formula(torch.nn.functional, **tensors)
    y.backward(torch.tensor(dy, dtype=torch.float64))
    return y.detach().numpy(), [tensors[n].grad.numpy() for n in names]


def check_torch(found, dy, formula, **arrays):
    y, ctx = found
    want, grads = of_torch(formula, list(arrays), dy, **arrays)
    assert_close(y, want, 2e-6, "y")
    got = fastnorm.backward(dy, ctx)
    for name, expected in zip(arrays, grads, strict=True):
        own = {"scale": "weight", "shift": "bias"}.get(name, name)
        assert_close(getattr(got, own), expected, 1e-5, name)


def test_adaptive_layer_norm_of_torch(rng):
    """As in DiT: the modulation of tokens by a vector for each sample."""
    x, dy = (rng.standard_normal((4, 10, 768)).astype(np.float32) for _ in range(2))
    scale, shift = (rng.standard_normal((4, 1, 768)).astype(np.float32) for _ in range(2))

    def formula(f, x, scale, shift):
        return f.layer_norm(x, (768,), eps=1e-6) * (1 + scale) + shift

    found = fastnorm.layer_norm(x, scale, shift, eps=1e-6, weight_offset=1.0, return_ctx=True)
    check_torch(found, dy, formula, x=x, scale=scale, shift=shift)


def test_spade_of_torch(rng):
    x, dy, scale, shift = (rng.standard_normal((2, 8, 12, 10)).astype(np.float32) for _ in range(4))

    def formula(f, x, scale, shift):
        return f.instance_norm(x) * (1 + scale) + shift

    found = fastnorm.instance_norm(x, scale, shift, weight_offset=1.0, return_ctx=True)
    check_torch(found, dy, formula, x=x, scale=scale, shift=shift)


@pytest.mark.parametrize("training", [True, False])
def test_conditional_batch_norm_of_torch(training, rng):
    """As in BigGAN: batch norm whose scale and shift come from the class of each sample."""
    x, dy = (rng.standard_normal((5, 8, 20, 30)).astype(np.float32) for _ in range(2))
    scale, shift = (rng.standard_normal((5, 8)).astype(np.float32) for _ in range(2))
    mean, var = uniform(rng, 8, np.float32), uniform(rng, 8, np.float32)

    def formula(f, x, scale, shift):
        torch = pytest.importorskip("torch")
        running = [torch.tensor(a, dtype=torch.float64) for a in (mean, var)]
        x_hat = f.batch_norm(x, *running, training=training)
        return torch.relu(x_hat * (1 + scale[..., None, None]) + shift[..., None, None])

    found = fastnorm.batch_norm(
        x, scale, shift, weight_offset=1.0, training=training, running_mean=mean.copy(),
        running_var=var.copy(), activation="relu", return_ctx=True,
    )  # fmt: skip
    check_torch(found, dy, formula, x=x, scale=scale, shift=shift)


# ---- arrays that are given -------------------------------------------------------------------

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


PLACES = {
    "dense": lambda m, shape: m[: np.prod(shape)].reshape(shape),
    "behind": lambda m, shape: m[33 : 33 + np.prod(shape)].reshape(shape),
    "strided": lambda m, shape: m.reshape(*shape[:-1], 2 * shape[-1])[..., ::2],
    "reversed": lambda m, shape: m[: np.prod(shape)].reshape(shape)[::-1],
    "swapped": lambda m, shape: m[: np.prod(shape)].view(m.dtype.newbyteorder()).reshape(shape),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", CALLS)
def test_outputs_over_inputs_are_as_if_they_were_apart(name, place, rng):
    for dtype in (np.float32, np.float16):
        function, arrays, more = call_of(name, rng, dtype)
        shape = arrays["x"].shape
        want, s = function(**arrays, **more)
        del arrays["residual"]
        want_alone = function(**arrays, **more)
        for other in arrays:
            memory = np.zeros(2 * arrays["x"].size, dtype)
            a = memory[: arrays[other].size].reshape(arrays[other].shape)
            a[...] = arrays[other]
            out = PLACES[place](memory, shape)
            y = function(**{**arrays, other: a}, **more, out=out)
            assert y is out
            same(np.asarray(y, dtype), want_alone)
        function, arrays, more = call_of(name, np.random.default_rng(20240611), dtype)
    del want, s


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", CALLS)
def test_sums_over_inputs_are_as_if_they_were_apart(name, place, rng):
    for dtype in (np.float32, np.float16):
        function, arrays, more = call_of(name, rng, dtype)
        dy = arrays["x"][::-1].copy()
        y, s, ctx = function(**arrays, **more, return_ctx=True)
        want = fastnorm.backward(dy, ctx, ds=dy)
        for other in arrays:
            memory = np.zeros(2 * arrays["x"].size, dtype)
            a = memory[: arrays[other].size].reshape(arrays[other].shape)
            a[...] = arrays[other]
            sum_out = PLACES[place](memory, arrays["x"].shape)
            call = {**arrays, other: a, **more, "return_ctx": True, "sum_out": sum_out}
            got, total, ctx = function(**call, out=np.empty_like(y))
            assert total is sum_out
            same(got, y)
            same(np.asarray(total, dtype), s)
            if other in ("x", "residual"):
                for grad, expected in zip(fastnorm.backward(dy, ctx, ds=dy), want, strict=True):
                    assert grad is expected is None or same(grad, expected)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", CALLS)
def test_gradients_over_dy(name, place, rng):
    function, arrays, more = call_of(name, rng)
    dy = arrays["x"][::-1].copy()
    _, _, ctx = function(**arrays, **more, return_ctx=True)
    want = fastnorm.backward(dy, ctx, ds=dy)
    memory = np.zeros(2 * dy.size, dy.dtype)
    own = memory[: dy.size].reshape(dy.shape)
    own[...] = dy
    out = PLACES[place](memory, dy.shape)
    grads = fastnorm.backward(own, ctx, out, ds=own)
    assert grads.x is out
    for grad, expected in zip(grads, want, strict=True):
        assert grad is expected is None or same(np.asarray(grad, np.float32), expected)


@pytest.mark.parametrize("name", CALLS)
def test_gradients_over_what_is_read_are_refused(name, rng):
    function, arrays, more = call_of(name, rng)
    del arrays["residual"]
    dy = arrays["x"].copy()
    for other in arrays:
        memory = np.zeros(2 * dy.size, np.float32)
        a = memory[7 : 7 + arrays[other].size].reshape(arrays[other].shape)
        a[...] = arrays[other]
        before = memory.copy()
        _, ctx = function(**{**arrays, other: a}, **more, return_ctx=True)
        out = memory[: dy.size].reshape(dy.shape)
        with pytest.raises(ValueError, match=f"out: expected an array apart from the {other} of"):
            fastnorm.backward(dy, ctx, out)
        np.testing.assert_array_equal(memory, before)


@pytest.mark.parametrize("name", CALLS)
def test_inputs_that_are_not_dense(name, rng):
    function, arrays, more = call_of(name, rng)
    want = function(**arrays, **more, return_ctx=True)
    dy = arrays["x"][::-1].copy()
    grads = fastnorm.backward(dy, want[-1], ds=dy)
    for change in (
        lambda a: np.repeat(a, 2, -1)[..., ::2],
        lambda a: a.astype(">f4"),
        lambda a: np.asfortranarray(a),
    ):
        found = function(**{k: change(a) for k, a in arrays.items()}, **more, return_ctx=True)
        for got, expected in zip(found[:2], want[:2], strict=True):
            same(got, expected)
        own = fastnorm.backward(change(dy), found[-1], ds=change(dy))
        for got, expected in zip(own, grads, strict=True):
            assert got is expected is None or same(got, expected)


@pytest.mark.parametrize("name", CALLS)
def test_contexts(name, rng):
    """They serve again, can be copied and pickled, show statistics, and see what was changed."""
    function, arrays, more = call_of(name, rng)
    y, s, ctx = function(**arrays, **more, return_ctx=True)
    dy = arrays["x"][::-1].copy()
    want = fastnorm.backward(dy, ctx, ds=dy)
    plain = {k: v for k, v in more.items() if k == "training"}
    _, own = function(s, **plain, return_ctx=True)
    for again in (ctx, copy.copy(ctx), copy.deepcopy(ctx), pickle.loads(pickle.dumps(ctx))):
        for got, expected in zip(fastnorm.backward(dy, again, ds=dy), want, strict=True):
            assert got is expected is None or same(got, expected)
        for statistic in ("mean", "var", "rstd"):
            np.testing.assert_array_equal(getattr(again, statistic), getattr(own, statistic))
    del arrays["residual"]
    _, ctx = function(**arrays, **more, return_ctx=True)
    with pytest.raises(ValueError, match="ds: expected None, as the forward call had no residual"):
        fastnorm.backward(dy, ctx, ds=dy)
    for other in ("x", "weight", "shortcut"):
        _, ctx = function(**arrays, **more, return_ctx=True)
        was = arrays[other].shape
        arrays[other].shape = (-1,)
        with pytest.raises(ValueError, match=f"ctx: expected {other} as it was"):
            fastnorm.backward(dy, ctx)
        arrays[other].shape = was
        fastnorm.backward(dy, ctx)
    assert y.shape == dy.shape


@pytest.mark.parametrize("name", CALLS)
def test_the_same_bits_everywhere(name, rng):
    for dtype in (np.float32, ml_dtypes.bfloat16):
        function, arrays, more = call_of(name, rng, dtype)
        dy = arrays["x"][::-1].copy()
        want = None
        for _ in everywhere((1, 2)):
            y, s, ctx = function(**arrays, **more, return_ctx=True)
            found = [
                a.tobytes() for a in (y, s, *fastnorm.backward(dy, ctx, ds=s)) if a is not None
            ]
            want = want or found
            assert found == want


def test_empty():
    w = np.ones((0, 6), np.float32)
    y, ctx = fastnorm.instance_norm(np.ones((0, 6, 5), np.float32), w, w, return_ctx=True)
    grads = fastnorm.backward(y, ctx)
    assert [g.shape for g in grads] == [(0, 6, 5), (0, 6), (0, 6)]
    mean, var = np.zeros(6), np.ones(6)
    x = np.ones((2, 6, 0))
    y, ctx = fastnorm.batch_norm(
        x, np.ones((2, 6)), training=True, running_mean=mean, running_var=var, return_ctx=True
    )  # fmt: skip
    assert fastnorm.backward(y, ctx).weight.tolist() == np.zeros((2, 6)).tolist()
    assert (mean.any(), var.tolist()) == (False, [1] * 6)
    y, ctx = fastnorm.layer_norm(np.ones((2, 3, 0)), np.ones((2, 1, 0)), return_ctx=True)
    assert fastnorm.backward(y, ctx).weight.shape == (2, 1, 0)


# ---- errors ----------------------------------------------------------------------------------

X = np.random.default_rng(0).standard_normal((3, 6, 4)).astype(np.float32)
C, NC, FULL = np.ones(6, np.float32), np.ones((3, 6), np.float32), np.ones((3, 6, 4), np.float32)
ONE = X[:1, :, :1]  # one value of each channel
LN = {"weight": np.ones((3, 1, 4), np.float32)}
IN, BN = {"weight": NC}, {"weight": NC, "training": True}
STATES = {"running_mean": 0 * C, "running_var": C}
WRONG = [
    (NC[:2], r"\(2, 6\), which is not \(3, 6\) and none of 3"),
    (NC.T, r"\(6, 3\)"),
    (FULL[..., :3], r"\(3, 6, 3\)"),
    (FULL[None], r"\(1, 3, 6, 4\)"),
]
TABLE = [
    *(
        ("instance_norm", {name: a}, ValueError, rf"{name}: expected shape \(6,\), got {got}")
        for name in ("weight", "bias")
        for a, got in WRONG
    ),
    ("instance_norm", {**IN, "bias": C[:5]}, ValueError, r"bias: expected shape \(6,\), got \(5,"),
    ("instance_norm", {"weight": NC.astype(float)}, TypeError, "weight: expected dtype float32"),
    ("instance_norm", {"weight": NC.astype(int)}, TypeError, "weight: expected dtype float32"),
    ("instance_norm", {"weight": [[1], [1, 2]]}, ValueError, "weight: expected an array, got"),
    ("instance_norm", {"weight": np.ma.array(NC)}, TypeError, "weight: expected an array without"),
    ("instance_norm", {**IN, "x": X.astype(int)}, TypeError, "x: expected dtype float32"),
    ("instance_norm", {**IN, "x": C}, ValueError, "x: expected at least 2 dimensions"),
    ("instance_norm", {**IN, "layout": "NC"}, ValueError, "layout: expected one of"),
    ("instance_norm", {**IN, "layout": 3}, TypeError, "layout: expected a str, got int"),
    ("instance_norm", {**IN, "eps": -1}, ValueError, "eps: expected a finite number"),
    ("instance_norm", {**IN, "out": X[:2].copy()}, ValueError, "out: expected shape"),
    ("instance_norm", {**IN, "out": X.astype(float)}, TypeError, "out: expected dtype float32"),
    ("instance_norm", {**IN, "return_ctx": 2}, TypeError, "return_ctx: expected a bool"),
    ("instance_norm", {**IN, "use_input_stats": "no"}, TypeError, "use_input_stats: expected a b"),
    ("instance_norm", {**IN, "shortcut": X[:, :3]}, ValueError, "shortcut: expected x's shape"),
    ("instance_norm", {**IN, "gate": X.astype(float)}, TypeError, "gate: expected x's dtype float"),
    ("instance_norm", {**IN, "activation": "sine"}, ValueError, "activation: expected one of relu"),
    ("instance_norm", {**IN, "sum_out": X.copy()}, ValueError, "sum_out: expected None, as there"),
    ("instance_norm", {**IN, "gate_activation": "relu"}, ValueError, "gate_activation: expected N"),
    ("batch_norm", {"weight": NC}, ValueError, "running_mean, running_var: expected arrays"),
    ("batch_norm", {**BN, "running_mean": C}, ValueError, "running_mean, running_var: expected bo"),
    ("batch_norm", {**BN, **STATES, "running_mean": C[:5]}, ValueError, "running_mean: expected s"),
    ("batch_norm", {**BN, **STATES, "running_mean": C}, ValueError, "running_var: expected an arr"),
    ("batch_norm", {**BN, **STATES, "running_mean": NC[0]}, ValueError, "running_mean: expected a"),
    ("batch_norm", {**BN, **STATES, "momentum": 2}, ValueError, "momentum: expected"),
    ("batch_norm", {**BN, "ddof": 2}, ValueError, "ddof: expected 0 or 1"),
    ("batch_norm", {**BN, **STATES, "x": ONE, "weight": NC[:1], "residual": ONE, "out": None},
     ValueError, "x: expected more than one value"),
    ("group_norm", {**IN, "num_groups": 4}, ValueError, "num_groups: expected a positive divisor"),
    ("layer_norm", IN, ValueError, r"weight: expected shape \(4,\), got \(3, 6\), which is none"),
    ("layer_norm", {"weight": FULL[..., :3]}, ValueError, r"weight: expected shape \(4,\), got \("),
    ("layer_norm", {**LN, "axis": 3}, ValueError, "axis: expected axes in"),
    ("layer_norm", {**LN, "axis": "a"}, TypeError, "axis: expected an int"),
    ("layer_norm", {**LN, "eps": None}, TypeError, "eps: expected a number"),
]  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[3]:.30}")
def test_errors_name_the_argument_and_come_first(row):
    name, changes, error, message = row
    out = None if np.ndim(changes.get("x", X)) == 1 else np.full(X.shape, 7, np.float32)
    call = {"x": X, "out": out, **changes}
    if "residual" in call:
        call["sum_out"] = np.full(call["x"].shape, 7, np.float32)
    with pytest.raises(error, match="^" + message):
        getattr(fastnorm, name)(**call)
    for written in ("out", "sum_out"):
        if call.get(written) is not None and message[: len(written)] != written:
            assert (call[written] == 7).all()
    assert (C == 1).all()


def test_errors_of_backward(rng):
    for name in CALLS:
        function, arrays, more = call_of(name, rng)
        y, _, ctx = function(**arrays, **more, return_ctx=True)
        with pytest.raises(ValueError, match="dy: expected x's shape"):
            fastnorm.backward(y[:1], ctx)
        with pytest.raises(TypeError, match="dy: expected x's dtype float32"):
            fastnorm.backward(y.astype(float), ctx)
        with pytest.raises(ValueError, match="ds: expected x's shape"):
            fastnorm.backward(y, ctx, ds=y[:1])
        with pytest.raises(ValueError, match="out: expected shape"):
            fastnorm.backward(y, ctx, np.empty((1, 2), np.float32))
        with pytest.raises(TypeError, match="out: expected an ndarray"):
            fastnorm.backward(y, ctx, [])


def test_out_over_x_or_running_statistics(rng):
    for name in CALLS:
        function, arrays, more = call_of(name, rng)
        del arrays["residual"]
        x = arrays["x"].copy()
        with pytest.raises(ValueError, match="out: expected an array apart from x when return_ctx"):
            function(**arrays, **more, out=arrays["x"], return_ctx=True)
        same(arrays["x"], x)
    out = np.zeros(x.shape, np.float32)
    states = {"running_mean": out.reshape(-1)[:6], "running_var": np.ones(6, np.float32)}
    for training in (True, False):
        with pytest.raises(ValueError, match="out: expected an array apart from running_mean"):
            fastnorm.batch_norm(x, arrays["weight"], training=training, out=out, **states)
    assert not out.any()
