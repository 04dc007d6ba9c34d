"""The same bits in any batch: y and dx of a sample, alone or among others, wherever it lies.

Each sample of a batch is compared with itself in a batch of one. The shapes lie on both sides of
the bounds by which csrc cuts a call: chunks, units and groups that are walked as rows
(core/plan.c), slices (core/call.c), parts and tall columns (core/elements.c), turns
(core/traffic.c), tasks (core/steps.c), narrow matrices and short runs (kernels/).
"""

import itertools

import ml_dtypes
import numpy as np
import pytest
from cases import LENGTHS, NORMS, Norm, copy_running

import fastnorm
from fastnorm import _core

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
# statistics cross samples, or nothing is a sample
CROSSING = {"bn-train", "bn-train-ddof0", "brn-train", "sn-train", "ln-apart", "ln-first"}
APART = [norm for norm in NORMS if norm.id not in CROSSING and norm.name != "weight_norm"]
APART += [*LENGTHS, *(Norm(f"l{p}", "normalize", {"ord": p}, axis=1) for p in (1, np.inf))]
EACH_NORM = pytest.mark.parametrize("norm", APART, ids=lambda norm: norm.id)
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)

WAYS = [(1, 0, 0), (2, 1, 2), (3, 0, 1)]  # threads, written past the cache, fetched ahead
SIZES = (2, 3, 7, 16, 33)

# a sample, channels first
SHORT = [
    (24,),  # groups of 8 and 24 channels: rows; (9,): planes of one element
    (9,),
    (3, 3),  # narrow matrices, of an odd number of columns; rows of few elements
    (63, 8),
    (66, 3),  # no narrow one
    (6, 7, 7),  # planes that share cache lines
    (9, 33),
    (3, 128),
    (12, 300),  # layer norm over channels: more columns than a unit has
]
LONG = [
    (3, 1000),
    (3, 4100),
    (3, 20_000),  # layer norm: pieces of a row; (1, 40_000): chunks
    (1, 40_000),
]
# layer norm over channels: tall, where the batch is small; over the last axis: 8192 planes
TALL = [(1026, 3)]


@pytest.fixture(autouse=True)
def nothing_learned():
    _core.forget_choices()
    yield
    _core.force_choice()
    _core.forget_choices()


def calls(sizes, every):
    """(isa, way, size): every combination, or each way with some of the sizes."""
    some = itertools.product(WAYS, sizes) if every else zip(itertools.cycle(WAYS), sizes)
    for isa, (way, size) in itertools.product(fastnorm.available_isas(), some):
        fastnorm.set_isa(isa)
        _core.force_choice(*way)
        yield isa, way, size


def layouts(norm, sample):
    if not norm.channels:
        return ["channels_first"]
    blocks = {2: ["NCL16c"], 3: ["NCHW8c", "NCHW16c"]}.get(len(sample), [])
    return ["channels_first", "channels_last", *blocks]


def fits(norm, sample):
    """Whether the normalizer takes such samples."""
    groups, channels = norm.kwargs.get("num_groups", 1), sample[0]
    axes = norm.axis if isinstance(norm.axis, tuple) else (norm.axis,)
    elements = np.prod(sample[1:])  # one has no variance, which an update takes
    return (
        channels % groups == 0
        and (norm.channels or min(axes) + len(sample) >= 0)
        and (elements > 1 or norm.running != "update")
    )


def laid(a, layout):
    """A batch, channels first, in another layout."""
    if layout == "channels_last":
        return np.ascontiguousarray(np.moveaxis(a, 1, -1))
    if layout == "channels_first":
        return a
    return fastnorm.to_blocked(a, int("".join(filter(str.isdigit, layout))))


def arguments(norm, rng, x, layout):
    """What stands behind x, of which this is the channels-first form."""
    params = x.astype(np.float32) if x.itemsize == 2 else x
    args, kwargs = norm.arguments(rng, params, "channels_first")
    return args, {**kwargs, "layout": layout} if norm.channels else kwargs


def draw(rng, shape, dtype):
    return (rng.standard_normal(shape) * 1.5 + 0.3).astype(dtype)


