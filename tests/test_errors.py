"""Bad input: the error names the argument, what was expected and given; nothing was written."""

import numpy as np
import pytest

import fastnorm

X = np.random.default_rng(0).standard_normal((3, 6, 5, 4)).astype(np.float32)
C = np.ones(6, np.float32)
RUNNING = {"running_mean": np.zeros(6, np.float32), "running_var": np.ones(6, np.float32)}
LOGITS = np.ones(3, np.float32)
NAN = float("nan")

CALLS = {
    "batch_norm": ((), {"training": True, **RUNNING}),
    "batch_renorm": ((), {"training": True, **RUNNING}),
    "group_norm": ((2,), {}),
    "instance_norm": ((), {**RUNNING}),
    "switchable_norm": ((C, C, LOGITS, LOGITS), {"training": True, **RUNNING}),
    "instance_renorm": ((), {"training": True, **RUNNING}),
    "layer_norm": ((), {}),
    "rms_norm": ((), {}),
}
WITH_LAYOUT = [n for n in CALLS if n not in ("layer_norm", "rms_norm")]
WITH_RUNNING = [n for n in WITH_LAYOUT if n != "group_norm"]
WITH_RENORM = ["batch_renorm", "instance_renorm"]


def fails(error, name, match, x=X, args=None, **changes):
    """The call raises, the message matches, and neither out nor running statistics were written."""
    positional, kwargs = CALLS[name]
    positional = positional if args is None else args
    kwargs = {**kwargs, **changes}
    out = kwargs.setdefault("out", np.full(np.shape(x), 7, getattr(x, "dtype", np.float32)))
    states = {k: kwargs[k].copy() for k in RUNNING if isinstance(kwargs.get(k), np.ndarray)}
    before = np.array(out, copy=True) if isinstance(out, np.ndarray) else None
    with pytest.raises(error, match=match) as caught:
        getattr(fastnorm, name)(x, *positional, **kwargs)
    assert type(caught.value) is error
    for k, v in states.items():
        np.testing.assert_array_equal(kwargs[k], v)
    if before is not None:
        np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [np.int32, np.complex64, np.longdouble, np.bool_, object, "U3"])
def test_dtype_of_x(name, dtype):
    fails(
        TypeError, name, "x: expected dtype float32, .* or bfloat16, got", X.astype(dtype), out=None
    )


@pytest.mark.parametrize("name", WITH_LAYOUT)
def test_rank(name):
    fails(ValueError, name, r"x: expected at least 2 dimensions.*\(6,\)", C)
    fails(ValueError, name, r"x: expected at least 2 dimensions.*\(\)", np.float32(1), out=None)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_scalar(name):
    fails(ValueError, name, "x: expected at least 1 dimension", np.float32(1), out=None)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("eps", [-1e-5, NAN, float("inf")])
def test_eps(name, eps):
    fails(ValueError, name, r"eps: expected a finite number of at least 0, got", eps=eps)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("eps", [None, "1e-5", [1], True])
def test_type_of_eps(name, eps):
    if name == "rms_norm" and eps is None:  # its default
        eps = ()
    fails(TypeError, name, "eps: expected a number, got", eps=eps)


@pytest.mark.parametrize("name", WITH_LAYOUT)
def test_layout(name):
    fails(ValueError, name, "layout: expected one of .*NCHW.*got 'CHWN'", layout="CHWN")
    fails(ValueError, name, "layout: expected one of .* for 4 dimensions, got 'NCL'", layout="NCL")
    fails(TypeError, name, "layout: expected a str, got int", layout=1)


@pytest.mark.parametrize("name", CALLS)
def test_shape_and_dtype_of_parameters(name):
    first = 1 if name == "group_norm" else 0
    axis = {"axis": 1} if name not in WITH_LAYOUT else {}
    names = ["weight"] if name == "rms_norm" else ["weight", "bias"]
    for i, which in enumerate(names):
        for value, error, match in [
            (np.ones(5, np.float32), ValueError, r"expected shape \(6,\), got \(5,\)"),
            (np.ones((6, 1), np.float32), ValueError, r"expected shape \(6,\), got \(6, 1\)"),
            (np.ones(6), TypeError, "expected dtype float32, got float64"),
        ]:
            args = list(CALLS[name][0])
            args += [None] * (first + len(names) - len(args))
            args[first + i] = value
            fails(error, name, f"{which}: {match}", args=args, **axis)


