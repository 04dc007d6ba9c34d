"""The promises of the README, checked on this machine: ``python -m fastnorm.selftest``.

It needs NumPy alone. Each line of the report is a promise, what was compared, and the largest error
beside the one that is promised. The exit status is 0 where all hold, else 1.
"""

from __future__ import annotations

import inspect
import itertools
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fastnorm
from fastnorm import reference

from ._types import Array

try:
    import resource
except ImportError:  # of Windows
    resource = None  # type: ignore[assignment]

__all__ = ["main"]

LAYOUTS = ("channels_first", "channels_last")


@dataclass(frozen=True)
class Call:
    """A normalizer in one mode. What it needs besides, its signature tells."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(getattr(fastnorm, self.name)).parameters

    @property
    def channels(self) -> bool:
        return "layout" in self.parameters

    @property
    def running(self) -> bool:
        """Whether running statistics matter: instance norm works without."""
        return "running_mean" in self.parameters and self.name != "instance_norm"

    def arguments(self, rng: np.random.Generator, x: Array, layout: str) -> tuple[Any, Any]:
        """Parameters of x's dtype, none of which leaves the result as it is."""
        dtype = np.float32 if x.itemsize == 2 else x.dtype
        axis = self.options.get("axis", 1 if layout == LAYOUTS[0] else -1)
        count = x.shape[axis]

        def draw(size: int) -> Array:
            return rng.uniform(0.5, 1.5, size).astype(dtype)

        args: list[Any] = []
        for name, parameter in list(self.parameters.items())[1:]:
            if parameter.kind is not parameter.KEYWORD_ONLY:
                size = 3 if name.endswith("logits") else count
                args.append(3 if name == "num_groups" else draw(size))
        options = {**self.options, **({"layout": layout} if self.channels else {})}
        if self.running:
            center = x.astype(np.float64).mean() - 1
            options["running_mean"] = (draw(count) + center).astype(dtype)
            options["running_var"] = draw(count)
        return args, options


CALLS = [
    Call("batch_norm", {"training": True}),
    Call("batch_norm"),
    Call("batch_renorm", {"training": True, "r_max": 1.5, "d_max": 0.4}),
    Call("instance_norm"),
    Call("group_norm"),
    Call("switchable_norm", {"training": True}),
    Call("instance_renorm", {"blend": 0.7}),
    Call("layer_norm", {"axis": -1}),
    Call("layer_norm", {"axis": 1}),
    Call("rms_norm", {"axis": -1}),
    Call("weight_norm", {"axis": 0}),
]
# the other normalizers of channels, which need no options and have no running statistics
_OTHERS = {name for name in fastnorm.norms.__all__ if re.fullmatch("[a-z_]+norm", name)}
_OTHERS -= {call.name for call in CALLS}
CALLS += [Call(name) for name in sorted(_OTHERS) if Call(name).channels and not Call(name).running]


def cases() -> Iterator[tuple[Call, str]]:
    return ((c, layout) for c in CALLS for layout in (LAYOUTS if c.channels else LAYOUTS[:1]))


def draw_input(rng: np.random.Generator, layout: str, dtype: Any, loc: float = 0.3) -> Array:
    x = rng.standard_normal((5, 6, 13, 11)) * 1.7 + loc
    return np.ascontiguousarray(x if layout == LAYOUTS[0] else np.moveaxis(x, 1, -1), dtype)


def own_state(options: dict[str, Any], dtype: Any = None) -> dict[str, Any]:
    """Options with copies of the running statistics, which a call may update."""
    return {k: np.array(v, dtype) if k.startswith("running") else v for k, v in options.items()}


def run(call: Call, x: Array, args: Any, options: Any, dy: Array) -> list[Array]:
    """Return y, the gradients and the running statistics."""
    state = own_state(options)
    y, ctx = getattr(fastnorm, call.name)(x, *args, return_ctx=True, **state)
    kept = [state[k] for k in ("running_mean", "running_var") if k in state]
    return [y, *(g for g in fastnorm.backward(dy, ctx) if g is not None), *kept]


def run_reference(call: Call, x: Array, args: Any, options: Any, dy: Array) -> list[Array]:
    state = own_state(options, np.float64)
    y, cache = getattr(reference, call.name)(x, *args, **state)
    kept = [state[k] for k in ("running_mean", "running_var") if k in state]
    return [y, *(g for g in reference.backward(dy, cache) if g is not None), *kept]


