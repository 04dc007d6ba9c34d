"""pytest-benchmark over every case: `make bench`, or `pytest bench -k layer_norm`.

extra_info has the ratios to naive NumPy and to a copy of the same size, measured in turns.
"""

import pytest
from cases import cases
from report import measure


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
def test_case(case, benchmark):
    calls = case.prepare()
    seconds = measure(calls, rounds=3)
    benchmark.group = f"{case.norm} {case.direction}"
    benchmark.extra_info["times faster than NumPy"] = seconds["numpy"] / seconds["fastnorm"]
    benchmark.extra_info["times a copy"] = seconds["fastnorm"] / seconds["copy"]
    benchmark.pedantic(calls.fastnorm, rounds=5, warmup_rounds=1)
