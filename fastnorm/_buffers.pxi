# New outputs. Large ones come from the C library's cache of buffers, as arrays that own their
# memory: NumPy calls this allocator back when the last reference is gone.

cdef extern from *:
    """
    static void *fn_np_malloc(void *ctx, size_t size) {
        (void)ctx;
        return fn_buffer_new(size);
    }
    static void *fn_np_calloc(void *ctx, size_t count, size_t size) {
        void *p = size && count > SIZE_MAX / size ? NULL : fn_np_malloc(ctx, count * size);
        return p ? memset(p, 0, count * size) : NULL;
    }
    static void fn_np_free(void *ctx, void *p, size_t size) {
        (void)ctx, (void)size;
        fn_buffer_free(p);
    }
    static void *fn_np_realloc(void *ctx, void *p, size_t size) {
        void *to = fn_np_malloc(ctx, size);
        if (to && p) {
            const size_t had = fn_buffer_size(p);
            memcpy(to, p, had < size ? had : size);
            fn_buffer_free(p);
        }
        return to;
    }
    static PyDataMem_Handler fn_np_handler = {
        "fastnorm", 1, {NULL, fn_np_malloc, fn_np_calloc, fn_np_realloc, fn_np_free}};
    static PyObject *fn_np_capsule(void) {
        return PyCapsule_New(&fn_np_handler, "mem_handler", NULL);
    }
    """
    object fn_np_capsule()
    object PyDataMem_SetHandler(object handler)

cdef object _BUFFERS = fn_np_capsule()
# smaller ones are quick to get from malloc
cdef enum: LEAST_BUFFER = 1 << 18


cdef cnp.ndarray _new(int rank, cnp.npy_intp* dims, int num, size_t nbytes):
    if nbytes < LEAST_BUFFER:
        return cnp.PyArray_EMPTY(rank, dims, num, 0)
    before = PyDataMem_SetHandler(_BUFFERS)
    try:
        return cnp.PyArray_EMPTY(rank, dims, num, 0)
    finally:
        PyDataMem_SetHandler(before)


def set_buffer_cache(bytes):
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
    if not 0 <= _integer(bytes, "bytes") < 2**63:
        raise ValueError(f"bytes: expected 0 to 2**63 - 1, got {_shown(bytes)}")
    fn_set_buffer_cache(bytes)


def buffer_cache():
    """Return the bound of the cache of outputs, and what it holds now, in bytes."""
    cdef size_t bound, held
    fn_buffer_cache(&bound, &held)
    return bound, held
