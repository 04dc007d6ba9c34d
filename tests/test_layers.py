"""Layers: what the functions give, with state that behaves."""

import copy
import pickle
import re

import numpy as np
import pytest
from cases import assert_close, make_input

import fastnorm
from fastnorm import reference

LAYERS = {
    "bn": lambda **k: fastnorm.BatchNorm(6, **k),
    "brn": lambda **k: fastnorm.BatchRenorm(6, r_max=2.0, d_max=1.0, **k),
    "in": lambda **k: fastnorm.InstanceNorm(6, affine=True, track_running_stats=True, **k),
    "gn": lambda **k: fastnorm.GroupNorm(3, 6, **k),
    "sn": lambda **k: fastnorm.SwitchableNorm(6, **k),
    "irn": lambda **k: fastnorm.InstanceRenorm(6, blend=0.5, **k),
    "ln": lambda **k: fastnorm.LayerNorm((5, 4), **k),
    "ln-channel": lambda **k: fastnorm.LayerNorm(6, axis=1, **k),
    "rms": lambda **k: fastnorm.RMSNorm(4, eps=1e-6, **k),
    "frn": lambda **k: fastnorm.FilterResponseNorm(6, **k),
    "grn": lambda **k: fastnorm.GlobalResponseNorm(6, **k),
}
REFERENCE = {
    "bn": lambda x, p, r, t: reference.batch_norm(x, **p, **r, training=t),
    "brn": lambda x, p, r, t: reference.batch_renorm(x, **p, **r, training=t, r_max=2.0, d_max=1.0),
    "in": lambda x, p, r, t: reference.instance_norm(x, **p, **r, use_input_stats=t),
    "gn": lambda x, p, r, t: reference.group_norm(x, 3, **p),
    "sn": lambda x, p, r, t: reference.switchable_norm(x, **p, **r, training=t),
    "irn": lambda x, p, r, t: reference.instance_renorm(x, **p, **r, training=t, blend=0.5),
    "ln": lambda x, p, r, t: reference.layer_norm(x, **p, axis=(2, 3)),
    "ln-channel": lambda x, p, r, t: reference.layer_norm(x, **p, axis=1),
    "rms": lambda x, p, r, t: reference.rms_norm(x, **p, eps=1e-6),
    "frn": lambda x, p, r, t: reference.filter_response_norm(x, **p),
    "grn": lambda x, p, r, t: reference.global_response_norm(x, **p),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_training_then_inference(name, dtype, rng):
    layer = LAYERS[name](dtype=dtype)
    for param in layer.params.values():
        param[...] = rng.uniform(0.5, 1.5, param.shape)
    params = {k: v.astype(np.float64) for k, v in layer.params.items()}
    running = {k: v.astype(np.float64) for k, v in layer.buffers.items() if "running" in k}
    for step, training in enumerate([True, True, True, False, True]):
        layer.train(training)
        x = make_input(rng, (3, 6, 5, 4), "NCHW", dtype)
        dy = rng.standard_normal(x.shape).astype(dtype)
        y, dx = layer(x), layer.backward(dy)
        want, cache = REFERENCE[name](x, params, running, training)
        grads = reference.backward(dy, cache)
        assert_close(y, want, 2e-6, f"y of step {step}")
        assert_close(dx, grads.x, 1e-5, "dx")
        assert layer.grads.keys() == layer.params.keys()
        for key, gradient in layer.grads.items():
            assert_close(gradient, getattr(grads, key), 1e-5, key)
        for key, value in running.items():
            assert_close(layer.buffers[key], value, 2e-6, key)
    if "num_batches_tracked" in layer.buffers:
        assert layer.buffers["num_batches_tracked"] == 4


@pytest.mark.parametrize("name", LAYERS)
def test_state_moves_between_layers(name, rng):
    first, second = LAYERS[name](), LAYERS[name]()
    x = make_input(rng, (3, 6, 5, 4), "NCHW", np.float32)
    first(x)
    for param in first.params.values():
        param += 0.5
    state = first.state_dict()
    second.load_state_dict(state)
    np.testing.assert_array_equal(first.eval()(x), second.eval()(x))
    for value in state.values():  # copies
        value += 1
    np.testing.assert_array_equal(first(x), second(x))


def test_loading_checks_everything_first(rng):
    layer = fastnorm.BatchNorm(6)
    before = layer.state_dict()
    good = {k: v + 1 for k, v in before.items()}
    for changes, error, match in [
        ({"bias": np.zeros(5, np.float32)}, ValueError, r"state\['bias'\]: expected shape \(6,\)"),
        ({"bias": np.zeros(6, np.int64)}, TypeError, r"state\['bias'\]: expected float32"),
        (
            {"num_batches_tracked": 1.5},
            TypeError,
            r"state\['num_batches_tracked'\]: expected int64",
        ),
        ({"num_batches_tracked": -1}, ValueError, r"state\['num_batches_tracked'\]: .*got -1"),
        ({"num_batches_tracked": np.uint64(2**63)}, ValueError, r"expected a count from 0 to"),
        ({"gama": np.zeros(6)}, ValueError, r"unexpected \['gama'\]"),
        ({3: np.zeros(6)}, ValueError, r"unexpected \[3\]"),
    ]:
        with pytest.raises(error, match=match):
            layer.load_state_dict({**good, **changes})
    with pytest.raises(TypeError, match="state: expected a mapping, got list"):
        layer.load_state_dict(list(good))
    layer.buffers["running_var"].flags.writeable = False
    with pytest.raises(ValueError, match="running_var: expected a writeable array"):
        layer.load_state_dict(good)
    layer.buffers["running_var"].flags.writeable = True
    with pytest.raises(
        ValueError, match=r"state\['running_var'\]: expected values that float32 can"
    ):
        layer.load_state_dict({**good, "running_var": np.full(6, 1e300)})
    del good["weight"]
    with pytest.raises(ValueError, match=r"missing \['weight'\]"):
        layer.load_state_dict(good)
    for key, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[key])
    layer.load_state_dict({**good, "gama": 1}, strict=False)
    assert layer.params["bias"][0] == 1
    assert layer.params["weight"][0] == 1


