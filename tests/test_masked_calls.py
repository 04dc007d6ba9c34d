"""Masks and lengths: as a call on the valid elements, whatever x holds elsewhere.

test_masks.py has the first of each; test_masks_beside.py what is around, test_masks_arguments.py
where results go and what is refused.
"""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
from cases import NORMS, SHAPES, assert_close, case_id, cases, copy_running, is_last, make_input
from cases import uniform as positive
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastnorm

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
CHANNELS = [n for n in NORMS if n.channels]
AXES = [n for n in NORMS if not n.channels and n.name != "weight_norm"]
RENORM = {"r_max": 1.0001, "d_max": 1e-4}  # so that the corrections are constants


def of_channels(rng, shape, layout, share=0.6):
    """A mask of positions (channels-first shape): sample 1 has none valid, sample 0 all."""
    mask = rng.random((shape[0], 1, *shape[2:])) < share
    mask[0] = True
    mask[1 % len(mask)] = len(mask) == 1
    return np.moveaxis(mask, 1, -1) if is_last(layout) else mask


def spoiled(x, mask, rng):
    """A copy with garbage where it is masked: NaN, infinities, and large numbers."""
    garbage = rng.choice(np.array([np.nan, np.inf, -np.inf, 3e4]), x.shape).astype(x.dtype)
    return np.where(mask, x, garbage)


def last(a, layout):
    """Channels last."""
    return a if is_last(layout) or a.ndim == 2 else np.moveaxis(a, 1, -1)


def function(norm):
    return getattr(fastnorm, norm.name)


def forth_and_back(norm, x, dy, args, kwargs, **around):
    """y, gradients, running statistics."""
    own = copy_running(kwargs)
    y, ctx = function(norm)(x, *args, **own, return_ctx=True, **around)
    return y, fastnorm.backward(dy, ctx), own


