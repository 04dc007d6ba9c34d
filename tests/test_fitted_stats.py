"""Statistics that are fitted once and used later, for several files, and by groups of rows."""

import json
import os
import tracemalloc
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from tables import METHODS, oracle, table

from fastnorm import outofcore
from fastnorm.outofcore import Stats

BLADDER = Path(__file__).parents[1] / "examples" / "data" / "bladderbatch.npz"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def values(stats):
    return [getattr(stats.statistics, field.name) for field in fields(stats.statistics)]


def by_groups(x, labels, axis, method):
    """Scale each group of rows by itself."""
    y = np.empty(x.shape)
    for label in np.unique(labels):
        y[labels == label] = oracle(x[labels == label], axis, method)
    return y


# ---- kept in a file --------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
def test_statistics_of_one_file_scale_another(tmp_path, method, dtype):
    one, two = table((90, 5), dtype), 3 * table((40, 5), dtype, order="F") + 1
    one[:, 2] = 7  # constant: 1 is the divisor, for others too
    np.save(tmp_path / "one.npy", one)
    np.save(tmp_path / "two.npy", two)
    outofcore.scale_file(tmp_path / "one.npy", tmp_path / "out1.npy", method=method,
                         save_stats=tmp_path / "s.json", block_bytes=200)  # fmt: skip
    outofcore.scale_file(tmp_path / "two.npy", tmp_path / "out2.npy", stats=tmp_path / "s.json",
                         block_bytes=100)  # fmt: skip
    wide = one.astype(np.longdouble)
    center = wide.mean(0) if method == "standard" else wide.min(0)
    width = wide.std(0) if method == "standard" else np.ptp(wide, 0)
    want = (two.astype(np.longdouble) - center) / np.where(width, width, 1)
    assert method == "standard" or (want > 1.5).any()  # others' values may lie anywhere
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    got = np.load(tmp_path / "out2.npy")
    np.testing.assert_allclose(got, want.astype(float), rtol=tolerance, atol=tolerance)
    assert names(tmp_path) == ["one.npy", "out1.npy", "out2.npy", "s.json", "two.npy"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("groups", [None, np.arange(60) % 3, np.array(["a", "ü", "日"] * 20)])
def test_json_holds_every_bit_and_says_what_it_is(tmp_path, method, groups):
    scale = 10.0 ** np.random.default_rng(0).integers(-100, 100, (5, 2))
    x = np.random.default_rng(1).normal(size=(60, 5, 2)) * scale
    x[:, 0, 1] = np.nan  # extremes without a value are NaN, which JSON has no word for
    stats = outofcore.fit(x.astype("f8"), method=method, axis=0, groups=groups)
    stats.save(tmp_path / "s.json")
    again = Stats.load(tmp_path / "s.json")
    for a, b in zip(values(stats), values(again), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert (again.method, again.axis, again.shape, again.dtype) == (method, (0,), (5, 2), x.dtype)
    if groups is None:
        assert again.groups is None
    else:
        np.testing.assert_array_equal(again.groups, np.unique(groups))
    found = json.loads((tmp_path / "s.json").read_text())
    assert (found["version"], found["method"], found["axis"]) == (1, method, [0])
    assert (found["shape"], found["dtype"]) == ([5, 2], "float64")
    assert names(tmp_path) == ["s.json"]


@pytest.mark.parametrize("axis", [None, 0, [0, 2], (0, 1, 2)])
def test_fit_and_scale_are_scale(axis):
    x, other = table((30, 4, 3)), table((8, 4, 3), "float32")
    stats = outofcore.fit(x, axis)
    axes = (0, 1) if axis is None else tuple(np.atleast_1d(axis))
    np.testing.assert_allclose(outofcore.scale(x, stats=stats), oracle(x, axes, "standard"))
    got = outofcore.scale(other, stats=stats)
    want = (other - x.mean(axes, keepdims=True)) / x.std(axes, keepdims=True)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert got.dtype == np.float32
    assert outofcore.fit(other, axis).dtype == np.float32


def damaged(**changes):
    return {**json.loads(outofcore.fit(table((9, 3)), method="minmax").to_json()), **changes}


LOW_HIGH = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]

DAMAGED = [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b"\x93NUMPY\x01\x00",
    *(json.dumps(damaged(**changes)).encode() for changes in (
        {"version": 2}, {"version": None}, {"format": "another"}, {"more": 1}, {"method": "robust"},
        {"method": ["minmax"]}, {"axis": []}, {"axis": 0}, {"axis": [-1]}, {"axis": [1, 0]},
        {"axis": [0, 0]}, {"axis": [True]}, {"shape": [4]}, {"shape": [3.0]}, {"shape": "3"},
        {"shape": [-3]}, {"dtype": "complex128"}, {"dtype": "f4, ("}, {"dtype": 4},
        {"groups": ["a", "b"]}, {"groups": ["a", "a"]}, {"groups": [1, "a"]}, {"groups": {}},
        {"groups": [1.5]}, {"groups": [2**70]}, {"groups": []}, {"statistics": []},
        {"statistics": {"low": LOW_HIGH[0]}},
        {"statistics": {"low": LOW_HIGH[1], "high": LOW_HIGH[0]}},
        {"statistics": {"low": LOW_HIGH[0], "high": [4.0, 5.0]}},
        {"statistics": {"low": LOW_HIGH[0], "high": [4.0, 5.0, "six"]}},
        {"statistics": {"low": LOW_HIGH[0], "high": [4.0, 5.0, [6.0]]}},
        {"statistics": {"low": LOW_HIGH[0], "high": [4.0, 5.0, 10**400]}},
        {"statistics": {"low": LOW_HIGH[0], "high": [4.0, 5.0, float("inf")]}},
        {"statistics": {"low": LOW_HIGH[0], "high": [4.0, 5.0, float("nan")]}},
        {"statistics": {"count": 9, "mean": LOW_HIGH[0], "m2": LOW_HIGH[1]}},
    )),
    json.dumps(damaged()).replace("]", ", 1e999]").encode(),
    json.dumps(damaged()).encode()[:-20],
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_refused_by_name_and_nothing_is_written(tmp_path, content):
    np.save(tmp_path / "in.npy", table((9, 3)))
    (tmp_path / "s.json").write_bytes(json.dumps(damaged()).encode())
    outofcore.scale_file(tmp_path / "in.npy", tmp_path / "out.npy", stats=tmp_path / "s.json")
    (tmp_path / "out.npy").unlink()
    (tmp_path / "s.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"s.json: expected statistics of fastnorm, got"):
        outofcore.scale_file(tmp_path / "in.npy", tmp_path / "out.npy", stats=tmp_path / "s.json")
    assert names(tmp_path) == ["in.npy", "s.json"]


def test_statistics_of_other_features_are_refused_by_name(tmp_path):
    outofcore.fit(table((9, 3))).save(tmp_path / "s.json")
    outofcore.fit(table((9, 3)), groups=[0, 1, 5] * 3).save(tmp_path / "g.json")
    for shape in [(9, 4), (3,), (9, 3, 1), (9, 1)]:
        np.save(tmp_path / "in.npy", table(shape))
        with pytest.raises(ValueError, match=r"s.json: expected statistics for .*in.npy"):
            outofcore.scale_file(
                tmp_path / "in.npy", tmp_path / "out.npy", stats=tmp_path / "s.json"
            )
    np.save(tmp_path / "in.npy", table((2, 3)))
    for options, message in [
        ({"stats": "s.json", "method": "minmax"}, "method: expected 'standard', as .*s.json has"),
        ({"stats": "s.json", "axis": 1}, r"axis: expected \(0,\), as .*s.json has, got 1"),
        ({"stats": "s.json", "save_stats": "t.json"}, "stats, save_stats: expected one of them"),
        ({"stats": "s.json", "groups": [0, 1]}, "groups: expected None, as .*s.json has no groups"),
        ({"stats": "g.json"}, "groups: expected labels, as .*g.json has groups, got None"),
        ({"stats": "g.json", "groups": [0, 4]}, "groups: expected labels that .*g.json has, got 4"),
        ({"stats": "g.json", "groups": ["0", "1"]}, "groups: expected labels that .*g.json has"),
        ({"stats": "none.json"}, r"No such file or directory: '.*none.json'"),
        ({"save_stats": "out.npy"}, "expected different files, got .*out.npy twice"),
        ({"save_stats": "in.npy"}, "expected another file than the source, got .*in.npy"),
        ({"save_stats": "none/s.json"}, r"No such file or directory: '.*none/s.json'"),
    ]:
        given = {k: tmp_path / v if str(v).endswith(("json", "npy")) else v
                 for k, v in options.items()}  # fmt: skip
        with pytest.raises((ValueError, OSError), match=message):
            outofcore.scale_file(tmp_path / "in.npy", tmp_path / "out.npy", **given)
        assert names(tmp_path) == ["g.json", "in.npy", "s.json"]
    np.save(tmp_path / "labels.npy", [1, 5])
    for target, options in [
        ("s.json", {"stats": tmp_path / "s.json"}),
        ("labels.npy", {"groups": tmp_path / "labels.npy"}),
        ("labels.npy", {"groups": np.load(tmp_path / "labels.npy", mmap_mode="r")}),
    ]:
        content = (tmp_path / target).read_bytes()
        with pytest.raises(
            ValueError, match=r"target: expected another file than the (stats|groups)"
        ):
            outofcore.scale_file(tmp_path / "in.npy", tmp_path / target, **options)
        assert (tmp_path / target).read_bytes() == content
    outofcore.scale_file(tmp_path / "in.npy", tmp_path / "out.npy", axis=[-2], method="standard",
                         stats=tmp_path / "g.json", groups=[5, 1])  # fmt: skip


# ---- several files ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("block_bytes", [16, 1000, 1 << 20])
def test_several_files_have_one_fit(tmp_path, method, block_bytes):
    parts = [table((50, 4)), 2 * table((31, 4), "float32", order="F"), table((9, 4)).astype("i4")]
    sources = [tmp_path / f"in{i}.npy" for i in range(3)]
    targets = [str(tmp_path / f"out{i}.npy") for i in range(3)]
    for source, part in zip(sources, parts, strict=True):
        np.save(source, part)
    outofcore.scale_file(sources, tuple(targets), method=method, block_bytes=block_bytes,
                         save_stats=tmp_path / "s.json")  # fmt: skip
    want = np.split(oracle(np.concatenate(parts), 0, method), [50, 81])
    for target, part, each in zip(targets, parts, want, strict=True):
        got = np.load(target)
        np.testing.assert_allclose(got, each, rtol=1e-5, atol=1e-5)
        assert got.dtype == (np.float64 if part.dtype == np.int32 else part.dtype)
    outofcore.scale_file(sources[1], tmp_path / "again.npy", stats=tmp_path / "s.json")
    np.testing.assert_array_equal(np.load(tmp_path / "again.npy"), np.load(targets[1]))


def test_all_outputs_appear_or_none(tmp_path):
    np.save(tmp_path / "a.npy", table((50, 4)))
    np.save(tmp_path / "b.npy", table((50, 4)))
    (tmp_path / "x.npy").write_bytes(b"old")

    def scale(bad, wanted, **options):
        with pytest.raises((ValueError, OSError), match=wanted):
            outofcore.scale_file([tmp_path / "a.npy", tmp_path / bad],
                                 [tmp_path / "x.npy", tmp_path / "y.npy"],
                                 save_stats=tmp_path / "s.json", **options)  # fmt: skip
        assert (tmp_path / "x.npy").read_bytes() == b"old"
        assert names(tmp_path) == ["a.npy", "b.npy", "x.npy"]

    scale("none.npy", "No such file")
    np.save(tmp_path / "b.npy", table((50, 5)))
    scale("b.npy", r"of one shape, got shape \(50, 4\) of .*a.npy and \(50, 5\) of .*b.npy")
    np.save(tmp_path / "b.npy", table((50, 4, 1)))
    scale("b.npy", "features of one shape")
    x = table((50, 4))
    x[40, 1] = np.inf
    np.save(tmp_path / "b.npy", x)
    scale("b.npy", "b.npy: values: expected finite values", block_bytes=100)
    np.save(tmp_path / "b.npy", table((50, 4)))
    content = (tmp_path / "b.npy").read_bytes()
    (tmp_path / "b.npy").write_bytes(content[:-1])
    scale("b.npy", "b.npy: expected 1600 bytes of data, got 1599")


# ---- groups ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("axis", [0, [0, 2], (0, 1), (0, 1, 2)])
@pytest.mark.parametrize("block_bytes", [8, 250, 1 << 20])
def test_each_group_has_its_own_statistics(tmp_path, method, order, axis, block_bytes):
    x = table((40, 3, 5), order=order)
    labels = np.random.default_rng(1).integers(-2, 3, 40)
    x[labels == 2] *= 1000
    x[3, 1, 2] = x[7] = np.nan
    np.save(tmp_path / "in.npy", x)
    np.save(tmp_path / "labels.npy", labels)
    outofcore.scale_file(tmp_path / "in.npy", tmp_path / "out.npy", axis=axis, method=method,
                         groups=tmp_path / "labels.npy", block_bytes=block_bytes)  # fmt: skip
    axes = tuple(np.atleast_1d(axis))
    want = by_groups(x, labels, axes, method)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), want, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(
        outofcore.scale(x, axis, method=method, groups=labels), want, rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize(
    "labels",
    [["b", "a", "b", "c", "a", "b"], np.array([3, 1, 3, 2**40, 1, 3]),
     np.array([True, False, True, True, False, True]),
     np.array(["b", "a", "b", "c", "a", "b"], object), np.array([1, 0, 1, 5, 0, 1], object),
     np.array([b"b", b"a", b"b", b"c", b"a", b"b"]), [2**63, 1, 2**63, 5, 1, 2**63],
     np.array(["y", "x", "y", "z", "x", "y"], ">U3")],
)  # fmt: skip
def test_labels_of_every_kind(tmp_path, labels):
    x = table((6, 2), "float32")
    want = by_groups(x, np.asarray(labels), 0, "standard")  # floats still tell 2**63 from 5
    np.testing.assert_allclose(outofcore.scale(x, groups=labels), want, atol=1e-5)
    stats = Stats.from_json(outofcore.fit(x, groups=labels).to_json())
    np.testing.assert_allclose(outofcore.scale(x, stats=stats, groups=labels), want, atol=1e-5)
    if isinstance(labels, np.ndarray) and labels.dtype != object:
        np.save(tmp_path / "labels.npy", labels)
        got = outofcore.scale(x, groups=str(tmp_path / "labels.npy"))
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_group_of_one_row_becomes_0():
    x = table((5, 3))
    for method in METHODS:
        y = outofcore.scale(x, method=method, groups=["a", "b", "a", "a", "a"])
        np.testing.assert_array_equal(y[1], 0)
        np.testing.assert_array_equal(outofcore.scale(x, method=method, groups=range(5)), 0)


def test_groups_over_several_files_are_the_same_group(tmp_path):
    x, labels = table((80, 3)), np.array(list("abcb") * 20)
    x[labels == "b"] += 100
    parts, own = [x[:50], x[50:]], [labels[:50], labels[50:]]
    for i in range(2):
        np.save(tmp_path / f"in{i}.npy", parts[i])
        np.save(tmp_path / f"labels{i}.npy", own[i])
    outofcore.scale_file([tmp_path / "in0.npy", tmp_path / "in1.npy"],
                         [tmp_path / "out0.npy", tmp_path / "out1.npy"],
                         groups=[tmp_path / "labels0.npy", own[1]], block_bytes=100,
                         save_stats=tmp_path / "s.json")  # fmt: skip
    got = np.concatenate([np.load(tmp_path / f"out{i}.npy") for i in range(2)])
    want = by_groups(x, labels, 0, "standard")
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)
    few = outofcore.scale(x[:7], stats=tmp_path / "s.json", groups=labels[:7])
    np.testing.assert_allclose(few, want[:7], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("chunks", [(7, 2), (40, 3), ((0, 11, 29, 0), (1, 2))])
@pytest.mark.parametrize("method", METHODS)
def test_groups_of_a_dask_array(chunks, method):
    da = pytest.importorskip("dask.array")
    x, labels = table((40, 3)), np.random.default_rng(1).integers(0, 4, 40)
    x[5, 1] = np.nan
    lazy = da.from_array(x, chunks)
    want = by_groups(x, labels, 0, method)
    got = outofcore.scale(lazy, method=method, groups=labels)
    np.testing.assert_allclose(got.compute(), want, rtol=1e-11, atol=1e-11)
    stats = outofcore.fit(lazy, method=method, groups=labels)
    for y in (lazy, x):
        again = outofcore.scale(y, stats=stats, groups=labels)
        np.testing.assert_allclose(np.asarray(again), want, rtol=1e-11, atol=1e-11)
    with pytest.raises(ValueError, match="groups: expected x of known length"):
        outofcore.scale(lazy[lazy[:, 0] > 0], groups=labels)


def test_memory_is_that_of_blocks_and_of_groups_times_features(tmp_path):
    rows, features, count = 8000, 512, 10
    x = np.ones((rows, features))
    x[::3], x[::7] = 7, np.nan
    np.save(tmp_path / "in.npy", x)
    block, of_table = x.nbytes // 8, 8 * features * count
    numbers = np.arange(rows)
    for labels in (numbers % count, numbers // (rows // count), numbers % 50 == 0):
        tracemalloc.start()
        try:
            outofcore.scale_file(tmp_path / "in.npy", tmp_path / "out.npy", groups=labels,
                                 block_bytes=block)  # fmt: skip
            assert tracemalloc.get_traced_memory()[1] < 2.5 * block + 20 * of_table + 80 * rows
        finally:
            tracemalloc.stop()


def test_a_batch_effect_goes(tmp_path):
    with np.load(BLADDER) as data:
        x, batch = data["expression"], data["batch"]
    np.save(tmp_path / "in.npy", x)
    np.save(tmp_path / "batch.npy", batch)
    outofcore.scale_file(tmp_path / "in.npy", tmp_path / "out.npy", block_bytes=1 << 16,
                         dtype="float64", groups=tmp_path / "batch.npy")  # fmt: skip
    y = np.load(tmp_path / "out.npy")
    for each in np.unique(batch):
        np.testing.assert_allclose(y[batch == each].mean(0), 0, atol=1e-11)
        np.testing.assert_allclose(y[batch == each].std(0), 1, rtol=1e-9)
    assert os.path.getsize(tmp_path / "out.npy") > y.nbytes


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("groups", [None, np.arange(40) % 3])
def test_statistics_of_a_dask_array_are_kept_too(tmp_path, method, groups):
    dask = pytest.importorskip("dask.array")
    x = table((40, 3))
    found = outofcore.fit(dask.from_array(x, chunks=7), method=method, groups=groups)
    found.save(tmp_path / "s.json")
    y = outofcore.scale(x, stats=tmp_path / "s.json", groups=groups)
    np.testing.assert_allclose(y, outofcore.scale(x, method=method, groups=groups), atol=1e-12)


def test_masked_labels_of_dask_are_refused():
    dask = pytest.importorskip("dask.array")
    labels = dask.from_array(np.ma.array([1, 1, 2, 2], mask=[0, 0, 0, 1]))
    with pytest.raises(ValueError, match=r"groups: .*masked"):
        outofcore.scale(table((4, 3)), groups=labels)
