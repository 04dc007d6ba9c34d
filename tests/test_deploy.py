"""fold_batch_norm: a network without its Batch Norm computes what it did with it."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from cases import assert_close

import fastnorm

EXAMPLES = Path(__file__).parent.parent / "examples"


def statistics(rng, channels, dtype=np.float64):
    return {
        "weight": rng.uniform(0.5, 2, channels).astype(dtype),
        "bias": rng.standard_normal(channels).astype(dtype),
        "running_mean": rng.standard_normal(channels).astype(dtype),
        "running_var": rng.uniform(0.1, 3, channels).astype(dtype),
    }


def normalize(y, state, eps=1e-5):
    """Batch Norm in inference over axis 1, in plain NumPy."""
    w, b, mean, var = (
        state[k].reshape(-1, *[1] * (y.ndim - 2))
        for k in ("weight", "bias", "running_mean", "running_var")
    )
    return (y - mean) / np.sqrt(var + eps) * w + b


@pytest.mark.parametrize("layer", [fastnorm.BatchNorm, fastnorm.BatchRenorm])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("axis", [0, -1])
def test_linear(rng, layer, with_bias, axis):
    x, weight = rng.standard_normal((20, 7)), rng.standard_normal((5, 7))
    bias = rng.standard_normal(5) if with_bias else None
    state = statistics(rng, 5)
    bn = layer(5, eps=1e-3, dtype=np.float64).eval()
    bn.load_state_dict(state)
    y = x @ weight.T + (0 if bias is None else bias)
    given = weight if axis == 0 else weight.T
    folded = fastnorm.fold_batch_norm(given, bias, bn, axis=axis)
    got = x @ (folded.weight.T if axis == 0 else folded.weight) + folded.bias
    assert_close(got, normalize(y, state, 1e-3), 1e-12, "y")
    assert_close(got, bn(y), 1e-12, "y of the layer")
    again = fastnorm.fold_batch_norm(given, bias, state, axis=axis, eps=1e-3)
    np.testing.assert_array_equal(again.weight, folded.weight)
    np.testing.assert_array_equal(again.bias, folded.bias)


def test_every_convolution_of_torch(rng):
    torch = pytest.importorskip("torch")
    x = rng.standard_normal((2, 6, 9, 8))
    state = statistics(rng, 4)
    kinds = [
        (torch.conv2d, (4, 6, 3, 3), 0, {"padding": 1, "stride": 2}),
        (torch.conv2d, (4, 3, 3, 2), 0, {"groups": 2, "dilation": 2}),
        (torch.conv_transpose2d, (6, 4, 3, 3), 1, {"stride": 2}),
    ]
    for function, shape, axis, options in kinds:
        weight, bias = rng.standard_normal(shape), rng.standard_normal(4)

        def convolve(w, b, function=function, options=options):
            arrays = [torch.from_numpy(np.ascontiguousarray(a)) for a in (x, w, b)]
            return function(*arrays, **options).numpy()

        folded = fastnorm.fold_batch_norm(weight, bias, state, axis=axis)
        assert folded.weight.shape == shape
        want = normalize(convolve(weight, bias), state)
        assert_close(convolve(*folded), want, 1e-12, f"{function.__name__} {shape}")


def test_missing_parameters_are_one_and_zero(rng):
    weight, state = rng.standard_normal((3, 2)), statistics(rng, 3)
    plain = {k: state[k] for k in ("running_mean", "running_var")}
    ones = {**plain, "weight": np.ones(3), "bias": np.zeros(3)}
    bn = fastnorm.BatchNorm(3, affine=False, dtype=np.float64).eval()
    bn.load_state_dict(plain)
    want = fastnorm.fold_batch_norm(weight, np.zeros(3), ones)
    for given in (plain, bn):
        got = fastnorm.fold_batch_norm(weight, None, given)
        np.testing.assert_array_equal(got.weight, want.weight)
        np.testing.assert_array_equal(got.bias, want.bias)


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_computed_in_float64_and_rounded_once(rng, dtype):
    dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), dtype, dtype))
    state = statistics(rng, 8, np.float32)
    weight, bias = rng.standard_normal((8, 3, 3, 3)).astype(dtype), np.ones(8, dtype)
    got = fastnorm.fold_batch_norm(weight, bias, state)
    want = fastnorm.fold_batch_norm(weight.astype(np.float64), np.ones(8), state)
    assert got.weight.dtype == got.bias.dtype == dtype
    np.testing.assert_array_equal(got.weight, want.weight.astype(dtype))
    np.testing.assert_array_equal(got.bias, want.bias.astype(dtype))


@pytest.mark.parametrize("layer", [fastnorm.BatchNorm, fastnorm.BatchRenorm])
def test_the_digits_network(monkeypatch, rng, layer):
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    monkeypatch.syspath_prepend(EXAMPLES)
    from convnet import fold, small_convnet

    digits = load_digits()
    x = (digits.images[:, None] / 16).astype(np.float32)
    network = small_convnet(rng, layer)
    for start in [*range(0, 1280, 64)] * 3:
        network.loss_and_backward(x[start : start + 64], digits.target[start : start + 64])
        network.step(0.1)
    network.train(False)
    folded = fold(network)
    assert len(folded.layers) == len(network.layers)
    assert not any(isinstance(each, layer) for each in folded.layers)
    logits = network(x[1280:])
    right = logits.argmax(1) == digits.target[1280:]
    assert right.mean() > 0.8, "the network has learned something; chance is 0.1"
    assert_close(folded(x[1280:]), logits, 1e-5, "logits")


BAD = {
    "training": (ValueError, r"^bn: expected a layer in eval", lambda a: {"bn": a["bn"].train()}),
    "no statistics": (
        ValueError,
        r"^bn: expected running statistics, got \['bias', 'weight'\]",
        lambda a: {"bn": fastnorm.BatchNorm(4, track_running_stats=False).eval()},
    ),
    "another layer": (
        TypeError,
        r"^bn: expected a BatchNorm, .* got GroupNorm",
        lambda a: {"bn": fastnorm.GroupNorm(2, 4)},
    ),
    "no mean": (
        ValueError,
        r"^bn: expected running statistics, .* without \['running_mean'\]",
        lambda a: {"bn": {**a["state"], "running_mean": None}},
    ),
    "channels": (
        ValueError,
        r"^bn\['running_mean'\]: expected shape \(3,\).* got \(4,\)",
        lambda a: {"axis": 1, "bias": None},
    ),
    "bias": (ValueError, r"^bias: expected shape \(4,\)", lambda a: {"bias": np.zeros(3)}),
    "bias dtype": (TypeError, r"^bias: expected an array of floats", lambda a: {"bias": [1] * 4}),
    "weight dtype": (
        TypeError,
        r"^weight: expected an array of floats, got int64",
        lambda a: {"weight": np.ones((4, 3), np.int64)},
    ),
    "axis": (
        ValueError,
        r"^axis: expected an axis of shape \(4, 3\), got 2",
        lambda a: {"axis": 2},
    ),
    "axis type": (TypeError, r"^axis: expected an int, got str", lambda a: {"axis": "O"}),
    "scalar": (ValueError, r"^axis: expected an axis", lambda a: {"weight": np.float64(1)}),
    "two eps": (ValueError, r"^eps: expected None", lambda a: {"eps": 1e-3}),
    "eps type": (TypeError, r"^eps: .* got str", lambda a: {"bn": a["state"], "eps": "1e-5"}),
    "negative eps": (ValueError, r"^eps: .* got -1", lambda a: {"bn": a["state"], "eps": -1.0}),
    "variance": (
        ValueError,
        r"^bn\['running_var'\]: expected running_var \+ eps above 0, got -0.9",
        lambda a: {"bn": {**a["state"], "running_var": -np.ones(4)}, "eps": 0.1},
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(rng, name):
    error, message, change = BAD[name]
    bn = fastnorm.BatchNorm(4).eval()
    good = {"weight": np.ones((4, 3)), "bias": np.zeros(4), "bn": bn}
    fastnorm.fold_batch_norm(**good)
    with pytest.raises(error, match=message):
        fastnorm.fold_batch_norm(**{**good, **change({"bn": bn, "state": bn.state_dict()})})


@pytest.fixture(scope="module")
def direction_model():
    """The text-direction network of rapidocr; every Batch Norm's input and output is an output."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    package = find_spec("rapidocr_onnxruntime")  # importing it would need OpenCV
    if package is None:
        pytest.skip("rapidocr_onnxruntime is not installed")
    folder = Path(package.submodule_search_locations[0]) / "models"
    model = onnx.load(folder / "ch_ppocr_mobile_v2.0_cls_infer.onnx")
    nodes = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    have = {value.name for value in model.graph.output}
    for name in dict.fromkeys(name for n in nodes for name in (n.input[0], n.output[0])):
        if name not in have:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    constants = {each.name: each for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = node.attribute[0].t
    arrays = {k: onnx.numpy_helper.to_array(v) for k, v in constants.items()}
    return model, nodes, arrays


def session(model):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # not a word about the weights that folding leaves unused
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def onnx_state(node, arrays):
    names = ("weight", "bias", "running_mean", "running_var")
    state = {k: arrays[v].copy() for k, v in zip(names, node.input[1:], strict=True)}
    return state, next(a.f for a in node.attribute if a.name == "epsilon")


def test_real_pretrained_statistics(rng, direction_model):
    model, nodes, arrays = direction_model
    assert len(nodes) == 35
    x = rng.uniform(-1, 1, (2, 3, 48, 192)).astype(np.float32)
    run = session(model)
    names = [output.name for output in run.get_outputs()]
    tensors = dict(zip(names, run.run(None, {"x": x}), strict=True))
    for node in nodes:
        state, eps = onnx_state(node, arrays)
        got = fastnorm.batch_norm(
            tensors[node.input[0]], state["weight"], state["bias"], eps=eps,
            running_mean=state["running_mean"], running_var=state["running_var"],
        )  # fmt: skip
        assert_close(got, tensors[node.output[0]], 1e-6, node.name)


def test_a_real_network_folded(rng, direction_model):
    """All 35 pairs of convolution and Batch Norm, plain and depthwise, by onnxruntime."""
    onnx = pytest.importorskip("onnx")
    model, nodes, arrays = direction_model
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    makers = {out: node for node in folded.graph.node for out in node.output}
    for node in nodes:
        conv = makers[node.input[0]]
        assert conv.op_type == "Conv"
        state, eps = onnx_state(node, arrays)
        bias = arrays[conv.input[2]] if len(conv.input) > 2 else None
        new = fastnorm.fold_batch_norm(arrays[conv.input[1]], bias, state, eps=eps)
        tensors = [("weight", new.weight), ("bias", new.bias)]
        for name, array in tensors:
            folded.graph.initializer.append(
                onnx.numpy_helper.from_array(array, f"{node.name}.{name}")
            )
        before = conv.input[0]
        del conv.input[:]
        conv.input.extend([before, *(f"{node.name}.{name}" for name, _ in tensors)])
        conv.output[0] = node.output[0]
    kept = [node for node in folded.graph.node if node.op_type != "BatchNormalization"]
    outputs = [o for o in folded.graph.output if o.name not in {n.input[0] for n in nodes}]
    del folded.graph.node[:], folded.graph.output[:]
    folded.graph.node.extend(kept)
    folded.graph.output.extend(outputs)
    x = rng.uniform(-1, 1, (2, 3, 48, 192)).astype(np.float32)
    names = [output.name for output in outputs]
    want, got = (session(m).run(names, {"x": x}) for m in (model, folded))
    assert len(names) > 35
    for name, a, b in zip(names, got, want, strict=True):
        assert_close(a, b, 1e-5, name)
