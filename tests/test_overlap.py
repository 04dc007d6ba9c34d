"""Arrays of one call that share memory: as if they did not, or refused with nothing written."""

import numpy as np
import pytest

import fastnorm

N, C = 8, 6
X = np.random.default_rng(0).standard_normal((N, C)).astype(np.float32)
DY = np.random.default_rng(1).standard_normal((N, C)).astype(np.float32)
PARAMS = {
    "weight": np.linspace(0.5, 2, C, dtype=np.float32),
    "bias": np.linspace(-1, 1, C, dtype=np.float32),
}
LOGITS = {
    "mean_logits": np.array([0.3, -0.2, 1.0], np.float32),
    "var_logits": np.array([1.0, 0.1, -0.7], np.float32),
}
STATES = {
    "running_mean": np.linspace(-0.2, 0.2, C, dtype=np.float32),
    "running_var": np.linspace(1, 2, C, dtype=np.float32),
}
ALL = {**PARAMS, **LOGITS, **STATES}
CALLS = {
    "layer_norm": (PARAMS, {}),
    "rms_norm": ({"weight": PARAMS["weight"]}, {}),
    "group_norm": (PARAMS, {"num_groups": 3, "layout": "NC"}),
    "batch_norm": ({**PARAMS, **STATES}, {"training": True, "layout": "NC"}),
    "batch_renorm": ({**PARAMS, **STATES}, {"training": True, "layout": "NC"}),
    "switchable_norm": (ALL, {"training": True, "layout": "NC"}),
    "instance_renorm": ({**PARAMS, **STATES}, {"training": True, "layout": "NC"}),
}
READ = [(name, p) for name, (arrays, _) in CALLS.items() for p in arrays if p not in STATES]
UPDATED = [name for name, (arrays, _) in CALLS.items() if "running_mean" in arrays]


def own(name, dtype=np.float32, **changes):
    arrays, kwargs = CALLS[name]
    return {**{k: v.astype(dtype) for k, v in arrays.items()}, **kwargs, **changes}


def call(name, x=X, **kwargs):
    return getattr(fastnorm, name)(x, **kwargs)


def memory(dtype):
    return np.zeros(4 * N * C, dtype)


# outputs of shape (N, C) in one memory, as functions of it
OUTPUTS = {
    "dense": lambda m: m[: N * C].reshape(N, C),
    "behind": lambda m: m[20 : 20 + N * C].reshape(N, C),
    "strided": lambda m: m[: 2 * N * C].reshape(N, 2 * C)[:, ::2],
    "reversed": lambda m: m[: N * C].reshape(N, C)[::-1],
    "transposed": lambda m: m[: N * C].reshape(C, N).T,
    "swapped": lambda m: m[: N * C].view(m.dtype.newbyteorder()).reshape(N, C),
}
# an array of n elements that shares memory with each of them
INSIDE = {
    "dense": lambda m, n: m[21 : 21 + n],
    "partly": lambda m, n: m[19 : 19 + n],
    "reversed": lambda m, n: m[20 : 20 + n][::-1],
    "strided": lambda m, n: m[20 : 20 + 3 * n : 3],
}


def put(memory, place, value):
    array = place(memory, value.size)
    array[...] = value
    return array


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(("name", "parameter"), READ)
def test_out_over_a_parameter_is_as_if_it_were_not(name, parameter, output, inside, dtype):
    x, dy = X.astype(dtype), DY.astype(dtype)
    want, want_ctx = call(name, x, **own(name, dtype), return_ctx=True)
    want_grads = fastnorm.backward(dy, want_ctx)
    for keep in (False, True):
        m = memory(dtype)
        out = OUTPUTS[output](m)
        kwargs = own(name, dtype)
        kwargs[parameter] = put(m, INSIDE[inside], kwargs[parameter])
        result = call(name, x, **kwargs, out=out, return_ctx=keep)
        np.testing.assert_array_equal(out, want)
        if keep:
            for got, expected in zip(fastnorm.backward(dy, result[1]), want_grads, strict=True):
                np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("inside", ["dense", "partly"])
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", UPDATED)
def test_out_over_running_statistics_is_refused(name, state, output, inside, dtype):
    m = memory(dtype)
    kwargs = own(name, dtype)
    kwargs[state] = put(m, INSIDE[inside], kwargs[state])
    before = m.copy()
    for training in (True, False):
        with pytest.raises(ValueError, match=f"out: expected an array apart from {state}, got"):
            call(name, X.astype(dtype), **{**kwargs, "training": training}, out=OUTPUTS[output](m))
    np.testing.assert_array_equal(m, before)


@pytest.mark.parametrize("inside", ["reversed", "strided"])
@pytest.mark.parametrize("state", STATES)
def test_also_over_strided_ones_that_are_read(state, inside):
    m = memory(np.float32)
    kwargs = own("batch_norm", training=False)
    kwargs[state] = put(m, INSIDE[inside], kwargs[state])
    with pytest.raises(ValueError, match=f"out: expected an array apart from {state}, got"):
        call("batch_norm", **kwargs, out=OUTPUTS["dense"](m))


def test_interleaved_arrays_are_apart():
    m = memory(np.float32)
    out, kwargs = OUTPUTS["strided"](m), own("batch_norm", training=False)
    want = call("batch_norm", **kwargs)
    for i, state in enumerate(STATES):
        kwargs[state] = put(m[1 + 40 * i :], lambda a, n: a[: 2 * n : 2], STATES[state])
    np.testing.assert_array_equal(call("batch_norm", **kwargs, out=out), want)
    for state in STATES:
        np.testing.assert_array_equal(kwargs[state], STATES[state])