@pytest.mark.parametrize("name", WITH_RUNNING)
@pytest.mark.parametrize("which", ["running_mean", "running_var"])
def test_running_statistics(name, which):
    wrong = {which: np.ones(5, np.float32)}
    fails(ValueError, name, which + r": expected shape \(6,\), got \(5,\)", **wrong)
    fails(TypeError, name, which + ": expected dtype float32, got float64", **{which: np.ones(6)})
    fails(TypeError, name, which + ": expected an ndarray.*got list", **{which: [1.0] * 6})
    frozen = C.copy()
    frozen.flags.writeable = False
    fails(ValueError, name, which + ": expected a writeable.*writeable=False", **{which: frozen})
    strided = np.ones(12, np.float32)[::2]
    fails(ValueError, name, which + ": expected a writeable.*contiguous", **{which: strided})
    fails(ValueError, name, "running_mean, running_var: expected", **{which: None})


@pytest.mark.parametrize("name", ["batch_norm", "switchable_norm"])
def test_running_statistics_are_needed_in_inference(name):
    fails(
        ValueError, name, "running_mean, running_var: expected arrays .*training is False",
        training=False, running_mean=None, running_var=None,
    )  # fmt: skip


def test_running_statistics_are_needed_without_input_statistics():
    fails(
        ValueError, "instance_norm", "running_mean, running_var: .*use_input_stats is False",
        use_input_stats=False, running_mean=None, running_var=None,
    )  # fmt: skip


@pytest.mark.parametrize("name", WITH_RENORM)
def test_renorm_needs_running_statistics(name):
    fails(
        ValueError, name, "running_mean, running_var: expected", running_mean=None, running_var=None
    )


@pytest.mark.parametrize("name", WITH_RUNNING)
def test_momentum_and_ddof(name):
    fails(ValueError, name, r"momentum: expected a finite number in \[0, 1\]", momentum=1.5)
    fails(ValueError, name, r"momentum: expected a finite number in \[0, 1\]", momentum=NAN)
    fails(TypeError, name, "momentum: expected a number, got None", momentum=None)
    fails(ValueError, name, "ddof: expected 0 or 1, got 2", ddof=2)
    fails(ValueError, name, "ddof: expected 0 or 1, got 0.5", ddof=0.5)


@pytest.mark.parametrize("name", WITH_RENORM)
def test_renorm_bounds(name):
    fails(ValueError, name, "r_max: expected a finite number of at least 1, got 0.5", r_max=0.5)
    fails(ValueError, name, "d_max: expected a finite number of at least 0, got -1", d_max=-1)


def test_blend():
    fails(ValueError, "instance_renorm", r"blend: expected a finite number in \[0, 1\]", blend=1.1)


@pytest.mark.parametrize("name", ["batch_norm", "batch_renorm", "switchable_norm"])
def test_flags(name):
    fails(TypeError, name, "training: expected a bool, got str", training="no")


@pytest.mark.parametrize("groups", [0, -2, 4, 7])
def test_group_count(groups):
    fails(ValueError, "group_norm", "num_groups: expected a positive divisor of the 6 channels",
          args=(groups,))  # fmt: skip


@pytest.mark.parametrize("groups", [2.0, "2", None, True])
def test_type_of_group_count(groups):
    fails(TypeError, "group_norm", "num_groups: expected an int, got", args=(groups,))


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_axis(name):
    fails(ValueError, name, r"axis: expected axes in \[-4, 4\)", axis=4)
    fails(ValueError, name, r"axis: expected axes in \[-4, 4\)", axis=(-1, -5))
    fails(ValueError, name, "axis: expected distinct axes", axis=(1, -3))
    fails(ValueError, name, "axis: expected at least one axis", axis=())
    fails(ValueError, name, "axis: expected distinct axes", axis=[1, -3])
    fails(ValueError, name, "axis: expected at least one axis", axis=[])
    for axis in (1.0, "1", None, True, [1.0], {1}, np.arange(2)):
        fails(TypeError, name, "axis: expected an int or a tuple of ints", axis=axis)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize(
    ("name", "shape", "match"),
    [
        ("batch_norm", (1, 6, 1, 1), "each channel in training"),
        ("batch_renorm", (1, 6), "each channel in training"),
        ("instance_norm", (3, 6, 1, 1), "each channel of a sample"),
        ("instance_renorm", (1, 6, 1), "each channel"),
    ],
)
def test_running_var_takes_no_variance_of_one_value(name, shape, match, ddof):
    x = np.ones(shape, np.float32)
    match = f"x: expected more than one value for {match}, whose variance running_var takes"
    fails(ValueError, name, match, x, layout="channels_first", ddof=ddof)


def test_one_value_in_all():
    x, one = np.ones((1, 1, 1, 1), np.float32), np.ones(1, np.float32)
    running = {"running_mean": one, "running_var": one.copy()}
    fails(ValueError, "switchable_norm", "x: expected more than one value", x,
          args=(one.copy(), one.copy(), LOGITS, LOGITS), **running)  # fmt: skip


