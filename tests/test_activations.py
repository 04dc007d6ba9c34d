"""Activations: how near they are to the exact values, what they do at the ends, the same bits."""

import math

import ml_dtypes
import numpy as np
import pytest

import fastnorm as fn

A = fn.activations
BFLOAT16 = ml_dtypes.bfloat16
DTYPES = [np.float32, np.float64, np.float16, BFLOAT16]
# exact enough for every dtype but float64: by math, in double
C = 2 * math.sqrt(2 / math.pi)


def logistic(v):
    return 1 / (1 + math.exp(-v)) if v > -700 else 0.0


EXACT = {
    "relu": lambda v: max(v, 0.0),
    "leaky_relu": lambda v: v if v > 0 else 0.01 * v,
    "relu6": lambda v: min(max(v, 0.0), 6.0),
    "hardswish": lambda v: v * min(max(v + 3, 0.0), 6.0) / 6,
    "sigmoid": logistic,
    "tanh": math.tanh,
    "silu": lambda v: v * logistic(v),
    "gelu": lambda v: v * math.erfc(-v / math.sqrt(2)) / 2,
    "gelu_tanh": lambda v: v * logistic(C * (v + 0.044715 * v**3)),
}


def slope(name, v):
    s = logistic(v)
    if name == "sigmoid":
        return s * (1 - s)
    if name == "tanh":
        return 1 / math.cosh(v) ** 2 if abs(v) < 300 else 0.0
    if name == "silu":
        return s + v * s * (1 - s)
    if name == "gelu":
        bell = math.exp(-v * v / 2) / math.sqrt(2 * math.pi)
        return math.erfc(-v / math.sqrt(2)) / 2 + v * bell
    if name == "gelu_tanh":
        p = logistic(C * (v + 0.044715 * v**3))
        return p + v * p * (1 - p) * C * (1 + 3 * 0.044715 * v * v)
    if name == "hardswish":
        return 0.0 if v <= -3 else 1.0 if v >= 3 else v / 3 + 0.5
    if name == "leaky_relu":
        return 1.0 if v > 0 else 0.01
    return float(v > 0 and (v < 6 or name == "relu"))


def points(dtype):
    rng = np.random.default_rng(0)
    small = np.exp(rng.uniform(-80, 0, 1000)) * rng.choice([-1, 1], 1000)
    ranges = [(-6, 6, 3000), (-103, 60, 2000), (-14, 0, 1000)]
    some = [*(rng.uniform(*r) for r in ranges), small, [-3, 3, 6, 0]]
    found = np.concatenate(some).astype(dtype)
    return found[np.isfinite(found.astype(np.float64))]


