"""Sync Batch Norm over processes of each kind: the same as on one, and nothing hangs."""

import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sync_worker as worker
from cases import assert_close
from sync_checks import check_like_one_process, check_misuse

TIME_LIMIT = 600


def start(command, folder, size):
    """Run the worker under a time limit; what each rank found."""
    environment = {
        **os.environ,
        "FASTNORM_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
    }
    process = subprocess.Popen(
        [*command, str(size), str(folder)], text=True, env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        _, errors = process.communicate(timeout=TIME_LIMIT)
    finally:  # all ranks, should they hang
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors
    return {int(p.stem): pickle.loads(p.read_bytes()) for p in Path(folder).iterdir()}


def command(kind, size):
    script = [sys.executable, worker.__file__, kind]
    if kind != "mpi":
        return script
    pytest.importorskip("mpi4py")
    launcher = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which(
        "mpiexec"
    )
    if launcher is None:
        pytest.skip("no mpiexec")
    return [launcher, "-n", str(size), *script]


@pytest.fixture(scope="module", params=[("spawn", 2), ("fork", 4), ("mpi", 2), ("mpi", 4)],
                ids=lambda p: "-".join(map(str, p)))  # fmt: skip
def ranks(request, tmp_path_factory):
    kind, size = request.param
    found = start(command(kind, size), tmp_path_factory.mktemp("ranks"), size)
    # an mpiexec of another MPI would start so many groups of one
    assert sorted(found) == list(range(size))
    assert [found[rank]["size"] for rank in range(size)] == [size] * size
    return [found[rank] for rank in range(size)]


@pytest.mark.parametrize("kind", worker.KINDS)
def test_processes_give_what_one_process_gives(ranks, kind):
    check_like_one_process([rank[kind] for rank in ranks], *kind)


def test_processes_that_talk_in_pairs(ranks):
    if "tree" in ranks[0]:  # MPI
        check_like_one_process([rank["tree"] for rank in ranks], "float64", "NCHW")


def test_one_bad_process_makes_all_raise(ranks):
    check_misuse([rank["misuse"] for rank in ranks])


def test_training_on_all_ranks_is_training_on_one(ranks):
    pytest.importorskip("sklearn")
    want = worker.train(None)
    for rank in ranks:
        for i, (got, expected) in enumerate(zip(rank["train"], want, strict=True)):
            assert_close(got, expected, 1e-4, f"array {i}")
            assert got.tobytes() == ranks[0]["train"][i].tobytes()


def test_a_rank_that_died_makes_the_others_raise(tmp_path):
    found = start(command("leave", 3), tmp_path, 3)
    assert sorted(found) == [0, 1]
    for errors in found.values():
        for kind, text in errors:
            assert kind == "TimeoutError"
            assert "expected all 3 ranks within 1 s" in text
