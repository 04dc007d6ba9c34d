"""pytest-benchmark over every case: `make bench`, or `pytest bench/test_bench.py -k layer_norm`.

extra_info has the ratios to naive NumPy and to the memory limit, measured in turns; of fused calls
also that to the calls one by one.
"""

import pytest

import fastnorm
from fastnorm.bench import fused, fused_calls, peers
from fastnorm.bench.cases import cases
from fastnorm.bench.measure import run


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
def test_case(case, benchmark):
    modules, _, _ = peers.find(["fastnorm", "numpy"])
    result = run(case, modules, fastnorm.get_num_threads(), fastnorm.get_isa(), rounds=3)
    benchmark.group = f"{case.norm} {case.direction}"
    benchmark.extra_info["times faster than NumPy"] = result.ratio("numpy", "fastnorm")
    benchmark.extra_info["times the memory limit"] = result.ratio("fastnorm", "limit")
    benchmark.pedantic(modules["fastnorm"].prepare(case.prepare()), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("case", fused.cases(), ids=lambda case: case.id)
def test_fused_case(case, benchmark):
    names = {"fastnorm, separate": "separate calls", "numpy": "NumPy"}
    seconds, errors = fused.run(case, ["fastnorm", *names], fastnorm.get_num_threads(), rounds=3)
    assert not errors
    ours = seconds["fastnorm"]
    benchmark.group = f"{case.operation} {case.plain.direction}"
    for name, words in names.items():
        benchmark.extra_info[f"times faster than {words}"] = seconds[name] / ours
    benchmark.extra_info["times the memory limit"] = ours / seconds["limit"]
    benchmark.pedantic(fused_calls.fused(case.prepare()), rounds=5, warmup_rounds=1)