@pytest.mark.parametrize("name", ["switchable_norm", "instance_renorm"])
def test_unbiased_variance_of_one_value(name):
    if name == "switchable_norm":  # one value a channel, but two channels
        x = np.ones((1, 6, 1, 1), np.float32)
        fails(ValueError, name, "ddof: expected less than the 1 value", x, ddof=1)
    else:
        x = np.ones((1, 6, 2, 1), np.float32)
        fastnorm.instance_renorm(
            x, training=True, ddof=1, running_mean=C.copy(), running_var=C.copy()
        )


@pytest.mark.parametrize("name", CALLS)
def test_out(name):
    fails(TypeError, name, "out: expected an ndarray, got list", out=[1.0])
    fails(TypeError, name, "out: expected dtype float32, got float64", out=np.zeros(X.shape))
    fails(ValueError, name, r"out: expected shape \(3, 6, 5, 4\), got \(3, 6, 5\)",
          out=np.zeros((3, 6, 5), np.float32))  # fmt: skip
    frozen = np.zeros_like(X)
    frozen.flags.writeable = False
    fails(ValueError, name, "out: expected a writeable array", out=frozen)
    x = X.copy()
    fails(ValueError, name, "out: expected an array apart from x", x, out=x, return_ctx=True)


def test_out_over_running_statistics():
    memory = np.ones((2, 6), np.float32)
    fails(ValueError, "batch_norm", "out: expected an array apart from running_mean",
          np.ones((2, 6), np.float32), out=memory, running_mean=memory[0], running_var=C.copy(),
          layout="NC")  # fmt: skip


def backward_of(x=X, weight=None):
    _, ctx = fastnorm.layer_norm(x, weight, return_ctx=True)
    return ctx


def test_backward():
    ctx = backward_of()
    with pytest.raises(TypeError, match=r"ctx: expected the Context.*got ndarray"):
        fastnorm.backward(X, X)
    with pytest.raises(ValueError, match=r"dy: expected x's shape \(3, 6, 5, 4\), got \(3, 6, 5\)"):
        fastnorm.backward(X[..., 0], ctx)
    with pytest.raises(TypeError, match="dy: expected x's dtype float32, got float64"):
        fastnorm.backward(X.astype(np.float64), ctx)
    with pytest.raises(TypeError, match=r"dy: expected dtype float32, .* got int64"):
        fastnorm.backward(X.astype(np.int64), ctx)
    with pytest.raises(ValueError, match="out: expected shape"):
        fastnorm.backward(X, ctx, out=np.zeros(3, np.float32))
    x = X.copy()
    with pytest.raises(ValueError, match="out: expected an array apart from the x of the forward"):
        fastnorm.backward(X, backward_of(x), out=x)
    np.testing.assert_array_equal(x, X)
    memory = np.ones((2, 4), np.float32)
    with pytest.raises(ValueError, match="out: expected an array apart from the weight"):
        fastnorm.backward(memory.copy(), backward_of(memory.copy(), memory[0]), out=memory)


@pytest.mark.parametrize("name", ["mean_logits", "var_logits"])
def test_backward_leaves_the_logits(name):
    memory = np.ones((2, 4), np.float32)
    logits = {"mean_logits": np.ones(3, np.float32), "var_logits": np.ones(3, np.float32)}
    logits[name] = memory.reshape(-1)[1:4]
    _, ctx = fastnorm.switchable_norm(
        memory.copy(), None, None, **logits, training=True, layout="NC", return_ctx=True
    )
    with pytest.raises(ValueError, match=f"out: expected an array apart from the {name}"):
        fastnorm.backward(memory.copy(), ctx, out=memory)
    np.testing.assert_array_equal(memory, 1)


def test_a_context_cannot_be_made_by_hand():
    with pytest.raises(TypeError, match="ctx: expected the Context of a forward call"):
        fastnorm.backward(X, fastnorm.Context())


def test_no_memory_is_a_memory_error():
    """In a process that may not have what the output needs; running statistics stay."""
    import subprocess
    import sys

    program = """
import resource, numpy as np, fastnorm
x = np.ones((64, 1024, 1024), np.float32)
mean, var = np.zeros(1024, np.float32), np.ones(1024, np.float32)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), -1))
try:
    fastnorm.batch_norm(x, running_mean=mean, running_var=var, training=True, layout="NCL")
except MemoryError:
    assert not mean.any() and (var == 1).all()
    print("as expected")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600
    )
    assert done.stdout == "as expected\n", done.stderr


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_running_statistics_in_another_byte_order(dtype):
    """They could not be updated where they lie."""
    x = np.ones((4, 3), dtype)
    x[0] = 2
    mean, var = np.zeros(3, np.dtype(dtype).newbyteorder()), np.ones(3, dtype)
    with pytest.raises(ValueError, match=r"running_mean: expected a writeable.*another byte order"):
        fastnorm.batch_norm(x, running_mean=mean, running_var=var, training=True, layout="NC")
    fastnorm.batch_norm(x, running_mean=mean, running_var=var, layout="NC")  # reading is fine
