"""Outputs of `fastnorm scale`: all or nothing, with the mode and the name that they should have."""

import os
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from tables import oracle, scaled, table

from fastnorm import outofcore
from fastnorm.outofcore import _blocks

# stops in the second pass, half of the output written, until a signal comes
HALF_WAY = """
import sys, time
from fastnorm import cli
from fastnorm.outofcore import _blocks
apply, calls = _blocks.apply, []
def slow(*arguments):
    calls.append(1)
    if len(calls) == 5:
        print("half", flush=True)
        for _ in range(1000):
            time.sleep(0.1)  # one that begins just after a signal would last
    return apply(*arguments)
_blocks.apply = slow
sys.argv = ["fastnorm", "scale", *sys.argv[1:], "--block-bytes", "80000"]
cli.main()
"""


@contextmanager
def half_way(*arguments, ignored=signal.SIG_DFL):
    """Run the command until half of the output is written."""

    def prepare():  # a shell's job in the background inherits that SIGINT is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, ignored)

    process = subprocess.Popen(
        [sys.executable, "-c", HALF_WAY, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=prepare,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "half\n"
        yield process
    finally:
        process.kill()


SIGNALS = [(signal.SIGINT, 1), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize("old", [b"what was there", None])
@pytest.mark.parametrize(("sent", "code"), SIGNALS)
def test_an_interrupt_leaves_what_was_there(tmp_path, old, sent, code):
    np.save(tmp_path / "in.npy", table((10_000, 10)))
    if old is not None:
        (tmp_path / "out.npy").write_bytes(old)
    with half_way(tmp_path / "in.npy", tmp_path / "out.npy") as process:
        (unfinished,) = set(tmp_path.iterdir()) - {tmp_path / "in.npy", tmp_path / "out.npy"}
        assert unfinished.stat().st_size > 200_000
        process.send_signal(sent)
        _, errors = process.communicate(timeout=600)
    assert process.returncode == code
    assert "Traceback" not in errors
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "in.npy"}
    assert left == ({} if old is None else {"out.npy": old})


@pytest.mark.parametrize(("sent", "code"), SIGNALS)
def test_an_interrupt_leaves_no_folder_statistics_or_datasets(tmp_path, sent, code):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file["x"] = table((10_000, 10))
    np.save(tmp_path / "in.npy", table((10_000, 10)))
    options = ["--output-dir", tmp_path / "out", "--save-stats", tmp_path / "s.json"]
    with half_way(f"{tmp_path}/in.h5:/x", tmp_path / "in.npy", *options) as process:
        assert len(list((tmp_path / "out").iterdir())) == 2
        process.send_signal(sent)
        _, errors = process.communicate(timeout=600)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.h5", "in.npy"]


def test_a_second_signal_does_not_disturb_cleaning_up():
    command = pytest.importorskip("fastnorm.outofcore.command")
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    before, cleaned = [*map(signal.getsignal, numbers)], []
    with command._signals():
        pass
    assert [*map(signal.getsignal, numbers)] == before

    def interrupted():
        with command._signals():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                [signal.raise_signal(number) for number in numbers]
                cleaned.append(True)

    try:
        with pytest.raises(SystemExit, match="143"):
            interrupted()
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert cleaned == [True]


def test_nohup_goes_on(tmp_path):
    np.save(tmp_path / "in.npy", table((10_000, 10)))
    with half_way(tmp_path / "in.npy", tmp_path / "out.npy", ignored=signal.SIG_IGN) as process:
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(600) == 143


def test_an_existing_output_is_replaced_when_all_is_written(tmp_path, monkeypatch):
    x = table((100, 4))
    target = tmp_path / "out.npy"
    target.write_bytes(b"old")
    seen = []
    apply = _blocks.apply
    monkeypatch.setattr(_blocks, "apply", lambda *a: (seen.append(target.read_bytes()), apply(*a)))
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


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o664, 0o000])
def test_a_replaced_output_keeps_its_mode(tmp_path, mode):
    np.save(tmp_path / "in.npy", table((100, 4)))
    (tmp_path / "out.npy").write_bytes(b"old")
    (tmp_path / "out.npy").chmod(mode)
    owner = (1234, 4321) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(tmp_path / "out.npy", *owner)
    outofcore.scale_file(tmp_path / "in.npy", tmp_path / "out.npy")
    found = (tmp_path / "out.npy").stat()
    assert stat.S_IMODE(found.st_mode) == mode
    assert (found.st_uid, found.st_gid) == owner


def test_a_private_output_is_private_while_it_is_written(tmp_path, monkeypatch):
    np.save(tmp_path / "in.npy", table((100, 4)))
    (tmp_path / "out.npy").write_bytes(b"old")
    (tmp_path / "out.npy").chmod(0o600)
    seen, apply = [], _blocks.apply

    def watching(*arguments):
        seen.extend(stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob(".*"))
        return apply(*arguments)

    monkeypatch.setattr(_blocks, "apply", watching)
    outofcore.scale_file(tmp_path / "in.npy", tmp_path / "out.npy")
    assert seen == [0o600]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_output_has_the_usual_mode(tmp_path, mask):
    np.save(tmp_path / "in.npy", table((100, 4)))
    before = os.umask(mask)
    try:
        outofcore.scale_file(
            tmp_path / "in.npy", tmp_path / "out.npy", save_stats=tmp_path / "s.json"
        )
    finally:
        os.umask(before)
    for name in ("out.npy", "s.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("name", ["n" * 251 + ".npy", "é" * 125 + ".npy", "日" * 85, "😀" * 63])
def test_names_as_long_as_the_system_allows(tmp_path, name):
    np.save(tmp_path / "in.npy", table((100, 4)))
    for source, target in (("in.npy", name), (name, "again.npy")):
        outofcore.scale_file(tmp_path / source, tmp_path / target, block_bytes=999)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in.npy", name, "again.npy"])
