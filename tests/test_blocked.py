"""Layouts in blocks of channels: the NCHW result, padding that is zero, the same bits."""

import numpy as np
import pytest
from cases import NORMS, TOLERANCE, assert_close, check_bits, make_input, run, run_reference

import fastnorm
from fastnorm import from_blocked, to_blocked

CHANNEL_NORMS = [norm for norm in NORMS if norm.channels]
# full blocks and padded ones, groups across blocks, long and short planes, one sample, one pixel,
# so many samples that short planes are cut into chunks
SHAPES = [
    (4, 32, 7, 7), (3, 6, 9, 11), (2, 51, 40, 40), (1, 21, 130, 150), (40, 18, 1, 1),
    (85, 18, 7, 5),
]  # fmt: skip


def names(block, rank):
    return {3: f"NCL{block}c", 4: f"NCHW{block}c", 5: f"NCDHW{block}c"}[rank]


def problem(norm, shape, dtype, rng):
    if shape[1] % norm.kwargs.get("num_groups", 1):
        shape = (shape[0], shape[1] // 3 * 3, *shape[2:])
    if norm.spatial and shape[2:] == (1, 1):
        shape = (*shape[:2], 2, 1)
    x = make_input(rng, shape, "NCHW", dtype)
    args, kwargs = norm.arguments(rng, x, "NCHW")
    return x, rng.standard_normal(shape).astype(dtype), args, kwargs


def junk_padding(blocked, channels):
    """Numbers where no channel is."""
    if channels % blocked.shape[-1]:
        blocked[:, -1, ..., channels % blocked.shape[-1] :] = -7
    return blocked


def padding(blocked, channels):
    rest = channels % blocked.shape[-1]
    return blocked[:, -1, ..., rest:] if rest else blocked[..., :0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm", CHANNEL_NORMS, ids=lambda norm: norm.id)
def test_against_the_oracle(norm, shape, dtype, rng):
    x, dy, args, kwargs = problem(norm, shape, dtype, rng)
    c = x.shape[1]
    want, want_grads, want_own = run_reference(norm, x, args, kwargs, dy)
    y_tol, stat_tol, grad_tol = TOLERANCE[x.dtype]
    for block in (8, 16):
        blocked_x, blocked_dy = (junk_padding(to_blocked(a, block), c) for a in (x, dy))
        blocked_kwargs = {**kwargs, "layout": names(block, x.ndim)}
        check_bits(norm, blocked_x, args, blocked_kwargs, blocked_dy)
        y, grads, own = run(norm, blocked_x, args, blocked_kwargs, blocked_dy)
        assert_close(from_blocked(y, c), want, y_tol, "y")
        assert_close(from_blocked(grads.x, c), want_grads.x, grad_tol, "dx")
        for name, got, expected in list(zip(grads._fields, grads, want_grads, strict=True))[1:]:
            assert_close(got, expected, grad_tol, name)
        for name in ("running_mean", "running_var"):
            if name in own:
                assert_close(own[name], want_own[name], stat_tol, name)
        assert not padding(y, c).any()
        assert not padding(grads.x, c).any()


@pytest.mark.parametrize("shape", [(6, 51, 40, 40), (40, 96, 7, 7), (1, 3, 300, 300)], ids=str)
@pytest.mark.parametrize("norm", CHANNEL_NORMS, ids=lambda norm: norm.id)
def test_same_bits_in_float16(norm, shape, rng):
    x, dy, args, kwargs = problem(norm, shape, np.float32, rng)
    x, dy = (to_blocked(a.astype(np.float16)) for a in (x, dy))
    check_bits(norm, x, args, {**kwargs, "layout": "NCHW16c"}, dy)


@pytest.mark.parametrize("channels", [1, 5, 20])
@pytest.mark.parametrize("groups", ["one", "all"])
def test_groups_and_padding(channels, groups, threads, isa, rng):
    """With a group for each channel domains are planes, but the padding's."""
    num_groups = 1 if groups == "one" else channels
    x = rng.standard_normal((3, channels, 12, 11)).astype(np.float32)
    weight, bias = rng.standard_normal((2, channels)).astype(np.float32)
    want, want_ctx = fastnorm.group_norm(x, num_groups, weight, bias, return_ctx=True)
    y, ctx = fastnorm.group_norm(
        to_blocked(x), num_groups, weight, bias, layout="NCHW16c", return_ctx=True
    )
    assert_close(from_blocked(y, channels), want, 2e-6, "y")
    grads, want_grads = fastnorm.backward(to_blocked(x), ctx), fastnorm.backward(x, want_ctx)
    assert np.abs(from_blocked(grads.x, channels) - want_grads.x).max() < 1e-5
    assert_close(grads.weight, want_grads.weight, 1e-5, "dweight")


def test_means_whose_squares_overflow():
    x = np.full((3, 8, 2, 2), 1e200)
    y = fastnorm.batch_norm(to_blocked(x, 8), training=True, layout="NCHW8c")
    np.testing.assert_array_equal(y, 0)


@pytest.mark.parametrize("size", [1e200, 1e300, 1e-300])
@pytest.mark.parametrize("block", [8, 16])
def test_groups_of_one_channel_of_any_size(block, size, rng):
    """Domains lie behind one another, while the planes of a sample end with padding."""
    x, dy = (rng.standard_normal((3, 9, 7, 5)) for _ in range(2))
    want, ctx = fastnorm.group_norm(x, 9, eps=0, return_ctx=True)
    want_dx = fastnorm.backward(dy, ctx).x
    blocked_x, blocked_dy = (to_blocked(a, block) for a in (x * size, dy))
    y, ctx = fastnorm.group_norm(
        blocked_x, 9, bias=np.zeros(9), eps=0, layout=names(block, 4), return_ctx=True
    )
    dx = fastnorm.backward(blocked_dy, ctx).x
    assert_close(from_blocked(y, 9), want, 1e-12, "y")
    if size > 1:  # small ones give gradients that no double holds
        assert_close(from_blocked(dx, 9) * size, want_dx, 1e-12, "dx")


@pytest.mark.parametrize("block", [8, 16])
def test_groups_of_one_channel_that_are_constant(block):
    x = to_blocked(np.full((3, 9, 7, 5), 3.3, np.float32), block)
    dy = to_blocked(np.full((3, 9, 7, 5), 0.7, np.float32), block)
    weight = np.full(9, 1.7, np.float32)
    y, ctx = fastnorm.group_norm(x, 9, weight, layout=names(block, 4), return_ctx=True)
    assert not y.any()
    assert not fastnorm.backward(dy, ctx).x.any()


@pytest.mark.parametrize("rank", [3, 4, 5])
def test_ranks(rank, rng):
    x = rng.standard_normal((2, 20, 3, 4, 5)[:rank])
    want = fastnorm.instance_norm(x, np.ones(20), layout="channels_first")
    got = fastnorm.instance_norm(to_blocked(x, 8), np.ones(20), layout=names(8, rank))
    assert_close(from_blocked(got, 20), want, 1e-13, "y")


def test_conversion_there_and_back(rng):
    for channels in (1, 8, 15, 16, 17, 40):
        for block in (8, 16):
            x = rng.standard_normal((3, channels, 4, 5))
            blocked = to_blocked(x, block)
            assert blocked.shape == (3, -(-channels // block), 4, 5, block)
            assert not padding(blocked, channels).any()
            assert np.array_equal(from_blocked(blocked, channels), x)
            c = channels - 1  # one channel of one pixel, by hand
            assert blocked[2, c // block, 1, 3, c % block] == x[2, c, 1, 3]


def test_layers(rng):
    x = rng.standard_normal((4, 20, 5, 5)).astype(np.float32)
    layers = [
        lambda layout: fastnorm.BatchNorm(20, layout=layout),
        lambda layout: fastnorm.GroupNorm(4, 20, layout=layout),
        lambda layout: fastnorm.GroupNorm(4, 20, affine=False, layout=layout),
        lambda layout: fastnorm.InstanceNorm(20, layout=layout),
    ]
    for make in layers:
        first, blocked = make("NCHW"), make("NCHW16c")
        assert_close(from_blocked(blocked(to_blocked(x)), 20), first(x), 1e-6, "y")
        dx = from_blocked(blocked.backward(to_blocked(x)), 20)
        assert np.abs(dx - first.backward(x)).max() < 1e-5


def test_errors():
    x = np.zeros((2, 2, 5, 5, 16), np.float32)
    for call, match in [
        (lambda: fastnorm.instance_norm(x, np.ones(10, np.float32), layout="NCHW16c"),
         r"weight: expected 17 to 32 channels for x of shape \(2, 2, 5, 5, 16\), got 10"),
        (lambda: fastnorm.instance_norm(x, layout="NCHW8c"),
         "x: expected blocks of 8 channels along the last axis"),
        (lambda: fastnorm.instance_norm(x[0], layout="NCHW16c"),
         "layout: expected one of .*NCL16c.* for 4 dimensions, got 'NCHW16c'"),
        (lambda: to_blocked(x, 4), "block: expected 8 or 16, got 4"),
        (lambda: to_blocked(np.zeros(3)), "x: expected at least 2 dimensions"),
        (lambda: from_blocked(x, 16), "channels: expected 17 to 32"),
        (lambda: from_blocked(np.zeros((2, 3)), 16), "x: expected at least 3 dimensions"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            call()
