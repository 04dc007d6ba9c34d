"""State dicts: in anybody's names, of anybody's arrays; what is not understood is refused."""

import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from frameworks import FRAMEWORKS

import fastnorm
from fastnorm._state import NAMES

USING = Path(__file__).parent.parent / "docs" / "using.md"
OWN = FRAMEWORKS["torch"]

LAYERS = {
    "BatchNorm": lambda: fastnorm.BatchNorm(3),
    "SyncBatchNorm": lambda: fastnorm.SyncBatchNorm(3),
    "BatchRenorm": lambda: fastnorm.BatchRenorm(3),
    "InstanceNorm": lambda: fastnorm.InstanceNorm(3, affine=True, track_running_stats=True),
    "InstanceRenorm": lambda: fastnorm.InstanceRenorm(3),
    "SwitchableNorm": lambda: fastnorm.SwitchableNorm(3),
    "DecorrelatedBatchNorm": lambda: fastnorm.DecorrelatedBatchNorm(3),
    "GroupNorm": lambda: fastnorm.GroupNorm(3, 3),
    "LayerNorm": lambda: fastnorm.LayerNorm(3),
    "RMSNorm": lambda: fastnorm.RMSNorm(3),
    "CosineNorm": lambda: fastnorm.CosineNorm(np.ones((1, 3), np.float32)),
}


def values(layer):
    return {k: v + i for i, (k, v) in enumerate(layer.state_dict().items(), 2)}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_knows_every_name(name, framework):
    layer = LAYERS[name]()
    want = values(layer)
    names = dict(zip(OWN, FRAMEWORKS[framework], strict=True))
    layer.load_state_dict({names.get(k, k): v for k, v in want.items()})
    for key, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, want[key])


def test_flax_has_two_collections():
    layer = fastnorm.BatchNorm(3)
    want = values(layer)
    layer.load_state_dict(
        {
            "params": OrderedDict(scale=want["weight"], bias=want["bias"]),
            "batch_stats": {"mean": want["running_mean"], "var": want["running_var"]},
        }
    )
    for key in OWN:
        np.testing.assert_array_equal(layer.state_dict()[key], want[key])


def test_the_names_of_onnx_are_those_of_its_operators():
    onnx = pytest.importorskip("onnx")
    schema = onnx.defs.get_schema("BatchNormalization")
    assert tuple(i.name for i in schema.inputs[1:]) == FRAMEWORKS["ONNX"]
    for kind, own in [("LayerNormalization", OWN[:2]), ("InstanceNormalization", OWN[:2])]:
        for given, name in zip(onnx.defs.get_schema(kind).inputs[1:], own, strict=True):
            assert given.name in NAMES[name]


def test_the_table_of_names_in_the_documents():
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", USING.read_text(), re.MULTILINE)
    table = {own: tuple(re.findall("`(.*?)`", cells)) for own, cells in rows if own in NAMES}
    assert table == NAMES


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ({"gamma": np.ones(3)}, "state: expected one weight, got 'weight' and 'gamma', two names"),
        ({"beta:0": np.ones(3)}, "state: expected one bias, got 'bias' and 'beta:0', two names"),
        ({"mean": np.ones(3)}, "state: expected one running_mean, got 'running_mean' and 'mean'"),
        ({"params": {"scale": np.ones(3)}}, "state: expected one weight, got 'weight' and 'scale'"),
        ({"params": np.ones(3)}, r"unexpected \['params'\]"),
        ({"running_std": np.ones(3)}, r"unexpected \['running_std'\]"),
        ({"bn.weight": np.ones(3)}, r"unexpected \['bn.weight'\]"),
        ({"mean_logits": np.ones(3)}, r"unexpected \['mean_logits'\]"),
        ({None: 1, 3: 1}, r"unexpected \[3, None\]"),
    ],
)
def test_what_is_left_over_is_named(extra, match):
    layer = fastnorm.BatchNorm(3)
    state = {**values(layer), **extra}
    with pytest.raises(ValueError, match=match):
        layer.load_state_dict(state)
    assert (layer.params["weight"] == 1).all()
    if "two names" in match or "expected one" in match:
        with pytest.raises(ValueError, match=match):
            layer.load_state_dict(state, strict=False)


@pytest.mark.parametrize("number", [5, np.int64(5), [5], np.array([[5]], np.int32), (5,)])
def test_the_count_of_batches_may_be_in_an_array(number):
    layer = fastnorm.BatchNorm(3)
    layer.load_state_dict({**layer.state_dict(), "num_batches_tracked": number})
    assert layer.buffers["num_batches_tracked"].shape == ()
    assert layer.buffers["num_batches_tracked"] == 5


MASKED = np.ma.masked_array([1.0, 2.0, 3.0], [0, 0, 1])
RAGGED = [[1.0], [2.0, 3.0]]


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (MASKED, TypeError, "expected an array without a mask, got a masked array; use"),
        (np.ma.masked_array([1.0, 2, 3]), TypeError, "expected an array without a mask"),
        (RAGGED, ValueError, "expected an array, got .*inhomogeneous"),
        (None, TypeError, "expected an array of numbers, got NoneType"),
        ({"a": 1}, TypeError, "expected an array of numbers, got dict"),
        ("abc", TypeError, "expected float32, got <U3"),
        ([True] * 3, TypeError, "expected float32, got bool"),
        ([1j] * 3, TypeError, "expected float32, got complex128"),
        (np.ones(3, object), TypeError, "expected float32, got object"),
        (np.ones((1, 3)), ValueError, r"expected shape \(3,\), got \(1, 3\)"),
        (1.0, ValueError, r"expected shape \(3,\), got \(\)"),
        (
            np.array([1, -1e39, 1]),
            ValueError,
            r"expected values that float32 can hold, got -1e\+39",
        ),
    ],
)
@pytest.mark.parametrize("name", ["weight", "running_var", "moving_variance", "beta"])
def test_wrong_values_are_named(name, value, error, match):
    layer = fastnorm.BatchNorm(3)
    own = {"moving_variance": "running_var", "beta": "bias"}.get(name, name)
    state = {k: v for k, v in values(layer).items() if k != own}
    before = layer.state_dict()
    with pytest.raises(error, match=rf"^state\['{name}'\]: {match}"):
        layer.load_state_dict({**state, name: value})
    for key, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[key])


def test_infinite_values_load():
    """They were none the dtype could not hold."""
    layer = fastnorm.BatchNorm(2)
    layer.load_state_dict({**layer.state_dict(), "running_var": np.array([np.inf, np.nan])})
    np.testing.assert_array_equal(layer.buffers["running_var"], [np.inf, np.nan])


def test_strict_is_a_flag():
    with pytest.raises(TypeError, match="strict: expected a bool, got str"):
        fastnorm.BatchNorm(2).load_state_dict({}, strict="no")
