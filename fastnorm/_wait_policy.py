"""Loads the compiled core with OpenMP threads that sleep while they wait.

GNU's OpenMP reads its settings when it is loaded, and by default its threads spin for milliseconds
after a parallel region, as NumPy's BLAS threads do after a product. In a program that alternates
between the two, which is every network in NumPy, each then waits for the other's threads to leave
the processor: a batch norm of 70 microseconds took 4 milliseconds after each matrix product.
Asleep, threads cost some 25 microseconds to wake, so smaller work stays on the calling thread.

Who sets OMP_WAIT_POLICY or GOMP_SPINCOUNT decides instead; ``OMP_WAIT_POLICY=active`` is faster for
programs that do nothing else, such as benchmarks.
"""

import os

if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
    from . import _core
else:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    try:
        from . import _core
    finally:
        del os.environ["OMP_WAIT_POLICY"]

__all__ = ["_core"]
