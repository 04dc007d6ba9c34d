"""Every normalizer in every mode, once: all test modules take their parameters from here.

A new normalizer is one more entry of `NORMS`.
"""

from dataclasses import dataclass, field

import numpy as np

import fastnorm
from fastnorm import reference

# channels first, by rank; channels last is the same with the channel axis moved to the end
SHAPES = {2: (12, 6), 3: (3, 6, 35), 4: (4, 6, 7, 7), 5: (2, 6, 3, 4, 5)}
LAYOUTS = {
    2: ["NC"],
    3: ["NCL", "NLC"],
    4: ["NCHW", "NHWC"],
    5: ["NCDHW", "NDHWC"],
}


@dataclass(frozen=True)
class Norm:
    """One normalizer in one mode."""

    id: str
    name: str  # of the function, in fastnorm and in fastnorm.reference
    kwargs: dict = field(default_factory=dict)
    running: str = "none"  # none, read (not updated) or update
    axis: object = None  # the axes, of a channels-first array; weight norm: that of g
    spatial: bool = False  # needs more than one spatial element
    sized: bool = False  # whether y grows with x

    @property
    def channels(self):
        """Whether it works on channels, in a layout (else on axes)."""
        return self.axis is None

    @property
    def centered(self):
        """Whether the mean is subtracted."""
        return self.name not in (
            "rms_norm", "weight_norm", "filter_response_norm", "global_response_norm"
        )  # fmt: skip

    def domain(self, shape):
        """Number of elements that share statistics, at least, of a channels-first shape."""
        if self.channels:
            return int(np.prod(shape[2:])) if self.spatial else int(np.prod(shape[2:])) * shape[0]
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        share = int(np.prod([shape[a] for a in axes]))
        return int(np.prod(shape)) // share if self.name == "weight_norm" else share

    def arguments(self, rng, x, layout):
        """Positional and keyword arguments behind x: parameters of x's dtype that all matter."""
        if not self.channels:
            if self.name == "normalize":
                return [], {"axis": self.axis, **self.kwargs}
            if self.name == "weight_norm":
                g = uniform(rng, x.shape[self.axis], x.dtype)
                return [g], {"axis": self.axis}
            axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
            shape = tuple(x.shape[a] for a in sorted(a % x.ndim for a in axes))
            args = [uniform(rng, shape, x.dtype)]
            if self.name == "layer_norm":
                args.append(uniform(rng, shape, x.dtype))
            return args, {"axis": self.axis, **self.kwargs}
        c = x.shape[-1] if is_last(layout) else x.shape[1]
        args = [uniform(rng, (c,), x.dtype), uniform(rng, (c,), x.dtype)]
        if self.name == "group_norm":
            args.insert(0, self.kwargs["num_groups"])
        if self.name == "switchable_norm":
            args += [uniform(rng, (3,), x.dtype), uniform(rng, (3,), x.dtype)]
        if self.name == "filter_response_norm":
            args.append(uniform(rng, (c,), x.dtype))  # tau
        kwargs = {k: v for k, v in self.kwargs.items() if k != "num_groups"}
        if self.running != "none":
            kwargs["running_mean"] = uniform(rng, (c,), x.dtype) - x.dtype.type(1)
            kwargs["running_var"] = uniform(rng, (c,), x.dtype)
        return args, {"layout": layout, **kwargs}


def uniform(rng, shape, dtype):
    return rng.uniform(0.5, 1.5, shape).astype(dtype)


def is_last(layout):
    return layout == "channels_last" or (len(layout) > 2 and layout[-1] == "C")


NORMS = [
    Norm("bn-train", "batch_norm", {"training": True}, "update"),
    Norm("bn-train-ddof0", "batch_norm", {"training": True, "ddof": 0, "momentum": 0.3}, "update"),
    Norm("bn-eval", "batch_norm", {}, "read"),
    Norm("brn-train", "batch_renorm", {"training": True, "r_max": 1.5, "d_max": 0.4}, "update"),
    Norm("brn-eval", "batch_renorm", {}, "read"),
    Norm("in", "instance_norm", {}, spatial=True),
    Norm("in-running", "instance_norm", {"momentum": 0.4}, "update", spatial=True),
    Norm("in-eval", "instance_norm", {"use_input_stats": False}, "read"),
    Norm("gn-1", "group_norm", {"num_groups": 1}),
    Norm("gn-3", "group_norm", {"num_groups": 3}),
    Norm("sn-train", "switchable_norm", {"training": True}, "update"),
    Norm("sn-eval", "switchable_norm", {}, "read"),
    Norm("irn-train", "instance_renorm", {"training": True, "blend": 0.7}, "update", spatial=True),
    Norm("irn-eval", "instance_renorm", {"r_max": 1.4, "d_max": 0.3}, "read", spatial=True),
    Norm("frn", "filter_response_norm", spatial=True),
    Norm("grn", "global_response_norm", spatial=True, sized=True),
    Norm("ln", "layer_norm", axis=-1),
    Norm("ln-channel", "layer_norm", axis=1),
    Norm("ln-two", "layer_norm", axis=(-2, -1)),
    Norm("ln-apart", "layer_norm", axis=(0, -1)),
    Norm("ln-first", "layer_norm", axis=0),
    Norm("rms", "rms_norm", axis=-1),
    Norm("rms-channel", "rms_norm", axis=1),
    Norm("wn", "weight_norm", axis=0),
    Norm("wn-middle", "weight_norm", axis=1),
    Norm("wn-last", "weight_norm", axis=-1),
]

# vectors divided by their length: without parameters, and not in the reference
LENGTHS = [Norm("l2", "normalize", axis=1), Norm("l2-last", "normalize", axis=-1)]


