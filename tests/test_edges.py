"""Domains of one value, arrays without elements however large their shape, default arguments."""

import ml_dtypes
import numpy as np
import pytest
from cases import assert_close

import fastnorm
from fastnorm import reference

LOGITS = np.array([0.3, -0.2, 1.0])


def running(c):
    return {"running_mean": np.linspace(-1, 1, c), "running_var": np.linspace(0.5, 2, c)}


# name, arguments after weight and bias, keywords; whether y is the bias
ONE_VALUE = {
    "group_norm": ((), {}, True),
    "instance_norm": ((), {}, True),
    "batch_norm": ((), {"training": True}, True),
    "switchable_norm": ((LOGITS, LOGITS), {"training": True}, False),
    "switchable_norm-eval": ((LOGITS, LOGITS), {"running": True}, False),
    "instance_renorm": ((), {"running": True}, False),
    "instance_renorm-train": ((), {"running": True, "training": True}, False),
    "layer_norm": ((), {"axis": 1}, True),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("layout", ["NCL", "NLC", "NC"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 5), (40, 3)])
@pytest.mark.parametrize("case", ONE_VALUE)
def test_one_value(case, shape, layout, dtype):
    """In batch norm of one sample, in instance norm of one element, in groups of one channel."""
    rest, kwargs, is_bias = ONE_VALUE[case]
    name = case.partition("-")[0]
    rng = np.random.default_rng(0)
    n, c = (1 if name == "batch_norm" else shape[0]), shape[1]
    if name == "layer_norm":
        n, c = n * c, 1
    x = rng.standard_normal({"NCL": (n, c, 1), "NLC": (n, 1, c), "NC": (n, c)}[layout])
    x, dy = x.astype(dtype), rng.standard_normal(x.shape).astype(dtype)
    weight, bias = rng.standard_normal((2, c)).astype(dtype)
    rest = [a.astype(dtype) for a in rest]
    if name == "layer_norm":
        x, dy = x.reshape(n, 1), dy.reshape(n, 1)
    else:
        kwargs = {**kwargs, "layout": layout}
    args = (c, weight, bias) if name == "group_norm" else (weight, bias, *rest)
    if kwargs.pop("running", False):
        kwargs |= running(c)
    own = {k: v.astype(dtype) if k.startswith("running") else v for k, v in kwargs.items()}
    if case == "instance_renorm-train" and n == 1:
        with pytest.raises(ValueError, match=r"x: expected more than one value"):
            fastnorm.instance_renorm(x, *args, **own)
        return
    y, ctx = getattr(fastnorm, name)(x, *args, **own, return_ctx=True)
    grads = fastnorm.backward(dy, ctx)
    want, cache = getattr(reference, name)(x, *args, **kwargs)
    tolerance = 1e-12 if dtype is np.float64 else 1e-5
    assert_close(y, want, tolerance, "y")
    if is_bias:
        np.testing.assert_array_equal(y, np.broadcast_to(bias if layout != "NCL" else
                                                         bias[:, None], y.shape))  # fmt: skip
    # what is 0 is a difference of numbers of about dy / sqrt(eps)
    for got, expected in zip(grads, reference.backward(dy, cache), strict=True):
        np.testing.assert_allclose(got, expected, atol=100 * tolerance, rtol=tolerance)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("block", [8, 16])
def test_one_value_in_blocks(block, ddof):
    x = fastnorm.to_blocked(np.arange(10.0).reshape(1, 10, 1), block)
    bias = np.arange(10.0)
    for name, kwargs in [
        ("batch_norm", {"training": True, "ddof": ddof}),
        ("instance_norm", {"ddof": ddof}),
        ("group_norm", {"num_groups": 10}),
    ]:
        y = getattr(fastnorm, name)(x, bias=bias, layout=f"NCL{block}c", **kwargs)
        np.testing.assert_array_equal(fastnorm.from_blocked(y, 10)[0, :, 0], bias)


# ---- empty arrays ----------------------------------------------------------------------------

