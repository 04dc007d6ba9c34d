# What is more than one normalizer's: the moments of any axes, what else the scalers need, of
# matrices, and the checks of normalizers that are computed in Python.


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


# ---- normalizers of groups of channels that are computed in Python ----------------------------


def start_whitening(x, weight, bias, running_mean, running_cov, training, momentum, eps,
                    group_size, layout, out, return_ctx):
    """Check all that whitening takes, as batch norm would. Return a context, for
    `check_grad_out`; x, dense; the channels of a group; weight and bias, dense; running mean and
    covariance, dense; the dtypes of the gradients of weight and bias."""
    cdef Context ctx = _start(x, FN_BATCH, eps)
    cdef bint keep
    if ctx.p.eps == 0:
        raise ValueError("eps: expected a number above 0, got 0")
    _set_layout(ctx, layout, weight, bias, running_mean)
    if ctx.p.layout == FN_BLOCKED:
        raise ValueError(f"layout: expected channels first or last, got {layout!r}, in blocks")
    group_size = _arguments.group_size(group_size, ctx.p.c)
    _set_affine(ctx, weight, bias)
    ctx.p.training = _flag(training, "training")
    matrices = (ctx.p.c // group_size, group_size, group_size)
    found = _checked_matrices(ctx, running_mean, running_cov, matrices, (x, weight, bias))
    if momentum is None:
        _arguments.refuse_momentum()
    ctx.p.momentum = _number(momentum, "momentum", 0, 1)
    if ctx.p.training and ctx.p.n * ctx.p.s == 1 and ctx.p.c > 0:
        _arguments.refuse_single(ctx.shape)
    keep = _check_forward_out(ctx, out, return_ctx)
    if _overlap(out, running_cov):
        _arguments.refuse_shared("out", "running_cov")
    if keep:  # statistics, of which nothing is read: without, a context is not copied or pickled
        _make_saved(ctx)
        ctx.statistics[...] = 0
    _settle(ctx)
    types = _state_of(ctx)[7]
    return (ctx, ctx.x, group_size, (ctx.params[WEIGHT], ctx.params[BIAS]), found,
            (types[WEIGHT], types[BIAS]))


cdef tuple _checked_matrices(Context ctx, object mean, object cov, tuple shape, tuple read):
    """Running statistics: means (C,), and a matrix for each group. `read` as in _set_running."""
    cdef bint update = ctx.p.training
    if (mean is None) != (cov is None) or mean is None and not update:
        _arguments.refuse_running(mean, cov, ctx.p.c, "when training is False", "running_cov",
                                  shape)
    if mean is None:
        return None, None
    found = (_state(mean, "running_mean", ctx.x, ctx.param_shape, update),
             _state(cov, "running_cov", ctx.x, shape, update))
    ctx.running_mean = mean  # which `out` must be apart from
    if update:
        _check_apart(mean, "running_mean", read)
        _check_apart(cov, "running_cov", read)
        if _overlap(mean, cov):
            _arguments.refuse_shared("running_cov", "running_mean")
    return found


def check_grad_out(dy, Context ctx, out):
    """Raise where backward's `out`, or an array of the forward call, is not what it must be."""
    _check_places(ctx)
    _check_grad_out(out, dy, ctx)


def target(x, out):
    """Where to write what is like x, dense: `out`, or a temporary where it is not dense, or shares
    memory with x in another way than being it."""
    return _target(out, x, None)


def deliver(cnp.ndarray result, out):
    """What was written to a `target`, in `out`, if there is one."""
    return _deliver(result, out, None)