def compact_calls(norm, x, mask, layout):
    """Of the valid elements, with the channels last: what each call sees, and its layout."""
    moved, valid = last(x, layout), last(mask, layout)[..., 0]
    if norm.id in ("bn-train", "bn-train-ddof0", "bn-eval", "brn-train", "brn-eval", "in-eval"):
        return [(moved[valid], "NC", None)]
    return [
        (sample[own][None], "NLC", n)
        for n, (sample, own) in enumerate(zip(moved, valid, strict=True))
        if own.any()
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize(
    "case", cases([n for n in CHANNELS if n.name != "switchable_norm"], (3, 4)), ids=case_id
)
def test_bits_of_the_valid_elements(case, dtype, rng):
    """y and dx, byte by byte; and zeros elsewhere."""
    norm, rank, layout = case
    x = make_input(rng, SHAPES[rank], layout, dtype)
    dy = make_input(rng, SHAPES[rank], layout, dtype)
    mask = of_channels(rng, SHAPES[rank], layout)
    args, kwargs = norm.arguments(rng, x, layout)
    y, grads, _ = forth_and_back(
        norm, spoiled(x, mask, rng), spoiled(dy, mask, rng), args, kwargs, mask=mask
    )
    valid = last(mask, layout)[..., 0]
    if norm.running == "update" and norm.name.startswith("instance"):
        kwargs = {**kwargs, **({"training": False} if norm.name == "instance_renorm" else {})}
        if norm.name == "instance_norm":
            kwargs = {k: v for k, v in kwargs.items() if not k.startswith("running")}
    sums = {}
    parts = zip(
        compact_calls(norm, x, mask, layout), compact_calls(norm, dy, mask, layout), strict=True
    )
    for (part, seen, n), (dpart, _, _) in parts:
        want_y, want, _ = forth_and_back(norm, part, dpart, args, {**kwargs, "layout": seen})
        at = valid if n is None else (n, valid[n])
        for got, wanted in ((y, want_y), (grads.x, want.x)):
            got = last(got, layout)[at].reshape(wanted.shape)
            assert np.ascontiguousarray(got).tobytes() == wanted.tobytes()
        for name in ("weight", "bias", "tau"):
            value = getattr(want, name, None)
            if value is not None:
                sums[name] = sums.get(name, 0) + value.astype(np.float64)
    for a in (y, grads.x):
        assert a.dtype == dtype
        assert not last(a, layout)[~valid].any()
    for name, total in sums.items():
        tolerance = {8: 1e-12, 4: 2e-6, 2: 2e-2}[x.itemsize]
        assert getattr(grads, name).dtype == dtype
        assert_close(getattr(grads, name), total, tolerance, name)


@pytest.mark.parametrize("layout", ["NCL", "NLC"])
@pytest.mark.parametrize("norm", [n for n in CHANNELS if n.running != "none"], ids=lambda n: n.id)
def test_running_statistics(norm, layout, rng):
    x = make_input(rng, SHAPES[3], layout, np.float64)
    mask = of_channels(rng, SHAPES[3], layout)
    args, kwargs = norm.arguments(rng, x, layout)
    own = copy_running(kwargs)
    function(norm)(spoiled(x, mask, rng), *args, **own, mask=mask)
    if norm.running != "update":
        for name in ("running_mean", "running_var"):
            assert (own[name] == kwargs[name]).all()
        return
    momentum = kwargs.get("momentum", 0.1)
    ddof = kwargs.get("ddof", 1 if norm.name in ("batch_norm", "instance_norm") else 0)
    moved, valid = last(x, layout), last(mask, layout)[..., 0]
    if norm.name == "instance_norm":  # as torch: means over the samples, here those with values
        each = [s[v] for s, v in zip(moved, valid, strict=True) if v.any()]
        mean = np.mean([e.mean(0) for e in each], 0)
        var = np.mean([e.var(0, ddof=ddof) for e in each], 0)
    else:
        mean, var = moved[valid].mean(0), moved[valid].var(0, ddof=ddof)
    for name, new in (("running_mean", mean), ("running_var", var)):
        assert_close(own[name], (1 - momentum) * kwargs[name] + momentum * new, 1e-13, name)


def domains(norm, x, rng):
    """A mask that switches domains off as a whole."""
    axes = {a % x.ndim for a in np.atleast_1d(norm.axis).tolist()}
    shape = [1 if i in axes else n for i, n in enumerate(x.shape)]
    mask = rng.random(shape) < 0.6
    mask.flat[0] = True
    return mask, tuple(sorted(axes))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("norm", AXES, ids=lambda n: n.id)
def test_bits_of_the_valid_rows(norm, dtype, rng):
    x, dy = (make_input(rng, SHAPES[4], "NCHW", dtype) for _ in "xy")
    mask, axes = domains(norm, x, rng)
    args, kwargs = norm.arguments(rng, x, "NCHW")
    y, grads, _ = forth_and_back(
        norm, spoiled(x, mask, rng), spoiled(dy, mask, rng), args, kwargs, mask=mask
    )
    behind = tuple(range(-len(axes), 0))
    valid = np.moveaxis(mask, axes, behind)[(..., *[0] * len(axes))]
    rows = [np.moveaxis(a, axes, behind)[valid] for a in (x, dy)]
    inner = {**kwargs, "axis": behind}
    want_y, want, _ = forth_and_back(norm, *rows, args, inner)
    for got, wanted in ((y, want_y), (grads.x, want.x)):
        got = np.moveaxis(got, axes, behind)
        assert got[valid].tobytes() == wanted.tobytes()
        assert not got[~valid].any()
    for got, wanted in zip(grads[1:3], want[1:3], strict=True):
        assert (got is None) == (wanted is None)
        assert got is None or got.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "normalize"])
