"""Every normalizer against the float64 oracle: forward, backward, running statistics."""

import numpy as np
import pytest
from cases import NORMS, SHAPES, case_id, cases, check_against_oracle, is_last, make_input
from hypothesis import given, settings
from hypothesis import strategies as st

import fastnorm


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", cases(), ids=case_id)
def test_small_arrays(case, dtype, rng):
    norm, rank, layout = case
    x = make_input(rng, SHAPES[rank], layout, dtype)
    args, kwargs = norm.arguments(rng, x, layout)
    dy = rng.standard_normal(x.shape).astype(dtype)
    check_against_oracle(norm, x, args, kwargs, dy)


# Shapes that take each way through the C library: several chunks of a plane, several samples in a
# chunk, short planes, tiles of columns, odd channel counts, more channels than a strip.
# Most are above 256 kB in float32, from where on several threads share the work.
LARGE = {
    "long-planes": (2, 3, 270, 260),
    "many-planes": (9, 66, 14, 14),
    "planes-of-49": (40, 96, 7, 7),
    "odd-channels": (3, 33, 31, 29),
    "wide": (70, 1100),
    "tall": (3000, 6),
}
VERY_LARGE = {
    "more-long-planes": (2, 6, 270, 260),
    "many-planes-of-81": (40, 96, 9, 9),
    "larger-odd-channels": (3, 36, 61, 63),
    "more-planes-of-1600": (6, 24, 40, 40),
}


LARGE_CASES = [
    pytest.param((norm, name, layout), marks=[pytest.mark.long] if name in VERY_LARGE else [])
    for norm in NORMS
    for name, shape in {**LARGE, **VERY_LARGE}.items()
    for layout in (["channels_first", "channels_last"] if norm.channels else ["channels_first"])
    if not (norm.spatial and len(shape) == 2) and shape[1] % norm.kwargs.get("num_groups", 1) == 0
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", LARGE_CASES, ids=case_id)
def test_large_arrays(case, dtype, rng):
    norm, name, layout = case
    x = make_input(rng, {**LARGE, **VERY_LARGE}[name], layout, dtype)
    args, kwargs = norm.arguments(rng, x, layout)
    dy = rng.standard_normal(x.shape).astype(dtype)
    check_against_oracle(norm, x, args, kwargs, dy)


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.id)
@settings(max_examples=12)
@given(data=st.data())
def test_drawn_shapes(norm, data):
    shape = data.draw(
        st.tuples(
            st.integers(1, 12),
            st.integers(1, 12).map(lambda c: 3 * c),
            st.integers(1, 24),
            st.integers(1, 24),
        ).filter(lambda s: s[2] * s[3] > 1 and norm.domain(s) > 7)
    )
    layout = data.draw(st.sampled_from(["NCHW", "NHWC"] if norm.channels else ["NCHW"]))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    offset = data.draw(st.integers(0, 7))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    x = make_input(rng, shape, layout, dtype)
    args, kwargs = norm.arguments(rng, x, layout)
    dy = rng.standard_normal(x.shape).astype(dtype)
    threads = data.draw(st.sampled_from([2, 3, 5, 16]))
    check_against_oracle(norm, x, args, kwargs, dy, threads=(threads,), offsets=(offset,))


@pytest.mark.parametrize("norm", [n for n in NORMS if n.name == "layer_norm"], ids=lambda n: n.id)
@pytest.mark.parametrize("given_", ["weight", "bias", "neither"])
def test_layer_norm_with_one_parameter(norm, given_, rng):
    x = make_input(rng, (3, 6, 5, 80), "NCHW", np.float32)
    (weight, bias), kwargs = norm.arguments(rng, x, "NCHW")
    args = [weight if given_ == "weight" else None, bias if given_ == "bias" else None]
    check_against_oracle(norm, x, args, kwargs, rng.standard_normal(x.shape).astype(np.float32))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("norm", [n for n in NORMS if n.channels], ids=lambda n: n.id)
def test_channel_norms_without_parameters(norm, layout, rng):
    x = make_input(rng, (3, 6, 5, 8), layout, np.float32)
    args, kwargs = norm.arguments(rng, x, layout)
    first = 1 if norm.name == "group_norm" else 0
    args[first] = args[first + 1] = None
    check_against_oracle(norm, x, args, kwargs, rng.standard_normal(x.shape).astype(np.float32))


@pytest.mark.parametrize("channels", [2, 4, 8, 16, 32, 64, 128])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["bn-train", "in"])
def test_narrow_channels_last(name, dtype, channels, rng):
    """Rows that are a part or a multiple of a vector, whatever its width."""
    norm = next(n for n in NORMS if n.id == name)
    x = make_input(rng, (3, channels, 9, 11), "NHWC", dtype)
    args, kwargs = norm.arguments(rng, x, "NHWC")
    check_against_oracle(norm, x, args, kwargs, rng.standard_normal(x.shape).astype(dtype))


@pytest.mark.parametrize("shape", [(3, 20000), (2, 70000), (300, 700), (1, 7), (4, 3)])
def test_layer_norm_rows(shape, rng):
    norm = next(n for n in NORMS if n.id == "ln")
    x = rng.standard_normal(shape).astype(np.float32)
    args, kwargs = norm.arguments(rng, x, "NC")
    check_against_oracle(norm, x, args, kwargs, rng.standard_normal(x.shape).astype(np.float32))


def test_layer_norm_of_single_values(rng):
    x = rng.standard_normal((5, 1)).astype(np.float32)
    dy = rng.standard_normal((5, 1)).astype(np.float32)
    weight, bias = np.float32([3.0]), np.float32([2.0])
    y, ctx = fastnorm.layer_norm(x, weight, bias, return_ctx=True)
    np.testing.assert_array_equal(y, np.full((5, 1), 2, np.float32))
    dx, dweight, dbias = fastnorm.backward(dy, ctx)
    np.testing.assert_allclose(dx, 0, atol=1e-6 * 3 * np.abs(dy).max() / np.sqrt(1e-5))
    np.testing.assert_array_equal(dweight, [0])
    np.testing.assert_allclose(dbias, [dy.sum()], rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 9000, 40), (2, 2048, 300), (20, 40, 600), (1, 70, 100)])
def test_layer_norm_columns(shape, rng):
    norm = next(n for n in NORMS if n.id == "ln-channel")
    x = rng.standard_normal(shape).astype(np.float32)
    args, kwargs = norm.arguments(rng, x, "NCL")
    check_against_oracle(norm, x, args, kwargs, rng.standard_normal(x.shape).astype(np.float32))


def test_the_oracle_sees_layouts_apart(rng):
    assert is_last("NHWC")
    assert not is_last("NCHW")
    x = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    y = fastnorm.batch_norm(x, training=True, layout="NCHW")
    moved = fastnorm.batch_norm(
        np.ascontiguousarray(np.moveaxis(x, 1, -1)), training=True, layout="NHWC"
    )
    np.testing.assert_allclose(np.moveaxis(moved, -1, 1), y, atol=2e-6)
