# Threads, instruction sets, facts about the build and the machine.


def set_num_threads(num_threads):
    """Set how many threads a call may use.

    Parameters
    ----------
    num_threads : int
        At least 1; 0 goes back to the default: ``FASTNORM_NUM_THREADS``, else what OpenMP would
        take (``OMP_NUM_THREADS``, threadpoolctl). Small arrays stay on the calling thread.
    """
    if not 0 <= _integer(num_threads, "num_threads") <= 1024:
        raise ValueError(f"num_threads: expected 0 to 1024, got {_shown(num_threads)}")
    fn_set_num_threads(num_threads)


def get_num_threads():
    """Return how many threads a call may use; 1 in a build without OpenMP."""
    return fn_get_num_threads()


def count_up(cnp.ndarray count):
    """Add 1 to an array. Where it is one of int64 nothing can fail: the running statistics that it
    counts have been written."""
    if cnp.PyArray_TYPE(count) == cnp.NPY_INT64 and cnp.PyArray_ISCARRAY(count) and (
            cnp.PyArray_SIZE(count) == 1):
        (<int64_t*>cnp.PyArray_DATA(count))[0] += 1
    else:
        count += 1


cdef class FloatMode:
    """A context in which the processor rounds as the promises need it, whatever the program has set
    (torch.set_flush_denormal): as in a call of the C library."""
    cdef fn_float_mode found

    def __enter__(self):
        self.found = fn_enter_float_mode()

    def __exit__(self, *error):
        fn_leave_float_mode(self.found)


def available_isas():
    """Return the names of the instruction sets that this processor has, worst first."""
    names = []
    for i in range(fn_isa_count()):
        names.append(fn_isa_name(i).decode())
    return tuple(names)


def set_isa(name):
    """Choose the instruction set of the kernels; the results keep the same bits.

    Parameters
    ----------
    name : str
        One of :func:`available_isas`.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected a str, got {type(name).__name__}")
    if name not in available_isas():
        raise ValueError(f"name: expected one of {', '.join(available_isas())}, got {_shown(name)}")
    fn_set_isa(name.encode())


def get_isa():
    """Return the name of the instruction set in use."""
    return fn_get_isa().decode()


def show_config():
    """Print version, compiler, OpenMP, instruction sets, threads and cache sizes."""
    openmp = "yes" if fn_has_openmp() else "no (built without it: single-threaded)"
    caches = ""
    for i in range(1, 4):
        if fn_cache_bytes(i):
            caches += f", L{i} {fn_cache_bytes(i) // 1024} KiB"
    print(f"fastnorm {__version__}\n"
          f"compiler: {fn_compiler().decode()}\n"
          f"OpenMP: {openmp}\n"
          f"instruction sets built: {fn_isas_built().decode()}\n"
          f"instruction sets of this processor: {' '.join(available_isas())}\n"
          f"instruction set in use: {get_isa()}\n"
          f"threads: {get_num_threads()}\n"
          f"buffer cache: {buffer_cache()[0] // 2**20} MiB\n"
          f"caches: {caches[2:] or 'unknown'}")


def memory_limit(x, dy, out, stream):
    """For benchmarks: out = x, or x + dy where dy is given, float32 and dense; see fastnorm.h."""
    cdef cnp.ndarray a = _dense_input(x, "x"), y = out
    cdef cnp.ndarray b = None if dy is None else _dense_input(dy, "dy")
    cdef const float* g = NULL if dy is None else <const float*>cnp.PyArray_DATA(b)
    cdef int flag = stream
    if not cnp.PyArray_ISCARRAY(y) or cnp.PyArray_TYPE(y) != cnp.NPY_FLOAT32 or cnp.PyArray_TYPE(
            a) != cnp.NPY_FLOAT32 or y.size != a.size or (b is not None and b.size != a.size):
        raise ValueError("out: expected dense float32 arrays of one size")
    with nogil:
        fn_memory_limit(<const float*>cnp.PyArray_DATA(a), g, <float*>cnp.PyArray_DATA(y),
                        cnp.PyArray_SIZE(a), flag)


def _check_environment():
    isa, threads = os.environ.get("FASTNORM_ISA"), os.environ.get("FASTNORM_NUM_THREADS")
    if isa is not None and isa not in available_isas():
        warnings.warn(f"FASTNORM_ISA: expected one of {', '.join(available_isas())}, got {isa!r}; "
                      f"using {get_isa()}", RuntimeWarning, stacklevel=2)
    if threads is not None and not (threads.isdecimal() and int(threads) > 0):
        warnings.warn(f"FASTNORM_NUM_THREADS: expected a positive number, got {threads!r}; using "
                      f"{get_num_threads()}", RuntimeWarning, stacklevel=2)


_check_environment()
