"""The self-test: it passes here, needs NumPy alone, and notices a promise that is broken."""

import re
import subprocess
import sys

import numpy as np
import pytest

import fastnorm
from fastnorm import selftest


def test_it_passes_and_needs_numpy_alone():
    program = (
        "import sys, fastnorm.selftest as s; status = s.main(); "
        "print([m for m in ('scipy', 'sklearn', 'click', 'ml_dtypes') if m in sys.modules]); "
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "BROKEN" not in done.stdout
    assert re.search(rf"all {len(selftest.PROMISES)} promises hold here", done.stdout)
    assert done.stdout.endswith("[]\n")


def change_a_bit(function):
    def changed(*args, **kwargs):
        y = function(*args, **kwargs)
        first = y[0] if isinstance(y, tuple) else y
        first.reshape(-1)[5:6] += np.abs(first).max() * first.dtype.type(3e-6)
        return y

    return changed


@pytest.mark.parametrize("name", ["batch_norm", "layer_norm", "weight_norm"])
def test_it_notices_an_error(name, monkeypatch, capsys):
    monkeypatch.setattr(fastnorm, name, change_a_bit(getattr(fastnorm, name)))
    assert selftest.main() == 1
    report = capsys.readouterr().out
    assert "BROKEN  exact: float32" in report
    assert "promises do not hold here" in report


def test_an_unexpected_error_is_reported(monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(fastnorm, "instance_norm", fail)
    assert selftest.main() == 1
    report = capsys.readouterr().out
    assert "RuntimeError: no kernel" in report
    assert report.count("ok      ") > 3
