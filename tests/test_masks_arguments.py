"""Masks, lengths and packed samples: where results go, and what is refused."""

import numpy as np
import pytest

import fastnorm

C = 6


@pytest.mark.parametrize("kind", ["mask", "offsets"])
def test_results_go_where_they_are_wanted(kind, rng):
    """Over x, over what lies beside it, into strided arrays, over the weight."""
    shape = (12, C) if kind == "offsets" else (2, 6, C)
    more = {"offsets": [0, 5, 12]} if kind == "offsets" else {
        "mask": rng.random((2, 6, 1)) < 0.5, "layout": "NLC"}  # fmt: skip

    def norm(x, *weight, **beside):
        return fastnorm.group_norm(x, 2, *weight, **beside, activation="relu", **more)

    x, z, r, g = rng.standard_normal((4, *shape))
    want = norm(x, shortcut=z)
    for out in (x.copy(), z.copy(), np.zeros((*shape[:-1], 2 * C))[..., ::2]):
        own = {"x": out if (out == x).all() else x, "shortcut": out if (out == z).all() else z}
        assert norm(**own, out=out) is out
        assert out.tobytes() == want.tobytes()
    want_y, want_s, ctx = norm(x, shortcut=z, residual=r, return_ctx=True)
    want = fastnorm.backward(g, ctx, ds=g)
    out, total = z.copy(), x.copy()  # a context must not be affected by what is written over
    y, s, ctx = norm(total, shortcut=out, residual=r, out=out, sum_out=total, return_ctx=True)
    assert (y is out, s is total) == (True, True)
    assert (y.tobytes(), s.tobytes()) == (want_y.tobytes(), want_s.tobytes())
    y[...] = s[...] = 7
    dx = g.copy()
    found = fastnorm.backward(dx, ctx, dx, ds=dx)
    assert found.x is dx
    assert dx.tobytes() == want.x.tobytes()
    assert found.shortcut.tobytes() == want.shortcut.tobytes()
    memory = np.ones(x.size)
    out, weight = memory.reshape(shape), memory[:C]
    y, ctx = norm(x, weight, out=out, return_ctx=True)
    assert y.tobytes() == norm(x, np.ones(C)).tobytes()
    want = fastnorm.backward(g, norm(x, np.ones(C), return_ctx=True)[1])
    assert fastnorm.backward(g, ctx).x.tobytes() == want.x.tobytes()
    with pytest.raises(ValueError, match=r"^out: expected an array apart from x"):
        norm(x, out=x, return_ctx=True)


