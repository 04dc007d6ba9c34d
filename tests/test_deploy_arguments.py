"""Wrong arguments of fold_batch_norm and fold_batch_norm_before: refused by their names."""

import numpy as np
import pytest

import fastnorm

BAD = {
    "training": (ValueError, r"^bn: expected a layer in eval", lambda a: {"bn": a["bn"].train()}),
    "no statistics": (
        ValueError,
        r"^bn: expected running statistics, got \['bias', 'weight'\]",
        lambda a: {"bn": fastnorm.BatchNorm(4, track_running_stats=False).eval()},
    ),
    "another layer": (
        TypeError,
        r"^bn: expected a BatchNorm, .* got GroupNorm",
        lambda a: {"bn": fastnorm.GroupNorm(2, 4)},
    ),
    "no mean": (
        ValueError,
        r"^bn: expected running statistics, .* without \['running_mean'\]",
        lambda a: {"bn": {**a["state"], "running_mean": None}},
    ),
    "channels": (
        ValueError,
        r"^bn\['running_mean'\]: expected shape \(3,\).* got \(4,\)",
        lambda a: {"axis": 1, "bias": None},
    ),
    "bias": (ValueError, r"^bias: expected shape \(4,\)", lambda a: {"bias": np.zeros(3)}),
    "bias dtype": (TypeError, r"^bias: expected an array of floats", lambda a: {"bias": [1] * 4}),
    "weight dtype": (
        TypeError,
        r"^weight: expected an array of floats, got int64",
        lambda a: {"weight": np.ones((4, 3), np.int64)},
    ),
    "axis": (
        ValueError,
        r"^axis: expected an axis of shape \(4, 3\), got 2",
        lambda a: {"axis": 2},
    ),
    "axis type": (TypeError, r"^axis: expected an int, got str", lambda a: {"axis": "O"}),
    "scalar": (ValueError, r"^axis: expected an axis", lambda a: {"weight": np.float64(1)}),
    "two eps": (ValueError, r"^eps: expected None", lambda a: {"eps": 1e-3}),
    "eps type": (TypeError, r"^eps: .* got str", lambda a: {"bn": a["state"], "eps": "1e-5"}),
    "negative eps": (ValueError, r"^eps: .* got -1", lambda a: {"bn": a["state"], "eps": -1.0}),
    "variance": (
        ValueError,
        r"^bn\['running_var'\]: expected running_var \+ eps above 0, got -0.9",
        lambda a: {"bn": {**a["state"], "running_var": -np.ones(4)}, "eps": 0.1},
    ),
}


BOTH = [fastnorm.fold_batch_norm, fastnorm.fold_batch_norm_before]


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(rng, name):
    error, message, change = BAD[name]
    bn = fastnorm.BatchNorm(4).eval()
    good = {"weight": np.ones((4, 3)), "bias": np.zeros(4), "bn": bn}
    fastnorm.fold_batch_norm(**good)
    with pytest.raises(error, match=message):
        fastnorm.fold_batch_norm(**{**good, **change({"bn": bn, "state": bn.state_dict()})})


MASKED = np.ma.masked_array(np.ones(4), [0, 0, 0, 1])
RAGGED = [[1.0], [2.0, 3.0]]
NO_MASK, NUMBERS = "expected an array without a mask", "expected an array of numbers, got "
STATE = {"running_mean": np.zeros(4), "running_var": np.ones(4)}
ARRAYS = [
    (MASKED, TypeError, NO_MASK),
    (np.ma.masked_array(np.ones(4)), TypeError, NO_MASK),
    (RAGGED, ValueError, "expected an array, got .*inhomogeneous"),
    ({}, TypeError, NUMBERS + "dict"),
    ("abc", TypeError, "expected an array of floats, got <U3"),
    ([1, 2, 3, 4], TypeError, "expected an array of floats, got int64"),
    ([1j] * 4, TypeError, "expected an array of floats, got complex128"),
]
WRONG = [
    *(("weight", np.broadcast_to(v, (4, 4)) if "int64" in m else v, e, m) for v, e, m in ARRAYS),
    ("weight", None, TypeError, NUMBERS + "NoneType"),
    ("weight", np.float64(1), ValueError, None),
    *(("bias", *each) for each in ARRAYS),
    ("bias", np.ones((4, 1)), ValueError, r"expected shape \(4,\), .* got \(4, 1\)"),
    *(("bn", value, TypeError, "expected a BatchNorm, a BatchRenorm or a mapping, got ")
      for value in (None, "bn", [1], np.ones(4), 1.0, fastnorm.LayerNorm(4))),
    ("bn", {}, ValueError, "expected running statistics, got \\[\\] without"),
    ("bn", {**STATE, "gama": 1}, ValueError, r".* or other names .*unexpected \['gama'\]"),
    ("bn", {**STATE, "bn.weight": 1, 3: 1}, ValueError, r".*unexpected \[3, 'bn.weight'\]"),
    ("bn", {**STATE, "weight_g": 1}, ValueError, r".*unexpected \['weight_g'\]"),
    ("bn", {**STATE, "mean": np.ones(4)}, ValueError, "expected one running_mean, got 'run"),
    ("bn", {**STATE, "gamma": np.ones(4), "scale": None}, ValueError, "expected one weight, got"),
    ("axis", None, TypeError, "expected an int, got NoneType"),
    ("axis", (0,), TypeError, "expected an int, got tuple"),
    ("axis", True, TypeError, "expected an int, got bool"),
    ("axis", 0.0, TypeError, "expected an int, got float"),
    ("axis", -3, ValueError, r"expected an axis of shape \(4, 4\), got -3"),
    ("groups", 0, ValueError, "expected at least 1, got 0"),
    ("groups", 2.0, TypeError, "expected an int, got float"),
    ("groups", None, TypeError, "expected an int, got NoneType"),
    ("eps", "1e-5", TypeError, "expected a number, got str"),
    ("eps", [1e-5], TypeError, "expected a number, got list"),
    ("eps", True, TypeError, "expected a number, got bool"),
    ("eps", float("nan"), ValueError, "expected a finite number of at least 0, got nan"),
    ("eps", float("inf"), ValueError, "expected a finite number of at least 0, got inf"),
    ("eps", 10**400, ValueError, "expected a finite number of at least 0, got inf"),
]  # fmt: skip


