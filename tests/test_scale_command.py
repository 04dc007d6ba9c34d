"""`fastnorm scale` and what it calls: all or nothing, and clear about what is wrong."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from tables import METHODS, oracle, scaled, table

from fastnorm import outofcore

CONSOLE = [sys.executable, "-c", "from fastnorm.cli import main; main()"]


# ---- all or nothing --------------------------------------------------------------------------

# stops in the second pass, half of the output written, until a signal comes
HALF_WAY = """
import sys, time
from fastnorm import cli, outofcore
apply, calls = outofcore.apply, []
def slow(*arguments):
    calls.append(1)
    if len(calls) == 5:
        print("half", flush=True)
        time.sleep(100)
    return apply(*arguments)
outofcore.apply = slow
sys.argv = ["fastnorm", "scale", *sys.argv[1:], "--block-bytes", "80000"]
cli.main()
"""


@pytest.mark.parametrize("old", [b"what was there", None])
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_what_was_there(tmp_path, old, sent, code):
    np.save(tmp_path / "in.npy", table((10_000, 10)))
    if old is not None:
        (tmp_path / "out.npy").write_bytes(old)
    process = subprocess.Popen(
        [sys.executable, "-c", HALF_WAY, tmp_path / "in.npy", tmp_path / "out.npy"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # a shell's job in the background inherits that it is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "half\n"
        (unfinished,) = set(tmp_path.iterdir()) - {tmp_path / "in.npy", tmp_path / "out.npy"}
        assert unfinished.stat().st_size > 200_000
        process.send_signal(sent)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in errors
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "in.npy"}
    assert left == ({} if old is None else {"out.npy": old})


def test_an_existing_output_is_replaced_when_all_is_written(tmp_path, monkeypatch):
    x = table((100, 4))
    target = tmp_path / "out.npy"
    target.write_bytes(b"old")
    seen = []
    apply = outofcore.apply
    monkeypatch.setattr(
        outofcore, "apply", lambda *a: (seen.append(target.read_bytes()), apply(*a))
    )
    y = scaled(tmp_path, x, block_bytes=320)
    assert seen == [b"old"] * 10
    np.testing.assert_allclose(y, oracle(x, 0, "standard"), rtol=1e-12, atol=1e-12)


def test_a_link_stays_one_and_permissions_are_the_usual_ones(tmp_path):
    np.save(tmp_path / "in.npy", table((100, 4)))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out.npy").symlink_to(tmp_path / "elsewhere" / "real.npy")
    outofcore.scale_file(tmp_path / "in.npy", tmp_path / "out.npy")
    assert (tmp_path / "out.npy").is_symlink()
    real = tmp_path / "elsewhere" / "real.npy"
    assert list((tmp_path / "elsewhere").iterdir()) == [real]
    assert real.stat().st_mode == (tmp_path / "in.npy").stat().st_mode


# ---- bad input -------------------------------------------------------------------------------


def bad_file(path, kind):
    x = table((100, 4))
    if kind == "text":
        path.write_text("1,2,3\n" * 100)
    elif kind == "nothing":
        path.write_bytes(b"")
    elif kind == "cut":
        np.save(path, x)
        path.write_bytes(path.read_bytes()[:-8])
    elif kind == "infinity":
        x[50, 1] = np.inf
        np.save(path, x)
    else:
        np.save(path, np.zeros({"empty": (0, 4), "scalar": ()}.get(kind, (9, 4)),
                               {"complex": "c16", "dates": "M8[s]"}.get(kind, "f8")))  # fmt: skip


BAD_FILES = [
    ("missing", OSError, "No such file"),
    ("text", ValueError, "in.npy: expected an .npy file"),
    ("nothing", ValueError, "in.npy: expected an .npy file"),
    ("cut", ValueError, "in.npy: expected 3200 bytes of data, got 3192"),
    ("empty", ValueError, r"in.npy: expected an array with elements, got shape \(0, 4\)"),
    ("scalar", ValueError, "expected at least 1 dimension, got a scalar"),
    ("complex", TypeError, "source: expected float16, .*, got complex128"),
    ("dates", TypeError, "source: expected float16, .*, got datetime64"),
    ("infinity", ValueError, "values: expected finite values or NaN, got infinity"),
]


@pytest.mark.parametrize(("kind", "error", "message"), BAD_FILES)
@pytest.mark.parametrize("method", METHODS)
def test_bad_files(tmp_path, kind, error, message, method):
    if kind != "missing":
        bad_file(tmp_path / "in.npy", kind)
    (tmp_path / "out.npy").write_bytes(b"old")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        outofcore.scale_file(
            tmp_path / "in.npy", tmp_path / "out.npy", method=method, block_bytes=300
        )
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "out.npy").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"method": "robust"},
            ValueError,
            "method: expected one of standard, minmax, got 'robust'",
        ),
        ({"method": ["standard"]}, ValueError, "method: expected one of standard, minmax, got"),
        ({"axis": 2}, ValueError, "axis: expected axes in"),
        ({"axis": (0, 0)}, ValueError, "axis: expected distinct"),
        ({"axis": ()}, ValueError, "axis: expected at least one"),
        ({"axis": 0.5}, TypeError, "axis: expected an int"),
        ({"dtype": "int32"}, TypeError, "dtype: expected float16, float32 or float64, got 'int32"),
        ({"dtype": "f3"}, TypeError, "dtype: expected float16, float32 or float64, got 'f3'"),
        ({"block_bytes": 0}, ValueError, "block_bytes: expected at least 1, got 0"),
        ({"block_bytes": 1e6}, TypeError, "block_bytes: expected an int, got float"),
    ],
)
def test_bad_options(tmp_path, options, error, message):
    np.save(tmp_path / "in.npy", table((10, 4)))
    with pytest.raises(error, match=message):
        outofcore.scale_file(tmp_path / "in.npy", tmp_path / "out.npy", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]


def test_bad_targets_and_sources(tmp_path):
    source = tmp_path / "in.npy"
    np.save(source, table((10, 4)))
    os.link(source, tmp_path / "same.npy")
    for target, error, message in [
        (source, ValueError, "target: expected another file than the source"),
        (tmp_path / "same.npy", ValueError, "target: expected another file than the source"),
        (tmp_path, ValueError, "target: expected the name of a file"),
        (tmp_path / "none" / "out.npy", OSError, "none"),
    ]:
        with pytest.raises(error, match=message):
            outofcore.scale_file(source, target)
    with pytest.raises(ValueError, match="another file"):
        outofcore.scale_file(np.load(source, mmap_mode="r"), source)
    with pytest.raises(TypeError, match="target: expected the name of a file, got int"):
        outofcore.scale_file(source, 3)
    with pytest.raises(TypeError, match=r"expected an array or the name of an .* got list"):
        outofcore.scale_file([[1.0]], tmp_path / "out.npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npy", "same.npy"]
    np.testing.assert_array_equal(np.load(source), table((10, 4)))


def test_a_source_that_shrinks_is_an_error(tmp_path, monkeypatch):
    np.save(tmp_path / "in.npy", table((1000, 4)))
    statistics = outofcore._statistics

    def shrinking(*arguments):
        found = statistics(*arguments)
        os.truncate(tmp_path / "in.npy", 5000)
        return found

    monkeypatch.setattr(outofcore, "_statistics", shrinking)
    with pytest.raises(ValueError, match="cut short while it was read"):
        outofcore.scale_file(tmp_path / "in.npy", tmp_path / "out.npy", block_bytes=3200)
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]


# ---- the command -----------------------------------------------------------------------------


def scale(*arguments, code="", **options):
    command = [*CONSOLE[:2], code + CONSOLE[2], "scale", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def test_the_command(tmp_path):
    x = table((300, 4, 3), "float32")
    np.save(tmp_path / "in.npy", x)
    files = tmp_path / "in.npy", tmp_path / "out.npy"
    done = scale(*files, "--method", "minmax", "--axis", "0,-1", "--dtype", "float64",
                 "--block-bytes", "1000", "--progress")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "100%" in done.stderr
    np.testing.assert_allclose(np.load(files[1]), oracle(x, (0, 2), "minmax"), atol=1e-12)
    done = scale(*files)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    np.testing.assert_allclose(np.load(files[1]), oracle(x, (0, 1), "standard"), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.npy", "out.npy"], 1, "Error: [Errno 2] No such file or directory: 'none.npy'"),
        (["in.npy", "in.npy"], 1, "Error: target: expected another file than the source"),
        (["in.npy", "out.npy", "--axis", "5"], 1, "Error: axis: expected axes in"),
        (["in.npy", "out.npy", "--axis", "a"], 2, "'a': expected whole numbers, such as 0,1"),
        (["in.npy", "out.npy", "--method", "robust"], 2, "'robust' is not one of"),
        (["in.npy", "out.npy", "--block-bytes", "0"], 2, "0 is not in the range x>=1"),
        (["in.npy"], 2, "Missing argument 'OUT.npy'"),
    ],
)
def test_errors_of_the_command(tmp_path, arguments, code, message):
    np.save(tmp_path / "in.npy", table((10, 4)))
    done = scale(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]


def test_a_full_disk_is_an_error(tmp_path):
    np.save(tmp_path / "in.npy", table((5000, 4)))
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (100_000, 100_000)); "
    done = scale("in.npy", "out.npy", "--block-bytes", "9999", code=limit, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: [Errno 27]")
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]


@pytest.mark.parametrize("missing", ["click", "tqdm"])
def test_the_command_names_the_extra_that_is_missing(tmp_path, missing):
    np.save(tmp_path / "in.npy", table((10, 4)))
    code = f"import sys; sys.modules['{missing}'] = None; "
    done = scale("in.npy", "out.npy", "--progress", code=code, cwd=tmp_path)
    assert done.returncode == 1
    assert f'{missing} is missing: pip install "fastnorm-cpu[scale]"\n' in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]


def test_a_command_works_without_the_extra_of_the_other(tmp_path):
    np.save(tmp_path / "in.npy", table((10, 4)))
    code = "import sys; sys.modules['rich'] = None; "
    assert scale("in.npy", "out.npy", code=code, cwd=tmp_path).returncode == 0
    done = subprocess.run([*CONSOLE[:2], f"{code}import rich.console"], capture_output=True)
    assert done.returncode == 1  # rich is away indeed
    done = subprocess.run(
        [*CONSOLE[:2], code + CONSOLE[2], "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "scale" in done.stdout
    assert "is missing: pip install" in done.stdout
