"""Type checkers accept every Python example of the documents, and see what the functions return."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

GOOD = """
import numpy as np
from typing import assert_type

import fastnorm as fn

x, dy = np.ones((2, 4, 3), np.float32), np.ones((2, 4, 3), np.float32)
weight, logits = np.ones(4, np.float32), np.ones(3, np.float32)


def ordinary(ctx: fn.Context) -> int:
    dx, dweight, dbias = fn.backward(dy, ctx, out=dy)
    return dx.ndim + ctx.mean.ndim + ctx.var.ndim + ctx.rstd.ndim


def switchable(ctx: fn.Context[fn.SwitchableGradients]) -> int:
    return fn.backward(dy, ctx).mean_logits.size


_, ctx = fn.batch_norm(x, weight, training=True, return_ctx=True)
assert_type(fn.backward(dy, ctx), fn.Gradients)
ordinary(ctx)
_, mixed = fn.switchable_norm(x, None, None, logits, logits, training=True, return_ctx=True)
assert_type(fn.backward(dy, mixed), fn.SwitchableGradients)
switchable(mixed)
_, of_weight = fn.weight_norm(x, np.ones(2, np.float32), return_ctx=True)
dv, dg = fn.backward(dy, of_weight)
_, of_cosine = fn.cosine_norm(x[0], x[1], return_ctx=True)
assert_type(fn.backward(x[0], of_cosine), fn.Gradients)
white, of_white = fn.iter_norm(x, training=True, return_ctx=True)
assert_type(fn.backward(white, of_white), fn.Gradients)


def either(flag: bool) -> int:
    results = (
        fn.layer_norm(x, axis=[1, 2], return_ctx=flag),
        fn.rms_norm(x, eps=None, return_ctx=flag),
        fn.batch_norm(x, training=flag, return_ctx=flag),
        fn.batch_renorm(x, running_mean=weight, running_var=weight, return_ctx=flag),
        fn.group_norm(x, 2, return_ctx=flag),
        fn.instance_norm(x, return_ctx=flag),
        fn.instance_renorm(x, running_mean=weight, running_var=weight, return_ctx=flag),
    )
    for y in results:
        if isinstance(y, tuple):
            ordinary(y[1])
    m = fn.switchable_norm(x, None, None, logits, logits, return_ctx=flag)
    w = fn.weight_norm(x, weight, axis=1, return_ctx=flag)
    z = fn.cosine_norm(x[0], x[1], return_ctx=flag)
    white = fn.decorrelated_batch_norm(x, training=True, return_ctx=flag)
    return len(m) + len(w) + len(z) + len(white)


print(fn.comm.SingleProcess().rank)
"""
# each line is wrong
BAD = """
import numpy as np
import fastnorm as fn
x = np.ones((2, 3))
_, ctx = fn.layer_norm(x, return_ctx=True)
dx, dweight = fn.backward(x, ctx)
fn.backward(x, ctx).mean_logits
fn.layer_norm(x) + "y"; fn.layer_norm(x, return_ctx="no")
ctx.sigma
fn.Context[int]
"""
WRONG_LINES = {6, 7, 8, 9, 10}


def programs():
    """The examples: blocks that begin with imports, each with those that go on without."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
        found = []
        for block in blocks:
            if not found or re.search(r"^(import|from) ", block, re.MULTILINE):
                found.append("")
            found[-1] += block + "\n"
        for i, program in enumerate(found):
            yield f"{path.stem.lower()}_{i}.py", program


def run(checker, *files):
    """Exit status and output; skips where pyright has no Node.js to run on."""
    start = [sys.executable, "-m", checker]
    if checker == "pyright":
        version = subprocess.run([*start, "--version"], capture_output=True, timeout=600)
        if version.returncode:
            pytest.skip("pyright needs Node.js")
    options = {"mypy": ["--strict", "--no-error-summary"], "pyright": []}[checker]
    done = subprocess.run(
        [*start, *options, *map(str, files)],
        capture_output=True, text=True, cwd=ROOT, timeout=600,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(params=["mypy", "pyright"])
def checker(request):
    pytest.importorskip(request.param)
    return request.param


@pytest.mark.long
def test_examples_and_results(checker, tmp_path):
    files = {**dict(programs()), "good.py": GOOD}
    assert {"readme_0.py", "using_0.py", "choosing_0.py", "sync_0.py", "sync_1.py"} <= files.keys()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    status, said = run(checker, *(tmp_path / name for name in files))
    assert status == 0, said
    assert "error" not in said.replace("0 errors", "")


@pytest.mark.long
def test_mistakes_are_seen(checker, tmp_path):
    path = tmp_path / "bad.py"
    path.write_text(BAD)
    status, said = run(checker, path)
    assert status == 1, said
    assert {int(line) for line in re.findall(r"bad\.py:(\d+)[^\n]*error", said)} == WRONG_LINES
