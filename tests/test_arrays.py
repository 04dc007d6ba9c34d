"""The zoo of arrays: whatever NumPy can hold is accepted, and gives what a plain copy gives."""

import numpy as np
import pytest
from cases import NORMS, is_last, make_input, run

import fastnorm

BY_ID = {norm.id: norm for norm in NORMS}
SOME = [BY_ID[i] for i in ("bn-train", "gn-3", "sn-train", "ln", "ln-channel", "rms")]


def strided(x):
    wide = np.zeros((*x.shape[:-1], x.shape[-1] * 2), x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def negative(x):
    return np.flip(np.ascontiguousarray(np.flip(x)))


def transposed(x):
    return np.ascontiguousarray(x.T).T


def unaligned(x):
    raw = np.zeros(x.nbytes + 1, np.uint8)
    view = raw[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    assert not view.flags.aligned
    return view


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


ZOO = {
    "strided": strided,
    "negative": negative,
    "transposed": transposed,
    "fortran": np.asfortranarray,
    "unaligned": unaligned,
    "read-only": read_only,
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "list": lambda x: x.tolist(),
    "subclass": lambda x: x.view(type("Sub", (np.ndarray,), {})),
}


def equal(got, want):
    for g, w in zip(got, want, strict=True):
        assert (g is None) == (w is None)
        if g is not None:
            assert g.dtype == w.dtype
            assert g.dtype.isnative
            np.testing.assert_array_equal(g, w)


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.parametrize("norm", SOME, ids=lambda n: n.id)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_inputs(norm, kind, layout, rng):
    if not norm.channels:
        layout = "NCHW"
    dtype = np.float64 if kind == "list" else np.float32
    x = make_input(rng, (3, 6, 5, 4), layout, dtype)
    dy = rng.standard_normal(x.shape).astype(dtype)
    args, kwargs = norm.arguments(rng, x, layout)
    y, grads, own = run(norm, x, args, kwargs, dy)
    zoo = ZOO[kind]
    zoo_args = [zoo(a) if isinstance(a, np.ndarray) and a.ndim == 1 else a for a in args]
    zoo_args = args if kind == "subclass" else zoo_args
    y2, grads2, own2 = run(norm, zoo(x), zoo_args, kwargs, zoo(dy))
    equal([y2, *grads2], [y, *grads])
    equal([own2[k] for k in own2 if k.startswith("running")],
          [own[k] for k in own if k.startswith("running")])  # fmt: skip


@pytest.mark.parametrize("kind", ["strided", "negative", "transposed", "fortran", "unaligned",
                                  "byte-swapped"])  # fmt: skip
@pytest.mark.parametrize("norm", SOME, ids=lambda n: n.id)
def test_outputs(norm, kind, rng):
    x = make_input(rng, (3, 6, 5, 4), "NCHW", np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    args, kwargs = norm.arguments(rng, x, "NCHW")
    y, grads, _ = run(norm, x, args, kwargs, dy)
    out, dx = ZOO[kind](np.zeros_like(x)), ZOO[kind](np.zeros_like(x))
    function = getattr(fastnorm, norm.name)
    running = {k: v.copy() if k.startswith("running") else v for k, v in kwargs.items()}
    got, ctx = function(x, *args, **running, out=out, return_ctx=True)
    assert got is out
    np.testing.assert_array_equal(out, y)
    assert fastnorm.backward(dy, ctx, out=dx).x is dx
    np.testing.assert_array_equal(dx, grads.x)


@pytest.mark.parametrize("norm", NORMS, ids=lambda n: n.id)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("shape", [(3, 6, 5, 4), (8, 24, 50, 40)])
def test_in_place(norm, layout, shape, rng):
    if not norm.channels:
        layout = "NCHW"
    x = make_input(rng, shape, layout, np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    args, kwargs = norm.arguments(rng, x, layout)
    y, grads, _ = run(norm, x, args, kwargs, dy)
    own = x.copy()
    result, _, _ = run(norm, own, args, kwargs, out=own)
    assert result is own
    np.testing.assert_array_equal(own, y)
    _, ctx = getattr(fastnorm, norm.name)(
        x, *args, return_ctx=True,
        **{k: v.copy() if k.startswith("running") else v for k, v in kwargs.items()},
    )  # fmt: skip
    own = dy.copy()
    fastnorm.backward(own, ctx, out=own)
    np.testing.assert_array_equal(own, grads.x)


@pytest.mark.parametrize("norm", SOME, ids=lambda n: n.id)
@pytest.mark.parametrize("shift", [1, -1])
def test_partial_overlap_is_as_through_a_temporary(norm, shift, rng):
    memory = rng.standard_normal((5, 6, 5, 4)).astype(np.float32)
    first, second = (slice(0, 4), slice(1, 5)) if shift > 0 else (slice(1, 5), slice(0, 4))
    x = memory[first].copy()
    args, kwargs = norm.arguments(rng, x, "NCHW")
    want, _, _ = run(norm, x, args, kwargs)
    got, _, _ = run(norm, memory[first], args, kwargs, out=memory[second])
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(memory[second], want)


def test_out_over_interleaved_memory(rng):
    memory = rng.standard_normal((4, 20)).astype(np.float32)
    want = fastnorm.layer_norm(memory[:, ::2].copy())
    got = fastnorm.layer_norm(memory[:, ::2], out=memory[:, 1::2])
    np.testing.assert_array_equal(got, want)


def test_out_over_a_parameter(rng):
    x = rng.standard_normal((4, 8)).astype(np.float32)
    weight, bias = x[1].copy(), x[2].copy()
    want = fastnorm.layer_norm(x, weight, bias)
    np.testing.assert_array_equal(fastnorm.layer_norm(x, x[1], x[2], out=x), want)


@pytest.mark.parametrize("norm", NORMS, ids=lambda n: n.id)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("shape", [(0, 6, 5, 4), (3, 6, 0, 4), (3, 6, 5, 0), (0, 6, 0, 0)])
def test_empty(norm, layout, shape, rng):
    if not norm.channels:
        layout = "NCHW"
    x = np.zeros(shape, np.float32)
    x = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if is_last(layout) else x
    args, kwargs = norm.arguments(rng, x, layout)
    y, grads, own = run(norm, x, args, kwargs, x)
    assert y.shape == grads.x.shape == x.shape
    for gradient in grads[1:]:
        if gradient is not None:
            np.testing.assert_array_equal(gradient, np.zeros_like(gradient))
    for name in ("running_mean", "running_var"):
        if name in own:
            np.testing.assert_array_equal(own[name], kwargs[name])


@pytest.mark.parametrize("norm", [n for n in NORMS if n.channels], ids=lambda n: n.id)
@pytest.mark.parametrize("layout", ["NCL", "NLC"])
def test_no_channels(norm, layout, rng):
    x = np.zeros((3, 0, 4) if layout == "NCL" else (3, 4, 0), np.float32)
    args, kwargs = norm.arguments(rng, x, layout)
    y, grads, _ = run(norm, x, args, kwargs, x)
    assert y.shape == grads.x.shape == x.shape


def test_inputs_are_left_alone(rng):
    x = rng.standard_normal((3, 6, 5, 4)).astype(np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    for norm in NORMS:
        args, kwargs = norm.arguments(rng, x, "NCHW")
        before = [a.copy() for a in (x, dy, *args) if isinstance(a, np.ndarray)]
        run(norm, x, args, kwargs, dy)
        after = [a for a in (x, dy, *args) if isinstance(a, np.ndarray)]
        equal(after, before)


def test_a_context_serves_twice(rng):
    x = rng.standard_normal((3, 6, 5, 4)).astype(np.float32)
    _, ctx = fastnorm.group_norm(x, 2, np.ones(6, np.float32), return_ctx=True)
    first, second = fastnorm.backward(x, ctx), fastnorm.backward(x, ctx)
    equal(first, second)
    assert "(3, 6, 5, 4)" in repr(ctx)
