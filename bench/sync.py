"""What Sync Batch Norm costs beyond Batch Norm: the time of its collective against C.

python bench/sync.py 4                 # processes of this machine, through shared memory
mpiexec -n 4 python bench/sync.py mpi
"""

import multiprocessing
import sys
import time
from functools import partial

import numpy as np

from fastnorm._reduce import allreduce
from fastnorm.comm import MPICommunicator, local_communicators
from fastnorm.sync import _merge

CHANNELS = (64, 256, 1024, 4096, 16384)
CALLS = 400


def microseconds(comm, channels):
    """Time of the forward collective, merging included, on this rank: median, and best tenth."""
    flat = np.random.default_rng(comm.rank).random(1 + 2 * channels)
    flat[0] = 1000
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        allreduce(comm, lambda: ("forward", flat), _merge)
        times.append(time.perf_counter() - start)
    return 1e6 * np.quantile(times[CALLS // 4 :], (0.5, 0.1))


def report(comm):
    """Print a row for each C."""
    rows = [(channels, microseconds(comm, channels)) for channels in CHANNELS]
    merge = {c: 1e6 * merge_seconds(c) for c in CHANNELS}
    if comm.rank == 0:
        print(f"{type(comm).__name__}, {comm.size} ranks: C, then microseconds:")
        print("collective (median, best tenth), one merge")
        for channels, (median, best) in rows:
            print(f"{channels:6} {median:8.0f} {best:8.0f} {merge[channels]:8.1f}", flush=True)


def merge_seconds(channels):
    """Time to merge two ranks' moments."""
    flat = np.random.default_rng(0).random(1 + 2 * channels)
    start = time.perf_counter()
    for _ in range(CALLS):
        _merge(flat, flat)
    return (time.perf_counter() - start) / CALLS


def main():
    """Time the ranks that there are, or those that it starts."""
    if sys.argv[1:] == ["mpi"]:
        report(MPICommunicator())
        return
    size = int(sys.argv[1])
    start = partial(multiprocessing.get_context("spawn").Process, target=report)
    comms = local_communicators(size)
    ranks = [start(args=(comm,)) for comm in comms]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()


if __name__ == "__main__":
    main()