X, M, ROW = np.ones((2, 4, 3)), np.ones((2, 4, 1), bool), np.ones(3)
STATE = {"running_mean": np.zeros(3), "running_var": np.ones(3)}
ONE = np.eye(8, dtype=bool)[0].reshape(2, 4, 1)  # a single element is valid
# normalizer, arguments, error
WRONG = [
    ("layer_norm", {"mask": np.ones((2, 4))}, "TypeError: mask: expected dtype bool, got float64"),
    ("layer_norm", {"mask": np.ones((3, 1), bool)}, "ValueError: mask: .*(2, 4, 3), got (3, 1)"),
    ("layer_norm", {"mask": np.ones((2, 2, 4, 3), bool)}, "ValueError: mask: expected a shape"),
    ("layer_norm", {"mask": np.ma.array(M)}, "TypeError: mask: expected an array without a mask"),
    ("batch_norm", {"mask": np.ones((2, 4, 3), bool)}, "ValueError: mask: expected size 1 along"),
    ("batch_norm", {"mask": M, "layout": "NLC8c"}, "ValueError: layout: expected one of"),
    ("batch_norm", {"mask": M, "lengths": [1, 2]}, "ValueError: mask, lengths: expected one of"),
    ("batch_norm", {"lengths": [1, 5]}, "ValueError: lengths: .* at most 4.*got [1, 5]"),
    ("batch_norm", {"lengths": [-1, 2]}, "ValueError: lengths: expected at least 0"),
    ("batch_norm", {"lengths": [1.0, 2]}, "TypeError: lengths: expected integers, got float64"),
    ("batch_norm", {"lengths": [1, 2, 3]}, "ValueError: lengths: expected shape (2,), got (3,)"),
    ("batch_norm", {"lengths": [True, False]}, "TypeError: lengths: expected integers, got bool"),
    ("batch_norm", {"x": ROW[None], "layout": "NC", "lengths": [1]}, "ValueError: lengths: .*spat"),
    ("layer_norm", {"x": ROW, "lengths": [1]}, "ValueError: lengths: expected x with a spatial"),
    ("layer_norm", {"x": ROW[None], "lengths": [1]}, "ValueError: lengths: expected x with a spat"),
    ("batch_norm", {"offsets": [0, 2]}, "ValueError: offsets: expected None"),
    ("layer_norm", {"offsets": [0, 2]}, "ValueError: offsets: expected None"),
    ("instance_norm", {"offsets": [0, 2], **STATE}, "ValueError: offsets: expected None"),
    ("instance_norm", {"offsets": [0, 2]}, "ValueError: offsets: expected x of shape (total, C)"),
    ("instance_norm", {"x": X[0], "layout": "NC", "offsets": [0, 4], "mask": M},
     "ValueError: mask, offsets: expected one of them"),
    ("instance_norm", {"x": X[0], "offsets": [0, 4]}, "ValueError: layout: .* got 'NLC'"),
    ("layer_norm", {"mask": X > X, "eps": -1}, "ValueError: eps: expected a finite number of at l"),
    ("batch_norm", {"mask": M, "weight": np.ones(4)}, "ValueError: weight: expected shape (3,)"),
    ("layer_norm", {"mask": X > 2, "axis": (1, 2), "weight": np.ones((3, 4))},
     "ValueError: weight: expected shape (4, 3), got (3, 4)"),
    ("batch_norm", {"mask": M, "weight": np.ones(3, "f4")}, "TypeError: weight: expected dtype fl"),
    ("batch_norm", {"mask": M, "activation": "x"}, "ValueError: activation: expected one of"),
    ("batch_norm", {"mask": M, "sum_out": X}, "ValueError: sum_out: expected None"),
    ("batch_norm", {"mask": M, "gate": X[0]}, "ValueError: gate: expected x's shape"),
    ("batch_norm", {"mask": M, "out": X[0]}, "ValueError: out: expected shape (2, 4, 3)"),
    ("batch_norm", {"mask": ONE, **STATE}, "ValueError: x: expected more than one value"),
    ("instance_norm", {"mask": ONE, **STATE}, "ValueError: x: expected more than one value"),
    ("instance_renorm", {"mask": ONE, **STATE}, "ValueError: x: expected more than one value"),
    ("switchable_norm", {"mask": ONE, "ddof": 1, **STATE}, "ValueError: ddof: expected less than"),
    ("switchable_norm", {"mask": M, "momentum": 2, **STATE}, "ValueError: momentum: expected"),
    ("switchable_norm", {"mask": M, "activation": "x"}, "ValueError: activation: expected one of"),
]  # fmt: skip


@pytest.mark.parametrize("row", WRONG, ids=lambda row: row[2])
def test_what_is_wrong_is_named_and_nothing_is_written(row):
    name, given, message = row
    kind, message = message.split(": ", 1)
    message = "^" + message.replace("(", r"\(").replace(")", r"\)").replace("[", r"\[")
    arguments = {"x": X, **({} if name == "layer_norm" else {"layout": "NLC"}), **given}
    arguments |= {k: v.copy() for k, v in arguments.items() if k.startswith("running")}
    training = {"instance_norm": "use_input_stats", "layer_norm": None}.get(name, "training")
    if training:
        arguments[training] = True
    if name == "switchable_norm":
        arguments |= {"weight": None, "bias": None, "mean_logits": ROW, "var_logits": ROW}
    out = arguments.setdefault("out", np.full(arguments["x"].shape, 7.0))
    before = out.copy()
    with pytest.raises({"TypeError": TypeError, "ValueError": ValueError}[kind], match=message):
        getattr(fastnorm, name)(**arguments)
    assert (out == before).all()
    assert not arguments.get("running_mean", np.zeros(1)).any()


@pytest.mark.parametrize("name", ["batch_norm", "instance_norm", "switchable_norm"])
def test_running_statistics_are_apart_from_what_is_read_and_written(name):
    x, out = np.ones((2, 4, 3)), np.ones((2, 4, 3))
    more = {} if name == "instance_norm" else {"training": True}
    if name == "switchable_norm":
        more |= {"weight": None, "bias": None, "mean_logits": ROW, "var_logits": ROW}
    for memory, message in (
        (x, "running_mean: expected an array apart from x"),
        (out, "out: expected an array apart from running_mean"),
    ):
        state = {"running_mean": memory[0, 0], "running_var": np.ones(3)}
        with pytest.raises(ValueError, match=message):
            getattr(fastnorm, name)(x, layout="NLC", mask=M, out=out, **state, **more)
