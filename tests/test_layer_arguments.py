"""Wrong arguments of layers and of their calls: refused by the name of the argument, when made."""

import re
from inspect import Parameter, signature

import numpy as np
import pytest
from cases import assert_close

import fastnorm
from fastnorm import _check

NAN, INF = float("nan"), float("inf")
RAGGED = [[1.0], [2.0, 3.0]]
LAYERS = {
    fastnorm.BatchNorm: {"num_features": 6},
    fastnorm.SyncBatchNorm: {"num_features": 6},
    fastnorm.BatchRenorm: {"num_features": 6},
    fastnorm.InstanceNorm: {"num_features": 6, "affine": True, "track_running_stats": True},
    fastnorm.InstanceRenorm: {"num_features": 6},
    fastnorm.SwitchableNorm: {"num_features": 6},
    fastnorm.GroupNorm: {"num_groups": 3, "num_channels": 6},
    fastnorm.LayerNorm: {"normalized_shape": (6, 5)},
    fastnorm.RMSNorm: {"normalized_shape": (6, 5)},
    fastnorm.FilterResponseNorm: {"num_features": 6},
    fastnorm.GlobalResponseNorm: {"num_features": 6},
    fastnorm.DecorrelatedBatchNorm: {"num_features": 6, "group_size": 3},
    fastnorm.IterNorm: {"num_features": 6, "group_size": 3},
}

THINGS = [[1.0], {}, object(), 1j, np.ones(2), RAGGED]  # that stand for no number, flag or name
NO_NUMBER = [*THINGS, "abc", b"x", True, (1, "a")]
NO_INT = [*NO_NUMBER, None, 2.5, NAN]
NO_FLAG = [*THINGS, "abc", b"x", None, 0.5]
NO_DTYPE = [*THINGS, "NHWC", "f3", None, np.int32, "f2", np.complex64, 32, ">f4", "f4,f4",
            "{", ["a"], {"names": ["a"]}]  # fmt: skip
# argument: (values of a wrong type, what the TypeError expects, values that are a ValueError)
WRONG = {
    "num_features": (NO_INT, "an int", {
        0: "at least 1, got 0", -3: "at least 1, got -3", 2**62: "at most", 10**400: "at most",
    }),
    "num_channels": (NO_INT, "an int", {0: "at least 1, got 0", 2**62: "at most"}),
    "num_groups": (NO_INT, "an int", {0: "at least 1, got 0", 4: "a divisor of the 6 channels"}),
    "group_size": (NO_INT, "an int", {0: "a positive divisor", 4: "a positive divisor of the 6"}),
    "iterations": (NO_INT, "an int", {0: "1 to 1000, got 0", 10**400: "1 to 1000"}),
    "eps": (NO_NUMBER, "a number", {
        -1: "a finite number of at least 0, got -1", -1e-300: "a finite", NAN: "a finite",
        np.float32(-1): "a finite", INF: "a finite", 10**400: "a finite",
    }),
    "momentum": (NO_NUMBER, "a number", {
        2: r"a finite number in \[0, 1\], got 2", -0.1: "a finite", NAN: "a finite", INF: "a fin",
    }),
    "ddof": ([*NO_INT, 0.5, 1.0], "0 or 1", {5: "0 or 1, got 5", -1: "0 or 1, got -1"}),
    "layout": ([*THINGS, b"NCHW", None, 1], "a str", {
        "foo": "one of .*NCHW.*, got 'foo'", "": "one of", "nchw": "one of", "NHWC16c": "one of",
    }),
    "affine": (NO_FLAG, "a bool", {}),
    "tau": (NO_FLAG, "a bool", {}),
    "track_running_stats": (NO_FLAG, "a bool", {}),
    "elementwise_affine": (NO_FLAG, "a bool", {}),
    "bias": (NO_FLAG, "a bool", {}),
    "dtype": (NO_DTYPE, "float32 or float64", {}),
    "r_max": ([*NO_NUMBER, None], "a number", {0.5: "a finite number of at least 1", NAN: "a fin"}),
    "d_max": ([*NO_NUMBER, None], "a number", {-1: "a finite number of at least 0", NAN: "a fini"}),
    "blend": ([*NO_NUMBER, None], "a number", {1.1: r"a finite number in \[0, 1\]", NAN: "a fini"}),
    "normalized_shape": ([*NO_INT, (3, 2.5), [3, None]], "an int", {
        0: "at least 1, got 0", (3, -1): "at least 1, got -1", (): "at least one size",
        (2**31, 2**31): "at most", 10**20: "at most",
    }),
    "axis": ([*NO_NUMBER, 1.5, (1, 2.5), (True, 2), range(2)], "an int or a tuple of ints", {
        1: "2 axes", (0, 1, 2): "2 axes", (1, 1): "distinct axes", (): "at least one int",
    }),
    "comm": ([*THINGS, "abc", 1], "a Communicator", {}),
}  # fmt: skip


