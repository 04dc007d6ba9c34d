"""The demo runs and learns; the benchmark's naive NumPy computes what fastnorm computes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import assert_close

import fastnorm
from fastnorm.bench import cases as bench
from fastnorm.bench.peers import naive_numpy, ours

ROOT = Path(__file__).parent.parent

SMALL = {"image": (4, 32, 6, 5), "rows": (12, 40)}


def test_the_demo_learns_in_five_epochs(tmp_path):
    for name in ("matplotlib", "rich", "sklearn", "tqdm"):
        pytest.importorskip(name)
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/train_digits.py"), "--quick", "--output",
         str(tmp_path / "curves.png")],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    cells = [line.split("│")[1:4] for line in done.stdout.splitlines() if "│ 64" in line]
    accuracies = {name.strip(): float(value.strip(" %")) for _, name, value in cells}
    assert accuracies.keys() == {"none", "BN", "BRN", "GN", "LN"}
    assert accuracies["BN"] > 90
    assert min(accuracies[name] for name in ("BRN", "GN", "LN")) > 50, "chance is 10"


@pytest.mark.parametrize(
    "case",
    [
        bench.Case(norm, layout, direction, SMALL["rows" if layout == "rows" else "image"])
        for norm in bench.NORMS
        for layout in (["rows"] if norm in bench.ROW_NORMS else ["NCHW", "NHWC"])
        for direction in bench.PASSES
        if direction != "inference" or norm in bench.WITH_INFERENCE
    ],
    ids=lambda case: case.id,
)
def test_benchmark_cases_compute_the_same(case):
    # r and d of the renorms depend on running statistics, which each call updates: two preparations
    got = ours.prepare(case.prepare())()
    want = naive_numpy.prepare(case.prepare())()
    if case.direction == "backward":
        assert_close(got.x, want[0], 1e-4, "dx")
        assert_close(got.weight, want[1], 1e-4, "dweight")
        if case.norm != "rms_norm":
            assert_close(got.bias, want[2], 1e-4, "dbias")
        if case.norm == "switchable_norm":
            assert_close(got.mean_logits, want[3], 1e-3, "logits of the means")
            assert_close(got.var_logits, want[4], 1e-3, "logits of the variances")
    else:
        assert_close(got, want, 1e-5, "y")


def test_the_named_sets_have_every_combination():
    every = bench.cases()
    assert {case.norm for case in every} == set(bench.NORMS)
    assert len({case.id for case in every}) == len(every)
    for case in every:
        if case.norm in bench.CHANNEL_NORMS:
            assert any(c.layout != case.layout and c.shape == case.shape for c in every)
    assert all(hasattr(fastnorm, name) for name in bench.NORMS)
    assert np.prod(every[0].shape) * 4 == every[0].bytes
