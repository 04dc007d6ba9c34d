"""Wrong calls of `fastnorm.outofcore`: each is refused, by the name of the argument at fault."""

import numpy as np
import pytest
from tables import table

from fastnorm import outofcore

FUNCTIONS = ["moments", "fit", "scale", "scale_file"]
NOTHING = np.array([], object)

# argument, value, which functions take it, what is said
CALLS = [
    *(("axis", axis, FUNCTIONS, message) for axis, message in [
        (2, "axis: expected axes in"), (-3, "axis: expected axes in"), ((0, 2), "expected axes in"),
        (2**70, "axis: expected axes in"), ([0, -(2**70)], "axis: expected axes in"),
        ((0, 0), "axis: expected distinct"), ([1, -1], "axis: expected distinct"),
        ((), "axis: expected at least one"), ([], "axis: expected at least one"),
        (0.0, "axis: expected an int"), ("0", "axis: expected an int"), (True, "expected an int"),
        ([True], "axis: expected an int"), ([0, None], "axis: expected an int"),
        ([[0], [1, 2]], "axis: expected an int"), (np.array([0, 1]), "axis: expected an int"),
        ({0}, "axis: expected an int"), (slice(2), "axis: expected an int"),
        ([0, "time"], "axis: expected an int"), (NOTHING, "axis: expected an int"),
    ]),
    *(("method", method, ["fit", "scale", "scale_file"], "method: expected one of standard, minmax")
      for method in ["robust", "", 1, ["standard"], ("minmax", 1), np.array(["minmax", "a"]),
                     b"minmax", {}]),
    *(("block_bytes", size, ["moments", "fit", "scale_file"], message) for size, message in [
        (0, "block_bytes: expected at least 1, got 0"), (-5, "block_bytes: expected at least 1"),
        (1e6, "block_bytes: expected an int"), ("64", "block_bytes: expected an int"),
        (None, "block_bytes: expected an int"), (True, "block_bytes: expected an int"),
        ([64], "block_bytes: expected an int"), (np.ones(2, int), "block_bytes: expected an int"),
    ]),
    *(("progress", flag, ["moments", "fit", "scale_file"], "progress: expected True or False")
      for flag in ["yes", 1, None, [], [[1], [2, 3]], np.array([True, False]), 0.0]),
    *(("dtype", dtype, ["scale_file"], "dtype: expected float16, float32 or float64, got")
      for dtype in ["NHWC", "f3", "int32", ">f8", "complex64", "f4, (", "f4,f4", int, object, 8, [],
                    ["f4"], [[1], [2, 3]], {}, np.zeros(2), lambda: 0, "bfloat16", np.longdouble]),
    *(("stats", stats, ["scale", "scale_file"], message) for stats, message in [
        (3, "stats: expected Stats or the name of their file, got int"),
        ({}, "stats: expected Stats"), ([1.0], "stats: expected Stats"),
        (np.ones(3), "stats: expected Stats"), (outofcore.Stats, "stats: expected Stats"),
        ("", "stats: expected the name of a file"), ("a\0b", "stats: expected the name of a file"),
        (outofcore.fit(table((4, 9))), r"stats: expected statistics for .*, of shape \(10, 3\)"),
        (outofcore.fit(table((9, 3)), 1), "stats: expected statistics for"),
        (outofcore.fit(table((9,))), "stats: expected statistics for"),
        (outofcore.fit(table((2, 3)), groups=[1, 2]), "groups: expected labels, as stats has"),
    ]),
    *(("save_stats", name, ["scale_file"], message) for name, message in [
        (3, "save_stats: expected the name of a file, got int"),
        ("", "save_stats: expected the name of a file"),
        ("/", "save_stats: expected the name of a file"),
        ("in.npy:/x", r"Not a directory: 'in.npy:/x'|No such file or directory: 'in.npy:/x'"),
        ("none/s.json", "No such file or directory: 'none/s.json'"),
    ]),
    *(("groups", groups, ["fit", "scale", "scale_file"], message) for groups, message in [
        ([0, 1], r"groups: expected a vector of 10 labels, .*, got shape \(2,\)"),
        ([0] * 11, r"groups: expected a vector of 10 labels, .*, got shape \(11,\)"),
        ([], r"groups: expected a vector of 10 labels, .*, got shape \(0,\)"),
        (3, r"groups: expected a vector of 10 labels, .*, got shape \(\)"),
        (np.zeros((10, 1), int), r"groups: expected a vector of 10 labels, .*, got .*\(10, 1\)"),
        (["a"] * 9 + [1], "groups: expected integers or strings, got"),
        (["a"] * 9 + [None], "groups: expected integers or strings, got"),
        ([[1]] * 9 + [[2, 3]], "groups: expected integers or strings, got"),
        (np.arange(10.0), "groups: expected integers or strings, got float64"),
        ([0.5] * 10, "groups: expected integers or strings, got"),
        ([2**64] * 10, "groups: expected integers or strings, got"),
        ([b"\xff"] * 10, "groups: expected integers or strings, got"),
        (np.zeros(10, "M8[s]"), "groups: expected integers or strings, got datetime64"),
        (np.zeros(10, complex), "groups: expected integers or strings, got complex128"),
        (np.ma.masked_equal(np.arange(10), 3), "groups: expected a label for each row"),
        ("", "groups: expected the name of a file, got ''"),
        ("none.npy", "No such file or directory: 'none.npy'"),
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("argument", "value", "functions", "message"), CALLS)
def test_a_wrong_argument_is_named(tmp_path, monkeypatch, argument, value, functions, message):
    monkeypatch.chdir(tmp_path)
    np.save("in.npy", table((10, 3)))
    for name in functions:
        given = ["in.npy", "out.npy"] if name == "scale_file" else [table((10, 3))]
        with pytest.raises((TypeError, ValueError, OSError), match=message):
            getattr(outofcore, name)(*given, **{argument: value})
        assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]


@pytest.mark.parametrize("name", ["moments", "fit", "scale"])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[1.0]], r"x: expected .*, got list"),
        ([[1.0], [2.0, 3.0]], r"x: expected .*, got list"),
        (3.0, r"x: expected .*, got float"),
        (None, r"x: expected .*, got NoneType"),
        (np.float64(3), r"x: expected .*, got float64"),
        (np.array(3.0), "x: expected at least 1 dimension, got a scalar"),
        (np.zeros((0, 3)), r"x: expected an array with elements, got shape \(0, 3\)"),
        (np.zeros((3, 2), complex), r"x: expected float16, .*, got complex128"),
        (np.array(["a"]), r"x: expected float16, .*, got <U1"),
        (np.array([[1], [2, 3]], object), r"x: expected float16, .*, got object"),
        (np.zeros(3, "f4,f4"), r"x: expected float16, .*, got \["),
        (np.zeros(3, np.longdouble), r"x: expected float16, .*, got "),
    ],
)
def test_a_wrong_x_is_named(name, x, message):
    with pytest.raises((TypeError, ValueError), match=message):
        getattr(outofcore, name)(x)


