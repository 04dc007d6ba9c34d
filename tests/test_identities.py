"""What normalizers have in common, as equations between them (DESIGN: one formula)."""

import numpy as np
import pytest
from cases import NORMS, assert_close, copy_running, is_last, make_input, run, uniform

import fastnorm

LAYOUTS = ["NCHW", "NHWC"]


@pytest.fixture
def data(rng):
    def make(layout, shape=(5, 6, 9, 8)):
        x = make_input(rng, shape, layout, np.float32)
        weight, bias = (uniform(rng, (6,), np.float32) for _ in range(2))
        running = {
            "running_mean": uniform(rng, (6,), np.float32),
            "running_var": uniform(rng, (6,), np.float32),
        }
        return x, weight, bias, running, rng.standard_normal(x.shape).astype(np.float32)

    return make


def both(function, x, dy, *args, **kwargs):
    y, ctx = function(x, *args, **copy_running(kwargs), return_ctx=True)
    return y, fastnorm.backward(dy, ctx)


def assert_same(a, b):
    """Forward and gradients agree to the tolerance of the design."""
    assert_close(a[0], b[0], 4e-6, "y")
    for name, got, want in zip(a[1]._fields, a[1][:3], b[1][:3], strict=False):
        assert_close(got, want, 2e-5, name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_group_norm_of_one_group_is_layer_norm_over_channels_and_space(layout, data):
    x, _, _, _, dy = data(layout)
    got, want = (
        both(fastnorm.group_norm, x, dy, 1, layout=layout),
        both(fastnorm.layer_norm, x, dy, axis=(1, 2, 3)),
    )
    assert_close(got[0], want[0], 4e-6, "y")
    assert_close(got[1].x, want[1].x, 2e-5, "dx")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_group_norm_of_all_channels_is_instance_norm(layout, data):
    x, weight, bias, _, dy = data(layout)
    assert_same(
        both(fastnorm.group_norm, x, dy, 6, weight, bias, layout=layout),
        both(fastnorm.instance_norm, x, dy, weight, bias, layout=layout),
    )


# x, by what it is made of: kernels take it, or are to leave it to doubles (csrc/core/careful.c)
ROWS = {
    "ordinary": lambda x: x,
    "huge": lambda x: x * 1e37,
    "tiny": lambda x: x * 1e-36,
    "with constant groups": lambda x: np.where(np.arange(len(x))[:, None] % 3, x, 2),
    "with NaN": lambda x: np.where(np.arange(x.size).reshape(x.shape) % 97, x, np.nan),
}


@pytest.mark.parametrize("values", ROWS)
@pytest.mark.parametrize("groups", [1, 3, 16])
@pytest.mark.parametrize("given", ["both", "weight", "bias", "none"])
def test_group_norm_of_vectors_is_layer_norm_of_their_groups(given, groups, values, rng):
    x = ROWS[values](rng.standard_normal((70, 96))).astype(np.float32)
    dy = np.ones_like(x) if values == "with constant groups" else uniform(rng, x.shape, np.float32)
    weight = uniform(rng, (96,), np.float32) if given in ("both", "weight") else None
    bias = uniform(rng, (96,), np.float32) if given in ("both", "bias") else None
    if weight is not None:
        weight[:48] = 1.25  # where x and dy are constant too, dx is 0
    y, grads = both(fastnorm.group_norm, x, dy, groups, weight, bias)
    for i in range(groups):
        own = slice(96 // groups * i, 96 // groups * (i + 1))
        parameters = [None if p is None else p[own] for p in (weight, bias)]
        want_y, want = both(fastnorm.layer_norm, x[:, own].copy(), dy[:, own].copy(), *parameters)
        np.testing.assert_array_equal(y[:, own], want_y)
        np.testing.assert_array_equal(grads.x[:, own], want.x)
        for name, got, wanted in zip(("dweight", "dbias"), grads[1:3], want[1:3], strict=True):
            if wanted is not None:
                np.testing.assert_allclose(
                    got[own], wanted, 2e-5, 1e-4, equal_nan=True, err_msg=name
                )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_renorm_without_corrections_is_batch_norm(layout, data):
    x, weight, bias, running, dy = data(layout)
    common = {"training": True, "layout": layout, **running}
    assert_same(
        both(fastnorm.batch_renorm, x, dy, weight, bias, r_max=1.0, d_max=0.0, **common),
        both(fastnorm.batch_norm, x, dy, weight, bias, **common),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unclipped_batch_renorm_is_inference_with_the_old_statistics(layout, data):
    x, weight, bias, running, _ = data(layout)
    got = fastnorm.batch_renorm(
        x, weight, bias, training=True, r_max=1e6, d_max=1e6, layout=layout,
        **copy_running(running),
    )  # fmt: skip
    want = fastnorm.batch_norm(x, weight, bias, layout=layout, **running)
    assert_close(got, want, 4e-6, "y")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("component", ["instance", "layer", "batch"])
def test_switchable_norm_with_one_component(component, layout, data):
    x, weight, bias, running, dy = data(layout)
    logits = np.full(3, -200, np.float32)
    logits[["instance", "layer", "batch"].index(component)] = 0
    got = both(
        fastnorm.switchable_norm, x, dy, weight, bias, logits, logits, training=True, layout=layout,
        **running,
    )  # fmt: skip
    if component == "instance":
        want = both(fastnorm.instance_norm, x, dy, weight, bias, layout=layout)
    elif component == "layer":
        want = both(fastnorm.group_norm, x, dy, 1, weight, bias, layout=layout)
    else:
        want = both(fastnorm.batch_norm, x, dy, weight, bias, training=True, layout=layout)
    assert_same(got, want)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_switchable_norm_in_inference_with_only_batch_statistics(layout, data):
    x, weight, bias, running, dy = data(layout)
    logits = np.float32([-200, -200, 0])
    assert_same(
        both(
            fastnorm.switchable_norm, x, dy, weight, bias, logits, logits, layout=layout, **running
        ),
        both(fastnorm.batch_norm, x, dy, weight, bias, layout=layout, **running),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_instance_renorm_without_blend_is_instance_norm(layout, data):
    x, weight, bias, running, dy = data(layout)
    assert_same(
        both(fastnorm.instance_renorm, x, dy, weight, bias, blend=0.0, layout=layout, **running),
        both(fastnorm.instance_norm, x, dy, weight, bias, layout=layout),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unclipped_instance_renorm_is_batch_norm_in_inference(layout, data):
    x, weight, bias, running, _ = data(layout)
    got = fastnorm.instance_renorm(
        x, weight, bias, r_max=1e6, d_max=1e6, layout=layout, **copy_running(running)
    )
    assert_close(got, fastnorm.batch_norm(x, weight, bias, layout=layout, **running), 4e-6, "y")


@pytest.mark.parametrize("norm", [n for n in NORMS if n.channels], ids=lambda n: n.id)
@pytest.mark.parametrize("shape", [(5, 6, 9, 8), (2, 33, 40, 40)])
def test_layouts_agree(norm, shape, rng):
    x = make_input(rng, shape, "NCHW", np.float32)
    dy = rng.standard_normal(shape).astype(np.float32)
    args, kwargs = norm.arguments(rng, x, "NCHW")
    moved = [np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dy)]
    y, grads, own = run(norm, x, args, kwargs, dy)
    y2, grads2, own2 = run(norm, moved[0], args, {**kwargs, "layout": "NHWC"}, moved[1])
    assert is_last("NHWC")
    assert_close(np.moveaxis(y2, -1, 1), y, 4e-6, "y")
    assert_close(np.moveaxis(grads2.x, -1, 1), grads.x, 2e-5, "dx")
    for got, want in zip(grads2[1:], grads[1:], strict=True):
        assert_close(got, want, 2e-5, "gradient of a parameter")
    for name in ("running_mean", "running_var"):
        if name in own:
            assert_close(own2[name], own[name], 2e-6, name)


def test_batch_of_one_works_where_its_mathematics_does(rng):
    x = make_input(rng, (1, 6, 9, 8), "NCHW", np.float32)
    for norm in NORMS:
        args, kwargs = norm.arguments(rng, x, "NCHW")
        y, grads, _ = run(norm, x, args, kwargs, x)
        assert np.isfinite(y).all(), norm.id
        assert np.isfinite(grads.x).all(), norm.id