def names_of(layer):
    """Names of the arguments; what stands around the calls is in test_layers.py."""
    parameters = signature(layer).parameters.values()
    return [p.name for p in parameters if p.kind is not Parameter.VAR_KEYWORD]


CALLS = [
    (layer, name, value, error, f"{name}: expected {match}")
    for layer in LAYERS
    for name in names_of(layer)
    for value, error, match in [
        *((value, TypeError, WRONG[name][1]) for value in WRONG[name][0]),
        *((value, ValueError, match) for value, match in WRONG[name][2].items()),
        *([(None, TypeError, "a number")] if name == "eps" and layer != fastnorm.RMSNorm else []),
    ]
]


@pytest.mark.parametrize(
    ("layer", "name", "value", "error", "match"),
    CALLS,
    ids=[f"{layer.__name__}-{name}-{i}" for i, (layer, name, *_) in enumerate(CALLS)],
)
def test_wrong_arguments_are_named_when_the_layer_is_made(layer, name, value, error, match):
    with pytest.raises(error, match=f"^{match}") as caught:
        layer(**{**LAYERS[layer], name: value})
    assert type(caught.value) is error


@pytest.mark.parametrize("layer", LAYERS)
def test_right_arguments(layer):
    """The other side: what looks odd and is right; the layer works."""
    right = {
        "num_features": np.int64(6), "num_channels": np.int32(6), "num_groups": np.int8(2),
        "eps": np.float32(0.5), "momentum": 0, "ddof": np.int64(0), "layout": "channels_first",
        "affine": np.True_, "track_running_stats": 1, "elementwise_affine": np.True_, "bias": 1,
        "tau": 1, "group_size": np.int8(3), "iterations": np.int64(2),
        "dtype": "float64", "r_max": INF, "d_max": np.float64(0), "blend": 1,
        "normalized_shape": [np.int64(6), 5], "axis": [np.int64(1), -1], "comm": None,
    }  # fmt: skip
    made = layer(**{name: right[name] for name in names_of(layer)})
    x = np.random.default_rng(0).standard_normal((4, 6, 5))
    assert made(x).shape == made.backward(x).shape == x.shape
    if hasattr(made, "momentum"):
        layer(**{**LAYERS[layer], "momentum": None})(x.astype(np.float32))


def test_the_layouts_are_those_of_the_functions():
    """Of which the messages of the core tell."""
    for rank in range(2, 8):
        with pytest.raises(ValueError, match="layout: expected one of") as caught:
            fastnorm.batch_norm(np.ones((2,) * rank), layout="foo")
        told = re.findall(r"\w+", str(caught.value).split(" one of ")[1].split(" for ")[0])
        assert set(told) == {k for k, (r, *_) in _check.LAYOUTS.items() if r in (0, rank)}
        for name in told:
            shape = [2] * rank
            _, axis, block = _check.LAYOUTS[name]
            shape[-1] = block if block > 1 else shape[-1]
            shape[axis] = 1 if block > 1 else 7
            layer = fastnorm.GroupNorm(1, 7, layout=name, affine=False)
            assert layer(np.ones(shape, np.float32)).shape == tuple(shape)


X = np.random.default_rng(0).standard_normal((3, 6, 5))


def made(layer, dtype):
    return layer(**LAYERS[layer], dtype=dtype)