@pytest.mark.parametrize("axis", [-1, (1, 2), 1, (0, 2)], ids=str)
def test_elements_of_a_domain(name, axis, rng):
    """The count of a domain is that of its valid elements, and so are weight and bias."""
    x, dy = rng.normal(2, 1, (2, 4, 5, 6))
    x, dy = x.reshape(4, 5, 6), dy.reshape(4, 5, 6)
    mask = rng.random((1, 5, 6)) < 0.7
    mask = np.broadcast_to(mask, x.shape).copy()
    mask[3] = rng.random((5, 6)) < 0.4
    mask[1] = False
    axes = (axis,) if isinstance(axis, int) else axis
    behind = tuple(range(-len(axes), 0))
    given_shape = tuple(x.shape[a] for a in axes)
    params = {}
    if name != "normalize":
        params["weight"] = positive(rng, given_shape, x.dtype)
    if name == "layer_norm":
        params["bias"] = positive(rng, given_shape, x.dtype)
    call = getattr(fastnorm, name)
    y, ctx = call(spoiled(x, mask, rng), **params, axis=axis, mask=mask, return_ctx=True)
    grads = fastnorm.backward(spoiled(dy, mask, rng), ctx)
    views = [np.moveaxis(a, axes, behind) for a in (x, dy, y, grads.x, mask)]
    sums = {k: np.zeros(given_shape) for k in params}
    for at in np.ndindex(views[0].shape[: x.ndim - len(axes)]):
        one, done, got, dgot, valid = (v[at] for v in views)
        assert not got[~valid].any()
        assert not dgot[~valid].any()
        if not valid.any():
            continue
        own = {k: v[valid] for k, v in params.items()}
        want, ctx = call(one[valid], **own, axis=0, return_ctx=True)
        back = fastnorm.backward(done[valid], ctx)
        assert_close(got[valid], want, 1e-14, "y")
        assert_close(dgot[valid], back.x, 1e-13, "dx")
        for k in params:
            sums[k][valid] += getattr(back, k)
    for k, total in sums.items():
        assert_close(getattr(grads, k), total, 1e-12, k)


@pytest.mark.parametrize("layout", ["NCL", "NLC"])
@pytest.mark.parametrize("training", [True, False])
def test_switchable_norm_of_equal_counts(training, layout, rng):
    """Where all samples have as many, the core can say what it is."""
    norm = next(n for n in NORMS if n.id == ("sn-train" if training else "sn-eval"))
    x, dy = (make_input(rng, (4, 6, 9), layout, np.float64) for _ in "xy")
    mask = np.zeros((4, 1, 9), bool)
    for n in range(4):
        mask[n, 0, rng.permutation(9)[:5]] = True
    mask = np.moveaxis(mask, 1, -1) if is_last(layout) else mask
    args, kwargs = norm.arguments(rng, x, layout)
    y, grads, own = forth_and_back(
        norm, spoiled(x, mask, rng), spoiled(dy, mask, rng), args, kwargs, mask=mask
    )
    valid = last(mask, layout)[..., 0]
    parts = [last(a, layout)[valid].reshape(4, 5, 6) for a in (x, dy)]
    want_y, want, want_own = forth_and_back(norm, *parts, args, {**kwargs, "layout": "NLC"})
    for got, wanted in ((y, want_y), (grads.x, want.x)):
        assert_close(last(got, layout)[valid].reshape(wanted.shape), wanted, 1e-12, "y, dx")
        assert not last(got, layout)[~valid].any()
    for name in ("weight", "bias", "mean_logits", "var_logits"):
        assert_close(getattr(grads, name), getattr(want, name), 1e-11, name)
    for name in ("running_mean", "running_var"):
        assert_close(own[name], want_own[name], 1e-13, name)


@pytest.mark.parametrize("component", ["instance", "layer", "batch"])
def test_switchable_norm_of_one_component(component, rng):
    x = make_input(rng, (4, 6, 9), "NCL", np.float64)
    mask = of_channels(rng, x.shape, "NCL")
    logits = np.full(3, -400.0)
    logits[["instance", "layer", "batch"].index(component)] = 0
    got = fastnorm.switchable_norm(x, None, None, logits, logits, training=True, mask=mask)
    want = {
        "instance": lambda: fastnorm.instance_norm(x, mask=mask),
        "layer": lambda: fastnorm.group_norm(x, 1, mask=mask),
        "batch": lambda: fastnorm.batch_norm(x, training=True, mask=mask),
    }[component]()
    assert_close(got, want, 1e-13, component)


