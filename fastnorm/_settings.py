"""Threads, instruction sets, the cache of outputs; facts about the build and the machine."""

from __future__ import annotations

import os
import warnings

from . import _core
from ._arguments import integer, shown


def set_num_threads(num_threads: int) -> None:
    """Set how many threads a call may use.

    Parameters
    ----------
    num_threads : int
        At least 1; 0 goes back to the default: ``FASTNORM_NUM_THREADS``, else what OpenMP would
        take (``OMP_NUM_THREADS``, threadpoolctl). Small arrays stay on the calling thread.
    """
    if not 0 <= integer(num_threads, "num_threads") <= 1024:
        raise ValueError(f"num_threads: expected 0 to 1024, got {shown(num_threads)}")
    _core.set_num_threads(num_threads)


def get_num_threads() -> int:
    """Return how many threads a call may use; 1 in a build without OpenMP."""
    return _core.get_num_threads()


def available_isas() -> tuple[str, ...]:
    """Return the names of the instruction sets that this processor has, worst first."""
    return _core.available_isas()


def set_isa(name: str) -> None:
    """Choose the instruction set of the kernels; the results keep the same bits.

    Parameters
    ----------
    name : str
        One of :func:`available_isas`.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected a str, got {type(name).__name__}")
    if name not in available_isas():
        raise ValueError(f"name: expected one of {', '.join(available_isas())}, got {shown(name)}")
    _core.set_isa(name.encode())


def get_isa() -> str:
    """Return the name of the instruction set in use."""
    return _core.get_isa()


def set_buffer_cache(bytes: int) -> None:
    """Set how much memory of freed outputs is kept for new ones.

    A call without `out` needs a new array, and fresh memory costs about as much as normalizing it.
    So the memory of outputs above 256 KiB is kept when the last reference to them is gone, and
    handed out again; while anything refers to an output, its memory is its own.

    Parameters
    ----------
    bytes : int
        The most that is kept, over all outputs; what is above is freed now. 0 keeps nothing. The
        default is 256 MiB, or a sixteenth of the machine's memory where that is less: so much more
        a process may hold than its arrays need.

    Examples
    --------
    >>> import fastnorm
    >>> fastnorm.set_buffer_cache(64 * 2**20)
    """
    if not 0 <= integer(bytes, "bytes") < 2**63:
        raise ValueError(f"bytes: expected 0 to 2**63 - 1, got {shown(bytes)}")
    _core.set_buffer_cache(bytes)


def show_config() -> None:
    """Print version, compiler, OpenMP, instruction sets, threads and cache sizes."""
    compiler, has_openmp, built, sizes = _core.build_facts()
    openmp = "yes" if has_openmp else "no (built without it: single-threaded)"
    caches = ", ".join(f"L{i} {size // 1024} KiB" for i, size in enumerate(sizes, 1) if size)
    print(
        f"fastnorm {_core.__version__}\n"
        f"compiler: {compiler}\n"
        f"OpenMP: {openmp}\n"
        f"instruction sets built: {built}\n"
        f"instruction sets of this processor: {' '.join(available_isas())}\n"
        f"instruction set in use: {get_isa()}\n"
        f"threads: {get_num_threads()}\n"
        f"buffer cache: {_core.buffer_cache()[0] // 2**20} MiB\n"
        f"caches: {caches or 'unknown'}"
    )


def show_choices() -> None:
    """Print what was learned of calls of each kind: how they are done best, and what they take.

    How many threads take part in a call, whether the output is written past the cache, and what is
    fetched ahead do not change a bit of the result. So calls on arrays of 256 KiB and more measure
    what each way costs, take the best, and try another now and then. ``FASTNORM_TUNE=0`` in the
    environment leaves the choice to sizes alone.

    Examples
    --------
    >>> import fastnorm
    >>> fastnorm.show_choices()  # doctest: +SKIP
    layer_norm backward, float32, 8 MB: 2 threads, past the cache, 0.87 ms (60 calls)
    """
    rows = _core.learned_choices()
    for norm, dtype, backward, training, size, calls, threads, stream, fetch, seconds in rows:
        step = "backward" if backward else "forward" if training else "inference"
        ways = ["1 thread" if threads == 1 else f"{threads} threads"]
        if stream:
            ways.append("past the cache")
        if fetch:
            ways.append("some is fetched" if fetch == 1 else "all is fetched")
        print(
            f"{norm} norm {step}, {dtype}, {size / 1e6:.2g} MB: {', '.join(ways)}, "
            f"{1e3 * seconds:.3g} ms ({calls} calls)"
        )


def _is_positive(text: str) -> bool:
    return text.strip().isdecimal() and int(text) > 0


def _check_environment() -> None:
    """Warn once of each variable that means nothing."""
    if not available_isas():
        raise ImportError(
            f"fastnorm was built with kernels of {_core.build_facts()[2]} alone, and this "
            "processor has none of them; build it with others (FASTNORM_ISAS)"
        )
    isas = available_isas()
    threads = f"{get_num_threads()} threads"
    for name, expected, is_right, used in (
        ("FASTNORM_ISA", f"one of {', '.join(isas)}", isas.__contains__, get_isa()),
        ("FASTNORM_NUM_THREADS", "a positive number", _is_positive, threads),
        ("FASTNORM_TUNE", "0 or 1", ("0", "1").__contains__, "1"),
        ("FASTNORM_STREAM_BYTES", "a number of bytes", str.isdecimal, "the sizes of the caches"),
        (
            "OMP_NUM_THREADS",
            "a positive number, or several, separated by commas",
            lambda text: all(map(_is_positive, text.split(","))),
            threads,
        ),
    ):
        value = os.environ.get(name)
        if value is not None and not is_right(value):
            warnings.warn(
                f"{name}: expected {expected}, got {value!r}; using {used}",
                RuntimeWarning,
                stacklevel=2,
            )


_check_environment()
