"""Weights and biases that differ between samples or positions: adaptive instance norm, conditional
batch norm, SPADE, AdaLN."""

import copy

import ml_dtypes
import numpy as np
import pytest
from affine_cases import AXIS_KINDS, CHANNEL_KINDS, HALVES, LARGE, NORMS, SMALL, Case, same
from cases import (
    assert_close,
    copy_running,
    make_input,
    uniform,
)

import fastnorm


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