# ---- gradients -------------------------------------------------------------------------------


@pytest.mark.parametrize("around", [False, True], ids=["alone", "with all around"])
@pytest.mark.parametrize("layout", ["NCL", "NLC"])
@pytest.mark.parametrize("norm", [*CHANNELS, *AXES], ids=lambda n: n.id)
def test_finite_differences(norm, layout, around, rng):
    if norm.axis is not None and layout == "NLC":
        pytest.skip("axes have no layout")
    shape = (3, 6, 5)
    arrays = {"x": make_input(rng, shape, layout, np.float64, mean=2.0)}
    x = arrays["x"]
    mask = of_channels(rng, shape, layout) if norm.channels else rng.random(x.shape) < 0.7
    args, kwargs = norm.arguments(rng, x, layout)
    kwargs |= RENORM if "renorm" in norm.name else {}
    more, ds = {}, np.zeros(x.shape)
    if around:
        for name in ("shortcut", "gate", "residual"):
            arrays[name] = rng.standard_normal(x.shape)
        more, ds = {"activation": "tanh"}, rng.standard_normal(x.shape)
    dy = rng.standard_normal(x.shape)

    def loss(arrays, args):
        beside = {k: v for k, v in arrays.items() if k != "x"}
        y = function(norm)(arrays["x"], *args, **copy_running(kwargs), **more, **beside, mask=mask)
        return float((y[0] * dy).sum() + (y[1] * ds).sum() if around else (y * dy).sum())

    beside = {k: v for k, v in arrays.items() if k != "x"}
    *_, ctx = function(norm)(x, *args, **copy_running(kwargs), **more, **beside, mask=mask,
                             return_ctx=True)  # fmt: skip
    grads = fastnorm.backward(dy, ctx, **({"ds": ds} if around else {}))
    names = ["weight", "bias", *(["mean_logits", "var_logits"] if len(args) == 4 else ["tau"])]
    first = norm.name == "group_norm"
    where = [(k, arrays[k], k) for k in arrays]
    where += [(i, args[i], names[i - first]) for i in range(first, len(args))]
    for key, value, name in where:
        gradient = getattr(grads, "x" if name == "residual" else name)
        direction = rng.standard_normal(value.shape)
        sides = []
        for step in (1e-6, -1e-6):
            moved = value + step * direction
            if isinstance(key, str):
                sides.append(loss({**arrays, key: moved}, args))
            else:
                sides.append(loss(arrays, [*args[:key], moved, *args[key + 1 :]]))
        measured, expected = (sides[0] - sides[1]) / 2e-6, float((gradient * direction).sum())
        scale = np.abs(gradient * direction).sum() + 1e-3
        assert abs(measured - expected) <= 2e-6 * scale, (name, measured, expected)


# ---- lengths, emptiness, any shape -----------------------------------------------------------


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("norm", CHANNELS, ids=lambda n: n.id)
def test_lengths_are_a_mask(norm, layout, rng):
    x = make_input(rng, (3, 6, 5, 4), layout, np.float32)
    lengths = np.array([5, 0, 2])
    mask = (np.arange(5) < lengths[:, None])[:, None, :, None]
    mask = np.moveaxis(mask, 1, -1) if is_last(layout) else mask
    args, kwargs = norm.arguments(rng, x, layout)
    got = forth_and_back(norm, x, x, args, kwargs, lengths=lengths.tolist())
    want = forth_and_back(norm, x, x, args, kwargs, mask=mask)
    assert [a.tobytes() for a in (got[0], *got[1]) if a is not None] == [
        a.tobytes() for a in (want[0], *want[1]) if a is not None
    ]
    assert all((got[2][k] == want[2][k]).all() for k in kwargs if k.startswith("running"))


def test_lengths_of_tokens(rng):
    x = rng.standard_normal((3, 5, 4)).astype(np.float32)
    lengths = np.array([5, 0, 2], np.uint8)
    for call in (fastnorm.layer_norm, fastnorm.rms_norm):
        y = call(x, lengths=lengths)
        for n, length in enumerate(lengths):
            assert y[n, :length].tobytes() == call(x[n, :length]).tobytes()
            assert not y[n, length:].any()


