"""Headers of .npy files: what NumPy refuses is refused, by the file's name, and nothing appears."""

import random

import numpy as np
import pytest

from fastnorm import outofcore

DATA = np.arange(1.0, 17.0).tobytes()


def raw(text, version=(1, 0), length=None, data=DATA):
    text = text if isinstance(text, bytes) else text.encode("latin1")
    width = 2 if version == (1, 0) else 4
    length = len(text) if length is None else length
    return b"\x93NUMPY" + bytes(version) + length.to_bytes(width, "little") + text + data


def header(shape="(4,)", descr="'<f8'", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def refuses(path):
    """Return whether scale_file refuses the file, after a look at how."""
    target, message = path.with_name("out.npy"), None
    try:
        outofcore.scale_file(path, target)
    except (ValueError, TypeError) as error:
        message = str(error)
    if message is None:
        target.unlink()
        return False
    assert str(path) in message
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    return True


SHAPES = [
    "(-2, -2)", "(True,)", "(True, 4)", "(-1, -3, 2)", "(-1,)", "(2, -1)", "(-2, 3)", "(2.0,)",
    "(2.0, 2)", "(1e1,)", "[4]", "4", "(None,)", "('4',)", "(4j,)", "((4,),)", "(2**2,)", "(99,)",
    "(9223372036854775807,)", "(4294967296, 4294967296)", "(9223372036854775808, 0)",
    "(2305843009213693952, 8)", "(-9223372036854775808, -2)", f"({'9' * 4000}, {'9' * 4000})",
    f"({'9' * 5000},)", "(0,)", "(0, 4)", f"({'1, ' * 65})", f"({'1, ' * 300})", "()",
]  # fmt: skip

DESCRS = [
    "'|O'", "'O'", "[('a', '<f8')]", "[('a', 'O')]", "'<U2'", "'|S8'", "'|V8'", "'<M8[s]'",
    "'<m8'", "'<c16'", "'<U0'", "('<f8', (2,))", "'(2,)f8'", "'f8,f8'", "'f4, ('", "'bogus'", "3",
    "None", "{}", "[]", "[[]]", "'T'", "'<f99'", "b'<f8'", "'<f8", "'<f8\\0'",
]  # fmt: skip

TEXTS = {
    "no brace": header()[:-3],
    "a bracket more": header() + ")",
    "nested": "(" * 5000 + ")" * 5000,
    "nested before": "((((((" + header(),
    "nested lists": "[" * 3000,
    "nested dictionaries": "{1:" * 3000,
    "signs": "-" * 9000 + "1",
    "a key missing": "{'descr': '<f8', 'fortran_order': False}",
    "a key more": header()[:-2] + "'x': 1}",
    "another key": header().replace("shape", "shade"),
    "keys of other types": "{1: 2, 'descr': '<f8', 'fortran_order': False}",
    "order that is no bool": header(order="0"),
    "order as text": header(order="'F'"),
    "a list": "[1, 2]",
    "a call": "__import__('os').abort()",
    "nothing": "",
    "a zero byte": "\0" + header(),
    "an open text": "'''" + header(),
    "a backslash": header() + "\\",
    "long": header() + " " * 20_000,
    "longer": header() + " " * 60_000,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_shapes(tmp_path, shape, version):
    (tmp_path / "in.npy").write_bytes(raw(header(shape), version))
    assert refuses(tmp_path / "in.npy")
    with pytest.raises(ValueError, match=r"in.npy: expected"):
        outofcore.moments(tmp_path / "in.npy")


@pytest.mark.parametrize("descr", DESCRS)
def test_dtypes(tmp_path, descr):
    (tmp_path / "in.npy").write_bytes(raw(header(descr=descr)))
    assert refuses(tmp_path / "in.npy")


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_texts(tmp_path, text, version):
    (tmp_path / "in.npy").write_bytes(raw(text, version))
    with pytest.raises(ValueError, match=r"in.npy: expected an .npy file of numbers"):
        outofcore.moments(tmp_path / "in.npy")
    assert refuses(tmp_path / "in.npy")


@pytest.mark.parametrize(
    "content",
    [raw(header(), length=length) for length in (0, 1, 10, 40, 1000, 65535)]
    + [raw(header(), (2, 0), length=length) for length in (0, 1, 2**31, 2**32 - 1)]
    + [raw(header(), version) for version in ((0, 0), (1, 1), (4, 0), (255, 255))]
    + [raw(header())[:end] for end in (0, 3, 6, 7, 8, 9, 10, 30, 60, 90)]
    + [b"\x93NUMPX" + raw(header())[6:], b"PK\x03\x04" + DATA, b"\x80\x04]\x94.", b"1,2,3\n"]
    + [raw(b"\xff" + header().encode()), raw(header().encode() + b"#\xff\xfe", (3, 0))],
)
def test_lengths_versions_and_ends(tmp_path, content):
    (tmp_path / "in.npy").write_bytes(content)
    assert refuses(tmp_path / "in.npy")


def test_a_lie_about_the_length_takes_no_memory(tmp_path):
    import tracemalloc

    (tmp_path / "in.npy").write_bytes(raw(header(), (2, 0), length=2**32 - 1))
    tracemalloc.start()
    try:
        assert refuses(tmp_path / "in.npy")
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", "CF")
def test_every_version_is_read(tmp_path, version, order):
    x = np.array([[1.0, 5.0, 2.0], [3.0, 9.0, 2.0]], order=order)
    with open(tmp_path / "in.npy", "wb") as file:
        np.lib.format.write_array(file, x, version)
    found = outofcore.moments(tmp_path / "in.npy")
    np.testing.assert_array_equal(found.mean, x.mean(0))
    outofcore.scale_file(tmp_path / "in.npy", tmp_path / "out.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), [[-1, -1, 0], [1, 1, 0]])


def test_a_header_of_python_2_is_read(tmp_path):
    (tmp_path / "in.npy").write_bytes(raw(header("(4L, 2L)")))
    with pytest.warns(UserWarning, match="Python 2"):
        found = outofcore.moments(tmp_path / "in.npy")
    np.testing.assert_array_equal(found.mean, [4, 5])


def test_the_largest_rank_works(tmp_path):
    x = np.arange(6.0).reshape(2, *((1,) * 62), 3)
    np.save(tmp_path / "in.npy", x)
    outofcore.scale_file(tmp_path / "in.npy", tmp_path / "out.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy").ravel(), [-1] * 3 + [1] * 3)


def mutated(pick):
    """Return a file with a header of parts that are right, strange or damaged."""
    odd = pick.random() < 0.4
    dims = ["1", "2", "4", "8", *["0", "-1", "-2", "True", "2.0", "3L", "1_0", "2**62"] * odd]
    shape = f"({', '.join(pick.choice(dims) for _ in range(pick.randrange(1, 4)))},)"
    descr = pick.choice(DESCRS) if pick.random() < 0.1 else pick.choice(["'<f8'", "'>f4'", "'<i2'"])
    text = header(shape, descr, pick.choice(["False", "True"])).encode()
    version = pick.choice([(1, 0), (1, 0), (2, 0), (3, 0), (3, 1)])
    length = len(text) + pick.choice([0] * 9 + [-1, 1, 20])
    content = bytearray(raw(text, version, length, DATA[: 8 * pick.choice([0, 4, 8, 16])]))
    if pick.random() < 0.3:
        content[pick.randrange(len(content))] = pick.randrange(256)
    return bytes(content[: pick.randrange(len(content))] if pick.random() < 0.05 else content)


@pytest.mark.filterwarnings("ignore")
def test_what_numpy_refuses_is_refused(tmp_path):
    pick, counts = random.Random(0), [0, 0]
    for _ in range(1500):
        (tmp_path / "in.npy").write_bytes(mutated(pick))
        refused = refuses(tmp_path / "in.npy")
        counts[refused] += 1
        try:
            np.load(tmp_path / "in.npy", allow_pickle=False)
        except Exception:
            assert refused, (tmp_path / "in.npy").read_bytes()
    assert min(counts) > 200  # of either kind
