"""onnxruntime: a session of one operator, its input and output bound to the case's arrays."""

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

from fastnorm.bench.peers import onnx_graph

_options = onnxruntime.SessionOptions()
_options.log_severity_level = 3  # errors


def version():
    return onnxruntime.__version__


def set_threads(n):
    """Of the sessions that are made from now on."""
    _options.intra_op_num_threads = n


def prepare(arrays):
    model = onnx_graph.model(arrays)
    if model is None:
        return None
    try:
        session = onnxruntime.InferenceSession(model, _options, ["CPUExecutionProvider"])
    except NoKernel:
        return None
    binding = session.io_binding()
    for bind, name, array in (
        (binding.bind_input, "x", arrays.x),
        (binding.bind_output, "y", arrays.out),
    ):
        bind(name, "cpu", 0, np.dtype(arrays.case.dtype), array.shape, array.ctypes.data)

    def call():
        session.run_with_iobinding(binding)
        return arrays.out

    return call