@pytest.mark.parametrize("norm", [*CHANNELS, *AXES], ids=lambda n: n.id)
def test_nothing_is_valid(norm, rng):
    """Zeros, no update, gradients of zero; and what is wrong is wrong all the same."""
    x = np.full((2, 6, 4), np.nan)
    args, kwargs = norm.arguments(rng, x, "NCL")
    mask = np.zeros((1, 1, 1), bool)
    y, grads, own = forth_and_back(norm, x, x, args, kwargs, mask=mask)
    for a in (y, grads.x, *(g for g in grads[1:] if g is not None)):
        assert not a.any()
    assert grads.weight.shape == args[norm.name == "group_norm"].shape
    assert all((own[k] == kwargs[k]).all() for k in kwargs if k.startswith("running"))
    with pytest.raises(ValueError, match=r"^weight: expected shape"):
        function(norm)(x, *args[: norm.name == "group_norm"], np.ones(9),
                       *args[1 + (norm.name == "group_norm") :], **kwargs, mask=mask)  # fmt: skip
    with pytest.raises(ValueError, match=r"^eps: expected a finite number"):
        function(norm)(x, *args, **kwargs, eps=-1.0, mask=mask)
    if norm.id not in ("ln-first", "ln-apart"):
        assert function(norm)(x[:0], *args, **kwargs, mask=mask).shape == (0, 6, 4)


@given(st.data())
def test_any_mask_of_any_shape(data):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=4, max_side=5))
    last_axis = data.draw(st.booleans())
    layout = "channels_last" if last_axis else "channels_first"
    axis = len(shape) - 1 if last_axis else 1
    small = [1 if i == axis or data.draw(st.booleans()) else n for i, n in enumerate(shape)]
    while small and small[0] == 1 and data.draw(st.booleans()) and len(small) > len(shape) - axis:
        small = small[1:]
    mask = data.draw(hnp.arrays(bool, tuple(small)))
    x = np.random.default_rng(0).standard_normal(shape)
    valid = np.moveaxis(np.broadcast_to(mask, shape), axis, -1)[..., 0]
    moved = np.moveaxis(x, axis, -1)
    y = fastnorm.batch_norm(x, training=True, layout=layout, mask=mask)
    got = np.moveaxis(y, axis, -1)
    assert got[valid].tobytes() == fastnorm.batch_norm(moved[valid], training=True).tobytes()
    assert not got[~valid].any()
    z = np.moveaxis(fastnorm.group_norm(x, 1, layout=layout, mask=mask), axis, -1)
    for one, want, own in zip(z, moved, valid, strict=True):
        if own.any():
            wanted = fastnorm.group_norm(want[own][None], 1, layout="NLC")
            assert one[own].tobytes() == wanted.tobytes()
        assert not one[~own].any()


@pytest.mark.parametrize("norm", [*CHANNELS, *AXES], ids=lambda n: n.id)
def test_contexts_are_copied_and_pickled(norm, rng):
    x = make_input(rng, (3, 6, 5), "NCL", np.float32)
    mask = of_channels(rng, x.shape, "NCL")
    args, kwargs = norm.arguments(rng, x, "NCL")
    _, ctx = function(norm)(x, *args, **kwargs, activation="relu", mask=mask, return_ctx=True)
    want = fastnorm.backward(x, ctx)
    for other in (copy.deepcopy(ctx), pickle.loads(pickle.dumps(ctx))):
        for a, b in zip(fastnorm.backward(x, other), want, strict=True):
            assert (a is None and b is None) or a.tobytes() == b.tobytes()


@pytest.mark.parametrize("norm", [fastnorm.layer_norm, fastnorm.rms_norm, fastnorm.normalize])
def test_no_rows(norm):
    mask = np.array([True, False, True, True])
    assert norm(np.ones((0, 4)), mask=mask).shape == (0, 4)
