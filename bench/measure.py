"""Times contestants in turns, so that what else the machine does meets all of them alike."""

import statistics
import time
from dataclasses import dataclass, field
from math import ceil

import numpy as np

import fastnorm
from fastnorm._core import memory_limit
from fastnorm.bench import peers
from fastnorm.bench.cases import Case
from fastnorm.bench.compare import Comparison, sample

LEAST_SECONDS = 2e-3  # of a sample; shorter calls are repeated
# until the system has moved the threads that just woke to cores of their own; spinning on one core
# they hold each other up for milliseconds
WARM_UP_SECONDS = 5e-3
# before all samples: fastnorm finds its choices
LEARN_CALLS, LEARN_SECONDS = 30, 0.2
LONG_SECONDS = 50e-3  # calls that need no warm-up in each sample
ENOUGH_SECONDS = 0.3  # of a contestant's samples: long calls vary less, and would take all the time
REST_SECONDS = 10e-3  # after which the threads of most contestants have gone to sleep
MOST_RESTS = 20
LIMIT = {"through the cache": False, "past the cache": True}


@dataclass
class Result:
    """Median seconds of each contestant on a case, and why others have none."""

    case: Case
    threads: int
    isa: str
    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def best_peer(self):
        """Name of the fastest one, or None."""
        found = [name for name in self.seconds if name in peers.PEERS]
        return min(found, key=self.seconds.get, default=None)

    def ratio(self, name, to):
        """Seconds of the one in those of the other, or None; "best" is the best peer."""
        name = self.best_peer if name == "best" else name
        if name not in self.seconds or to not in self.seconds:
            return None
        return self.seconds[name] / self.seconds[to]

    def take(self, seconds, errors):
        """Take what `measure` returned; the limit is the better one of its ways."""
        self.seconds = seconds
        self.errors.update(errors)
        self.seconds["limit"] = min(seconds.pop(name) for name in LIMIT)

    def gb_per_second(self, name):
        """Of the traffic that the pass at least has."""
        return self.case.traffic / self.seconds[name] / 1e9


def measure(calls, rounds):
    """Medians of interleaved samples, and the first error of each call that raises one."""
    samples, repeats, errors = {}, {}, {}
    for turn in range(-1, rounds):
        for name, call in calls.items():
            if name in errors or sum(samples.get(name, [])) > ENOUGH_SECONDS:
                continue
            try:
                if turn < 0:
                    seconds, repeats[name] = _repeats(call)
                    samples[name] = [seconds] if seconds > LONG_SECONDS else []
                else:
                    samples[name].append(_sample(call, *repeats[name]))
                getattr(call, "rest", rest)()  # in another process it has one of its own
            except Exception as error:  # the others go on
                errors[name] = peers.first_line(error)
    medians = {k: statistics.median(v) for k, v in samples.items() if k not in errors}
    return medians, errors


def rest():
    """Wait until this process's threads sleep: onnxruntime's spin for 50 ms after a call."""
    for _ in range(MOST_RESTS):
        time.sleep(REST_SECONDS)
        start, used = time.perf_counter(), time.process_time()
        time.sleep(REST_SECONDS / 10)
        if time.process_time() - used < (time.perf_counter() - start) / 2:
            break


def _repeats(call):
    """Return seconds, and how many calls warm up, and how many are timed, in each sample."""
    seconds = _timed(call, 1)
    if seconds < LEARN_SECONDS:
        _timed(call, min(LEARN_CALLS, int(LEARN_SECONDS / seconds)))
        seconds = _timed(call, 1)
    if seconds > 4 * WARM_UP_SECONDS:
        return seconds, (int(seconds < LONG_SECONDS), 1)
    _timed(call, ceil(WARM_UP_SECONDS / seconds))
    seconds = min(_timed(call, 1) for _ in range(5))
    return seconds, (ceil(WARM_UP_SECONDS / seconds), ceil(LEAST_SECONDS / seconds))


def _sample(call, warm_up, repeats):
    until = time.perf_counter() + WARM_UP_SECONDS
    for _ in range(warm_up):
        call()
        if time.perf_counter() > until:
            break
    return _timed(call, repeats)


def _timed(call, repeats):
    if hasattr(call, "timed"):  # in another process
        return call.timed(repeats)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def limit_calls(arrays):
    """Return kernels that only stream the case's own arrays, whatever their dtype, as float32."""
    x, dy, out = (None if a is None else _as_float32(a) for a in (arrays.x, arrays.dy, arrays.out))
    return {
        name: lambda stream=stream: memory_limit(x, dy, out, stream)
        for name, stream in LIMIT.items()
    }


def _as_float32(array):
    memory = array.reshape(-1).view(np.uint8)
    return memory[: memory.size // 4 * 4].view(np.float32)


def run(case, modules, threads, isa, rounds):
    """Measure one case with all contestants that have it."""
    fastnorm.set_isa(isa)
    result = Result(case, threads, isa)
    arrays = case.prepare()
    calls = limit_calls(arrays)
    comparison = Comparison(case)
    for name, module in modules.items():
        try:
            module.set_threads(threads)
            call = module.prepare(arrays)
            if call is None:
                continue
            comparison.take(name, sample(call(), case))  # a call which may also compile
            calls[name] = call
        except Exception as error:  # the others go on
            result.errors[name] = peers.first_line(error)
    result.take(*measure(calls, rounds))
    return result
