"""The contestants of ``fastnorm bench-fused``: each is a function from arrays to a call, or None.

Separate calls are those of a module of `peers`, with a sum and an activation around them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

import fastnorm
from fastnorm import activations
from fastnorm.bench import peers
from fastnorm.bench.cases import Arrays


@dataclass(frozen=True)
class Beside:
    """The arrays of a case: those of the plain normalizer, and what is around it."""

    plain: Arrays
    activation: str | None
    shortcut: np.ndarray | None
    residual: np.ndarray | None
    sum: np.ndarray | None  # of x and the residual, written by each contestant
    ds: np.ndarray | None  # its gradient
    z: np.ndarray | None  # what the activation was of, where backward needs it
    dz: np.ndarray | None  # gradient of it, written by each contestant's own calls

    @property
    def normed(self):
        """The plain normalizer's arrays in separate calls."""
        x = self.plain.x if self.residual is None else self.sum
        return replace(self.plain, x=x, dy=self.plain.dy if self.dz is None else self.dz)


# ---- fastnorm, one call ------------------------------------------------------------------------


def fused(arrays):
    plain = arrays.plain
    function = getattr(fastnorm, plain.case.norm)
    args, kwargs = plain.arguments()
    around = {"activation": arrays.activation, "shortcut": arrays.shortcut}
    if arrays.residual is not None:
        around |= {"residual": arrays.residual, "sum_out": arrays.sum}
    around = {name: value for name, value in around.items() if value is not None}
    call = partial(function, plain.x, *args, **kwargs, **around)
    if plain.dy is None:
        return partial(call, out=plain.out)
    *_, ctx = call(return_ctx=True)
    ds = {} if arrays.ds is None else {"ds": arrays.ds}
    return partial(fastnorm.backward, plain.dy, ctx, out=plain.out, **ds)


# ---- separate calls: how each adds, and what its activations are -------------------------------


def _numpy_silu(y):
    return y * (1 / (1 + np.exp(-y)))


def _numpy_silu_backward(dy, z):
    p = 1 / (1 + np.exp(-z))
    return dy * (p * (1 + z * (1 - p)))


@dataclass(frozen=True)
class Steps:
    """What a contestant does around its normalizer."""

    plus: Callable  # of y and another array; returns the sum
    activate: dict  # by name: of y; returns the activation
    backward: Callable  # of name, dy, z and where to write
    add: Callable = np.add  # of two arrays and `out`
    array: Callable = lambda array, layout: array  # its own view of NumPy's


def numpy_steps():
    """Naive: each expression makes an array, but for those that the normalizer reads."""

    def backward(name, dy, z, out):
        out[...] = dy * (z > 0) if name == "relu" else _numpy_silu_backward(dy, z)

    return Steps(np.add, {"relu": lambda y: np.maximum(y, 0), "silu": _numpy_silu}, backward)


def our_steps():
    """In place, by NumPy's sums and fastnorm's activations."""
    return Steps(
        lambda y, other: np.add(y, other, out=y),
        {
            "relu": lambda y: activations.relu(y, out=y),
            "silu": lambda y: activations.silu(y, out=y),
        },
        lambda name, dy, z, out: activations.backward(dy, z, name, out=out),
    )


def torch_steps():
    """In place, by eager kernels."""
    import torch

    from fastnorm.bench.peers.torch_eager import aten, tensor

    def backward(name, dy, z, out):
        if name == "relu":
            aten.threshold_backward.grad_input(dy, z, 0, grad_input=out)
        else:
            aten.silu_backward.grad_input(dy, z, grad_input=out)

    silu = partial(torch.nn.functional.silu, inplace=True)
    return Steps(
        torch.Tensor.add_, {"relu": torch.Tensor.relu_, "silu": silu}, backward, torch.add, tensor
    )


STEPS = {"fastnorm": our_steps, "numpy": numpy_steps, "torch": torch_steps}


def separate(name, arrays):
    """Return calls of the contestant one after another."""
    how = STEPS[name]()
    plain, activation, layout = arrays.plain, arrays.activation, arrays.plain.case.layout
    norm = peers.load(name).prepare(arrays.normed)
    x, dy, shortcut, residual, total, ds, z, dz = (
        None if a is None else how.array(a, layout)
        for a in (plain.x, plain.dy, arrays.shortcut, arrays.residual, arrays.sum, arrays.ds,
                  arrays.z, arrays.dz)
    )  # fmt: skip

    def forward():
        if residual is not None:
            how.add(x, residual, out=total)
        y = norm()
        if shortcut is not None:
            y = how.plus(y, shortcut)
        if activation is not None:
            y = how.activate[activation](y)
        return (y,) if total is None else (y, total)

    def backward():
        if activation is not None:
            how.backward(activation, dy, z, dz)
        dx = norm()[0]
        if ds is not None:
            dx = how.plus(dx, ds)
        return (dx,) if shortcut is None else (dx, dz)

    return forward if plain.dy is None else backward


# ---- torch.compile -----------------------------------------------------------------------------