def test_old_checkpoints_without_a_batch_count():
    layer = fastnorm.BatchNorm(2)
    state = {k: v.astype(np.float64) for k, v in layer.state_dict().items() if "num" not in k}
    state["running_mean"] += 3
    layer.load_state_dict(state)
    assert layer.buffers["running_mean"].dtype == np.float32
    np.testing.assert_array_equal(layer.buffers["running_mean"], [3, 3])


def test_cumulative_average(rng):
    layer = fastnorm.BatchNorm(6, momentum=None, ddof=0)
    batches = [make_input(rng, (3, 6, 5, 4), "NCHW", np.float32) for _ in range(4)]
    for x in batches:
        layer(x)
    means = np.mean([x.astype(np.float64).mean((0, 2, 3)) for x in batches], 0)
    variances = np.mean([x.astype(np.float64).var((0, 2, 3)) for x in batches], 0)
    assert_close(layer.buffers["running_mean"], means, 1e-6, "running_mean")
    assert_close(layer.buffers["running_var"], variances, 1e-6, "running_var")


def test_without_running_statistics_batch_statistics_serve_in_inference(rng):
    layer = fastnorm.BatchNorm(6, affine=False, track_running_stats=False)
    x = make_input(rng, (3, 6, 5, 4), "NCHW", np.float32)
    want = layer(x)
    np.testing.assert_array_equal(layer.eval()(x), want)
    assert layer.state_dict() == {}
    instance = fastnorm.InstanceNorm(6)
    want = instance(x)
    np.testing.assert_array_equal(instance.eval()(x), want)