def error(got: Array, want: Array) -> float:
    """Largest error against the largest magnitude."""
    want = np.asarray(want, np.float64)
    largest = np.abs(want).max()
    return float(np.abs(got.astype(np.float64) - want).max() / (largest if largest else 1))


class Worst:
    """The largest error of many, as a part of what is promised."""

    def __init__(self) -> None:
        self.count, self.part, self.text = 0, 0.0, ""

    def add(self, got: Array, want: Array, promised: float, what: str) -> None:
        found = error(got, want)
        self.count += 1
        if not found <= self.part * promised:
            self.part = found / promised if found == found else np.inf
            self.text = f"largest error {found:.1e} of {promised:.0e} promised ({what})"

    def report(self) -> tuple[bool, str]:
        return self.part <= 1, f"{self.count} comparisons, {self.text}"


# ---- the promises --------------------------------------------------------------------------------

PROMISES: list[tuple[str, Callable[[], tuple[bool, str]]]] = []


def promise(text: str) -> Callable[[Callable[[], tuple[bool, str]]], None]:
    return lambda check: PROMISES.append((text, check))


def compare(dtype: Any, locs: tuple[float, ...], promised: tuple[float, float, float]) -> Worst:
    worst, rng = Worst(), np.random.default_rng(0)
    for (call, layout), loc in itertools.product(cases(), locs):
        if loc and call.name in ("rms_norm", "weight_norm"):
            continue
        x = draw_input(rng, layout, dtype, loc)
        dy = draw_input(rng, layout, dtype)
        args, options = call.arguments(rng, x, layout)
        got = run(call, x, args, options, dy)
        want = run_reference(call, x, args, options, dy)
        kinds = [promised[0]] + [promised[2]] * (len(got) - 1)
        if call.running:
            kinds[-2:] = [promised[1]] * 2
        for a, b, each in zip(got, want, kinds, strict=True):
            worst.add(a, b, each, f"{call.name}, {layout}, mean {loc:g}")
    return worst


@promise("exact: float32, means up to a million standard deviations")
def _() -> tuple[bool, str]:
    return compare(np.float32, (0, 1e3, 1e6), (2e-6, 1e-6, 1e-5)).report()


@promise("exact: float64")
def _() -> tuple[bool, str]:
    return compare(np.float64, (0,), (1e-13, 1e-13, 1e-12)).report()


@promise("float16 is the float32 result, rounded")
def _() -> tuple[bool, str]:
    return compare(np.float16, (0,), (1e-3, 2e-3, 2e-3)).report()


@promise("right at every size that float32 holds")
def _() -> tuple[bool, str]:
    worst, rng = Worst(), np.random.default_rng(1)
    for (call, layout), power in itertools.product(cases(), (-100, -70, 64, 100)):
        if call.running:
            continue  # whose variances no float32 holds
        z = draw_input(rng, layout, np.float32)
        dy = draw_input(rng, layout, np.float32)
        args, options = call.arguments(rng, z, layout)
        eps = {} if call.name == "weight_norm" else {"eps": 0.0}
        x = np.ldexp(z, power)
        y, dx, *_ = run(call, x, args, {**options, **eps}, dy)
        want_y, want_dx, *_ = run_reference(call, x, args, {**options, **eps}, dy)
        worst.add(y, want_y, 2e-6, f"y of {call.name}, x of 2**{power}")
        worst.add(dx, want_dx, 1e-5, f"dx of {call.name}, x of 2**{power}")
    return worst.report()


@promise("a constant domain gives the bias; its dx is exactly 0")
def _() -> tuple[bool, str]:
    x, bias = np.full((4, 6, 7, 5), 3.3, np.float32), np.arange(6, dtype=np.float32)
    weight, dy = np.full(6, 1.7, np.float32), np.full_like(x, 0.7)
    fine = True
    for name, args in (("batch_norm", ()), ("group_norm", (3,)), ("instance_norm", ())):
        more = {"training": True} if name == "batch_norm" else {}
        y, ctx = getattr(fastnorm, name)(x, *args, weight, bias, return_ctx=True, **more)
        grads = fastnorm.backward(dy, ctx)
        fine &= bool((y == bias[:, None, None]).all())
        fine &= not np.any(grads[0]) and not np.any(grads[1])
    return fine, "batch, group and instance norm"


