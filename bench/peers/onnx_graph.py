"""One operator of ONNX for a case, as onnxruntime and OpenVINO take it."""

from functools import partial

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

OPSET = 23  # the first that has RMSNormalization
TYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
}
# operator, what it takes beside x, its attributes
WITH_RUNNING = ("BatchNormalization", ("weight", "bias", "mean", "var"), {})
OPERATORS = {
    ("batch_norm", "inference"): WITH_RUNNING,
    ("batch_renorm", "inference"): WITH_RUNNING,
    ("instance_norm", "inference"): WITH_RUNNING,
    ("instance_norm", "forward"): ("InstanceNormalization", ("weight", "bias"), {}),
    ("group_norm", "forward"): ("GroupNormalization", ("weight", "bias"), {}),
    ("layer_norm", "forward"): ("LayerNormalization", ("weight", "bias"), {"axis": -1}),
    ("rms_norm", "forward"): ("RMSNormalization", ("weight",), {"axis": -1}),
}


def model(arrays):
    """Return a model of x to y, its parameters inside, as bytes; None: ONNX has no operator."""
    case = arrays.case
    found = OPERATORS.get((case.norm, case.direction))
    if found is None or case.layout not in ("NCHW", "rows") or case.dtype not in TYPES:
        return None
    operator, takes, attributes = found
    mean, var = arrays.running()
    known = {"weight": arrays.weight, "bias": arrays.bias, "mean": mean, "var": var}
    constants = [
        numpy_helper.from_array(known[name].astype(np.dtype(case.dtype)), name) for name in takes
    ]
    if case.norm == "group_norm":
        attributes = {"num_groups": case.groups}
    node = helper.make_node(
        operator, ["x", *takes], ["y"], epsilon=1e-6 if case.norm == "rms_norm" else 1e-5,
        **attributes,
    )  # fmt: skip
    info = partial(helper.make_tensor_value_info, elem_type=TYPES[case.dtype], shape=case.shape)
    graph = helper.make_graph([node], case.norm, [info("x")], [info("y")], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    checker.check_model(made)
    return made.SerializeToString()
