"""OpenVINO: an infer request of one operator, in float32, on the case's own arrays."""

import openvino

from fastnorm.bench.peers import onnx_graph

_settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1"}


def version():
    return openvino.__version__.split("-")[0]


def set_threads(n):
    """Of the models that are compiled from now on."""
    _settings["INFERENCE_NUM_THREADS"] = str(n)


def prepare(arrays):
    model = onnx_graph.model(arrays) if arrays.case.dtype == "float32" else None
    if model is None:
        return None
    core = openvino.Core()
    request = core.compile_model(core.read_model(model), "CPU", _settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(arrays.x, shared_memory=True))
    request.set_output_tensor(openvino.Tensor(arrays.out, shared_memory=True))

    def call():
        request.infer(share_outputs=True)
        return arrays.out

    return call
