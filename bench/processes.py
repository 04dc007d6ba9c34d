"""Contestants as a user gets them: each in a process of its own, with its own defaults."""

import ctypes
import multiprocessing
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np

import fastnorm
from fastnorm.bench import measure, peers

PRODUCT = 384  # rows and columns of the matrices of a step in a network
LIMIT = "limit"


class Call:
    """A call that another process makes."""

    def __init__(self, connection, name):
        self.connection, self.name = connection, name

    def __call__(self):
        return self.timed(1)

    def timed(self, repeats):
        """Return the seconds of one of so many calls."""
        return ask(self.connection, "time", self.name, repeats)


def ask(connection, *question):
    """Return the answer of a process, or raise its error."""
    try:
        connection.send(question)
        answer, error = connection.recv()
    except (EOFError, ConnectionError):  # in this case and in those after it
        raise RuntimeError("its process has ended") from None
    if error:
        raise RuntimeError(error)
    return answer


class Inputs:
    """Memory of x and dy, which all processes map; nothing is left of it when they end."""

    def __init__(self, context, size):
        # anonymous: the file behind it is unlinked before it is used
        self.pieces = [context.RawArray(ctypes.c_uint8, size) for _ in range(2)]

    def fill(self, case):
        """Draw them for a case."""
        self.arrays(case, np.empty(case.room, np.uint8)).fill()

    def arrays(self, case, out):
        """Return the arrays of a case."""
        return case.over(*(np.frombuffer(piece, np.uint8) for piece in self.pieces), out)


def serve(name, connection, inputs, in_network):
    """Answer, in the process of a contestant, until there is nothing more to do."""
    out = np.empty(len(inputs.pieces[0]), np.uint8)
    out.fill(0)  # or the first calls would wait for the system to map it
    calls = {}
    product = None
    while (question := connection.recv()) is not None:
        what, *details = question
        try:
            answer = None
            if what == "version":
                answer = None if name == LIMIT else peers.load(name).version()
            elif what == "prepare":
                calls.clear()  # before others are made
                calls.update(prepare(name, inputs.arrays(*details, out)))
                if in_network and product is None:
                    product = matrix_product()
                answer = list(calls)
            else:
                call, repeats = calls[details[0]], details[1]
                start = time.perf_counter()
                for _ in range(repeats):
                    if product:
                        product()
                    call()
                answer = (time.perf_counter() - start) / repeats
            connection.send((answer, None))
        except Exception as error:  # the others go on
            connection.send((None, peers.first_line(error)))


def prepare(name, arrays):
    """Return the calls of a case by their names; none where the contestant has no such thing."""
    if name == LIMIT:
        return measure.limit_calls(arrays)
    call = peers.load(name).prepare(arrays)
    return {} if call is None else {name: call}


def matrix_product():
    """Return what stands between the normalizers of a network: a product, by NumPy's threads."""
    a, b = (np.ones((PRODUCT, PRODUCT), np.float32) for _ in range(2))
    out = np.empty_like(a)
    return lambda: np.matmul(a, b, out=out)


@contextmanager
def started(names, cases, in_network):
    """Start the contestants that are here; yields what `run` takes, versions, and notes."""
    context = multiprocessing.get_context("spawn")
    inputs = Inputs(context, max(case.room for case in cases))
    connections, versions, notes, processes = {}, {}, [], []
    try:
        for name in [*names, LIMIT]:
            ours, theirs = context.Pipe()
            details = name, theirs, inputs, in_network
            process = context.Process(target=serve, args=details, daemon=True)
            process.start()
            processes.append(process)
            theirs.close()
            try:
                version = ask(ours, "version")
            except RuntimeError as error:
                notes.append(f"{name} is left out: {peers.first_line(error)}")
                continue
            connections[name] = ours
            if name != LIMIT:
                versions[name] = version
        yield (inputs, connections), versions, notes
    finally:
        for process in processes:
            process.terminate()
            process.join()


def run(case, inputs, connections, rounds):
    """Measure one case with all contestants that have it, in turns."""
    inputs.fill(case)
    result = measure.Result(case, fastnorm.get_num_threads(), fastnorm.get_isa())
    calls = {}
    for name, connection in connections.items():
        try:
            for call in ask(connection, "prepare", case):
                calls[call] = Call(connection, call)
        except RuntimeError as error:
            result.errors[name] = str(error)
    result.take(*measure.measure(calls, rounds))
    return result


@contextmanager
def busy(count):
    """So many processes compute meanwhile."""
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command, env={**os.environ}) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()
