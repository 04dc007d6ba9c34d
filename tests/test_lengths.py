"""Vectors divided by their length: against torch and finite differences, and at the edges."""

import math

import ml_dtypes
import numpy as np
import pytest
from cases import assert_close

import fastnorm

ORDERS = [1, 1.5, 2, 3, math.inf]
AXES = [0, 1, 2, -1, (1, 2), (0, 2)]


def length(x, ord, axis):
    size = np.abs(x.astype(np.float64))
    if ord == math.inf:
        return size.max(axis, keepdims=True)
    return (size**ord).sum(axis, keepdims=True) ** (1 / ord)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("ord", ORDERS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ml_dtypes.bfloat16])
def test_vectors_have_length_one(ord, axis, dtype, rng):
    x = rng.standard_normal((5, 7, 40)).astype(dtype)
    y = fastnorm.normalize(x, ord, axis)
    assert y.dtype == x.dtype
    tolerance = 4e-3 if x.itemsize == 2 else 2e-6 if x.itemsize == 4 else 1e-14
    assert_close(y, x.astype(np.float64) / length(x, ord, axis), tolerance, "y")


@pytest.mark.parametrize("ord", ORDERS)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_forward_and_backward_are_those_of_torch(ord, axis, rng):
    torch = pytest.importorskip("torch")
    x, dy = rng.standard_normal((2, 4, 6, 9))
    x[2, 3] = x[1, 4] = 0
    x[:, 2] = 0
    tx = torch.tensor(x, requires_grad=True)
    ty = torch.nn.functional.normalize(tx, ord, axis)
    ty.backward(torch.tensor(dy))
    y, ctx = fastnorm.normalize(x, ord, axis, return_ctx=True)
    np.testing.assert_allclose(y, ty.detach().numpy(), rtol=1e-14, atol=1e-15)
    dx = fastnorm.backward(dy, ctx).x
    scale = np.abs(tx.grad.numpy()).max()
    np.testing.assert_allclose(dx, tx.grad.numpy(), rtol=1e-12, atol=1e-14 * min(scale, 1))


@pytest.mark.parametrize("ord", ORDERS)
def test_gradient_of_vectors_shorter_than_eps(ord, rng):
    x, dy = rng.standard_normal((2, 3, 5))
    y, ctx = fastnorm.normalize(x, ord, eps=100.0, return_ctx=True)
    np.testing.assert_allclose(y, x / 100, rtol=1e-15)
    np.testing.assert_allclose(fastnorm.backward(dy, ctx).x, dy / 100, rtol=1e-15)


@pytest.mark.parametrize("ord", ORDERS)
@pytest.mark.parametrize(("dtype", "size"), [("f4", 1e-38), ("f4", 1e37), ("f8", 1e-290),
                                             ("f8", 1e300)])  # fmt: skip
def test_long_and_short_vectors(ord, dtype, size, rng):
    x = (rng.standard_normal((4, 9)) * size).astype(dtype)
    want = fastnorm.normalize(x.astype("f8") / size, ord, eps=0)
    assert_close(fastnorm.normalize(x, ord, eps=0), want, 2e-6 if dtype == "f4" else 1e-14, "y")


@pytest.mark.parametrize("ord", ORDERS)
def test_gradient_into_an_array(ord, rng):
    x, dy = rng.standard_normal((2, 5, 7))
    _, ctx = fastnorm.normalize(x, ord, return_ctx=True)
    want = fastnorm.backward(dy, ctx).x
    for out in (np.empty((5, 7)), np.empty((7, 5)).T, dy):
        assert fastnorm.backward(dy.copy(), ctx, out=out).x is out
        np.testing.assert_array_equal(out, want)


def test_out_and_zero_vectors(rng):
    x = np.zeros((3, 4), np.float32)
    for ord in ORDERS:
        out = np.ones_like(x)
        assert fastnorm.normalize(x, ord, out=out, eps=0.0) is out
        np.testing.assert_array_equal(out, x)
        y, ctx = fastnorm.normalize(x, ord, eps=0.0, return_ctx=True)
        np.testing.assert_array_equal(fastnorm.backward(y + 1, ctx).x, x)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("ab",), TypeError, "x: expected dtype"),
        ((np.ones((2, 3)), "2"), TypeError, "ord: expected a number"),
        ((np.ones((2, 3)), 0), ValueError, "ord: expected a number above 0"),
        ((np.ones((2, 3)), -1), ValueError, "ord: expected"),
        ((np.ones((2, 3)), math.nan), ValueError, "ord: expected"),
        ((np.ones(3), 1), ValueError, r"axis: expected axes in \[-1, 1\)"),
        ((np.ones(3),), ValueError, r"axis: expected axes in \[-1, 1\)"),
    ],
)
def test_bad_input_names_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        fastnorm.normalize(*arguments)


@pytest.mark.parametrize("ord", [1, 2])
def test_bad_options(ord):
    x = np.ones((2, 3))
    for eps in (-1.0, math.nan, "1"):
        with pytest.raises((ValueError, TypeError), match="eps: expected"):
            fastnorm.normalize(x, ord, eps=eps)
    with pytest.raises(ValueError, match="out: expected shape"):
        fastnorm.normalize(x, ord, out=np.ones(3))
    with pytest.raises(ValueError, match="out: expected an array apart from x"):
        fastnorm.normalize(x, ord, out=x, return_ctx=True)
    _, ctx = fastnorm.normalize(x, ord, return_ctx=True)
    with pytest.raises(ValueError, match=r"dy: expected [xy]'s shape"):
        fastnorm.backward(np.ones(3), ctx)
    with pytest.raises(TypeError, match="dy: expected x's dtype"):
        fastnorm.backward(np.ones((2, 3), np.float32), ctx)
    with pytest.raises(ValueError, match="out: expected shape"):
        fastnorm.backward(x, ctx, out=np.ones(3))
    with pytest.raises(TypeError, match="out: expected dtype"):
        fastnorm.backward(x, ctx, out=np.ones((2, 3), np.float32))


def test_numpys_errors_do_not_matter(rng):
    tiny = np.ldexp(rng.standard_normal((3, 4)).astype("f4"), -130)
    huge = np.full((3, 4), 3e38, "f4")
    with np.errstate(all="raise"):
        for order in (1, 3.0, np.inf):
            for x in (tiny, huge):
                _, ctx = fastnorm.normalize(x, order, eps=0, return_ctx=True)
                fastnorm.backward(huge, ctx)
        fastnorm.cosine_norm(tiny, tiny)