@pytest.mark.parametrize("fold", BOTH)
@pytest.mark.parametrize(("name", "value", "error", "match"), WRONG)
def test_wrong_arguments_are_named(fold, name, value, error, match):
    good = {"weight": np.ones((4, 4)), "bias": np.zeros(4), "bn": STATE}
    fold(**good)
    match = f"^{name}: {match}" if match else "^axis: expected"  # of a scalar weight
    with pytest.raises(error, match=match) as caught:
        fold(**{**good, name: value})
    assert type(caught.value) is error


@pytest.mark.parametrize("fold", BOTH)
@pytest.mark.parametrize(("value", "error", "match"), ARRAYS)
@pytest.mark.parametrize("name", ["gamma", "bias", "moving_mean", "variance"])
def test_wrong_arrays_of_a_state_are_named(fold, name, value, error, match):
    other = {"moving_mean": "running_mean", "variance": "running_var"}.get(name)
    state = {k: v for k, v in STATE.items() if k != other}
    with pytest.raises(error, match=rf"^bn\['{name}'\]: {match}"):
        fold(np.ones((4, 4)), None, {**state, name: value})
    with pytest.raises(ValueError, match=rf"^bn\['{name}'\]: expected shape \(4,\).* got \(1, 4\)"):
        fold(np.ones((4, 4)), None, {**state, name: np.ones((1, 4))})


@pytest.mark.parametrize(
    ("fold", "changes", "error", "match"),
    [
        (
            BOTH[0],
            {"axis": 1, "groups": 3},
            ValueError,
            "groups: expected a divisor of the 4 input",
        ),
        (
            BOTH[0],
            {"axis": 1, "groups": 2},
            ValueError,
            r"bn\['running_mean'\]: .* in 2 groups, got",
        ),
        (BOTH[1], {"groups": 3}, ValueError, "groups: expected a divisor of the 4 output"),
        (BOTH[1], {"groups": 2}, ValueError, r"bn\['running_mean'\]: .* in 2 groups, got \(4,\)"),
        (BOTH[1], {"weight": np.ones(4)}, ValueError, "axis: expected 0 or -1"),
        *(
            (BOTH[1], {"padding": padding}, error, f"padding: expected {match}")
            for padding, error, match in [
                (-1, ValueError, "at least 0, got -1"),
                ((1, -1), ValueError, "at least 0"),
                ("full", ValueError, "an int, 'same' or 'valid', got 'full'"),
                (None, TypeError, "an array of numbers, got NoneType"),
                (1.0, TypeError, "an int, ints, 'same' or 'valid', got 1.0"),
                (True, TypeError, "an int, ints"),
                ((), TypeError, "an int, ints"),
                ([[1], [1, 2]], ValueError, "an array, got .*inhomogeneous"),
                (["same"], TypeError, "an int, ints"),
            ]
        ),
    ],
)
def test_wrong_groups_and_padding(fold, changes, error, match):
    with pytest.raises(error, match=f"^{match}"):
        fold(**{"weight": np.ones((4, 4)), "bias": None, "bn": STATE, **changes})
