"""Whatever is given, a refusal is a TypeError or ValueError whose message begins with the name of
an argument, and nothing was written. And masks are not dropped."""

import copy
import inspect
import re
import warnings
from decimal import Decimal

import ml_dtypes
import numpy as np
import pytest

import fastnorm

X = np.random.default_rng(0).standard_normal((3, 6, 4)).astype(np.float32)
C = np.linspace(0.5, 2, 6, dtype=np.float32)
LOGITS = np.ones(3, np.float32)
STATES = {"running_mean": 0 * C, "running_var": C}
BATCH = {"x": X, "weight": C, "bias": C, "layout": "NCL", **STATES}
WHITEN = {
    **BATCH, "running_cov": np.stack([np.eye(3, dtype=np.float32)] * 2), "group_size": 3
}  # fmt: skip
del WHITEN["running_var"]
CALLS = {
    "layer_norm": {"x": X, "weight": LOGITS[[0, 1, 2, 0]], "bias": None, "axis": -1},
    "rms_norm": {"x": X, "weight": LOGITS[[0, 1, 2, 0]], "axis": (-1,)},
    "batch_norm": {**BATCH, "training": True},
    "batch_renorm": {**BATCH, "training": True},
    "group_norm": {"x": X, "num_groups": 3, "weight": C, "bias": C, "layout": "NCL"},
    "instance_norm": {**BATCH, "use_input_stats": True},
    "instance_renorm": {**BATCH, "training": True},
    "switchable_norm": {**BATCH, "mean_logits": LOGITS, "var_logits": LOGITS, "training": True},
    "weight_norm": {"v": X, "g": LOGITS, "axis": 0},
    "decorrelated_batch_norm": {**WHITEN, "training": True},
    "iter_norm": {**WHITEN, "training": True},
    "backward": {"dy": X},
}
SETTINGS = {
    "set_num_threads": {"num_threads": 1},
    "set_isa": {"name": "sse2"},
    "set_buffer_cache": {"bytes": 2**20},
}


class Raises:
    """What an array is made of, shown or counted by raises."""

    def _fail(self, *_, **__):
        raise OSError("a broken object")

    __array__ = __float__ = __int__ = __index__ = __len__ = __bool__ = __repr__ = __iter__ = _fail


def endless():
    items = []
    items.append(items)
    return items


RAGGED = [[1.0, 2.0], [3.0]]
NONSENSE = [
    None, True, np.True_, 0, 1, 2, -1, 7, 10**30, 10**400, 10**5000, -(10**5000), 0.5, -0.5, 1e-5,
    float("nan"), float("inf"), 1j, np.complex64(1), np.float32(1e-5), np.int8(1), np.uint64(2**63),
    np.timedelta64(1), np.datetime64("2020"), Decimal("1e-5"), "", "NHWC", "NCHW16c", "a" * 10**4,
    "\ud800", b"NCL", (), (1,), (1, "a"), (0, 0), [0, 1], [1], [], {}, {1}, frozenset(), range(2),
    RAGGED, [RAGGED, 1], [None], ["a"], [1, "a"], [[]], endless(), [1.0] * 6, slice(1), Ellipsis,
    NotImplemented, object(), Raises(), [Raises()], Raises, len, (i for i in range(3)), np.float32,
    np.dtype("f4"), memoryview(b"abcd"), bytearray(4), warnings,
    np.array(1.0), np.array([1e-5]), np.array(1j), np.array("1e-5"), np.array(True), np.zeros(0),
    np.zeros(6), np.zeros(6, bool), np.zeros(6, object), np.zeros(6, complex), np.zeros(6, "M8[s]"),
    np.zeros(6, "U3"), np.zeros(6, [("a", "f4")]), np.zeros((6, 1), "f4"), np.zeros(6, ">f4"),
    np.zeros(12, "f4")[::2], np.zeros(6, ml_dtypes.bfloat16), np.zeros(6, ml_dtypes.int4),
    np.zeros(6, np.longdouble), np.zeros((3, 6, 4), "f8"), np.zeros((3, 6, 4), bool), X.tolist(),
    np.zeros((3, 6, 4), "f4")[:, ::-1], np.broadcast_to(np.float32(1), 6), np.ma.masked,
    np.ma.masked_array(np.ones(6, "f4")), np.ma.masked_array(X, X > 0), [np.ma.masked],
    np.arange(4.0, dtype="f4").view(np.recarray),
]  # fmt: skip
if hasattr(np.dtypes, "StringDType"):
    NONSENSE.append(np.array(["a"] * 6, np.dtypes.StringDType()))


