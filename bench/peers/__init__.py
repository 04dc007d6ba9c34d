"""The contestants, one module each.

A module has ``version()``, which raises an exception that says what is missing where the peer is
absent; ``set_threads(n)``; and ``prepare(arrays)``, which returns the call to time, or None where
the peer has no such operation. What the call returns is y, or a sequence that begins with dx.
"""

import importlib

MODULES = {
    "fastnorm": "ours",
    "numpy": "naive_numpy",
    "torch": "torch_eager",
    "onednn": "onednn",
    "jax": "jax_jit",
    "onnxruntime": "onnxruntime_session",
    "openvino": "openvino_request",
    "torch.compile": "torch_compile",
    "numba": "numba_loops",
}
PEERS = [name for name in MODULES if name != "fastnorm"]


def load(name):
    """Import the module of a contestant, and with it the peer."""
    return importlib.import_module(f"fastnorm.bench.peers.{MODULES[name]}")


def find(names):
    """Return modules and versions of those that are here, and notes on the others."""
    modules, versions, notes = {}, {}, []
    for name in names:
        try:
            module = load(name)
            versions[name] = module.version()
            modules[name] = module
        except Exception as error:  # a peer that breaks while it loads is as good as absent
            notes.append(f"{name} is left out: {first_line(error)}")
    return modules, versions, notes


def first_line(error):
    """Of an exception, for a cell or a note."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
