"""Contestants of `fastnorm bench`: all compute the same, and each has its process and its turns."""

import contextlib
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import fastnorm
from fastnorm.bench import measure, peers, processes
from fastnorm.bench.cases import DTYPES, LAYOUTS, cases
from fastnorm.bench.compare import first_array, to_float64
from fastnorm.bench.peers import naive_numpy


def twice(prepare):
    def wrong(arrays):
        call = prepare(arrays)
        return lambda: 2 * call()

    return wrong


def in_threads(case):
    """Serve contestants in threads of this process, where they can be replaced."""
    inputs, connections = processes.Inputs(multiprocessing, case.room), {}
    for name in ("fastnorm", "numpy", "limit"):
        connections[name], theirs = multiprocessing.Pipe()
        threading.Thread(target=processes.serve, args=(name, theirs, inputs, False)).start()
    try:
        return processes.run(case, inputs, connections, 1)
    finally:
        for connection in connections.values():
            connection.send(None)


def in_one_process(case):
    modules, _, _ = peers.find(["fastnorm", "numpy"])
    return measure.run(case, modules, 1, fastnorm.get_isa(), 1)


@pytest.mark.parametrize("run", [in_one_process, in_threads])
def test_a_peer_with_a_wrong_result_is_not_timed(run, monkeypatch):
    (case,) = cases([(8, 16)], ["layer_norm"], passes=["forward"])
    right = run(case)
    assert not right.errors
    assert right.seconds.keys() == {"fastnorm", "limit", "numpy"}
    monkeypatch.setattr(naive_numpy, "prepare", twice(naive_numpy.prepare))
    try:
        wrong = run(case)
    finally:
        fastnorm.set_num_threads(0)
    said = "its result differs from fastnorm's by more than 0.001 of the largest element"
    assert wrong.errors == {"numpy": said}
    assert wrong.seconds.keys() == {"fastnorm", "limit"}


# what a peer's results may differ from fastnorm's by, in parts of the largest
COMPARED = {"float32": 1e-5, "float64": 1e-6, "float16": 2e-3, "bfloat16": 1.6e-2}


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in peers.PEERS if name != "numpy"])
def test_others_compute_what_fastnorm_computes(name):
    modules, _, notes = peers.find(["fastnorm", name])
    if notes:
        pytest.skip(notes[0])
    dtypes = DTYPES[:1] if name in ("jax", "torch.compile") else DTYPES  # each takes them seconds
    compared = 0
    for case in cases([(4, 32, 6, 5), (12, 48)], layouts=LAYOUTS, dtypes=dtypes):
        call = modules[name].prepare(case.prepare())
        if call is not None:
            want, got = (
                to_float64(first_array(result, case))
                for result in (modules["fastnorm"].prepare(case.prepare())(), call())
            )
            assert np.abs(got - want).max() <= COMPARED[case.dtype] * np.abs(want).max(), case.id
            compared += 1
    assert compared >= (7 if name == "openvino" else 8)  # which has float32 alone


@pytest.mark.long
def test_a_build_of_onednn_is_given_by_its_path(tmp_path):
    _, _, notes = peers.find(["onednn"])
    if notes:
        pytest.skip(notes[0])
    program = "from fastnorm.bench.peers import onednn; print(onednn.location(), onednn.version())"

    def told(root):
        env = {**os.environ, "ONEDNN_ROOT": str(root)}
        command = [sys.executable, "-c", program]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    assert f"ONEDNN_ROOT={tmp_path}: there is no" in told(tmp_path).stderr
    include, lib, _ = (flag.partition("/")[1:] for flag in peers.load("onednn").location())
    for name, parts in (("include", include), ("lib", lib)):
        (tmp_path / name).symlink_to("".join(parts))
    assert str(tmp_path) in told(tmp_path).stdout


def test_a_long_call_is_timed_less_often(monkeypatch):
    monkeypatch.setattr(measure, "ENOUGH_SECONDS", 0.05)
    monkeypatch.setattr(measure, "LONG_SECONDS", 0.02)
    monkeypatch.setattr(measure, "LEARN_SECONDS", 1e-5)
    called = {"long": 0, "short": 0}

    def call(name, seconds):
        called[name] += 1
        time.sleep(seconds)

    calls = {"long": lambda: call("long", 0.03), "short": lambda: call("short", 1e-3)}
    medians, errors = measure.measure(calls, rounds=9)
    assert called["long"] <= 5 < 9 < called["short"]
    assert medians["long"] >= 0.03
    assert not errors


def test_processes_map_the_same_arrays_and_leave_nothing():
    case, other = cases([(2, 3, 4, 4)], ["batch_norm"], ["NCHW", "NCHW16c"], ["backward"])
    with (
        contextlib.suppress(ZeroDivisionError),
        processes.started(["fastnorm"], [case, other], False) as ((inputs, connections), _, _),
    ):
        assert {"fastnorm", "limit"} == connections.keys()
        for each in (other, case):
            result = processes.run(each, inputs, connections, 1)
            assert result.seconds.keys() == {"fastnorm", "limit"}
            arrays, alone = inputs.arrays(each, np.empty(each.room, np.uint8)), each.prepare()
            np.testing.assert_array_equal(arrays.x, alone.x)
            np.testing.assert_array_equal(arrays.dy, alone.dy)
            assert arrays.x.ctypes.data % 64 == arrays.dy.ctypes.data % 64 == 0
        raise ZeroDivisionError
    assert not list(Path("/dev/shm").glob(f"pym-{os.getpid()}-*"))


def test_a_contestant_whose_process_ends_is_told():
    (case,) = cases([(8, 16)], ["rms_norm"], passes=["forward"])
    with processes.started(["fastnorm", "numpy"], [case], False) as ((inputs, connections), _, _):
        connections["numpy"].send(None)
        for _ in range(2):
            result = processes.run(case, inputs, connections, 1)
            assert result.errors == {"numpy": "its process has ended"}
            assert result.seconds.keys() == {"fastnorm", "limit"}


def test_beside_other_work_prints_a_row_for_each_scene(monkeypatch, capsys):
    from fastnorm.bench import beside

    monkeypatch.setattr(beside, "BESIDE", {"nothing": (0, None), "products": (1, "numpy")})
    monkeypatch.setattr(beside, "in_process", beside.percentiles)
    monkeypatch.setattr(beside, "CASES", cases([(8, 16)], ["rms_norm"], passes=["forward"]))
    monkeypatch.setattr(beside, "CALLS", 3)
    try:
        beside.main()
    finally:
        fastnorm.set_num_threads(0)
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert header == "| beside | rms_norm forward 8x16 |"
    assert [re.sub(r"[\d.]+", "0", row) for row in rows] == [
        "| nothing | 0, 0 |", "| products | 0, 0 |"
    ]  # fmt: skip
