"""pytest-benchmark over every case: `make bench`, or `pytest bench/test_bench.py -k layer_norm`.

extra_info has the ratios to naive NumPy and to the memory limit, measured in turns.
"""

import pytest

import fastnorm
from fastnorm.bench import peers
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