def run(norm, x, args, kwargs, dy):
    y, ctx = getattr(fastnorm, norm.name)(x, *args, **copy_running(kwargs), return_ctx=True)
    return y, fastnorm.backward(dy, ctx).x


def bits(a):
    """The bits of an array; of NaN there is one."""
    found = a.view(f"u{a.itemsize}").copy()
    found[a != a] = 0
    return found


def check(norm, x, dy, args, kwargs, sizes, probes=None, every=False):
    """Each sample of x[:size], or those of the probes, as alone."""
    probes = np.arange(len(x)) if probes is None else np.array(probes)
    alone = [run(norm, x[k : k + 1], args, kwargs, dy[k : k + 1]) for k in probes]
    want = [bits(np.concatenate(each)) for each in zip(*alone, strict=True)]
    for isa, way, size in calls(sizes, every):
        looked_at = probes[probes < size]
        found = run(norm, x[:size], args, kwargs, dy[:size])
        for name, got, expected in zip(("y", "dx"), found, want, strict=True):
            differ = bits(got[looked_at]) != expected[: len(looked_at)]
            samples = looked_at[differ.reshape(len(looked_at), -1).any(1)]
            assert samples.size == 0, (name, samples, isa, way, size, x.shape, kwargs)


def check_shapes(norm, dtype, shapes, sizes, every=False):
    rng = np.random.default_rng(7)
    for sample in shapes:
        if not fits(norm, sample):
            continue
        x, dy = (draw(rng, (max(sizes), *sample), dtype) for _ in range(2))
        for layout in layouts(norm, sample):
            args, kwargs = arguments(norm, rng, x, layout)
            check(norm, laid(x, layout), laid(dy, layout), args, kwargs, sizes, every=every)


@EACH_DTYPE
@EACH_NORM
def test_a_sample_is_the_same_in_any_batch_at_any_place(norm, dtype):
    check_shapes(norm, dtype, SHORT, SIZES)


@EACH_NORM
def test_so_is_a_sample_of_long_rows_or_of_many(norm):
    check_shapes(norm, np.float32, LONG, (5, 2, 3))
    check_shapes(norm, np.float32, [] if norm.channels else TALL, (17, 2, 15))


# a slice takes 131072 planes: the first of these shapes has 135000 channels, or rows of layer norm,
# or of the second one columns, and is cut behind, or in, sample 4369
SLICED = [((30, 2), 4500), ((2, 30), 4500)]
ENDS = (0, 1, 4368, 4369, 4370, 4499)


def check_slices(norm, shapes, probes, every):
    rng = np.random.default_rng(8)
    for sample, size in shapes:
        if not fits(norm, sample):
            continue
        x, dy = (draw(rng, (size, *sample), np.float32) for _ in range(2))
        for layout in layouts(norm, sample)[:2]:
            args, kwargs = arguments(norm, rng, x, layout)
            check(norm, laid(x, layout), laid(dy, layout), args, kwargs, [size], probes, every)


@EACH_NORM
def test_so_is_a_sample_of_a_batch_that_is_taken_in_slices(norm):
    check_slices(norm, SLICED[: 1 if norm.channels else 2], ENDS, every=False)


# of other samples, and of single elements
OTHERS = {
    4: (np.nan, np.inf, 1e30, 1e-30, 0, 3.5),
    8: (np.nan, np.inf, 1e300, 1e-300, 0, 3.5),
    2: (np.nan, np.inf, 6e4, 1e-7, 0, 3.5),
}


def beside(rng, x, value):
    """x, whose samples at odd places are constant, large, small, or have such an element."""
    other = x.copy()
    for k in range(1, len(x), 2):
        flat = other[k].reshape(-1)
        if k % 4 == 3 or not np.isfinite(value):
            flat[rng.integers(flat.size)] = value
        elif value in (0, 3.5):
            flat[...] = value
        else:
            flat[...] = np.clip(flat, -4, 4) * x.dtype.type(value / 4)
    return other