SHAPES = [
    (0, 2**60),
    (2**60, 0),
    (0, 2**40, 2**19),
    (0, 2**60, 1),
    (2**30, 0, 2**30),
    (0, 1, 2**60),
]
HUGE = {
    "batch_norm": {"training": True},
    "instance_norm": {},
    "switchable_norm": {
        "weight": None, "bias": None, "mean_logits": LOGITS.astype("f2"),
        "var_logits": LOGITS.astype("f2"), "training": True,
    },
    "group_norm": {"num_groups": 1},
    "layer_norm": {"axis": 1},
    "rms_norm": {"axis": -1},
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", HUGE)
def test_empty_of_any_size(name, shape):
    x = np.empty(shape, np.float16)
    layouts = ["channels_first", "channels_last"] if name not in ("layer_norm", "rms_norm") else [0]
    for layout in layouts:
        kwargs = {**HUGE[name], **({"layout": layout} if layout else {})}
        for out in (None, np.empty(shape, np.float16)):
            y, ctx = getattr(fastnorm, name)(x, **kwargs, out=out, return_ctx=True)
            assert y.shape == fastnorm.backward(x, ctx, out).x.shape == shape
            assert getattr(fastnorm, name)(x, **kwargs, out=out).shape == shape


@pytest.mark.parametrize("shape", [(0, 2**52, 1, 16), (0, 2**26, 2**26, 16), (2**52, 0, 1, 16)])
def test_empty_blocks_of_any_size(shape):
    x = np.empty(shape, np.float32)
    for name, kwargs in [("batch_norm", {"training": True}), ("instance_norm", {})]:
        y, ctx = getattr(fastnorm, name)(x, layout="NCL16c", return_ctx=True, **kwargs)
        assert y.shape == fastnorm.backward(x, ctx).x.shape == shape


@pytest.mark.parametrize("shape", [(0, 2**60), (2**60, 0)])
def test_weight_norm_of_empty(shape):
    v = np.empty(shape, np.float32)
    w, ctx = fastnorm.weight_norm(v, np.float32(1), axis=None, return_ctx=True)
    assert fastnorm.backward(w, ctx).x.shape == shape
    assert not fastnorm.backward(w, ctx).g.any()


def test_statistics_that_memory_does_not_hold():
    _, ctx = fastnorm.batch_norm(np.empty((0, 2**60), "f4"), training=True, return_ctx=True)
    for name in ("mean", "var", "rstd"):
        with pytest.raises((MemoryError, ValueError)):
            getattr(ctx, name)


# ---- defaults --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "eps"),
    [
        (np.float64, 2.0**-52),
        (np.float32, 2.0**-23),
        (np.float16, 2.0**-23),
        (ml_dtypes.bfloat16, 2.0**-23),
    ],
)
def test_eps_of_rms_norm(dtype, eps):
    """The machine epsilon of what is computed in, as in torch."""
    x = (np.random.default_rng(0).standard_normal((4, 8)) * np.sqrt(eps)).astype(dtype)
    want = fastnorm.rms_norm(x, eps=eps)
    np.testing.assert_array_equal(fastnorm.rms_norm(x), want)
    np.testing.assert_array_equal(fastnorm.rms_norm(x, eps=None), want)
    assert (want != fastnorm.rms_norm(x, eps=1e-6)).any()
    y, _ = reference.rms_norm(x)
    assert_close(want, y, 1e-5 if np.dtype(dtype).itemsize > 2 else 1e-2, "y")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_eps_of_rms_norm_is_that_of_torch(dtype):
    torch = pytest.importorskip("torch")
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)) * 1e-4
    x = x.to(getattr(torch, dtype))
    want = torch.nn.functional.rms_norm(x, (8,)).double().numpy()
    got = fastnorm.rms_norm(x.float().numpy().astype(getattr(ml_dtypes, dtype, dtype)))
    assert_close(got, want, 1e-6 if x.element_size() > 2 else 1e-2, "y")


def test_groups_of_one_value_are_those_of_torch():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, 6, 1, 1)).astype(np.float32)
    weight, bias = np.random.default_rng(1).standard_normal((2, 6)).astype(np.float32)
    want = torch.nn.functional.group_norm(*map(torch.from_numpy, [x]), 6).numpy()
    np.testing.assert_array_equal(fastnorm.group_norm(x, 6), want)
    tensors = [torch.from_numpy(a) for a in (weight, bias)]
    want = torch.nn.functional.group_norm(torch.from_numpy(x), 6, *tensors).numpy()
    np.testing.assert_allclose(fastnorm.group_norm(x, 6, weight, bias), want, atol=1e-4)


# 32768 elements are a chunk (CHUNK_ELEMS in csrc/core/plan.c): what has one more, or one less, is
# summed otherwise
@pytest.mark.parametrize("count", [32766, 32768, 32770, 65536])
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "instance_norm", "group_norm"])
def test_several_domains_of_about_a_chunk(name, count, rng):
    x, dy = (rng.standard_normal((16, 2, count)).astype(np.float32) for _ in "xy")
    x += np.arange(32, dtype=np.float32).reshape(16, 2, 1)  # several domains in a unit
    shape = (16, 4, count // 2) if name == "group_norm" else x.shape
    args = (2,) if name == "group_norm" else ()
    function = getattr(fastnorm, name)
    wide = x.astype(np.float64)
    mean = 0 if name == "rms_norm" else wide.mean(-1, keepdims=True)
    eps = 1e-6 if name == "rms_norm" else 1e-5
    rstd = 1 / np.sqrt(((wide - mean) ** 2).mean(-1, keepdims=True) + eps)
    x_hat = (wide - mean) * rstd
    dx = dy - x_hat * (dy * x_hat).mean(-1, keepdims=True)
    dx -= 0 if name == "rms_norm" else dy.mean(-1, keepdims=True)
    function(5 * x.reshape(shape), *args)  # what it leaves in memory is none of the next call's
    assert_close(function(x.reshape(shape), *args).reshape(x.shape), x_hat, 4e-6, "y")
    _, ctx = function(x.reshape(shape), *args, return_ctx=True)
    got = fastnorm.backward(dy.reshape(shape), ctx).x
    assert_close(got.reshape(x.shape), dx * rstd, 2e-5, "dx")