def parameters_of(name):
    """Names of the parameters, but for what stands around."""
    parameters = inspect.signature(getattr(fastnorm, name)).parameters.values()
    return [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]


def arguments(name):
    """Arguments of a call that works, of its own; and the arrays among them that it writes."""
    given = CALLS.get(name, SETTINGS.get(name))
    kwargs = {k: v.copy() if k.startswith("running") else v for k, v in given.items()}
    if name == "backward":
        _, kwargs["ctx"] = fastnorm.layer_norm(X, return_ctx=True)
    written = [v for k, v in kwargs.items() if k.startswith("running")]
    if name in CALLS:
        kwargs["out"] = np.full(X.shape, 7, np.float32)
        written.append(kwargs["out"])
    return kwargs, written


def refused(name, changes):
    """The message of a call with these changes, or None where it is accepted."""
    kwargs, written = arguments(name)
    before = copy.deepcopy(written)
    function = getattr(fastnorm, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            function(**{**kwargs, **changes})
    except (TypeError, ValueError) as error:
        message = str(error)
        for got, want in zip(written, before, strict=True):
            np.testing.assert_array_equal(got, want)
        names = re.match(r"(\w+(, \w+)*): expected ", message)
        assert names, message
        assert set(names[1].split(", ")) <= inspect.signature(function).parameters.keys(), message
        assert len(message) < 1000, message
        return message
    return None


@pytest.fixture(autouse=True)
def _settings():
    bound = fastnorm._core.buffer_cache()[0]
    yield
    fastnorm.set_buffer_cache(bound)


@pytest.mark.parametrize("name", [*CALLS, *SETTINGS])
def test_one_argument_that_is_nonsense(name):
    parameters = parameters_of(name)
    count = 0
    for parameter in parameters:
        for value in NONSENSE:
            message = refused(name, {parameter: value})
            if message is not None:
                count += 1
                # what is expected of the others depends on these
                decides = parameter in ("x", "v", "axis", "layout", "group_size")
                assert decides or parameter in message
    assert count > 60 * len(parameters)


def test_many_arguments_that_are_nonsense():
    rng = np.random.default_rng(0)
    accepted = 0
    for _ in range(4000):
        name = rng.choice(list(CALLS))
        parameters = parameters_of(name)
        which = rng.choice(parameters, rng.integers(1, 4), replace=False)
        accepted += not refused(name, {p: NONSENSE[rng.integers(len(NONSENSE))] for p in which})
    assert 0 < accepted < 400


ARRAY = r"expected an array, got .*, of which NumPy makes none: "
TABLE = [
    ("layer_norm", "x", RAGGED, "ValueError: x: " + ARRAY + ".*inhomogeneous"),
    ("layer_norm", "weight", RAGGED, "ValueError: weight: " + ARRAY + ".*inhomogeneous"),
    ("layer_norm", "x", Raises(), r"TypeError: x: .*one of type Raises, .*a broken object"),
    ("layer_norm", "return_ctx", X > 0, "TypeError: return_ctx: expected a bool, got ndarray"),
    ("layer_norm", "return_ctx", 2, "TypeError: return_ctx: expected a bool, got int"),
    ("layer_norm", "axis", "-1", "TypeError: axis: expected an int or a tuple of ints, got '-1'"),
    ("layer_norm", "axis", (1, "a"), r"TypeError: axis: .*, got \(1, 'a'\)"),
    ("layer_norm", "axis", 10**5000, r"ValueError: axis: expected axes in \[-3, 3\).*type int"),
    ("layer_norm", "eps", 1j, "TypeError: eps: expected a number, got complex"),
    ("layer_norm", "eps", np.complex64(1), "TypeError: eps: expected a number, got complex64"),
    ("layer_norm", "eps", 10**400, "ValueError: eps: expected a finite number .*, got 1000"),
    ("layer_norm", "eps", np.array([1e-5]), "TypeError: eps: expected a number, got ndarray"),
    ("layer_norm", "eps", np.array("1"), "TypeError: eps: expected a number, got ndarray"),
    ("batch_norm", "running_mean", RAGGED, "TypeError: running_mean: expected an ndarray.* list"),
    ("batch_norm", "bias", {1.0}, "TypeError: bias: expected dtype float32, got object"),
    ("batch_norm", "training", X > 0, "TypeError: training: expected a bool, got ndarray"),
    ("batch_norm", "ddof", (1, "a"), r"ValueError: ddof: expected 0 or 1, got \(1, 'a'\)"),
    ("batch_norm", "layout", ["NCL"], "TypeError: layout: expected a str, got list"),
    ("batch_norm", "layout", "N" * 999, "ValueError: layout: expected one of .*, got 'NN.*[.]{3}$"),
    ("batch_norm", "momentum", "0.1", "TypeError: momentum: expected a number, got str"),
    ("instance_norm", "use_input_stats", [], "TypeError: use_input_stats: expected a bool, got l"),
    ("group_norm", "num_groups", 10**5000, "ValueError: num_groups: expected a positive divisor"),
    ("switchable_norm", "mean_logits", RAGGED, "ValueError: mean_logits: " + ARRAY),
    ("weight_norm", "g", RAGGED, "ValueError: g: " + ARRAY),
    ("weight_norm", "v", [RAGGED], "ValueError: v: " + ARRAY),
    ("backward", "dy", RAGGED, "ValueError: dy: " + ARRAY),
    ("backward", "out", {}, "TypeError: out: expected an ndarray, got dict"),
    ("backward", "ctx", X, "TypeError: ctx: expected the Context of a forward call .*got ndarray"),
    ("set_num_threads", "num_threads", 10**5000, "ValueError: num_threads: expected 0 to 1024"),
    ("set_buffer_cache", "bytes", -(10**5000), "ValueError: bytes: expected 0 to"),
]  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "-".join(row[:2]))
def test_message(row):
    name, parameter, value, message = row
    kind, message = message.split(": ", 1)
    kwargs, _ = arguments(name)
    with pytest.raises({"TypeError": TypeError, "ValueError": ValueError}[kind]) as caught:
        getattr(fastnorm, name)(**{**kwargs, parameter: value})
    assert re.match(message, str(caught.value)), str(caught.value)