WRONG_X = {
    "float64": (
        X, TypeError,
        r"^x: expected dtype float32, float16 or bfloat16, as the layer is of float32, got "
        r"float64: convert x, or make the layer with dtype=np.float64$",
    ),
    "int": (X.astype(int), TypeError, "^x: expected dtype float32, .* got int64: convert x$"),
    "bool": (X > 0, TypeError, "^x: expected dtype float32, .* got bool: convert x$"),
    "complex": (X + 1j, TypeError, "^x: expected dtype float32, .* got complex128: convert x$"),
    "text": ("abc", TypeError, "^x: expected dtype float32, .* got <U3: convert x$"),
    "object": (X.astype(object), TypeError, "^x: expected dtype float32, .* got object: convert"),
    "none": (None, TypeError, "^x: expected an array of numbers, got NoneType"),
    "ragged": (RAGGED, ValueError, "^x: expected an array, got .*inhomogeneous"),
    "masked": (np.ma.masked_array(X, dtype="f4"), TypeError, "^x: expected an array without a"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_X)
@pytest.mark.parametrize("layer", LAYERS)
def test_x_is_at_fault(layer, what):
    x, error, match = WRONG_X[what]
    made_ = made(layer, np.float32)
    state = made_.state_dict()
    for training in (True, False):
        made_.train(training)
        with pytest.raises(error, match=match):
            made_(x)
    for key, value in made_.state_dict().items():
        np.testing.assert_array_equal(value, state[key])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, "bfloat16"])
@pytest.mark.parametrize("layer", LAYERS)
def test_x_of_a_layer_of_float64(layer, dtype):
    dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), str(dtype), dtype))
    match = (
        f"^x: expected dtype float64, as the layer is of float64, got {dtype}: convert x, or make "
        r"the layer with dtype=np\.float32$"
    )
    with pytest.raises(TypeError, match=match):
        made(layer, np.float64)(X.astype(dtype))
    made(layer, np.float32)(X.astype(dtype))
    made(layer, np.float32)(X.astype(dtype)[::-1].astype(dtype.newbyteorder()) if dtype.kind == "f"
                            else X.astype(dtype)[:, ::-1])  # fmt: skip


def test_layers_without_parameters_take_every_float():
    for dtype in (np.float32, np.float64, np.float16):
        assert fastnorm.InstanceNorm(6)(X.astype(dtype)).dtype == dtype
    with pytest.raises(TypeError, match=r"^x: expected dtype float32, float64, .* got int64"):
        fastnorm.InstanceNorm(6)(X.astype(int))


def test_parameters_of_the_user_are_the_users():
    """A layer whose parameters were replaced goes by their dtype."""
    layer = fastnorm.LayerNorm(5)
    layer.params = {name: value.astype(np.float64) for name, value in layer.params.items()}
    assert_close(layer(X), fastnorm.layer_norm(X), 1e-12, "y")
    layer.params["weight"] = np.ones(5, np.int64)
    with pytest.raises(TypeError, match=r"^weight: expected dtype float64, got int64"):
        layer(X)


@pytest.mark.parametrize(
    ("layout", "shapes"),
    [
        ("NCHW", [(2, 5, 4, 4), (2, 12, 3), (2, 5)]),
        ("channels_last", [(2, 6, 5), (6, 6, 6, 7)]),
        ("NCL", [(2, 5, 4), (2, 6, 4, 4), (6, 4, 3, 2, 2)]),
        ("NC", [(2, 5), (2, 6, 4)]),
        ("NCHW8c", [(2, 2, 4, 4, 8), (2, 1, 4, 4, 16), (2, 6, 4, 4), (2, 1, 4, 4, 7)]),
        ("NCL16c", [(2, 2, 4, 16), (2, 0, 4, 16), (2, 6, 4)]),
    ],
)
@pytest.mark.parametrize("layer", [*LAYERS][:6])
def test_sizes_of_x_are_at_fault(layer, layout, shapes):
    for shape in shapes:
        if "Instance" in layer.__name__ and len(shape) == _check.LAYOUTS[layout][0] - 1:
            continue  # one sample
        with pytest.raises(
            ValueError, match=rf"^x: expected (6 channels|\d dimensions) in {layout}"
        ):
            layer(**LAYERS[layer], layout=layout)(np.ones(shape, np.float32))


def test_a_schedule_that_gives_nothing():
    layer = fastnorm.BatchRenorm(6, r_max=lambda step: None)
    with pytest.raises(TypeError, match=r"^r_max: expected a number, got NoneType"):
        layer(X.astype(np.float32))


def test_mode_of_train():
    with pytest.raises(TypeError, match=r"^mode: expected a bool, got str"):
        fastnorm.BatchNorm(3).train("no")


