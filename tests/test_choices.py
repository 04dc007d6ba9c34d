"""Threads, streaming and fetching are chosen by what calls cost; the bits never depend on it."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from cases import NORMS, as_bytes, make_input, run

import fastnorm
from fastnorm import _core

WAYS = list(itertools.product((1, 2, 5), (0, 1), (0, 1, 2)))  # threads, stream, fetch


@pytest.fixture(autouse=True)
def nothing_learned():
    _core.forget_choices()
    yield
    _core.force_choice()
    _core.forget_choices()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("norm", NORMS, ids=lambda n: n.id)
def test_every_choice_gives_the_same_bits(norm, dtype, rng):
    for shape in [(6, 18, 31, 33), (40, 48, 7, 7), (3, 6, 5, 4100)]:
        for layout in ["channels_first", "channels_last"] if norm.channels else ["channels_first"]:
            x = make_input(rng, shape, layout, dtype, mean=3.0)
            dy = rng.standard_normal(x.shape).astype(dtype)
            params = x if x.itemsize > 2 else x.astype(np.float32)
            args, kwargs = norm.arguments(rng, params, layout)
            found = set()
            for way in WAYS:
                _core.force_choice(*way)
                found.add(tuple(as_bytes(*run(norm, x, args, kwargs, dy))))
            assert len(found) == 1, (shape, layout)


@pytest.mark.parametrize("norm", ["batch_norm", "instance_norm", "group_norm"])
def test_every_choice_gives_the_same_bits_in_blocks(norm, rng):
    x, dy = (
        fastnorm.to_blocked(rng.standard_normal((5, 48, 19, 17), dtype=np.float32))
        for _ in range(2)
    )
    weight = rng.standard_normal(48, dtype=np.float32)
    args = [3] if norm == "group_norm" else []
    kwargs = {"training": True} if norm == "batch_norm" else {}
    found = set()
    for way in WAYS:
        _core.force_choice(*way)
        y, ctx = getattr(fastnorm, norm)(
            x, *args, weight, weight, layout="NCHW16c", return_ctx=True, **kwargs
        )
        found.add((y.tobytes(), *(g.tobytes() for g in fastnorm.backward(dy, ctx))))
    assert len(found) == 1


def test_calls_learn_and_tell(capsys, rng):
    x = rng.standard_normal((600, 300), dtype=np.float32)
    for _ in range(30):
        y, ctx = fastnorm.rms_norm(x, return_ctx=True)
        fastnorm.backward(y, ctx)
        fastnorm.rms_norm(x[:50])  # too small to choose
    learned = _core.learned_choices()
    assert sorted(row[:6] for row in learned) == [
        ("rms", "float32", False, True, 524288, 30),
        ("rms", "float32", True, True, 524288, 30),
    ]
    assert all(0 < row[-1] < 10 for row in learned)
    fastnorm.show_choices()
    said = capsys.readouterr().out.splitlines()
    assert sorted(line.split(":")[0] for line in said) == [
        "rms norm backward, float32, 0.52 MB",
        "rms norm forward, float32, 0.52 MB",
    ]
    assert all("(30 calls)" in line for line in said)
