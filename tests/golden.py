"""SHA-256 sums of what every platform must give to the bit: golden.json, for test_golden.py.

``python tests/golden.py`` writes them anew. They change where the bits of results are meant to: not
with the processor, the compiler, the number of threads, or the version of NumPy. So the inputs are
made of integers, and are exact in their dtype.
"""

import functools
import hashlib
import json
from pathlib import Path

import ml_dtypes
import numpy as np
from cases import LENGTHS, NORMS, run

import fastnorm

FILE = Path(__file__).with_name("golden.json")
ALL = [*NORMS, *LENGTHS]
DIGITS = {np.float32: 24, np.float64: 53, np.float16: 11, ml_dtypes.bfloat16: 8}
# channels first: rows and columns of one element, small images, blocks with padding, groups across
# blocks, rows in lanes, in chunks
SHAPES = [(12, 24), (9, 6, 7, 7), (2, 66, 5, 9), (3, 3, 1030), (2, 3, 33_000)]
LAYOUTS = ["first", "last", "blocks of 8"]


class Numbers:
    """Numbers of so many binary digits, from SplitMix64 (Steele, Lea, Flood 2014)."""

    def __init__(self, digits, state=0):
        self.digits, self.state = digits, np.uint64(state)

    def integers(self, count):
        """The next 64-bit integers."""
        step = np.uint64(0x9E3779B97F4A7C15)
        z = self.state + np.arange(1, count + 1, dtype=np.uint64) * step
        self.state = z[-1]
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return z ^ z >> np.uint64(31)

    def fractions(self, shape):
        """In steps of 2**(1 - digits), at least 0 and below 1."""
        steps = self.integers(int(np.prod(shape))) >> np.uint64(65 - self.digits)
        return np.ldexp(steps.astype(np.float64), 1 - self.digits).reshape(shape)

    def uniform(self, low, high, shape):
        """As a generator of NumPy has it, of two numbers that are 1 apart."""
        assert high - low == 1
        return self.fractions(shape) + low

    def array(self, shape, dtype):
        """From -2 to 2 around 0.5, larger in some channels."""
        values = 4 * self.fractions(shape) - 1.5
        scale = np.ldexp(1.0, np.arange(shape[1]) % 3 - 1)
        return (values * scale.reshape(-1, *[1] * (len(shape) - 2))).astype(dtype)


def laid(a, layout):
    """An array, channels first, in another layout."""
    if layout == "last":
        return np.ascontiguousarray(np.moveaxis(a, 1, -1))
    return a if layout == "first" else fastnorm.to_blocked(a, 8)


@functools.cache
def inputs(shape, dtype, layout):
    """x and dy, the first of them also channels first, and what parameters are drawn from."""
    numbers = Numbers(DIGITS[dtype], SHAPES.index(shape) << 32)
    x, dy = (numbers.array(shape, dtype) for _ in range(2))
    return laid(x, layout), laid(dy, layout), x, numbers.state


def results(norm, layout, dtype):
    """("y", array) and so on, of each shape."""
    for shape in SHAPES:
        rank = len(shape)
        if rank == 2 and (norm.spatial or layout == "blocks of 8"):
            continue
        x, dy, first, state = inputs(shape, dtype, layout)
        like = first if x.itemsize > 2 else first.astype(np.float32)
        args, kwargs = norm.arguments(Numbers(24, state), like, "channels_first")
        if norm.channels:
            blocks = {3: "NCL8c", 4: "NCHW8c"}.get(rank)
            kwargs["layout"] = blocks if layout == "blocks of 8" else f"channels_{layout}"
        y, grads, own = run(norm, x, args, kwargs, dy)
        yield "y", y
        yield "dx", grads.x
        yield from (("parameters", a) for a in grads[1:] if a is not None)
        if norm.running == "update":
            yield from (("running", own[k]) for k in ("running_mean", "running_var"))


def sums(norm):
    """The sums of a normalizer, as they are here and now: {name: sum}."""
    found = {}
    for layout in LAYOUTS if norm.channels else LAYOUTS[:1]:
        for dtype in DIGITS:
            for what, array in results(norm, layout, dtype):
                assert not np.isnan(array).any(), "whose bits are not promised"
                name = f"{norm.id}, {layout}, {np.dtype(dtype).name}: {what}"
                found.setdefault(name, hashlib.sha256()).update(array.tobytes())
    return {name: each.hexdigest() for name, each in found.items()}


def sums_of_activation(name):
    """The sums of an activation: of numbers from -8 to 8, and of a tail down to -128."""
    found = {}
    for dtype, digits in DIGITS.items():
        numbers = Numbers(digits)
        x, tail, dy = (numbers.fractions(20_000) for _ in range(3))
        x = np.concatenate([16 * x - 8, -128 * tail]).astype(dtype)
        dy = np.concatenate([dy, dy]).astype(dtype)
        y = getattr(fastnorm.activations, name)(x)
        dx = fastnorm.activations.backward(dy, x, name)
        for what, array in (("y", y), ("dx", dx)):
            each = hashlib.sha256(array.tobytes()).hexdigest()
            found[f"{name}, {np.dtype(dtype).name}: {what}"] = each
    return found


def as_text():
    everything = {name: each for norm in ALL for name, each in sums(norm).items()}
    for name in fastnorm.activations.NAMES:
        everything |= sums_of_activation(name)
    return json.dumps(everything, indent=0, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(as_text())
