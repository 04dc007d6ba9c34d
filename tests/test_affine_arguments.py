"""Parameters of samples: what is wrong is named before anything is written."""

import numpy as np
import pytest
from affine_cases import CALLS, call_of, same

import fastnorm

X = np.random.default_rng(0).standard_normal((3, 6, 4)).astype(np.float32)
C, NC, FULL = np.ones(6, np.float32), np.ones((3, 6), np.float32), np.ones((3, 6, 4), np.float32)
ONE = X[:1, :, :1]  # one value of each channel
LN = {"weight": np.ones((3, 1, 4), np.float32)}
IN, BN = {"weight": NC}, {"weight": NC, "training": True}
STATES = {"running_mean": 0 * C, "running_var": C}
WRONG = [
    (NC[:2], r"\(2, 6\), which is not \(3, 6\) and none of 3"),
    (NC.T, r"\(6, 3\)"),
    (FULL[..., :3], r"\(3, 6, 3\)"),
    (FULL[None], r"\(1, 3, 6, 4\)"),
]
TABLE = [
    *(
        ("instance_norm", {name: a}, ValueError, rf"{name}: expected shape \(6,\), got {got}")
        for name in ("weight", "bias")
        for a, got in WRONG
    ),
    ("instance_norm", {**IN, "bias": C[:5]}, ValueError, r"bias: expected shape \(6,\), got \(5,"),
    ("instance_norm", {"weight": NC.astype(float)}, TypeError, "weight: expected dtype float32"),
    ("instance_norm", {"weight": NC.astype(int)}, TypeError, "weight: expected dtype float32"),
    ("instance_norm", {"weight": [[1], [1, 2]]}, ValueError, "weight: expected an array, got"),
    ("instance_norm", {"weight": np.ma.array(NC)}, TypeError, "weight: expected an array without"),
    ("instance_norm", {**IN, "x": X.astype(int)}, TypeError, "x: expected dtype float32"),
    ("instance_norm", {**IN, "x": C}, ValueError, "x: expected at least 2 dimensions"),
    ("instance_norm", {**IN, "layout": "NC"}, ValueError, "layout: expected one of"),
    ("instance_norm", {**IN, "layout": 3}, TypeError, "layout: expected a str, got int"),
    ("instance_norm", {**IN, "eps": -1}, ValueError, "eps: expected a finite number"),
    ("instance_norm", {**IN, "out": X[:2].copy()}, ValueError, "out: expected shape"),
    ("instance_norm", {**IN, "out": X.astype(float)}, TypeError, "out: expected dtype float32"),
    ("instance_norm", {**IN, "return_ctx": 2}, TypeError, "return_ctx: expected a bool"),
    ("instance_norm", {**IN, "use_input_stats": "no"}, TypeError, "use_input_stats: expected a b"),
    ("instance_norm", {**IN, "shortcut": X[:, :3]}, ValueError, "shortcut: expected x's shape"),
    ("instance_norm", {**IN, "gate": X.astype(float)}, TypeError, "gate: expected x's dtype float"),
    ("instance_norm", {**IN, "activation": "sine"}, ValueError, "activation: expected one of relu"),
    ("instance_norm", {**IN, "sum_out": X.copy()}, ValueError, "sum_out: expected None, as there"),
    ("instance_norm", {**IN, "gate_activation": "relu"}, ValueError, "gate_activation: expected N"),
    ("batch_norm", {"weight": NC}, ValueError, "running_mean, running_var: expected arrays"),
    ("batch_norm", {**BN, "running_mean": C}, ValueError, "running_mean, running_var: expected bo"),
    ("batch_norm", {**BN, **STATES, "running_mean": C[:5]}, ValueError, "running_mean: expected s"),
    ("batch_norm", {**BN, **STATES, "running_mean": C}, ValueError, "running_var: expected an arr"),
    ("batch_norm", {**BN, **STATES, "running_mean": NC[0]}, ValueError, "running_mean: expected a"),
    ("batch_norm", {**BN, **STATES, "momentum": 2}, ValueError, "momentum: expected"),
    ("batch_norm", {**BN, "ddof": 2}, ValueError, "ddof: expected 0 or 1"),
    ("batch_norm", {**BN, **STATES, "x": ONE, "weight": NC[:1], "residual": ONE, "out": None},
     ValueError, "x: expected more than one value"),
    ("group_norm", {**IN, "num_groups": 4}, ValueError, "num_groups: expected a positive divisor"),
    ("layer_norm", IN, ValueError, r"weight: expected shape \(4,\), got \(3, 6\), which is none"),
    ("layer_norm", {"weight": FULL[..., :3]}, ValueError, r"weight: expected shape \(4,\), got \("),
    ("layer_norm", {**LN, "axis": 3}, ValueError, "axis: expected axes in"),
    ("layer_norm", {**LN, "axis": "a"}, TypeError, "axis: expected an int"),
    ("layer_norm", {**LN, "eps": None}, TypeError, "eps: expected a number"),
]  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[3]:.30}")
def test_errors_name_the_argument_and_come_first(row):
    name, changes, error, message = row
    out = None if np.ndim(changes.get("x", X)) == 1 else np.full(X.shape, 7, np.float32)
    call = {"x": X, "out": out, **changes}
    if "residual" in call:
        call["sum_out"] = np.full(call["x"].shape, 7, np.float32)
    with pytest.raises(error, match="^" + message):
        getattr(fastnorm, name)(**call)
    for written in ("out", "sum_out"):
        if call.get(written) is not None and message[: len(written)] != written:
            assert (call[written] == 7).all()
    assert (C == 1).all()


def test_errors_of_backward(rng):
    for name in CALLS:
        function, arrays, more = call_of(name, rng)
        y, _, ctx = function(**arrays, **more, return_ctx=True)
        with pytest.raises(ValueError, match="dy: expected x's shape"):
            fastnorm.backward(y[:1], ctx)
        with pytest.raises(TypeError, match="dy: expected x's dtype float32"):
            fastnorm.backward(y.astype(float), ctx)
        with pytest.raises(ValueError, match="ds: expected x's shape"):
            fastnorm.backward(y, ctx, ds=y[:1])
        with pytest.raises(ValueError, match="out: expected shape"):
            fastnorm.backward(y, ctx, np.empty((1, 2), np.float32))
        with pytest.raises(TypeError, match="out: expected an ndarray"):
            fastnorm.backward(y, ctx, [])


def test_out_over_x_or_running_statistics(rng):
    for name in CALLS:
        function, arrays, more = call_of(name, rng)
        del arrays["residual"]
        x = arrays["x"].copy()
        with pytest.raises(ValueError, match="out: expected an array apart from x when return_ctx"):
            function(**arrays, **more, out=arrays["x"], return_ctx=True)
        same(arrays["x"], x)
    out = np.zeros(x.shape, np.float32)
    states = {"running_mean": out.reshape(-1)[:6], "running_var": np.ones(6, np.float32)}
    for training in (True, False):
        with pytest.raises(ValueError, match="out: expected an array apart from running_mean"):
            fastnorm.batch_norm(x, arrays["weight"], training=training, out=out, **states)
    assert not out.any()