@promise("NaN and infinity stay in their domain")
def _() -> tuple[bool, str]:
    rng, fine = np.random.default_rng(2), True
    for bad, layout in itertools.product((np.nan, np.inf), LAYOUTS):
        x = draw_input(rng, layout, np.float32)
        clean = fastnorm.instance_norm(x, layout=layout)
        view = x if layout == LAYOUTS[0] else np.moveaxis(x, -1, 1)
        view[1, 2, 3, 4] = bad
        y = fastnorm.instance_norm(x, layout=layout)
        others = np.ones(view.shape, bool)
        others[1, 2] = False
        others = others if layout == LAYOUTS[0] else np.moveaxis(others, 1, -1)
        fine &= bool((y[others] == clean[others]).all() and not np.isfinite(y[~others]).any())
    return fine, "instance norm, both layouts"


def all_bytes() -> list[bytes]:
    """Return the bits of everything, for the present settings."""
    rng, found = np.random.default_rng(3), []
    for (call, layout), dtype in itertools.product(cases(), ("f4", "f8", "f2")):
        x, dy = (draw_input(rng, layout, dtype) for _ in range(2))
        args, options = call.arguments(rng, x, layout)
        found += [a.tobytes() for a in run(call, x, args, options, dy)]
    large = rng.standard_normal((64, 50_000)).astype(np.float32)  # which threads share
    y, ctx = fastnorm.layer_norm(large, large[0], large[1], return_ctx=True)
    found += [a.tobytes() for a in (y, *fastnorm.backward(large, ctx)) if a is not None]
    return found


@promise("the same bits for every instruction set and number of threads")
def _() -> tuple[bool, str]:
    isa, fine, runs = fastnorm.get_isa(), True, 0
    want = all_bytes()
    try:
        for name, threads in itertools.product(fastnorm.available_isas(), (1, 2, 5)):
            fastnorm.set_isa(name)
            fastnorm.set_num_threads(threads)
            fine &= all_bytes() == want
            runs += 1
    finally:
        fastnorm.set_isa(isa)
        fastnorm.set_num_threads(0)
    return fine, f"{len(want)} arrays, {runs} times: {', '.join(fastnorm.available_isas())}"


@promise("a sample has the same bits in any batch, whatever the others hold")
def _() -> tuple[bool, str]:
    rng, fine, count = np.random.default_rng(7), True, 0
    for (call, layout), dtype in itertools.product(cases(), ("f4", "f8")):
        if call.options.get("training") or call.name == "weight_norm":
            continue  # statistics of the batch; no samples
        x, dy = (draw_input(rng, layout, dtype) for _ in range(2))
        args, options = call.arguments(rng, x, layout)
        x[1], dy[3] = np.nan, 1e30
        together = run(call, x, args, options, dy)[:2]
        for k in (0, 2, 4):
            alone = run(call, x[k : k + 1], args, options, dy[k : k + 1])[:2]
            pairs = zip(together, alone, strict=True)
            fine &= all(a[k].tobytes() == b.tobytes() for a, b in pairs)
            count += 1
    return fine, f"{count} samples"


BITS = "import hashlib; from fastnorm.selftest import all_bytes; " \
       "print(hashlib.sha256(b''.join(all_bytes())).hexdigest())"  # fmt: skip


@promise("the same bits in another process, written past the cache or into it")
def _() -> tuple[bool, str]:
    digests = set()
    for bound in ("0", str(1 << 50)):
        done = subprocess.run(
            [sys.executable, "-c", BITS], check=True, capture_output=True, text=True,
            env={**os.environ, "FASTNORM_STREAM_BYTES": bound},
        )  # fmt: skip
        digests.add(done.stdout)
    return len(digests) == 1, "2 processes"