def test_running_statistics_that_are_only_read():
    for name in STATES:
        with pytest.raises(ValueError, match=f"{name}: {ARRAY}"):
            fastnorm.batch_norm(X, **{**STATES, name: RAGGED}, layout="NCL")


@pytest.mark.parametrize("layout", ["NCL16c", "NCL8c"])
def test_parameters_of_blocks(layout):
    x = np.zeros((2, 1, 3, int(layout[3:-1])), np.float32)
    for name in ("weight", "bias", "running_mean"):
        kwargs = {"running_mean": 0 * C, "running_var": C, name: RAGGED}
        with pytest.raises(ValueError, match=f"{name}: {ARRAY}"):
            fastnorm.batch_norm(x, **kwargs, layout=layout)


@pytest.mark.parametrize("name", CALLS)
def test_flags_and_numbers_of_numpy(name):
    """What is no nonsense: NumPy's scalars, and ints for flags."""
    kwargs, _ = arguments(name)
    parameters = inspect.signature(getattr(fastnorm, name)).parameters
    for some in (
        {"training": np.True_, "return_ctx": np.False_, "use_input_stats": np.True_},
        {"training": 1, "return_ctx": 0, "use_input_stats": 1},
        {"eps": np.float32(1e-5), "momentum": np.array(0.5), "ddof": np.int8(1), "blend": 1},
        {
            "eps": Decimal("1e-5"),
            "r_max": np.inf,
            "d_max": np.float16(2),
            "num_groups": np.uint8(3),
        },
    ):
        some = {k: v for k, v in some.items() if k in parameters}
        assert getattr(fastnorm, name)(**{**kwargs, **some}) is not None


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_a_list_of_axes_is_as_a_tuple(name):
    function = getattr(fastnorm, name)
    for axes in ([0], [-1, 1], [0, 2], [np.int64(1), 2]):
        np.testing.assert_array_equal(function(X, axis=axes), function(X, axis=tuple(axes)))


# ---- masks -----------------------------------------------------------------------------------

MASKED = {
    "layer_norm": ["x", "weight", "bias", "out"],
    "rms_norm": ["x", "weight", "out"],
    "batch_norm": ["x", "weight", "bias", "running_mean", "running_var", "out"],
    "batch_renorm": ["x", "weight", "bias", "running_mean", "running_var", "out"],
    "group_norm": ["x", "weight", "bias", "out"],
    "instance_norm": ["x", "weight", "bias", "running_mean", "running_var", "out"],
    "instance_renorm": ["x", "weight", "bias", "running_mean", "running_var", "out"],
    "switchable_norm": [*BATCH.keys() - {"layout"}, "mean_logits", "var_logits", "out"],
    "weight_norm": ["v", "g", "out"],
    "decorrelated_batch_norm": [*WHITEN.keys() - {"layout", "group_size"}, "out"],
    "iter_norm": [*WHITEN.keys() - {"layout", "group_size"}, "out"],
    "backward": ["dy", "out"],
}


