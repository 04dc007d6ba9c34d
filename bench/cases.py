"""What is measured, once: normalizers x layouts x passes x dtypes on the layer shapes of networks.

A case makes its arrays; each module of `peers` makes a call without arguments from them.
"""

import re
from dataclasses import dataclass
from inspect import signature
from math import prod

import numpy as np

import fastnorm

# (N, C, H, W), or (rows, features); the largest has 103 MB in float32
SHAPES = {
    "resnet50": [(32, 64, 112, 112), (32, 256, 56, 56), (32, 512, 28, 28), (32, 1024, 14, 14),
                 (32, 2048, 7, 7)],
    "unet": [(4, 64, 256, 256), (4, 256, 64, 64), (4, 1024, 16, 16)],
    "bert": [(8192, 768), (4096, 1024), (512, 768)],
    "llama": [(2048, 4096), (512, 2048)],
    "style": [(1, 3, 1024, 1024), (1, 32, 512, 512), (4, 128, 128, 128)],
    "tiny": [(2, 32, 32, 32), (4, 64, 14, 14), (64, 768)],
}  # fmt: skip
QUICK = [(32, 256, 28, 28), (8192, 768)]  # 25 MB each

# What a normalizer takes is read from its signature: those that take a layout work on channels.
# Those with a covariance are BLAS's work, which nobody's kernels are compared by.
CHANNEL_NORMS = [
    name
    for name in fastnorm.norms.__all__
    if re.fullmatch("[a-z_]+norm", name)
    for parameters in [signature(getattr(fastnorm, name)).parameters]
    if "layout" in parameters and "running_cov" not in parameters
]
ROW_NORMS = ["layer_norm", "rms_norm"]
NORMS = [*CHANNEL_NORMS, *ROW_NORMS]
PASSES = ["forward", "inference", "backward"]
PARAMETERS = {norm: signature(getattr(fastnorm, norm)).parameters for norm in NORMS}
# whose inference is another computation than their forward pass
WITH_INFERENCE = [norm for norm in NORMS if "running_mean" in PARAMETERS[norm]]
RANDOM = 1_000_003  # as many numbers are drawn, and repeated: more would take longer than the calls
LINE = 64  # bytes
LAYOUTS = ["NCHW", "NHWC", "NCHW16c"]
DTYPES = ["float32", "float64", "float16", "bfloat16"]


def dtype_of(name):
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def laid(memory, shape, dtype):
    """View bytes from a cache line's start: oneDNN and the memory limit are fastest there."""
    start = -memory.ctypes.data % LINE
    return memory[start : start + prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


@dataclass(frozen=True)
class Case:
    """One measurement."""

    norm: str
    layout: str  # one of LAYOUTS; "rows" for layer and RMS norm over the last axis
    direction: str  # one of PASSES
    shape: tuple[int, ...]  # channels first
    dtype: str = "float32"

    @property
    def size(self) -> str:
        """Shape as a person writes it."""
        return "x".join(map(str, self.shape))

    @property
    def id(self) -> str:
        """Name of the case in reports and test ids."""
        return f"{self.norm}-{self.layout}-{self.direction}-{self.size}-{self.dtype}"

    @property
    def bytes(self) -> int:
        """Of the array."""
        return dtype_of(self.dtype).itemsize * prod(self.shape)

    @property
    def traffic(self) -> int:
        """Bytes that the pass at least moves: backward reads x and dy and writes dx."""
        return (3 if self.direction == "backward" else 2) * self.bytes

    @property
    def channels(self) -> int:
        """As many as weights."""
        return self.shape[-1] if self.layout == "rows" else self.shape[1]

    @property
    def groups(self) -> int:
        """Of group norm: 32, as in its paper, or the most that divide the channels below it."""
        return next(g for g in range(min(32, self.channels), 0, -1) if self.channels % g == 0)

    @property
    def stored(self) -> tuple[int, ...]:
        """Shape of the array in its layout."""
        n, *rest = self.shape
        if self.layout == "NCHW16c":
            return (n, -(-rest[0] // 16), *rest[1:], 16)
        return (n, *rest[1:], rest[0]) if self.layout == "NHWC" else self.shape

    @property
    def room(self) -> int:
        """Bytes of memory in which the array can be laid."""
        return dtype_of(self.dtype).itemsize * prod(self.stored) + LINE

    def prepare(self) -> "Arrays":
        """Make the arrays."""
        arrays = self.over(*(np.empty(self.room, np.uint8) for _ in range(3)))
        arrays.fill()
        arrays.out.fill(0)  # or the first call would wait for the system to map it
        return arrays

    def over(self, x, dy, out) -> "Arrays":
        """Lay the arrays over memory, with what is there."""
        x, dy, out = (laid(memory, self.stored, dtype_of(self.dtype)) for memory in (x, dy, out))
        rng = np.random.default_rng(0)
        parameters = np.float64 if self.dtype == "float64" else np.float32
        weight, bias = (rng.uniform(0.5, 1.5, self.channels).astype(parameters) for _ in "wb")
        return Arrays(self, x, dy if self.direction == "backward" else None, out, weight, bias)


@dataclass(frozen=True)
class Arrays:
    """What all contestants of a case share."""

    case: Case
    x: np.ndarray
    dy: np.ndarray | None
    out: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def fill(self):
        """Draw x and dy."""
        rng = np.random.default_rng(1)
        for array in (self.x, self.dy):
            if array is None:
                continue
            some = rng.standard_normal(min(array.size, RANDOM), np.float32).astype(array.dtype)
            if self.case.layout == "NCHW16c":  # channels that fill a block up are zeros
                array[...] = fastnorm.to_blocked(np.resize(some, self.case.shape), 16)
            else:
                array[...] = np.resize(some, array.shape)

    def running(self):
        """Mean and variance of a contestant's own: each call updates them."""
        return np.zeros_like(self.weight), np.ones_like(self.weight)

    def logits(self):
        """Of switchable norm, for means and variances."""
        return np.ones(3, self.weight.dtype), np.ones(3, self.weight.dtype)

    def arguments(self):
        """Positional and keyword arguments, which fastnorm and naive.py have in common."""
        case = self.case
        mean, var = self.running()
        mean_logits, var_logits = self.logits()
        training = case.direction != "inference"
        known = {
            "weight": self.weight, "bias": self.bias, "tau": self.bias, "num_groups": case.groups,
            "mean_logits": mean_logits, "var_logits": var_logits, "running_mean": mean,
            "running_var": var, "training": training, "use_input_stats": training,
            "layout": case.layout,
        }  # fmt: skip
        takes = {k: p for k, p in PARAMETERS[case.norm].items() if k in known}
        positional = [known[k] for k, p in takes.items() if p.kind is not p.KEYWORD_ONLY]
        keywords = {k: known[k] for k, p in takes.items() if p.kind is p.KEYWORD_ONLY}
        return tuple(positional), keywords | ({"eps": 1e-6} if case.norm == "rms_norm" else {})


def cases(
    shapes=None, norms=NORMS, layouts=("NCHW", "NHWC"), passes=PASSES, dtypes=("float32",)
) -> list[Case]:
    """All cases of the shapes, by default those of every set."""
    if shapes is None:
        shapes = [shape for name in SHAPES for shape in SHAPES[name]]
    return [
        Case(norm, layout, direction, shape, dtype)
        for shape in shapes
        for dtype in dtypes
        for norm in norms
        if (norm in ROW_NORMS) == (len(shape) == 2)
        for layout in (["rows"] if norm in ROW_NORMS else layouts)
        for direction in passes
        if direction != "inference" or norm in WITH_INFERENCE
    ]
