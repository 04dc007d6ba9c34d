# The steps of batch norm one by one, for statistics that come from more than one array; and the
# moments of any axes. What else the scalers need, of matrices.


def check_batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps, ddof,
                     layout, out, return_ctx):
    """Raise what `batch_norm` would, but for the count. Returns x as the other steps read it."""
    cdef Context ctx = _start_channels(FN_BATCH, x, weight, bias, running_mean, running_var,
                                       training, momentum, eps, ddof, layout, None, None, None)
    _check_forward_out(ctx, out, return_ctx)
    if out is not None:
        _detach(ctx, out)
    return ctx.x


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


def apply(x, mean, std, weight, bias, axis, layout, eps, out, return_ctx):
    """Normalize with given float64 statistics, in the shape in which `measure` returns them."""
    cdef Context ctx = _start(x, FN_BATCH if axis is None else FN_LAYER, eps)
    cdef int64_t domains, i
    cdef cnp.ndarray means = np.ascontiguousarray(mean, np.float64)
    cdef cnp.ndarray deviations = np.ascontiguousarray(std, np.float64)
    cdef int64_t given = cnp.PyArray_SIZE(means)
    cdef double* mean_of = _doubles(means, given)
    cdef double* std_of = _doubles(deviations, given)
    if axis is None:
        _set_layout(ctx, layout, weight, bias, mean)
        _set_affine(ctx, weight, bias)
    else:
        _set_axis(ctx, axis)
    domains = _make_saved(ctx) // 2
    for i in range(domains):
        ctx.saved[i] = mean_of[i] if i < given else 0
        ctx.saved[domains + i] = std_of[i] if i < given else 0
    return _forward(ctx, out, return_ctx)


def checked_rows(x, axis, out, return_ctx):
    """x as an array that is dense, and the axes from 0 on; raise what layer norm would."""
    cdef Context ctx = _start(x, FN_LAYER, 0.0)
    axes = _axes(axis, len(ctx.shape))
    _check_forward_out(ctx, out, return_ctx)
    return ctx.x, axes


def measure_grad(dy, ctx, out):
    """Sums of dy and of dy * (x - mean) over each channel, one behind the other: (2 * C,), float64.
    `out` is only checked, for `apply_grad`."""
    cdef Context c = _context(ctx)
    cdef cnp.ndarray g = _gradient(dy, c), sums
    cdef int64_t padded = _padded_channels(c)
    cdef fn_status status
    _check_grad_out(out, g, c)
    sums = np.zeros(2 * padded)
    with nogil:
        status = fn_measure_grad(&c.p, &c.q, c.saved, cnp.PyArray_DATA(c.x),
                                 cnp.PyArray_DATA(g), <double*>cnp.PyArray_DATA(sums))
    _check_status(status)
    return sums if padded == c.p.c else _copied_sums(sums, padded, c.p.c)


cdef cnp.ndarray _copied_sums(cnp.ndarray sums, int64_t channels, int64_t wanted):
    """Sums for another number of channels: with padding, or without."""
    cdef cnp.ndarray copy = np.zeros(2 * wanted)
    cdef double* to = <double*>cnp.PyArray_DATA(copy)
    cdef double* source = _doubles(sums, 2 * channels)
    cdef int64_t each = min(channels, wanted) * <int64_t>sizeof(double)
    memcpy(to, source, each)
    memcpy(to + wanted, source + channels, each)
    return copy


def apply_grad(dy, ctx, sums, double count, out, dweight, dbias):
    """The gradients, where `sums` are those of all `count` elements of each channel."""
    cdef Context c = _context(ctx)
    cdef cnp.ndarray g = _gradient(dy, c), dx
    cdef cnp.ndarray padded = _copied_sums(sums, c.p.c, _padded_channels(c))
    cdef fn_status status
    _check_grad_out(out, g, c)
    dx = _target(out, g, c.axes)
    result = Gradients(_returned(dx, out, c.axes, c.shape), dweight, dbias)
    with nogil:
        status = fn_apply_grad(&c.p, &c.q, c.saved, <double*>cnp.PyArray_DATA(padded), count,
                               cnp.PyArray_DATA(c.x), cnp.PyArray_DATA(g), cnp.PyArray_DATA(dx))
    _check_status(status)
    _deliver(dx, result[0], c.axes)
    return result


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


def empty_like(cnp.ndarray x):
    """An array of x's shape and dtype, C-contiguous, from the cache of buffers."""
    return _new(cnp.PyArray_NDIM(x), cnp.PyArray_DIMS(x), cnp.PyArray_TYPE(x),
                cnp.PyArray_SIZE(x) * cnp.PyArray_ITEMSIZE(x))