def cases(norms=NORMS, ranks=(2, 3, 4, 5)):
    """(norm, rank, layout) for all combinations that exist."""
    return [
        (norm, rank, layout)
        for norm in norms
        for rank in ranks
        for layout in (LAYOUTS[rank] if norm.channels else LAYOUTS[rank][:1])
        if not (norm.spatial and rank == 2)
    ]


def case_id(case):
    return "-".join(getattr(part, "id", str(part)) for part in case)


def make_input(rng, shape, layout, dtype, mean=0.3, std=1.7):
    """An input of channels-first `shape` in `layout`, with a scale and offset for each channel."""
    x = rng.standard_normal(shape) * std + mean
    x = x * rng.uniform(0.7, 1.3, (1, shape[1]) + (1,) * (len(shape) - 2))
    if is_last(layout):
        x = np.moveaxis(x, 1, -1)
    return np.ascontiguousarray(x, dtype)


def copy_running(kwargs):
    """kwargs with running statistics of their own, which a call may update."""
    return {k: v.copy() if k.startswith("running") else v for k, v in kwargs.items()}


def run(norm, x, args, kwargs, dy=None, **more):
    """Forward (and backward, with dy) of fastnorm: y, gradients, and the running statistics."""
    own = copy_running(kwargs)
    function = getattr(fastnorm, norm.name)
    if dy is None:
        return function(x, *args, **own, **more), None, own
    y, ctx = function(x, *args, **own, return_ctx=True, **more)
    return y, fastnorm.backward(dy, ctx), own


def everywhere(threads=(1, 2, 5)):
    """Go through every instruction set with each number of threads: all must give the same bits."""
    for isa in fastnorm.available_isas():
        fastnorm.set_isa(isa)
        for number in threads:
            fastnorm.set_num_threads(number)
            yield isa, number


def as_bytes(y, grads, own):
    """All that `run` returned, to be compared byte for byte."""
    running = [own[k] for k in ("running_mean", "running_var") if k in own]
    return [a.tobytes() for a in (y, *grads, *running) if a is not None]


def unaligned(a, offset):
    """A copy whose data start `offset` elements behind a cache line."""
    raw = np.empty(a.size + 2 * 64, a.dtype)
    start = (-raw.ctypes.data % 64) // a.itemsize + offset
    b = raw[start : start + a.size].reshape(a.shape)
    b[...] = a
    return b


def check_bits(norm, x, args, kwargs, dy, threads=(2, 5), offsets=(1, 5)):
    """The same bytes for all threads, instruction sets, alignments, with out= and in place."""
    fastnorm.set_num_threads(1)
    want = as_bytes(*run(norm, x, args, kwargs, dy))
    function = getattr(fastnorm, norm.name)
    moved = [(n, unaligned(x, n), unaligned(dy, 7 - n)) for n in offsets]
    for isa, number in everywhere(threads):
        assert as_bytes(*run(norm, x, args, kwargs, dy)) == want, (isa, number)
        if number != threads[-1]:
            continue
        for offset, x_moved, dy_moved in moved:
            got = as_bytes(*run(norm, x_moved, args, kwargs, dy_moved))
            assert got == want, (isa, "offset", offset)
        own = copy_running(kwargs)
        out, dx = unaligned(x, 3), unaligned(dy, 2)
        y, ctx = function(x, *args, **own, out=out, return_ctx=True)
        grads = fastnorm.backward(dx, ctx, out=dx)
        assert y is out
        assert grads.x is dx
        assert as_bytes(y, grads, own) == want, (isa, "out")
        x_own = unaligned(x, 6)
        y = function(x_own, *args, **copy_running(kwargs), out=x_own)
        assert y is x_own
        assert y.tobytes() == want[0], (isa, "in place")


def run_reference(norm, x, args, kwargs, dy=None):
    """The same by the oracle, with running statistics in float64."""
    own = {k: v.astype(np.float64) if k.startswith("running") else v for k, v in kwargs.items()}
    y, cache = getattr(reference, norm.name)(x, *args, **own)
    return y, None if dy is None else reference.backward(dy, cache), own


def assert_close(got, want, tolerance, what):
    """Largest error against the largest magnitude."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    if want.size:
        error = np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)
        assert error <= tolerance, f"{what}: relative error {error:.2e} above {tolerance:.0e}"


TOLERANCE = {  # y, statistics, gradients
    np.dtype(np.float32): (2e-6, 1e-6, 1e-5),
    np.dtype(np.float64): (1e-13, 1e-13, 1e-12),
}


def check_against_oracle(norm, x, args, kwargs, dy, **where):
    """Compare forward, backward and running statistics with the oracle, and all bits."""
    check_bits(norm, x, args, kwargs, dy, **where)
    y_tol, stat_tol, grad_tol = TOLERANCE[x.dtype]
    y, grads, own = run(norm, x, args, kwargs, dy)
    want_y, want_grads, want_own = run_reference(norm, x, args, kwargs, dy)
    assert y.dtype == x.dtype
    assert_close(y, want_y, y_tol, "y")
    for name, got, want in zip(grads._fields, grads, want_grads, strict=True):
        if want is None:
            assert got is None, f"{name}: no gradient was expected"
        else:
            assert got.dtype == x.dtype
            assert_close(got, want, grad_tol, f"gradient of {name}")
    for name in ("running_mean", "running_var"):
        if name in kwargs:
            assert_close(own[name], want_own[name], stat_tol, name)
            changed = not np.array_equal(own[name], kwargs[name])
            assert changed == (norm.running == "update"), f"{name}: changed {changed}"


def some(*shape, dtype=np.float32):
    """Numbers, each time the same."""
    return np.random.default_rng(5).standard_normal(shape).astype(dtype)


def same(a, b):
    """Whether arrays have the same bytes."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert a.tobytes() == b.tobytes()