@pytest.mark.parametrize("name", ["fit", "scale", "scale_file"])
@pytest.mark.parametrize("axis", [1, [1], (-1,), [1, 2]])
def test_groups_are_groups_of_rows(tmp_path, name, axis):
    x, target = table((10, 3, 2)), [tmp_path / "out.npy"] * (name == "scale_file")
    with pytest.raises(ValueError, match="groups: expected axis 0, of the rows, among the axes"):
        getattr(outofcore, name)(x, *target, axis=axis, groups=[0, 1] * 5)


@pytest.mark.parametrize(
    ("sources", "targets", "options", "message"),
    [
        ([], [], {}, "source: expected at least one, got "),
        (["a.npy"], "x.npy", {}, "target: expected a list of 1, one for each source, got 'x.npy'"),
        (["a.npy"], [], {}, "target: expected a list of 1"),
        ("a.npy", ["x.npy"], {}, "target: expected the name of a file, got list"),
        (["a.npy", "b.npy"], ["x.npy"], {}, "target: expected a list of 2"),
        (["a.npy", "b.npy"], ["x.npy", 3], {}, "target: expected the name of a file, got int"),
        (["a.npy", 3], ["x.npy", "y.npy"], {}, r"source: expected an array .*, got int"),
        (["a.npy", [[1], [2, 3]]], ["x.npy", "y.npy"], {}, r"source: expected .*, got list"),
        (["a.npy", "b.npy"], ["x.npy", "x.npy"], {}, "expected different files, got x.npy twice"),
        (["a.npy", "b.npy"], ["x.npy", "./x.npy"], {}, "expected different files, got ./x.npy"),
        (["a.npy", "b.npy"], ["x.npy", "a.npy"], {}, "another file than the source, got a.npy"),
        (["a.npy", "b.npy"], ["x", "y"], {"groups": [0] * 10}, "groups: expected a list of 2"),
        (["a.npy", "b.npy"], ["x", "y"], {"groups": "a.npy"}, "groups: expected a list of 2"),
        (["a.npy", "b.npy"], ["x", "y"], {"groups": [[0] * 10, [0] * 9]}, "a vector of 10 labels"),
        (["a.npy", "b.npy"], ["x", "y"], {"groups": [[0] * 10, ["a"] * 10]}, "labels of one type"),
        (["a.npy"], ["x"], {"groups": [0] * 10}, "groups: expected a list of 1"),
    ],
)
def test_lists_of_files(tmp_path, monkeypatch, sources, targets, options, message):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", table((10, 3)))
    np.save("b.npy", table((10, 3)))
    for kind in (list, tuple):
        given = kind(sources) if isinstance(sources, list) else sources
        with pytest.raises((TypeError, ValueError), match=message):
            outofcore.scale_file(given, targets, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "b.npy"]


@pytest.mark.parametrize("axis", [[0, 1], [np.int64(0), -2], (0, 1), [1, 0]])
def test_a_list_of_axes_is_a_tuple_of_them(tmp_path, axis):
    x = table((10, 3, 2))
    da = pytest.importorskip("dask.array")
    want = outofcore.scale(x, (0, 1))
    np.testing.assert_array_equal(outofcore.scale(x, axis), want)
    np.testing.assert_array_equal(
        outofcore.moments(x, axis).mean, outofcore.moments(x, (0, 1)).mean
    )
    np.testing.assert_array_equal(outofcore.scale(da.from_array(x), axis), want)
    outofcore.scale_file(x, tmp_path / "out.npy", axis=axis)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), want)