def test_schedule_of_the_paper():
    r = fastnorm.batch_renorm_r_max
    d = fastnorm.batch_renorm_d_max
    assert [r(0), r(5000), r(22500), r(40000), r(10**6)] == [1, 1, 2, 3, 3]
    assert [d(0), d(5000), d(15000), d(25000), d(10**6)] == [0, 0, 2.5, 5, 5]
    steps = []
    layer = fastnorm.BatchRenorm(2, r_max=lambda step: steps.append(step) or 1.0, d_max=0.0)
    x = np.random.default_rng(0).standard_normal((4, 2, 3, 3)).astype(np.float32)
    for _ in range(3):
        layer(x)
    assert steps == [0, 1, 2]
    plain, renorm = fastnorm.BatchNorm(2), fastnorm.BatchRenorm(2)
    np.testing.assert_allclose(renorm(x), plain(x), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "match"),
    [((3, 5, 4, 4), "x: expected 6 channels in NCHW, got shape"), ((1, 6), "x: expected more")],
)
def test_a_failing_call_changes_nothing(shape, match, rng):
    layer = fastnorm.BatchNorm(6)
    dy = np.ones((3, 6, 4, 4), np.float32)
    with pytest.raises(RuntimeError, match=r"BatchNorm\.backward: expected a call"):
        layer.backward(dy)
    layer(dy)
    before = layer.state_dict()
    with pytest.raises(ValueError, match=match):
        layer(np.ones(shape, np.float32))
    for key, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[key])
    with pytest.raises(RuntimeError, match=r"BatchNorm\.backward: expected a call"):
        layer.backward(dy)  # not through the call before the failed one


def test_an_empty_batch_does_not_count(rng):
    layer = fastnorm.BatchNorm(6, momentum=None)
    layer(make_input(rng, (3, 6, 5, 4), "NCHW", np.float32))
    before = layer.state_dict()
    assert layer(np.ones((0, 6, 5, 4), np.float32)).shape == (0, 6, 5, 4)
    for key, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_copies_are_independent(duplicate, rng):
    layer = fastnorm.BatchNorm(6)
    x = make_input(rng, (3, 6, 5, 4), "NCHW", np.float32)
    layer(x)
    twin = duplicate(layer)
    with pytest.raises(RuntimeError, match="expected a call"):  # the call was the original's
        twin.backward(x)
    before = layer.state_dict()
    twin(x)
    for key, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[key])
    assert twin.buffers["num_batches_tracked"] == 2


@pytest.mark.parametrize(
    ("layer", "want"),
    [
        (
            fastnorm.BatchNorm(3, momentum=None),
            "BatchNorm(3, eps=1e-05, momentum=None, affine=True, track_running_stats=True)",
        ),
        (
            fastnorm.LayerNorm(8, bias=False),
            "LayerNorm((8,), eps=1e-05, elementwise_affine=True, bias=False)",
        ),
        (
            fastnorm.GroupNorm(2, 4, layout="NHWC", dtype="f8"),
            "GroupNorm(2, 4, eps=1e-05, affine=True, layout='NHWC', dtype=float64)",
        ),
        (
            fastnorm.RMSNorm(8, axis=1),
            "RMSNorm((8,), eps=None, elementwise_affine=True, axis=1)",
        ),
        (fastnorm.SwitchableNorm(3, ddof=1), "SwitchableNorm(3, eps=1e-05, momentum=0.1, ddof=1)"),
        (
            fastnorm.InstanceNorm(3, affine=True, bias=False),
            "InstanceNorm(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=False, "
            "bias=False)",
        ),
        (
            fastnorm.BatchNorm(3, activation="relu", layout="NHWC", slope=None),
            "BatchNorm(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True, "
            "layout='NHWC', activation='relu')",
        ),
    ],
)
def test_repr_is_like_torchs(layer, want):
    assert repr(layer) == want