def compiled(arrays):
    """All as one graph, and its gradient as another."""
    import torch

    from fastnorm.bench.peers.torch_eager import tensor

    torch._dynamo.reset()  # what was compiled for other shapes, or for other threads
    plain, case, activation = arrays.plain, arrays.plain.case, arrays.activation
    parameters = (plain.weight, plain.bias, *plain.running())
    weight, bias, mean, var = map(torch.from_numpy, parameters)
    norms, one = torch.nn.functional, (case.channels,)
    norm = {
        "batch_norm": lambda x, w, b: norms.batch_norm(x, mean, var, w, b, True, 0.1, 1e-5),
        "group_norm": lambda x, w, b: norms.group_norm(x, case.groups, w, b, 1e-5),
        "layer_norm": lambda x, w, b: norms.layer_norm(x, one, w, b, 1e-5),
        "rms_norm": lambda x, w, b: norms.rms_norm(x, one, w, 1e-6),
    }[case.norm]

    @torch.compile(dynamic=False)
    def function(x, other, w, b):
        total = x if arrays.residual is None else x + other
        y = norm(total, w, b)
        if arrays.shortcut is not None:
            y = y + other
        if activation is not None:
            y = getattr(norms, activation)(y)
        return (y,) if arrays.residual is None else (y, total)

    other = arrays.shortcut if arrays.residual is None else arrays.residual
    inputs = [None if a is None else tensor(a, case.layout) for a in (plain.x, other)]
    if plain.dy is None:
        return lambda: function(*inputs, weight, bias)
    inputs = [a if a is None else a.detach().requires_grad_() for a in (*inputs, weight, bias)]
    wanted = [a for a in inputs if a is not None]
    with torch.enable_grad():
        outputs = function(*inputs)
    given = [tensor(a, case.layout) for a in (plain.dy, arrays.ds) if a is not None]
    found = partial(
        torch.autograd.grad, outputs, wanted, given, retain_graph=True, allow_unused=True
    )
    # the gradient of a residual is that of x
    return lambda: found()[: 1 if arrays.shortcut is None else 2]


# ---- onnxruntime -------------------------------------------------------------------------------

_SKIP = {"domain": "com.microsoft"}
_SILU = [("Sigmoid", ["n"], ["p"], {}), ("Mul", ["n", "p"], ["y"], {})]
# operators, what they take and give, their attributes
GRAPHS = {
    "layer_norm": [("SkipLayerNormalization", ["x", "r", "weight", "bias"],
                    ["y", "", "", "sum"], {"epsilon": 1e-5, **_SKIP})],
    "rms_norm": [("SkipSimplifiedLayerNormalization", ["x", "r", "weight"],
                  ["y", "", "", "sum"], {"epsilon": 1e-6, **_SKIP})],
    "group_norm": [("GroupNormalization", ["x", "weight", "bias"], ["n"], {"epsilon": 1e-5}),
                   *_SILU],
}  # fmt: skip


def _session(arrays, names):
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    from fastnorm.bench.peers import onnx_graph, onnxruntime_session

    case = arrays.plain.case
    nodes = []
    for operator, takes, gives, attributes in GRAPHS[case.norm]:
        groups = {"num_groups": case.groups} if operator == "GroupNormalization" else {}
        nodes.append(helper.make_node(operator, takes, gives, **attributes, **groups))
    parameters = {"weight": arrays.plain.weight, "bias": arrays.plain.bias}
    used = [name for name in parameters if any(name in node.input for node in nodes)]
    constants = [numpy_helper.from_array(parameters[name], name) for name in used]
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, case.shape) for name in some]
        for some in names
    )
    graph = helper.make_graph(nodes, case.norm, inputs, outputs, constants)
    opsets = [helper.make_opsetid("", onnx_graph.OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), onnxruntime_session._options, ["CPUExecutionProvider"]
    )


def onnxruntime_graph(arrays):
    """Skip norms of the domain com.microsoft, which give y and the sum; separate operators else."""
    plain = arrays.plain
    if plain.dy is not None or plain.case.norm not in GRAPHS or plain.case.layout == "NHWC":
        return None
    inputs, outputs = {"x": plain.x}, {"y": plain.out}
    if arrays.residual is not None:
        inputs["r"], outputs["sum"] = arrays.residual, arrays.sum
    session = _session(arrays, (inputs, outputs))
    binding = session.io_binding()
    for bind, some in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
        for name, array in some.items():
            bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def call():
        session.run_with_iobinding(binding)
        return tuple(outputs.values())

    return call


# which module of `peers` each needs, and what makes its call
CONTESTANTS = {
    "fastnorm": ("fastnorm", fused),
    "fastnorm, separate": ("fastnorm", partial(separate, "fastnorm")),
    "numpy": ("numpy", partial(separate, "numpy")),
    "torch": ("torch", partial(separate, "torch")),
    "torch.compile": ("torch.compile", compiled),
    "onnxruntime": ("onnxruntime", onnxruntime_graph),
}
PEERS = [name for name, (needs, _) in CONTESTANTS.items() if needs != "fastnorm"]
