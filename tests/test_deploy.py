"""fold_batch_norm and its kin: a network without its Batch Norm computes what it did with it."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from cases import assert_close
from frameworks import FRAMEWORKS

import fastnorm

EXAMPLES = Path(__file__).parent.parent / "examples"


def statistics(rng, channels, dtype=np.float64):
    return {
        "weight": rng.uniform(0.5, 2, channels).astype(dtype),
        "bias": rng.standard_normal(channels).astype(dtype),
        "running_mean": rng.standard_normal(channels).astype(dtype),
        "running_var": rng.uniform(0.1, 3, channels).astype(dtype),
    }


def convolution(torch, name, x, weight, bias, **options):
    """A function of torch, of arrays."""
    arrays = [None if a is None else torch.from_numpy(a.copy()) for a in (x, weight, bias)]
    return getattr(torch, name)(*arrays, **options).numpy()


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
        ("conv2d", (4, 6, 3, 3), 0, {"padding": 1, "stride": 2}),
        ("conv2d", (4, 3, 3, 2), 0, {"groups": 2, "dilation": 2}),
        ("conv_transpose2d", (6, 4, 3, 3), 1, {"stride": 2}),
    ]
    for name, shape, axis, options in kinds:
        weight, bias = rng.standard_normal(shape), rng.standard_normal(4)
        folded = fastnorm.fold_batch_norm(weight, bias, state, axis=axis)
        assert folded.weight.shape == shape
        want = normalize(convolution(torch, name, x, weight, bias, **options), state)
        assert_close(convolution(torch, name, x, *folded, **options), want, 1e-12, name)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed_convolutions_in_groups(rng, rank, groups, with_bias):
    torch = pytest.importorskip("torch")
    name, outputs = f"conv_transpose{rank}d", 2 * groups
    x = rng.standard_normal((2, 6, 5, 4, 3)[: 2 + rank])
    weight = rng.standard_normal((6, 2, 3, 2, 3)[: 2 + rank])
    bias = rng.standard_normal(outputs) if with_bias else None
    state = statistics(rng, outputs)
    for options in ({}, {"stride": 2, "padding": 1, "output_padding": 1}, {"dilation": 2}):
        options = {"groups": groups, **options}
        want = normalize(convolution(torch, name, x, weight, bias, **options), state)
        for axis in (1, -1 - rank):
            folded = fastnorm.fold_batch_norm(weight, bias, state, axis=axis, groups=groups)
            got = convolution(torch, name, x, *folded, **options)
            assert_close(got, want, 1e-12, f"{options}")


def test_groups_of_other_convolutions_do_not_matter(rng):
    state, weight = statistics(rng, 6), rng.standard_normal((6, 2, 3, 3))
    last = np.ascontiguousarray(weight.transpose(2, 3, 1, 0))  # HWIO
    want = fastnorm.fold_batch_norm(weight, None, state)
    got = fastnorm.fold_batch_norm(weight, None, state, groups=3)
    np.testing.assert_array_equal(got.weight, want.weight)
    got = fastnorm.fold_batch_norm(last, None, state, axis=-1, groups=3)
    np.testing.assert_array_equal(got.weight.transpose(3, 2, 0, 1), want.weight)


def padded_with(x, value, width):
    """What a user does: `value` of each channel around x."""
    shape = (*x.shape[:2], *(n + 2 * width for n in x.shape[2:]))
    padded = np.empty(shape)
    padded[...] = value.reshape(-1, *[1] * (x.ndim - 2))
    padded[(..., *(slice(width, width + n) for n in x.shape[2:]))] = x
    return padded


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_before_a_convolution(rng, rank, groups, with_bias):
    torch = pytest.importorskip("torch")
    name = f"conv{rank}d"
    x = 2 + rng.standard_normal((2, 6, 7, 6, 5)[: 2 + rank])
    weight = rng.standard_normal((2 * groups, 6 // groups, 3, 2, 3)[: 2 + rank])
    bias = rng.standard_normal(2 * groups) if with_bias else None
    state = statistics(rng, 6)
    for options in ({}, {"stride": 2}, {"dilation": 2, "padding": 2}, {"padding": 1}):
        options = {"groups": groups, **options}
        want = convolution(torch, name, normalize(x, state, 1e-3), weight, bias, **options)
        width = options.pop("padding", 0)
        folded = fastnorm.fold_batch_norm_before(
            weight, bias, state, groups=groups, padding=width, eps=1e-3
        )
        assert folded.weight.shape == weight.shape
        given = padded_with(x, folded.padding_value, width) if width else x
        got = convolution(torch, name, given, folded.weight, folded.bias, **options)
        assert_close(got, want, 1e-12, f"{options}")
        # and where the input channels are not on axis 1
        order = (*range(2, 2 + rank), 1, 0)
        last = fastnorm.fold_batch_norm_before(
            weight.transpose(order), bias, state, axis=-1, groups=groups, padding=width, eps=1e-3
        )
        np.testing.assert_array_equal(last.weight, folded.weight.transpose(order))
        assert last.weight.flags.c_contiguous
        assert_close(last.bias, folded.bias, 1e-14, "bias")


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_before_a_convolution_that_repeats_its_input(rng, mode):
    torch = pytest.importorskip("torch")
    conv = torch.nn.Conv2d(4, 3, 3, padding=1, padding_mode=mode).double()
    state, x = statistics(rng, 4), rng.standard_normal((2, 4, 6, 5))
    want = conv(torch.from_numpy(normalize(x, state))).detach().numpy()
    folded = fastnorm.fold_batch_norm_before(conv.weight, conv.bias, state)
    conv.weight.data, conv.bias.data = (torch.from_numpy(a) for a in folded[:2])
    assert_close(conv(torch.from_numpy(x)).detach().numpy(), want, 1e-12, mode)


@pytest.mark.parametrize("layer", [fastnorm.BatchNorm, fastnorm.BatchRenorm])
@pytest.mark.parametrize("axis", [0, -1, 1])
def test_before_a_linear_layer(rng, layer, axis):
    x, weight, bias = (rng.standard_normal(s) for s in ((20, 7), (5, 7), 5))
    bn = layer(7, eps=1e-3, dtype=np.float64).eval()
    bn.load_state_dict(statistics(rng, 7))
    given = weight if axis == 0 else weight.T
    folded = fastnorm.fold_batch_norm_before(given, bias, bn, axis=axis)
    got = x @ (folded.weight.T if axis == 0 else folded.weight) + folded.bias
    assert_close(got, bn(x) @ weight.T + bias, 1e-12, "y")


def test_what_cannot_be_padded_is_refused(rng):
    weight, state = rng.standard_normal((3, 4, 3, 3)), statistics(rng, 4)
    state["weight"][[1, 3]] = 0
    match = r"padding: expected none, .* channel\(s\) \[1, 3\], whose weight is 0"
    for padding in (1, (0, 1), [[0, 0], [1, 2]], "same", "SAME"):
        with pytest.raises(ValueError, match=match):
            fastnorm.fold_batch_norm_before(weight, None, state, padding=padding)
    for padding in (0, (0, 0), "valid"):
        folded = fastnorm.fold_batch_norm_before(weight, None, state, padding=padding)
        assert np.isnan(folded.padding_value).any()
    state["bias"][[1, 3]] = 0  # of every value such a channel makes 0
    folded = fastnorm.fold_batch_norm_before(weight, None, state, padding=1)
    assert (folded.padding_value[[1, 3]] == 0).all()
    np.testing.assert_allclose(normalize(folded.padding_value[None], state), 0, atol=1e-14)
    state["weight"][1], state["bias"][1] = 1e-30, 1e30
    with pytest.raises(ValueError, match=r"of no value that float32 holds in channel\(s\) \[1\]"):
        fastnorm.fold_batch_norm_before(weight.astype(np.float32), None, state, padding=1)


def test_a_transposed_convolution_behind_is_refused(rng):
    """Its border, and what lies between strides, sees a part of the kernel."""
    for axis in (1, -3):
        with pytest.raises(ValueError, match=r"axis: expected 0 or -1, .*not transposed, got 1"):
            fastnorm.fold_batch_norm_before(
                np.ones((4, 2, 3, 3)), None, statistics(rng, 4), axis=axis
            )


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_names_of_every_framework(rng, framework):
    state, weight = statistics(rng, 4), rng.standard_normal((4, 4))
    named = dict(zip(FRAMEWORKS[framework], state.values(), strict=True))
    named["num_batches_tracked"] = np.int64(1)
    for fold in (fastnorm.fold_batch_norm, fastnorm.fold_batch_norm_before):
        for got, want in zip(fold(weight, None, named), fold(weight, None, state), strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_tensors_of_torch(rng, dtype):
    torch = pytest.importorskip("torch")
    conv = torch.nn.Conv1d(4, 6, 3).to(getattr(torch, dtype))
    bn = torch.nn.BatchNorm1d(6).to(getattr(torch, dtype))
    folded = fastnorm.fold_batch_norm(conv.weight, conv.bias, bn.state_dict(keep_vars=True))
    assert folded.weight.dtype == ("float32" if dtype == "bfloat16" else dtype)
    plain = [p.detach().double().numpy() for p in (conv.weight, conv.bias)]
    want = fastnorm.fold_batch_norm(*plain, {k: v.double() for k, v in bn.state_dict().items()})
    np.testing.assert_array_equal(folded.weight, want.weight.astype(folded.weight.dtype))
    np.testing.assert_array_equal(folded.bias, want.bias.astype(folded.weight.dtype))


def test_what_the_dtype_cannot_hold_is_refused(rng):
    weight, state = np.full((2, 2), 600, np.float16), statistics(rng, 2)
    state["weight"][1], state["running_var"][1] = 1000, 1.0
    for fold in (fastnorm.fold_batch_norm, fastnorm.fold_batch_norm_before):
        with pytest.raises(
            ValueError, match=r"^weight: expected values that float16 can hold, got 5"
        ):
            fold(weight, None, state)
    state = {**statistics(rng, 2), "running_mean": np.array([1e6, 0.0])}
    for fold in (fastnorm.fold_batch_norm, fastnorm.fold_batch_norm_before):
        with pytest.raises(ValueError, match=r"^bias: expected values that float16 can hold, got"):
            fold(weight, None, state)


@pytest.mark.parametrize("fold", [fastnorm.fold_batch_norm, fastnorm.fold_batch_norm_before])
def test_the_range_of_float64(rng, fold):
    state = statistics(rng, 2)
    weight = np.array([[1e300, 1.0], [1.0, 1e-300]])
    with np.errstate(all="raise"):  # what vanishes is no fault
        fold(weight, None, {**state, "weight": np.array([1.0, 1e-200])})
    for change in ({"weight": np.full(2, 1e10)}, {"running_mean": np.array([1e300, 1e300])}):
        with pytest.raises(ValueError, match=r"^bn: expected results that float64 can hold"):
            fold(weight, np.full(2, 1e308), {**state, "running_var": np.full(2, 1e-4), **change})
    state["running_mean"][0] = np.nan
    assert np.isnan(fold(weight, None, state).bias).any()  # as what it folds


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


@pytest.mark.long
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