def units(found, exact, dtype):
    """Distances in units in the last place of the exact value."""
    info = ml_dtypes.finfo(dtype)
    size = np.abs(exact)
    exponent = np.floor(np.log2(np.maximum(size, float(info.tiny))))
    ulp = np.maximum(np.exp2(exponent) * float(info.eps), float(info.smallest_subnormal))
    return np.abs(found.astype(np.float64) - exact) / ulp


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", A.NAMES)
def test_values_are_within_two_units_of_the_last_place(name, dtype):
    x = points(dtype)
    exact = np.array([EXACT[name](v) for v in x.astype(np.float64).tolist()])
    if dtype == np.float64:  # the oracle has errors of its own
        near = np.abs(getattr(A, name)(x) - exact) <= 1e-12 * np.abs(exact) + 1e-290
        assert near.all()
        return
    most = 2 if dtype == np.float32 else 1
    assert units(getattr(A, name)(x), exact, dtype).max() <= most


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", A.NAMES)
def test_gradients_are_those_of_the_derivative(name, dtype):
    x = points(dtype)
    x = x[np.abs(x.astype(np.float64)) < 80]
    exact = np.array([slope(name, v) for v in x.astype(np.float64).tolist()])
    found = A.backward(np.ones_like(x), x, name).astype(np.float64)
    # near a zero of the derivative an absolute error; in double the oracle has errors of its own
    near = (64 if dtype == np.float64 else 8) * float(ml_dtypes.finfo(dtype).eps)
    assert (np.abs(found - exact) <= near * np.maximum(np.abs(exact), 0.1)).all()


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu", "relu6", "leaky_relu"])
def test_what_grows_is_monotone(name):
    x = np.concatenate([np.linspace(-20, 20, 400_001), np.linspace(-0.7, 0.7, 400_001),
                        np.linspace(-104, -80, 200_001)]).astype(np.float32)  # fmt: skip
    x.sort()
    y = getattr(A, name)(x)
    assert (np.diff(y) >= 0).all()


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16])
@pytest.mark.parametrize("name", A.NAMES)
def test_16_bits_are_monotone_where_the_function_is(name, dtype):
    every = np.arange(2**16, dtype=np.uint16).view(dtype).astype(np.float32)
    every = np.sort(every[np.isfinite(every)])
    y = getattr(A, name)(every.astype(dtype)).astype(np.float32)
    lowest = {"silu": -1.2784645, "gelu": -0.7517916, "gelu_tanh": -0.7524614, "hardswish": -1.5}
    bottom = lowest.get(name, -np.inf)
    assert (np.diff(y[every >= bottom]) >= 0).all()
    assert (np.diff(y[every <= bottom]) <= 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", A.NAMES)
def test_ends_and_zeros(name, dtype):
    x = np.array([np.inf, -np.inf, np.nan, -0.0, 0.0], dtype)
    y = getattr(A, name)(x).astype(np.float64)
    top = {"sigmoid": 1, "tanh": 1, "relu6": 6}.get(name, np.inf)
    bottom = {"tanh": -1, "leaky_relu": -np.inf}.get(name, 0)
    assert y[0] == top
    assert y[1] == bottom
    assert np.isnan(y[2])
    if name != "sigmoid":
        assert np.signbit(y[3:]).tolist() == [True, False]
    grads = A.backward(np.ones_like(x), x, name).astype(np.float64)
    assert np.isfinite(grads[[0, 1, 3, 4]]).all()
    assert grads[0] == (0 if name in ("sigmoid", "tanh", "relu6") else 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_the_instruction_set(dtype):
    x = np.concatenate([points(dtype), np.array([np.inf, -np.inf, -0.0], dtype)])
    before = fn.get_isa()
    found = {}
    try:
        for isa in fn.available_isas():
            fn.set_isa(isa)
            parts = [
                getattr(A, n)(x[i : i + 7 + i % 90]) for n in A.NAMES for i in range(0, 400, 13)
            ]
            whole = [f for n in A.NAMES for f in (getattr(A, n)(x), A.backward(x[::-1], x, n))]
            found[isa] = b"".join(a.tobytes() for a in parts + whole)
    finally:
        fn.set_isa(before)
    assert len(set(found.values())) == 1
    for name in A.NAMES:  # any length, from any place on
        whole = getattr(A, name)(x)
        for i in range(0, 100, 9):
            assert getattr(A, name)(x[i : i + i]).tobytes() == whole[i : i + i].tobytes()


def test_threads_and_places_do_not_change_bits():
    x = np.random.default_rng(1).standard_normal(300_000, dtype=np.float32)
    before = fn.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        fn.set_num_threads(threads)
        to = x.copy()
        assert A.gelu(to, out=to) is to
        dy = x[::-1].copy()
        A.backward(dy, x, "silu", out=dy)
        found.append(to.tobytes() + dy.tobytes() + A.gelu(x[::2]).tobytes())
    fn.set_num_threads(before)
    assert len(set(found)) == 1
    assert found[0].startswith(A.gelu(x).tobytes())


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: A.relu(np.arange(3)), TypeError, "x: expected dtype float32"),
    (lambda: A.relu(np.ones(3), out=np.ones(2)), ValueError, "out: expected shape"),
    (lambda: A.relu(np.ones(3), out=[1.0]), TypeError, "out: expected an ndarray"),
    (lambda: A.leaky_relu(np.ones(3), np.nan), ValueError, "slope: expected a finite number"),
    (lambda: A.backward(np.ones(3), np.ones(3), "swish"), ValueError,
     "activation: expected one of relu, leaky_relu"),
    (lambda: A.backward(np.ones(2), np.ones(3), "relu"), ValueError, "dy: expected x's shape"),
    (lambda: A.backward(np.ones(3, np.float32), np.ones(3), "relu"), TypeError, "dy: expected x's"),
    (lambda: A.backward(np.ones(3), np.ones(3), None), TypeError, "activation: expected a str"),
])  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