@pytest.mark.parametrize("name", ["BatchNorm", "BatchRenorm", "SwitchableNorm", "SyncBatchNorm"])
def test_a_count_that_cannot_be_written_is_found_before_anything_is(name, rng):
    layer = getattr(fastnorm, name)(3)
    before = {key: value.copy() for key, value in layer.buffers.items()}
    layer.buffers["num_batches_tracked"].flags.writeable = False
    with pytest.raises(ValueError, match="num_batches_tracked: expected a writeable array"):
        layer(rng.standard_normal((4, 3)).astype("f4"))
    for key, value in layer.buffers.items():
        np.testing.assert_array_equal(value, before[key])


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: fastnorm.BatchNorm(np.timedelta64(3)), TypeError, "num_features: expected an int"),
    (lambda: fastnorm.BatchNorm(3, eps=np.timedelta64(1)), TypeError, "eps: expected a number"),
    (lambda: fastnorm.BatchNorm(3, affine=5), TypeError, "affine: expected a bool, got 5"),
    (lambda: fastnorm.LayerNorm((1,) * 70), ValueError, "normalized_shape: expected at most 64"),
    (lambda: fastnorm.LayerNorm(3, axis=10**400), ValueError, "axis: expected at most 64 ints"),
    (lambda: fastnorm.batch_renorm_r_max("abc"), TypeError, "step: expected a number, got str"),
    (lambda: fastnorm.batch_renorm_d_max(10**400), ValueError, "step: expected a finite number"),
    (lambda: fastnorm.WeightNorm(3.0), ValueError, "v: expected at least 1 dimension"),
    (lambda: fastnorm.weight_norm_init(np.ones((3, 2)), ()), ValueError, "shape: expected that"),
    (lambda: fastnorm.weight_norm_init(np.ones((3, 2)), (2**40, 2**40)), ValueError, "shape: "),
    (lambda: fastnorm.to_blocked(np.ones((2, 3)), np.array([8, 8])), TypeError, "block: expected"),
    (lambda: fastnorm.to_blocked(np.ones((2, 3)), 8.0), TypeError, "block: expected an int"),
    (lambda: fastnorm.to_blocked(np.empty((2**60, 0), "f4")), ValueError, "x: expected a shape"),
    (lambda: fastnorm.from_blocked(np.ones((1, 1, 16)), "a"), TypeError, "channels: expected an"),
    (lambda: fastnorm.from_blocked(np.ones((1, 0, 8)), -3), ValueError, "channels: expected 0 to"),
    (lambda: fastnorm.from_blocked(np.ones((1, 2, 5)), 9), ValueError, "x: expected blocks of 8"),
    (lambda: fastnorm.cosine_norm(np.ones((2, 3)), np.ones((4, 3)), stride=np.array([1, 1])),
     TypeError, "stride: expected an int"),
    (lambda: fastnorm.cosine_norm(np.ones((1, 3, 4)), np.ones((2, 3, 2)), padding=2**62),
     ValueError, "padding: expected 1"),
    (lambda: fastnorm.Moments.merge(3), TypeError, "moments: expected Moments, got int"),
    (lambda: fastnorm.Moments.from_array(np.ones((3, 2))).std(ddof=10**400), ValueError, "ddof: "),
    (lambda: fastnorm.comm.local_communicators(2, slot=2**62), ValueError, "slot: expected a pos"),
    (lambda: fastnorm.comm.local_communicators(2, timeout=10**400), ValueError, "timeout: "),
])  # fmt: skip
def test_what_else_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()


def test_an_empty_array_in_blocks():
    assert fastnorm.to_blocked(np.empty((0, 2**60), "f4")).shape == (0, 2**56, 16)


@pytest.mark.parametrize("change", [
    lambda x: setattr(x, "shape", (2, 3, 64)),
    lambda x: setattr(x, "dtype", np.int32),
    lambda x: x.resize((1, 3, 8, 8), refcheck=False),
])  # fmt: skip
def test_cosine_norm_of_an_array_that_was_changed(change, rng):
    x, weight = rng.standard_normal((2, 3, 8, 8)).astype("f4"), np.ones((4, 3, 2, 2), "f4")
    y, ctx = fastnorm.cosine_norm(x, weight, return_ctx=True)
    change(x)
    with pytest.raises(ValueError, match="ctx: expected x as it was in the forward call"):
        fastnorm.backward(np.ones_like(y), ctx)


def test_lengths_of_an_array_that_was_changed():
    x = np.ones((2, 3))
    y, ctx = fastnorm.normalize(x, 1, return_ctx=True)
    x.shape = (3, 2)
    with pytest.raises(ValueError, match="ctx: expected x as it was in the forward call"):
        fastnorm.backward(np.ones_like(y), ctx)