def test_what_numpy_cannot_tell_counts_as_shared():
    """Overlap of such arrays is a Diophantine equation of many variables."""
    m = np.zeros(10**6, np.float32)
    strides = [4 * s for s in (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)]
    shape = (2,) * 12
    out = np.lib.stride_tricks.as_strided(m, shape, [8 * s for s in strides])
    x = np.ones(shape, np.float32)
    mean, var = m[:2], np.ones(2, np.float32)
    with pytest.raises(ValueError, match="out: expected an array apart from running_mean"):
        fastnorm.batch_norm(x, running_mean=mean, running_var=var, out=out)


# ---- running statistics that are updated -----------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", UPDATED)
def test_updated_statistics_over_what_is_read(name, state, dtype):
    x = X.astype(dtype)
    m = memory(dtype)
    others = ["x", *(p for p in CALLS[name][0] if p not in STATES)]
    for other in others:
        for inside in INSIDE:
            kwargs = {**own(name, dtype), "x": x}
            if other == "x":
                kwargs["x"] = OUTPUTS["strided" if inside == "strided" else "dense"](m)
                kwargs["x"][...] = x
                kwargs[state] = m[20 : 20 + C]
            else:
                kwargs[other] = put(m, INSIDE[inside], kwargs[other])
                kwargs[state] = m[18 : 18 + C]
            before = m.copy()
            message = f"{state}: expected an array apart from {other}, since it is updated, got"
            with pytest.raises(ValueError, match=message):
                call(name, **kwargs)
            np.testing.assert_array_equal(m, before)
            if name != "switchable_norm":  # reading is fine
                assert call(name, **{**kwargs, "training": False}).shape == X.shape


@pytest.mark.parametrize("shift", [0, 1, C - 1])
@pytest.mark.parametrize("name", UPDATED)
def test_both_running_statistics_in_one_memory(name, shift):
    m = np.ones(2 * C, np.float32)
    mean, var = m[:C], m[shift : shift + C]
    kwargs = own(name, running_mean=mean, running_var=var)
    message = "running_var: expected an array apart from running_mean, got one that shares memory"
    with pytest.raises(ValueError, match=message):
        call(name, **kwargs)
    with pytest.raises(ValueError, match=message):
        call(name, **{**kwargs, "running_mean": mean, "running_var": mean})
    np.testing.assert_array_equal(m, 1)
    call(name, **{**kwargs, "training": False})
    call(name, **{**kwargs, "running_var": m[C:]})


def test_running_statistics_side_by_side_are_updated():
    m = np.stack([STATES["running_mean"], STATES["running_var"]])
    kwargs = own("batch_norm")
    call("batch_norm", **kwargs)
    call("batch_norm", **own("batch_norm", running_mean=m[0], running_var=m[1]))
    np.testing.assert_array_equal(m, [kwargs["running_mean"], kwargs["running_var"]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", UPDATED)
def test_updates_with_an_output_that_is_written_by_copy(name, output, dtype):
    x = X.astype(dtype)
    kwargs, others = own(name, dtype), own(name, dtype)
    want = call(name, x, **kwargs)
    np.testing.assert_array_equal(call(name, x, **others, out=OUTPUTS[output](memory(dtype))), want)
    for state in STATES:
        np.testing.assert_array_equal(others[state], kwargs[state])
        assert (kwargs[state] != STATES[state].astype(dtype)).any()


# ---- x ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", CALLS)
def test_out_over_x(name, output):
    want = call(name, **own(name))
    m = memory(np.float32)
    out = OUTPUTS[output](m)
    for place in ("dense", "behind"):
        x = OUTPUTS[place](m)
        x[...] = X
        np.testing.assert_array_equal(call(name, x, **own(name), out=out), want)
        x[...] = X
        with pytest.raises(ValueError, match="out: expected an array apart from x when return_ctx"):
            call(name, x, **own(name), out=out, return_ctx=True)
        np.testing.assert_array_equal(x, X)


# ---- backward --------------------------------------------------------------------------------


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", CALLS)
def test_backward_into_dy(name, output):
    _, ctx = call(name, **own(name), return_ctx=True)
    want = fastnorm.backward(DY, ctx)
    for place in ("dense", "behind", "strided", "transposed"):
        m = memory(np.float32)
        dy, out = OUTPUTS[place](m), OUTPUTS[output](m)
        dy[...] = DY
        for got, expected in zip(fastnorm.backward(dy, ctx, out), want, strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("inside", ["dense", "partly"])
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(("name", "parameter"), [*READ, *((name, "x") for name in CALLS)])
def test_backward_over_what_it_reads(name, parameter, output, inside):
    m = memory(np.float32)
    kwargs = {"x": X, **own(name)}
    if parameter == "x":
        kwargs["x"] = OUTPUTS["behind"](m)
        kwargs["x"][...] = X
    else:
        kwargs[parameter] = put(m, INSIDE[inside], kwargs[parameter])
    _, ctx = call(name, **kwargs, return_ctx=True)
    before = m.copy()
    if parameter == "bias":  # it is not read
        want = fastnorm.backward(DY, ctx)
        got = fastnorm.backward(DY, ctx, OUTPUTS[output](m))
        np.testing.assert_array_equal(got.x, want.x)
        return
    with pytest.raises(ValueError, match=f"out: expected an array apart from the {parameter} of"):
        fastnorm.backward(DY, ctx, OUTPUTS[output](m))
    np.testing.assert_array_equal(m, before)
