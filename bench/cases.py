"""What is measured, once: normalizers x layouts x passes on the layer shapes of known networks.

A case prepares its arrays and gives calls without arguments: by fastnorm, by naive NumPy, and the
copy that moves as much memory as the pass at least has to.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import naive
import numpy as np

import fastnorm

# (N, C, H, W), or (rows, features); the largest has 103 MB in float32
SHAPES = {
    "resnet50": [(32, 64, 112, 112), (32, 256, 56, 56), (32, 512, 28, 28), (32, 1024, 14, 14),
                 (32, 2048, 7, 7)],
    "unet": [(4, 64, 256, 256), (4, 256, 64, 64), (4, 1024, 16, 16)],
    "bert": [(8192, 768), (4096, 1024), (512, 768)],
    "tiny": [(2, 32, 32, 32), (4, 64, 14, 14), (64, 768)],
}  # fmt: skip

CHANNEL_NORMS = [
    "batch_norm",
    "batch_renorm",
    "instance_norm",
    "group_norm",
    "switchable_norm",
    "instance_renorm",
]
ROW_NORMS = ["layer_norm", "rms_norm"]
NORMS = [*CHANNEL_NORMS, *ROW_NORMS]
PASSES = ["forward", "inference", "backward"]
# whose inference is another computation than their forward pass
WITH_INFERENCE = ["batch_norm", "batch_renorm", "instance_norm", "switchable_norm"]


@dataclass(frozen=True)
class Case:
    """One measurement."""

    norm: str
    layout: str  # NCHW or NHWC; "rows" for layer and RMS norm over the last axis
    direction: str  # one of PASSES
    shape: tuple[int, ...]  # channels first

    @property
    def id(self) -> str:
        """Name of the case in reports and test ids."""
        return f"{self.norm}-{self.layout}-{self.direction}-{'x'.join(map(str, self.shape))}"

    @property
    def bytes(self) -> int:
        """Of the array, in float32."""
        return 4 * prod(self.shape)

    def prepare(self, seed: int = 0) -> "Calls":
        """Make the arrays."""
        rng = np.random.default_rng(seed)
        shape = self.shape
        if self.layout == "NHWC":
            shape = (shape[0], *shape[2:], shape[1])
        x = rng.standard_normal(shape, dtype=np.float32)
        y = np.empty_like(x)
        args, kwargs = self._arguments(rng)
        function, plain = getattr(fastnorm, self.norm), getattr(naive, self.norm)
        if self.direction != "backward":
            return Calls(
                lambda: function(x, *args, **kwargs, out=y),
                lambda: plain(x, *args, **kwargs)[0],
                lambda: np.copyto(y, x),
                (x, None, y),
            )
        dy = rng.standard_normal(shape, dtype=np.float32)
        # running statistics of their own: each call updates them
        own = {k: v.copy() if k.startswith("running") else v for k, v in kwargs.items()}
        _, ctx = function(x, *args, **own, return_ctx=True)
        _, cache = plain(x, *args, **kwargs)
        return Calls(
            lambda: fastnorm.backward(dy, ctx, out=y),
            lambda: naive.backward(dy, cache),
            lambda: np.add(x, dy, out=y),
            (x, dy, y),
        )

    def _arguments(self, rng: np.random.Generator) -> tuple[list, dict]:
        channels = self.shape[-1] if self.layout == "rows" else self.shape[1]
        weight, bias = (rng.uniform(0.5, 1.5, channels).astype(np.float32) for _ in range(2))
        if self.norm in ROW_NORMS:
            return [weight] if self.norm == "rms_norm" else [weight, bias], {}
        args = [weight, bias]
        kwargs = {"layout": self.layout}
        if self.norm == "group_norm":
            return [min(32, channels), *args], kwargs
        if self.norm == "switchable_norm":
            args += [np.ones(3, np.float32), np.ones(3, np.float32)]
        kwargs["running_mean"] = np.zeros(channels, np.float32)
        kwargs["running_var"] = np.ones(channels, np.float32)
        if self.norm == "instance_norm":
            kwargs["use_input_stats"] = self.direction != "inference"
        else:
            kwargs["training"] = self.direction != "inference"
        return args, kwargs


@dataclass(frozen=True)
class Calls:
    """What a case runs, and the arrays (x, dy or None, out) that move."""

    fastnorm: Callable
    numpy: Callable
    copy: Callable
    arrays: tuple


def cases(sets=SHAPES, norms=NORMS, layouts=("NCHW", "NHWC"), passes=PASSES) -> list[Case]:
    """All cases of the named sets."""
    return [
        Case(norm, layout, direction, shape)
        for name in sets
        for shape in SHAPES[name]
        for norm in norms
        if (norm in ROW_NORMS) == (len(shape) == 2)
        for layout in (["rows"] if norm in ROW_NORMS else layouts)
        for direction in passes
        if direction != "inference" or norm in WITH_INFERENCE
    ]
