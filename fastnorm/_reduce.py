"""What the ranks bring, merged in rank order: the same result, or the same error, on all."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple, TypeAlias

import numpy as np

from ._types import Array
from .comm import Communicator, PairCommunicator

# Up to here every rank gets every message: one collective, though of size times the bytes.
GATHER_UP_TO = 8

Merge: TypeAlias = Callable[[Array, Array], Array]

ERRORS = {
    "TypeError": TypeError, "ValueError": ValueError, "MemoryError": MemoryError,
    "RuntimeError": RuntimeError,
}  # fmt: skip


class Run(NamedTuple):
    """Neighbouring ranks that say the same: which call they make, or what is wrong with theirs."""

    first: int
    last: int
    error: str  # a key of ERRORS; "" where nothing is wrong
    text: str

    def __str__(self) -> str:
        return f"rank(s) {list(range(self.first, self.last + 1))}: {self.text}"


class Report(NamedTuple):
    """What neighbouring ranks bring: as few runs as possible, and data where they agree."""

    runs: list[Run]
    data: Array

    def encode(self) -> bytes:
        head = json.dumps(self.runs).encode()
        head += b" " * (-len(head) % 8)
        return len(head).to_bytes(8, "little") + head + self.data.tobytes()

    @classmethod
    def decode(cls, message: bytes) -> Report:
        start = 8 + int.from_bytes(message[:8], "little")
        runs = [Run(*run) for run in json.loads(message[8:start])]
        return cls(runs, np.frombuffer(message, np.float64, offset=start))

    def join(self, after: Report, merge: Merge) -> Report:
        runs = _join(self.runs, after.runs)
        return Report(runs, merge(self.data, after.data) if _agree(runs) else np.empty(0))


def _join(before: list[Run], after: list[Run]) -> list[Run]:
    *most, a = before
    b, *rest = after
    middle = [Run(a.first, b.last, *a[2:])] if a[2:] == b[2:] else [a, b]
    return [*most, *middle, *rest]


def _agree(runs: list[Run]) -> bool:
    return len(runs) == 1 and not runs[0].error


def allreduce(
    comm: Communicator, contribute: Callable[[], tuple[str, Array]], merge: Merge
) -> tuple[Array, Array]:
    """Merge float64 vectors over all ranks, with the same bits on each.

    `contribute` returns the call that this rank makes, in words, and its vector. Where it raises,
    or where the words differ, all ranks raise. Returns the own and the merged vector.
    """
    if comm.size == 1:
        data = contribute()[1]
        return data, data
    failure = None
    try:
        call, data = contribute()
        own = Report([Run(comm.rank, comm.rank, "", call)], data)
    except Exception as error:  # whatever it is, the other ranks wait
        own = Report([Run(comm.rank, comm.rank, _kind(error), str(error))], np.empty(0))
        failure = error
    with np.errstate(over="ignore", invalid="ignore"):  # inf and NaN stay in their channels
        if comm.size > GATHER_UP_TO and isinstance(comm, PairCommunicator):
            merged = _doubled(comm, own, merge)
        else:
            merged = _gathered(comm, own, merge)
    _check(merged.runs, failure)
    return own.data, merged.data


def _kind(error: Exception) -> str:
    for kind, class_ in ERRORS.items():
        if isinstance(error, class_):
            return kind
    return "RuntimeError"


def _check(runs: list[Run], failure: Exception | None) -> None:
    failed = [run for run in runs if run.error]
    if failed:
        raise ERRORS[failed[0].error]("; ".join(map(str, failed))) from failure
    if len(runs) > 1:
        raise ValueError(f"x: expected the same call on all ranks, got {'; '.join(map(str, runs))}")


def _gathered(comm: Communicator, own: Report, merge: Merge) -> Report:
    messages = comm.allgather(own.encode())
    if len(messages) != comm.size:
        raise RuntimeError(f"comm: expected {comm.size} messages, got {len(messages)}")
    reports = [Report.decode(message) for message in messages]
    runs = reduce(_join, (report.runs for report in reports))
    # other ranks' data may be of another call, which `merge` could not take
    data = reduce(merge, (report.data for report in reports)) if _agree(runs) else np.empty(0)
    return Report(runs, data)


def _doubled(comm: PairCommunicator, own: Report, merge: Merge) -> Report:
    """Merge by recursive doubling.

    Blocks of 1, 2, 4, ... neighbours meet the block beside them, and both merge the two in rank
    order. So that a power of two takes part, the first ranks go in pairs.
    """
    power = 1 << (comm.size.bit_length() - 1)
    pairs = comm.size - power

    def meet(report: Report, partner: int) -> Report:
        other = Report.decode(comm.sendrecv(report.encode(), partner))
        if comm.rank < partner:
            return report.join(other, merge)
        return other.join(report, merge)

    if comm.rank >= 2 * pairs:
        place = comm.rank - pairs
    else:
        own = meet(own, comm.rank ^ 1)
        place = comm.rank // 2
        if comm.rank % 2:  # the even one speaks for both, and tells at the end
            return Report.decode(comm.sendrecv(b"", comm.rank ^ 1))
    for step in (1 << i for i in range(power.bit_length() - 1)):
        there = place ^ step
        own = meet(own, 2 * there if there < pairs else there + pairs)
    if comm.rank < 2 * pairs:
        comm.sendrecv(own.encode(), comm.rank ^ 1)
    return own