def check_beside(norm, dtype, samples, both):
    rng = np.random.default_rng(9)
    for sample in samples:
        if not fits(norm, sample):
            continue
        x, dy = (draw(rng, (5, *sample), dtype) for _ in range(2))
        for layout in layouts(norm, sample):
            args, kwargs = arguments(norm, rng, x, layout)
            for value in OTHERS[x.itemsize]:
                x_beside, dy_beside = (beside(rng, a, value) for a in (x, dy))
                for pair in [(x_beside, dy), (x, dy_beside), (x_beside, dy_beside)][: 2 + both]:
                    with np.errstate(all="ignore"):
                        check(norm, *(laid(a, layout) for a in pair), args, kwargs, (5,))


@EACH_DTYPE
@EACH_NORM
def test_what_lies_in_other_samples_changes_nothing(norm, dtype):
    """NaN, infinity, what the kernels leave to careful.c, and constants, in x or in dy; those
    samples are as alone, too."""
    check_beside(norm, dtype, [(24,), (9, 8), (3, 130)], both=False)


def test_what_lies_in_other_samples_is_not_seen_at_the_end_of_the_range():
    """One over sigma is 2**480: that of a bundle with others beyond was rounded in another way."""
    std = np.ldexp(np.arange(1, 8) / 8, -480)
    for eps in 2.0**-960 - std**2:
        x = np.zeros((8, 6))
        x[:7] = std[:, None] * [1, -1, 1, -1, 1, -1]
        y = fastnorm.rms_norm(x, eps=eps)
        for k in range(8):
            np.testing.assert_array_equal(y[k], fastnorm.rms_norm(x[k], eps=eps))


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_a_row_is_the_same_in_an_array_of_any_shape(name, rng):
    """Without parameters too: a sample of layer norm is what shares statistics."""
    x, dy = (rng.standard_normal((5, 9, 4, 65), dtype=np.float32) for _ in range(2))
    for weight in (None, rng.standard_normal(65, dtype=np.float32)):
        y, ctx = getattr(fastnorm, name)(x, weight, return_ctx=True)
        dx = fastnorm.backward(dy, ctx).x
        for at in np.ndindex(x.shape[:-1]):
            y_row, ctx = getattr(fastnorm, name)(x[at], weight, return_ctx=True)
            np.testing.assert_array_equal(y[at], y_row)
            np.testing.assert_array_equal(dx[at], fastnorm.backward(dy[at], ctx).x)


@pytest.mark.parametrize("norm", [n for n in NORMS if n.id in CROSSING], ids=lambda n: n.id)
def test_the_others_do_depend_on_the_batch(norm, rng):
    """So no normalizer is left out of these tests that could be in them."""
    x, dy = (draw(rng, (4, 6, 5, 7), np.float32) for _ in range(2))
    args, kwargs = norm.arguments(rng, x, "channels_first")
    other = x.copy()
    other[3] += 1
    y, dx = run(norm, x, args, kwargs, dy)
    y_other, dx_other = run(norm, other, args, kwargs, dy)
    assert (y[0] != y_other[0]).any()
    assert (dx[0] != dx_other[0]).any()


# ---- more of the same ----------------------------------------------------------------------------


@pytest.mark.long
@EACH_DTYPE
@EACH_NORM
def test_every_way_to_call_gives_a_sample_the_same_bits(norm, dtype):
    check_shapes(norm, dtype, SHORT, SIZES, every=True)
    check_shapes(norm, dtype, LONG, (7,))
    check_shapes(norm, dtype, TALL, (17, 15))


@pytest.mark.long
@EACH_NORM
def test_every_slice_gives_a_sample_the_same_bits(norm):
    check_slices(norm, SLICED, ENDS, every=True)
    # a matrix of more columns than a slice takes
    check_slices(norm, [((135_000, 2), 3), ((2, 135_000), 3)], (0, 1, 2), every=False)


@pytest.mark.long
@EACH_DTYPE
@EACH_NORM
def test_what_lies_in_other_samples_changes_nothing_in_larger_ones(norm, dtype):
    check_beside(norm, dtype, [(6, 7, 7), (66, 3), (3, 4100)], both=True)
