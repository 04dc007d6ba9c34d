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


def set_buffer_cache(size_t nbytes):
    fn_set_buffer_cache(nbytes)


def buffer_cache():
    """Return the bound of the cache of outputs, and what it holds now, in bytes."""
    cdef size_t bound, held
    fn_buffer_cache(&bound, &held)
    return bound, held