@promise("statistics that are kept are exact to 1e-14, however they were merged")
def _() -> tuple[bool, str]:
    worst, rng = Worst(), np.random.default_rng(4)
    for dtype, loc in itertools.product((np.float16, np.float32, np.float64), (1.0, 5.0)):
        x = (rng.standard_normal((4000, 3)) + loc).astype(dtype)
        exact = np.ascontiguousarray(x.T).astype(np.longdouble)
        mean = exact.mean(1)
        var = ((exact - mean[:, None]) ** 2).mean(1)
        parts = [fastnorm.Moments.from_array(part) for part in np.array_split(x, 900)]
        for found in (fastnorm.Moments.from_array(x), fastnorm.Moments.merge(parts)):
            worst.add(found.mean, mean, 1e-14, f"mean, {x.dtype}")
            worst.add(found.var(), var, 1e-14, f"variance, {x.dtype}")
    return worst.report()


@promise("with out= a call makes no temporary of the array's size")
def _() -> tuple[bool, str]:
    if resource is None:
        return True, "this system does not tell how much memory was used"
    for shape in ((16, 64, 100, 100), (2_000_000, 5)):
        x = np.ones(shape, np.float32)
        y, dx = x.copy(), x.copy()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        _, ctx = fastnorm.layer_norm(x, out=y, return_ctx=True)
        fastnorm.backward(y, ctx, out=dx)
        more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        # a context keeps two numbers of each domain
        kept = 16 * x.size // shape[-1]
        if more * (1 if sys.platform == "darwin" else 1024) > kept + x.nbytes // 4:
            return False, f"{more} more for an array of {x.nbytes} bytes"
    return True, "layer norm of 41 MB, long and short rows"


@promise("bad input: the argument is named, and nothing is written")
def _() -> tuple[bool, str]:
    x, out = np.ones((4, 6), np.float32), np.full((4, 6), 7, np.float32)
    mean, var = np.zeros(6, np.float32), np.ones(6, np.float32)
    state = {"running_mean": mean, "running_var": var, "training": True, "out": out}
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("weight", {"weight": np.ones(5, np.float32)}), ("bias", {"bias": np.ones(6)}),
        ("eps", {"eps": -1.0}), ("momentum", {"momentum": 2.0}), ("layout", {"layout": "CN"}),
        ("out", {"out": np.ones(3, np.float32)}), ("running_var", {"running_var": np.ones(6)}),
    ]  # fmt: skip
    fine = True
    for name, change in wrong:
        try:
            fastnorm.batch_norm(x, **{**state, **change})
            fine = False
        except (ValueError, TypeError) as refused:
            fine &= str(refused).startswith(f"{name}: ")
    return fine and bool((out == 7).all() and not mean.any()), f"{len(wrong)} wrong calls"


@promise("several Python threads may call at once")
def _() -> tuple[bool, str]:
    x = np.random.default_rng(5).standard_normal((64, 20_000)).astype(np.float32)
    want, wrong = fastnorm.layer_norm(x).tobytes(), []

    def work() -> None:
        for _ in range(10):
            if fastnorm.layer_norm(x).tobytes() != want:
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return not wrong, "4 threads, 10 calls each"


FORK = """
import os, sys, numpy as np, fastnorm
x = np.random.default_rng(6).standard_normal((64, 20_000)).astype(np.float32)
want = fastnorm.layer_norm(x).tobytes()
child = os.fork()
if child == 0:
    os._exit(fastnorm.layer_norm(x).tobytes() != want)
sys.exit(os.waitpid(child, 0)[1] != 0)
"""


@promise("a process that forks after using it works in the child")
def _() -> tuple[bool, str]:
    if not hasattr(os, "fork"):
        return True, "this system does not fork"
    try:
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], timeout=60)
    except subprocess.TimeoutExpired:
        return False, "the child hangs"
    return done.returncode == 0, "1 child"


def main() -> int:
    """Print the report, and return the exit status."""
    fastnorm.show_config()
    print(f"numpy {np.__version__}, Python {sys.version.split()[0]}\n")
    start, broken = time.perf_counter(), 0
    for text, check in PROMISES:
        try:
            holds, what = check()
        except Exception as unexpected:  # the report goes on
            holds, what = False, f"{type(unexpected).__name__}: {unexpected}"
        broken += not holds
        print(f"{'ok    ' if holds else 'BROKEN'}  {text}\n        {what}", flush=True)
    took = f"{time.perf_counter() - start:.0f} s"
    print(f"\n{broken} of {len(PROMISES)} promises do not hold here" if broken
          else f"\nall {len(PROMISES)} promises hold here", f"({took})")  # fmt: skip
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