@pytest.mark.parametrize("name", LAYERS)
def test_what_a_layer_is_made_with_is_around_each_call(name, rng):
    made, plain = LAYERS[name](activation="silu", gate_activation="tanh"), LAYERS[name]()
    x, gate, dy = (rng.standard_normal((3, 6, 5, 4)).astype(np.float32) for _ in range(3))
    around = {"activation": "silu", "gate_activation": "tanh"}
    for layer in (made, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        y, want = layer(x, gate=gate), LAYERS[name]()(x, gate=gate, **around)
        assert y.tobytes() == want.tobytes()
    plain(x, gate=gate, **around)
    assert made.backward(dy).tobytes() == plain.backward(dy).tobytes()
    assert made.input_grads["gate"].tobytes() == plain.input_grads["gate"].tobytes()
    y = LAYERS[name](activation="silu")(x, activation=None)
    assert y.tobytes() == LAYERS[name]()(x).tobytes()


def test_a_weight_with_an_offset_starts_as_one_without(rng):
    x = rng.standard_normal((4, 8)).astype(np.float32)
    layer = fastnorm.RMSNorm(8, weight_offset=1.0)
    assert not layer.params["weight"].any()
    assert layer(x).tobytes() == fastnorm.RMSNorm(8)(x).tobytes()


@pytest.mark.parametrize(
    ("around", "error", "message"),
    [
        ({"activation": "swish"}, ValueError, "activation: expected one of relu"),
        ({"activation": 3}, TypeError, "activation: expected a str"),
        ({"gate_activation": "x"}, ValueError, "gate_activation: expected one of"),
        ({"slope": "steep"}, TypeError, "slope: expected a number"),
        ({"weight_offset": "one"}, TypeError, "weight_offset: expected a number"),
        ({"shortcut": np.ones(3)}, TypeError, "shortcut: expected in a call of the layer"),
        ({"cast": "after"}, ValueError, "cast: expected one of before_weight"),
        ({"virtual_batch_size": 0}, ValueError, "virtual_batch_size: expected an int of at least"),
        ({"relu": True}, TypeError, "got an unexpected keyword argument 'relu'"),
    ],
)
@pytest.mark.parametrize("name", ["bn", "ln", "rms", "frn"])
def test_what_a_layer_cannot_be_made_with(name, around, error, message):
    with pytest.raises(error, match=message):
        LAYERS[name](**around)


@pytest.mark.parametrize(
    ("layer", "layout"),
    [
        (fastnorm.InstanceNorm(3), "NCHW"),
        (fastnorm.InstanceNorm(3, layout="NHWC"), "NHWC"),
        (fastnorm.GroupNorm(1, 3, affine=False, layout="channels_last"), "channels_last"),
        (fastnorm.BatchNorm(3, affine=False, track_running_stats=False), "NCHW"),
    ],
)
def test_layers_without_a_weight_notice_other_channels(layer, layout):
    channels = 1 if layout == "NCHW" else 3
    shape = [2, 5, 5, 5]
    with pytest.raises(ValueError, match=f"x: expected 3 channels in {layout}, got shape"):
        layer(np.ones(shape, np.float32))
    shape[channels] = 3
    assert layer(np.ones(shape, np.float32)).shape == tuple(shape)


def test_layer_norm_notices_other_sizes():
    layer = fastnorm.LayerNorm(4, elementwise_affine=False)
    with pytest.raises(ValueError, match=r"x: expected sizes \(4,\).*got shape \(2, 5\)"):
        layer(np.ones((2, 5), np.float32))
    with pytest.raises(ValueError, match=r"x: expected sizes \(4, 4\) .* got shape \(4,\)"):
        fastnorm.LayerNorm((4, 4))(np.ones(4, np.float32))


@pytest.mark.parametrize("layer", [fastnorm.LayerNorm, fastnorm.RMSNorm])
@pytest.mark.parametrize("axis", [[0, 2], (0, 2), [-3, np.int64(-1)]])
def test_axes_may_be_a_list(layer, axis, rng):
    x = rng.standard_normal((3, 5, 4)).astype(np.float32)
    got = layer([3, 4], axis=axis)(x)
    np.testing.assert_array_equal(got, layer((3, 4), axis=(0, 2))(x))


WITHOUT_BIAS = {
    "bn": lambda **k: fastnorm.BatchNorm(6, bias=False, **k),
    "brn": lambda **k: fastnorm.BatchRenorm(6, r_max=2.0, d_max=1.0, bias=False, **k),
    "in": lambda **k: fastnorm.InstanceNorm(
        6, affine=True, track_running_stats=True, bias=False, **k
    ),
    "gn": lambda **k: fastnorm.GroupNorm(3, 6, bias=False, **k),
    "sn": lambda **k: fastnorm.SwitchableNorm(6, bias=False, **k),
    "irn": lambda **k: fastnorm.InstanceRenorm(6, blend=0.5, bias=False, **k),
}


@pytest.mark.parametrize("layout", ["NCHW", "NCHW8c"])
@pytest.mark.parametrize("name", WITHOUT_BIAS)
def test_without_a_bias(name, layout, rng):
    layer, full = WITHOUT_BIAS[name](layout=layout), LAYERS[name](layout=layout)
    full.load_state_dict({**layer.state_dict(), "bias": np.zeros(6, np.float32)})
    x = make_input(rng, (3, 6, 5, 4), "NCHW", np.float32)
    x = fastnorm.to_blocked(x, 8) if layout == "NCHW8c" else x
    for training in (True, False):
        layer.train(training)
        full.train(training)
        np.testing.assert_array_equal(layer(x), full(x))
        np.testing.assert_array_equal(layer.backward(x), full.backward(x))
        assert layer.grads.keys() == layer.params.keys() == full.grads.keys() - {"bias"}
        np.testing.assert_array_equal(layer.grads["weight"], full.grads["weight"])
    with pytest.raises(ValueError, match=r"unexpected \['bias'\]"):
        layer.load_state_dict(full.state_dict())


INSTANCE = {
    "in": lambda **k: fastnorm.InstanceNorm(6, affine=True, track_running_stats=True, **k),
    "irn": lambda **k: fastnorm.InstanceRenorm(6, blend=0.5, **k),
}


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ("NCHW", (6, 9)),
        ("NHWC", (9, 6)),
        ("NCL", (6, 9)),
        ("NLC", (9, 6)),
        ("channels_last", (9, 6)),
        ("NCDHW", (6, 2, 3, 4)),
        ("NCHW8c", (1, 3, 4, 8)),
    ],
)
@pytest.mark.parametrize("name", INSTANCE)
def test_one_sample_without_its_axis(name, layout, shape, rng):
    one, batch = INSTANCE[name](layout=layout), INSTANCE[name](layout=layout)
    x, dy = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    if layout == "NCHW8c":
        x[..., 6:] = dy[..., 6:] = 0
    for training in (True, False):
        one.train(training)
        batch.train(training)
        y = one(x)
        assert y.shape == shape
        np.testing.assert_array_equal(y, batch(x[None])[0])
        dx = one.backward(dy)
        assert dx.shape == shape
        np.testing.assert_array_equal(dx, batch.backward(dy[None])[0])
        for key, value in batch.grads.items():
            np.testing.assert_array_equal(one.grads[key], value)
        for key, value in batch.buffers.items():
            np.testing.assert_array_equal(one.buffers[key], value)
    for wrong in (dy[None], dy[:-1]):
        match = re.escape(f"dy: expected x's shape {shape}, got {wrong.shape}")
        with pytest.raises(ValueError, match=match):
            one.backward(wrong)
    with pytest.raises(ValueError, match="x: expected 6 channels"):
        one(np.concatenate([x, x], axis=1 if layout in ("NHWC", "NLC", "channels_last") else 0))


def test_three_dimensions_are_samples():
    """(C, H, W) and (N, C, L) look the same: the second it is."""
    x = np.random.default_rng(0).standard_normal((6, 6, 4)).astype(np.float32)
    want = fastnorm.instance_norm(x, layout="NCL")
    np.testing.assert_array_equal(fastnorm.InstanceNorm(6)(x), want)
    with pytest.raises(ValueError, match=r"x: expected 6 channels in NCHW, got shape \(6, 8, 9\)"):
        fastnorm.InstanceNorm(6)(np.ones((6, 8, 9), np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_eps_of_rms_norm_is_the_machine_epsilon(dtype):
    eps = np.finfo(dtype).eps
    x = (np.sqrt(eps) * np.array([[1.0, -1.0, 1.0, 1.0]])).astype(dtype)
    y = fastnorm.RMSNorm(4, dtype=dtype)(x)
    assert_close(y, np.sign(x) / np.sqrt(2), 1e-6, "half of what is under the root is eps")
