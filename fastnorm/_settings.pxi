# Threads, instruction sets, facts about the build and the machine. Users see `_settings.py`.


def set_num_threads(int num_threads):
    fn_set_num_threads(num_threads)


def get_num_threads():
    return fn_get_num_threads()


def count_up(cnp.ndarray count):
    """Add 1 to an array. Where it is one of int64 nothing can fail: the running statistics that it
    counts have been written."""
    if cnp.PyArray_TYPE(count) == cnp.NPY_INT64 and cnp.PyArray_ISCARRAY(count) and (
            cnp.PyArray_SIZE(count) == 1):
        (<int64_t*>cnp.PyArray_DATA(count))[0] += 1
    else:
        count += 1


@cython.auto_pickle(False)
cdef class FloatMode:
    """A context in which the processor rounds as the promises need it, whatever the program has set
    (torch.set_flush_denormal): as in a call of the C library."""
    cdef fn_float_mode found

    def __enter__(self):
        self.found = fn_enter_float_mode()

    def __exit__(self, *error):
        fn_leave_float_mode(self.found)


def available_isas():
    names = []
    for i in range(fn_isa_count()):
        names.append(fn_isa_name(i).decode())
    return tuple(names)


def set_isa(bytes name):
    fn_set_isa(name)


def get_isa():
    return fn_get_isa().decode()


def build_facts():
    """Compiler, OpenMP, instruction sets built, sizes of the caches of level 1 to 3."""
    return (fn_compiler().decode(), fn_has_openmp() != 0, fn_isas_built().decode(),
            (fn_cache_bytes(1), fn_cache_bytes(2), fn_cache_bytes(3)))


def learned_choices():
    """What was learned of calls of each kind: norm, dtype, backward, training, bytes of x, calls,
    threads, stream, fetch, seconds."""
    cdef fn_learned_choice of
    cdef double tick = fn_tick_seconds()
    found = []
    for i in range(fn_choice_count()):
        if fn_choice_at(i, &of):
            dtype = ("float32", "float64", "float16", "bfloat16")[of.dtype]
            found.append((NORMS[of.norm], dtype, of.backward != 0, of.training != 0, of.bytes,
                          of.calls, of.threads, of.stream != 0, of.fetch, of.ticks * tick))
    return found


def forget_choices():
    fn_forget_choices()


def force_choice(threads=-1, stream=-1, fetch=-1):
    """For tests: what every call takes from now on; -1: what it would."""
    fn_force_choice(threads, stream, fetch)


def memory_limit(x, dy, out, stream):
    """For benchmarks: out = x, or x + dy where dy is given, float32 and dense; see fastnorm.h."""
    cdef cnp.ndarray a = _dense_input(x, "x"), y = out
    cdef cnp.ndarray b = None if dy is None else _dense_input(dy, "dy")
    cdef float* g = NULL if dy is None else <float*>cnp.PyArray_DATA(b)
    cdef int flag = stream
    if not cnp.PyArray_ISCARRAY(y) or cnp.PyArray_TYPE(y) != cnp.NPY_FLOAT32 or cnp.PyArray_TYPE(
            a) != cnp.NPY_FLOAT32 or y.size != a.size or (b is not None and b.size != a.size):
        raise ValueError("out: expected dense float32 arrays of one size")
    with nogil:
        fn_memory_limit(<const float*>cnp.PyArray_DATA(a), g, <float*>cnp.PyArray_DATA(y),
                        cnp.PyArray_SIZE(a), flag)