@pytest.mark.parametrize("mask", ["some", "none", "nomask", "list"])
@pytest.mark.parametrize("name", CALLS)
def test_masked_arrays_are_refused(name, mask):
    assert MASKED.keys() == CALLS.keys()
    for parameter in MASKED[name]:
        value = arguments(name)[0].get(parameter)
        if value is None:
            value = LOGITS[[0, 1, 2, 0]]
        masked = np.ma.masked_array(
            value, {"some": value > 0.6, "none": value > 1e9}.get(mask, np.ma.nomask)
        )
        message = refused(name, {parameter: list(masked) if mask == "list" else masked})
        if mask == "list" and (value.ndim == 1 or parameter.startswith(("running", "out"))):
            continue  # a list is no place to write to; its items are plain numbers
        assert re.match(
            f"{parameter}: expected an array without a mask, got a masked array; use "
            rf"{parameter}\.filled\(value\)", message,
        ), message  # fmt: skip


# functions that are made of others, and layers that keep their parameters
COMPOSED = {
    "x": [
        lambda m: fastnorm.cosine_norm(m, np.ones((2, 4))),
        lambda m: fastnorm.normalize(m),
        lambda m: fastnorm.normalize(m, ord=1),
        lambda m: fastnorm.to_blocked(m),
        lambda m: fastnorm.from_blocked(np.ma.masked_array(np.ones((1, 1, 1, 8))), 5),
        lambda m: fastnorm.weight_norm_init(m, (3, 4)),
        lambda m: fastnorm.sync_batch_norm(m, layout="NC", comm=None),
        lambda m: fastnorm.LayerNorm(4, dtype=np.float64)(m),
    ],
    "weight": [
        lambda m: fastnorm.cosine_norm(np.ones((2, 4)), m),
        lambda m: fastnorm.CosineNorm(m),
    ],
    "v": [lambda m: fastnorm.WeightNorm(m)],
    "g": [lambda m: fastnorm.WeightNorm(np.ones((6, 4)), m)],
    "dy": [
        lambda m: fastnorm.backward(m, fastnorm.normalize(np.ones((6, 4)), return_ctx=True)[1]),
        lambda m: fastnorm.backward(
            m, fastnorm.normalize(np.ones((6, 4)), ord=3, return_ctx=True)[1]
        ),
        lambda m: fastnorm.backward(
            m, fastnorm.cosine_norm(np.ones((6, 2)), np.ones((4, 2)), return_ctx=True)[1]
        ),
    ],
}


@pytest.mark.parametrize(
    ("name", "call"), [(name, call) for name, calls in COMPOSED.items() for call in calls]
)
@pytest.mark.parametrize("kind", ["some", "none", "list", "dask"])
def test_masked_arrays_are_refused_by_what_is_composed(name, call, kind):
    value = np.ma.masked_array(np.ones((6, 4)), np.eye(6, 4) if kind != "none" else np.ma.nomask)
    if kind == "list":
        value = list(value)
    elif kind == "dask":
        value = pytest.importorskip("dask.array").from_array(value, chunks=3)
    with pytest.raises(TypeError, match=f"{name}: expected an array without a mask"):
        call(value)


def test_running_statistics_with_a_mask_are_refused_in_inference():
    for name in STATES:
        masked = {**STATES, name: np.ma.masked_array(C, C > 1)}
        for function in (fastnorm.batch_norm, fastnorm.instance_renorm):
            with pytest.raises(TypeError, match=f"{name}: expected an array without a mask"):
                function(X, **masked, layout="NCL")


def test_masked_chunks_of_dask_are_refused():
    dask_array = pytest.importorskip("dask.array")
    x = dask_array.ma.masked_greater(dask_array.from_array(X), 0.5)
    with pytest.raises(TypeError, match="x: expected an array without a mask"):
        fastnorm.layer_norm(x)
    np.testing.assert_array_equal(
        fastnorm.layer_norm(dask_array.from_array(X)), fastnorm.layer_norm(X)
    )
