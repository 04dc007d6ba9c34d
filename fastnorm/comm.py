"""How processes talk to each other: MPI, shared memory, or whatever can gather bytes.

:class:`Communicator` is all that :class:`fastnorm.SyncBatchNorm` asks for; an adapter to another
transport is a few lines, as those here.
"""

from __future__ import annotations

import multiprocessing
import threading
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

__all__ = [
    "Communicator",
    "LocalCommunicator",
    "MPICommunicator",
    "PairCommunicator",
    "SingleProcess",
    "local_communicators",
]


@runtime_checkable
class Communicator(Protocol):
    """A group of processes, its *ranks*, that make the same calls in the same order.

    Attributes
    ----------
    rank : int
        Number of this process, from 0.
    size : int
        Number of processes.

    Examples
    --------
    >>> from fastnorm.comm import Communicator, SingleProcess
    >>> isinstance(SingleProcess(), Communicator), SingleProcess().allgather(b"me")
    (True, [b'me'])
    """

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def allgather(self, message: bytes) -> list[bytes]:
        """Return the messages of all ranks, in rank order; their lengths may differ.

        It returns when all ranks have called it, and must raise where one never will.
        """


@runtime_checkable
class PairCommunicator(Communicator, Protocol):
    """A communicator whose ranks can also talk in pairs, which pays from some ranks on."""

    def sendrecv(self, message: bytes, partner: int) -> bytes:
        """Send `message` to rank `partner`, which does the same; return its message."""


class _Shared:
    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # the copy of a layer belongs to the same group


class SingleProcess(_Shared):
    """The communicator of a process on its own."""

    rank = 0
    size = 1

    def allgather(self, message: bytes) -> list[bytes]:
        """Return the one message."""
        return [message]


class MPICommunicator(_Shared):
    """The processes that ``mpiexec`` started.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        The group; all processes by default. It is duplicated, so that messages cannot meet others:
        all its ranks must construct this at the same point. Make one, and share it.

    Raises
    ------
    ImportError
        Without mpi4py: ``pip install fastnorm-cpu[mpi]``.
    TypeError
        `comm` that is no communicator of mpi4py.
    """

    def __init__(self, comm: Any = None) -> None:
        try:
            from mpi4py import MPI
        except ImportError as error:
            raise ImportError(
                "mpi4py: expected it to be installed with an MPI, as by "
                f"'pip install fastnorm-cpu[mpi]', got {error}"
            ) from error
        if not isinstance(comm, (MPI.Comm, type(None))):
            raise TypeError(f"comm: expected an mpi4py.MPI.Comm, got {type(comm).__name__}")
        self._comm = (MPI.COMM_WORLD if comm is None else comm).Dup()
        self.rank: int = self._comm.Get_rank()
        self.size: int = self._comm.Get_size()

    def allgather(self, message: bytes) -> list[bytes]:
        """Gather lengths, then messages."""
        gathered: list[bytes] = self._comm.allgather(message)
        return gathered

    def sendrecv(self, message: bytes, partner: int) -> bytes:
        """Exchange messages with one rank."""
        received: bytes = self._comm.sendrecv(message, dest=partner, source=partner)
        return received


class LocalCommunicator(_Shared):
    """One of several processes on this machine; made by :func:`local_communicators`."""

    def __init__(self, rank: int, memory: Any, semaphores: Any, slot: int, timeout: float) -> None:
        self.rank, self.size = rank, len(semaphores[0])
        self._memory, self._semaphores, self._slot = memory, semaphores, slot
        self._timeout, self._round = timeout, 0

    def allgather(self, message: bytes) -> list[bytes]:
        """Put the message where all can read it, piece by piece where it is long.

        Raises
        ------
        TimeoutError
            A rank did not come; the group cannot be used any more.
        """
        memory = np.frombuffer(self._memory, np.uint8)
        received = [b""] * self.size
        rest = message
        while True:
            # Two banks in turns: who writes to one again has met the others since they read it.
            slots = memory[8:].reshape(2, self.size, 8 + self._slot)[self._round % 2]
            self._round += 1
            piece, rest = rest[: self._slot], rest[self._slot :]
            mine = len(message).to_bytes(8, "little") + piece
            slots[self.rank, : len(mine)] = np.frombuffer(mine, np.uint8)
            self._meet(memory)
            lengths = [int.from_bytes(slot[:8].tobytes(), "little") for slot in slots]
            for i, slot in enumerate(slots):
                missing = lengths[i] - len(received[i])
                received[i] += slot[8 : 8 + min(missing, self._slot)].tobytes()
            if max(lengths) == max(map(len, received)):
                return received

    def _meet(self, memory: Any) -> None:
        """Wait for all ranks, by the dissemination barrier of Hensgen, Finkel and Manber (1988).

        multiprocessing.Barrier takes two to eight times as long, and a process that is killed while
        it holds the barrier's lock would leave the others waiting for ever.
        """
        for step, semaphores in enumerate(self._semaphores):
            semaphores[(self.rank + (1 << step)) % self.size].release()
            met = not memory[0] and semaphores[self.rank].acquire(timeout=self._timeout)
            if not met or memory[0]:
                memory[0] = 1  # whoever comes too late must not go on alone
                raise TimeoutError(
                    f"rank {self.rank}: expected all {self.size} ranks within {self._timeout:g} s, "
                    "got no sign of one of them; was it ended, or did it fail elsewhere?"
                )


def local_communicators(
    size: int, *, timeout: float = 60.0, slot: int = 1 << 16
) -> list[LocalCommunicator]:
    """Communicators for `size` processes on this machine, through shared memory.

    Parameters
    ----------
    size : int
        Number of processes, at least 1.
    timeout : float
        Seconds after which a rank that waits for another raises TimeoutError.
    slot : int
        Bytes that a rank writes at a time; longer messages go in several rounds.

    Returns
    -------
    list of LocalCommunicator
        One for each process, as an argument of ``multiprocessing.Process``, by any start method.
        Keep the list until the processes have ended. The memory has no name in the file system: the
        system takes it back with the last process, however that ends.

    Raises
    ------
    TypeError, ValueError
        `size`, `timeout` or `slot` is no positive number, or above 4096 ranks, what a lock can wait
        for, or 1 GiB.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from fastnorm.comm import local_communicators
    >>> with ThreadPoolExecutor(2) as ranks:  # threads will do as well
    ...     list(ranks.map(lambda c: c.allgather(b"I am %d" % c.rank), local_communicators(2)))
    [[b'I am 0', b'I am 1'], [b'I am 0', b'I am 1']]
    """
    for name, value, kinds in (
        ("size", size, int), ("timeout", timeout, (int, float)), ("slot", slot, int),
    ):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
        most = {"size": 4096, "timeout": threading.TIMEOUT_MAX, "slot": 1 << 30}[name]
        if not 0 < value <= most:
            raise ValueError(
                f"{name}: expected a positive number up to {most:g}, got {value!r:.40}"
            )
    context = multiprocessing.get_context("spawn")  # its semaphores serve forks as well
    memory = context.RawArray("B", 8 + 2 * size * (8 + slot))
    steps = max(1, (size - 1).bit_length())
    semaphores = [[context.Semaphore(0) for _ in range(size)] for _ in range(steps)]
    return [LocalCommunicator(rank, memory, semaphores, slot, timeout) for rank in range(size)]
