# What is more than one normalizer's: the moments of any axes, and what else the scalers need, of
# matrices.


cdef int64_t _padded_channels(Context ctx):
    """Of all blocks, in a layout of blocks."""
    if ctx.p.layout != FN_BLOCKED:
        return ctx.p.c
    return (ctx.p.c + ctx.p.block - 1) // ctx.p.block * ctx.p.block


def measure(x, axis, layout, weight, bias, skip_nan=False, row_weight=None):
    """Exact moments: how many elements a feature has, the shape of the features, and (5, features)
    numbers: of each feature how many elements count, the mean, what the mean lost to rounding, m2
    and an exponent, where the sum of squared deviations is ``m2 * 4.0**exponent``.

    Over `axis`; with axis None, of the channels of `layout`, (C,). With `skip_nan` NaN does not
    count. `row_weight`, float64: how often each element along the axis counts.
    """
    cdef Context ctx = _start(x, FN_BATCH if axis is None else FN_LAYER, 0.0)
    cdef fn_status status
    cdef cnp.ndarray statistics
    cdef const double* row_weights = NULL
    cdef int skip = skip_nan
    if axis is None:
        _set_layout(ctx, layout, weight, bias)
        shape, features = (ctx.p.c,), _padded_channels(ctx)
        elements = <object>ctx.p.n * <object>ctx.p.s
    else:
        _set_axis(ctx, axis)
        shape = _arguments.without(ctx.shape, ctx.over)
        features, elements = math.prod(shape), ctx.p.s
    if row_weight is not None:
        row_weights = _doubles(row_weight, ctx.p.s)
    try:
        statistics = np.zeros((5, features))
    except ValueError:  # more than NumPy can number
        raise MemoryError(f"x: no memory for the moments of {features} features") from None
    with nogil:
        status = fn_measure(&ctx.p, cnp.PyArray_DATA(ctx.x), skip, row_weights,
                            <double*>cnp.PyArray_DATA(statistics))
    _check_status(status)
    return elements, shape, statistics


def checked_rows(x, axis, out, return_ctx):
    """x as an array that is dense, and the axes from 0 on; raise what layer norm would."""
    cdef Context ctx = _start(x, FN_LAYER, 0.0)
    axes = _axes(axis, len(ctx.shape))
    _check_forward_out(ctx, out, return_ctx)
    return ctx.x, axes


cdef cnp.ndarray _matrix(object value, str name):
    cdef cnp.ndarray a = _dense_input(value, name)
    if cnp.PyArray_NDIM(a) != 2:
        raise ValueError(f"{name}: expected 2 dimensions, got shape {(<object>a).shape}")
    return a


def extremes(x):
    """The least and the largest value of each column of a matrix, NaN passed over: (2, columns),
    float64; NaN where there is nothing else."""
    cdef cnp.ndarray a = _matrix(x, "x"), found
    cdef fn_dtype dtype = <fn_dtype>_dtype(a, "x")
    cdef int64_t rows = cnp.PyArray_DIM(a, 0), cols = cnp.PyArray_DIM(a, 1)
    cdef fn_status status
    found = np.empty((2, cols))
    with nogil:
        status = fn_extremes(dtype, rows, cols, cnp.PyArray_DATA(a),
                             <double*>cnp.PyArray_DATA(found))
    _check_status(status)
    return found


def affine(x, center, factor, shift, out, by_row=False):
    """`out = (x - center) * factor + shift`, with float64 coefficients of each column, or of each
    row. `out` is x or does not overlap it, and is dense. Return whether x has infinities."""
    cdef cnp.ndarray a = _matrix(x, "x"), y
    cdef fn_dtype dtype = <fn_dtype>_dtype(a, "x")
    cdef int64_t rows = cnp.PyArray_DIM(a, 0), cols = cnp.PyArray_DIM(a, 1)
    cdef int rows_differ = by_row
    # a copy, so that they are dense whatever was given
    coefficients = np.empty((3, rows if by_row else cols))
    coefficients[0], coefficients[1], coefficients[2] = center, factor, shift
    cdef int64_t each = rows if by_row else cols
    cdef double* c = _doubles(coefficients, 3 * each)
    cdef int infinite = 0
    cdef fn_status status
    _check_out(out, a, (rows, cols))
    y = out
    if not cnp.PyArray_ISCARRAY(y) or (
            cnp.PyArray_DATA(y) != cnp.PyArray_DATA(a) and _overlap(y, a)):
        raise ValueError("out: expected a C-contiguous array that is x or apart from it")
    if each == 0:
        return False
    with nogil:
        status = fn_affine(dtype, rows, cols, rows_differ, cnp.PyArray_DATA(a), c, c + each,
                           c + 2 * each, cnp.PyArray_DATA(y), &infinite)
    _check_status(status)
    return infinite != 0


def quantize(int kind, cnp.ndarray y, cnp.ndarray scale, bint find, cnp.ndarray q):
    """`q = y / scale` in int8 (kind 0), float8_e4m3fn (1) or float8_e5m2 (2), where each of the
    scales is that of a row, as long as there are scales; `find` them first. All are dense."""
    cdef int64_t rows = cnp.PyArray_SIZE(scale), size = cnp.PyArray_SIZE(y)
    if not (cnp.PyArray_TYPE(y) == cnp.PyArray_TYPE(scale) == cnp.NPY_FLOAT32
            and cnp.PyArray_ISCARRAY_RO(y) and cnp.PyArray_ISCARRAY(scale)
            and cnp.PyArray_ISCARRAY(q) and cnp.PyArray_ITEMSIZE(q) == 1
            and cnp.PyArray_SIZE(q) == size and rows and size % rows == 0 and 0 <= kind < 3):
        raise ValueError("expected dense y and q of one size, and a scale for each row")
    with nogil:
        fn_quantize(<fn_small>kind, rows, size // rows, find, <float*>cnp.PyArray_DATA(y),
                    <float*>cnp.PyArray_DATA(scale), cnp.PyArray_DATA(q))


def empty_like(cnp.ndarray x):
    """An array of x's shape and dtype, C-contiguous, from the cache of buffers."""
    return _new(cnp.PyArray_NDIM(x), cnp.PyArray_DIMS(x), cnp.PyArray_TYPE(x),
                cnp.PyArray_SIZE(x) * cnp.PyArray_ITEMSIZE(x))
