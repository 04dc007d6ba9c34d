# Batch norm in steps, for moments and sums of more than one call: over processes (sync batch norm),
# over micro-batches (moments=), over samples whose weights differ. One context goes through the
# steps: started (all arguments checked), measured, and, with the moments of all, finished.
#
# The moments of all channels are one vector, for a message: the count, the means, and the roots of
# the sums of squared deviations, which are float64 where the sums are not. Nothing here is done by
# NumPy's functions, which where memory is missing crash, or fail without an error, and which
# np.errstate makes raise. All computes in the mode of the C library (FloatMode), like all that
# decides bits.


cdef double* _doubles(cnp.ndarray a, Py_ssize_t size) except NULL:
    if cnp.PyArray_TYPE(a) != cnp.NPY_FLOAT64 or not cnp.PyArray_ISCARRAY_RO(a) or (
            cnp.PyArray_SIZE(a) != size):
        raise ValueError(f"expected {size} numbers of float64, side by side")
    return <double*>cnp.PyArray_DATA(a)


cdef inline cnp.ndarray _empty(cnp.npy_intp size, int num):
    return cnp.PyArray_EMPTY(1, &size, num, 0)


cdef double _unit(double a, double b, double c) noexcept:
    """A power of two by which numbers are divided whose squares are to be added: 1 for most."""
    cdef double most = max(fabs(a), fabs(b), fabs(c))
    cdef int exponent
    if 2.0**-480 < most < 2.0**480 or not 0 < most < INFINITY:
        return 1
    frexp(most, &exponent)
    return ldexp(1, min(max(exponent, -1000), 1000))


def start_batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps, ddof,
                     layout, out, return_ctx):
    """A context with all that is checked before the ranks meet, but for the count."""
    cdef Context ctx = _start_channels(FN_BATCH, x, weight, bias, running_mean, running_var,
                                       training, momentum, eps, ddof, layout, None, None, None,
                                       None)
    _check_forward_out(ctx, out, return_ctx)
    if out is not None:
        _detach(ctx, out)
    _remember(ctx)
    return ctx


@cython.cdivision(True)
def measure_started(Context ctx):
    """The moments of this rank, the number of channels, and the dtype."""
    cdef Py_ssize_t channels = ctx.p.c, features = _padded_channels(ctx), c
    cdef cnp.ndarray packed = _empty(1 + 2 * channels, cnp.NPY_FLOAT64)
    cdef cnp.ndarray statistics = np.zeros(5 * features)
    cdef double* to = _doubles(packed, 1 + 2 * channels)
    cdef double* found = _doubles(statistics, 5 * features)
    cdef fn_float_mode mode
    cdef fn_status status
    with nogil:
        status = fn_measure(&ctx.p, cnp.PyArray_DATA(ctx.x), 0, NULL, found)
    _check_status(status)
    to[0] = <double>ctx.p.n * <double>ctx.p.s
    mode = fn_enter_float_mode()
    for c in range(channels):
        to[1 + c] = found[features + c]
        to[1 + channels + c] = ldexp(sqrt(found[3 * features + c]), <int>found[4 * features + c])
    fn_leave_float_mode(mode)
    return packed, channels, ctx.x.dtype


@cython.cdivision(True)
def merge_moments(cnp.ndarray first, cnp.ndarray second):
    """The moments of the union (Chan, Golub & LeVeque 1979)."""
    cdef fn_float_mode mode
    cdef Py_ssize_t size = cnp.PyArray_SIZE(first), channels = (size - 1) // 2, c
    cdef double* a = _doubles(first, size)
    cdef double* b = _doubles(second, size)
    cdef cnp.ndarray merged = _empty(size, cnp.NPY_FLOAT64)
    cdef double* to = <double*>cnp.PyArray_DATA(merged)
    cdef double part, delta, unit, root, x, y, d
    if a[0] == 0 or b[0] == 0:
        memcpy(to, b if a[0] == 0 else a, size * sizeof(double))
        return merged
    mode = fn_enter_float_mode()
    to[0] = a[0] + b[0]
    part = b[0] / to[0]
    for c in range(1, 1 + channels):
        delta = b[c] - a[c]
        unit = _unit(a[c + channels], b[c + channels], delta)
        x, y, d = a[c + channels] / unit, b[c + channels] / unit, delta / unit
        root = sqrt(x * x + y * y + d * d * (a[0] * part))
        to[c] = a[c] + delta * part
        to[c + channels] = unit * root
    fn_leave_float_mode(mode)
    return merged


def packed_moments(ctx):
    """The moments that a batch norm has measured and normalized by, as those of a rank."""
    cdef Context c = _context(ctx)
    cdef Py_ssize_t channels = c.p.c, features = _padded_channels(c), i
    cdef cnp.ndarray packed = _empty(1 + 2 * channels, cnp.NPY_FLOAT64)
    cdef double* to = _doubles(packed, 1 + 2 * channels)
    cdef fn_float_mode mode = fn_enter_float_mode()
    to[0] = <double>c.p.n * <double>c.p.s
    for i in range(channels):
        to[1 + i] = c.saved[i]
        to[1 + channels + i] = c.saved[features + i] * sqrt(to[0])
    fn_leave_float_mode(mode)
    return packed


def finish_batch_norm(Context ctx, cnp.ndarray packed, out, return_ctx):
    """Normalize by the moments of all ranks: what `batch_norm` returns, and rstd (C,)."""
    rstd = take_moments(ctx, packed)
    return _forward(ctx, out, return_ctx), rstd


@cython.cdivision(True)
def take_moments(Context ctx, cnp.ndarray packed):
    """Let a context that was started have the moments of all ranks; return rstd (C,)."""
    cdef Py_ssize_t channels = ctx.p.c, c
    cdef double* moments = _doubles(packed, 1 + 2 * channels)
    cdef double count = moments[0], root = sqrt(ctx.p.eps), deviation, unit, s, e
    cdef cnp.ndarray rstd = _empty(channels, cnp.NPY_FLOAT64)
    cdef cnp.ndarray var = _empty(channels, cnp.NPY_FLOAT64)
    cdef double* rstds = <double*>cnp.PyArray_DATA(rstd)
    cdef double* variances = <double*>cnp.PyArray_DATA(var)
    cdef int64_t features = _padded_channels(ctx)
    cdef double* saved
    cdef fn_float_mode mode
    _check_places(ctx)  # the caller's code has run: a communicator may be anybody's
    if ctx.updates:
        _check_running(ctx.running_mean, "running_mean", ctx.param_shape)
        _check_running(ctx.running_var, "running_var", ctx.param_shape)
    ctx.statistics = np.zeros(2 * features)
    ctx.saved = saved = <double*>cnp.PyArray_DATA(ctx.statistics)
    mode = fn_enter_float_mode()
    for c in range(channels):
        deviation = moments[1 + channels + c]
        saved[c] = moments[1 + c]
        saved[features + c] = deviation / sqrt(count) if count > 0 else 0
        unit = _unit(deviation, 0, 0)
        s = deviation / unit
        variances[c] = s * s / (count - ctx.p.ddof) * unit * unit if count > ctx.p.ddof else NAN
        unit = _unit(saved[features + c], root, 0)
        s, e = saved[features + c] / unit, root / unit
        rstds[c] = 1 / (unit * sqrt(s * s + (ctx.p.eps if unit == 1 else e * e)))
    fn_leave_float_mode(mode)
    ctx.updates = ctx.updates and count > 0
    if ctx.updates:
        if count <= max(1, ctx.p.ddof):
            raise ValueError("x: expected more than one value for each channel on all ranks "
                             "together, whose variance updates running_var, got 1")
        ctx.mean_used = _moved(ctx.mean_used, moments + 1, ctx.p.momentum)
        ctx.var_used = _moved(ctx.var_used, variances, ctx.p.momentum)
    _point(ctx)
    return rstd


cdef int _check_running(cnp.ndarray a, str name, tuple shape) except -1:
    if not (cnp.PyArray_ISCARRAY(a) and _has_shape(a, shape)):
        _arguments.refuse_changed(name)
    return 0


cdef cnp.ndarray _moved(cnp.ndarray running, double* batch, double momentum):
    """``(1 - momentum) * running + momentum * batch``, in the dtype in which is computed."""
    cdef Py_ssize_t size = cnp.PyArray_SIZE(running), i
    cdef cnp.ndarray result = _empty(size, cnp.PyArray_TYPE(running))
    cdef bint narrow = cnp.PyArray_TYPE(running) == cnp.NPY_FLOAT32
    cdef float* single = <float*>cnp.PyArray_DATA(running)
    cdef double* whole = <double*>cnp.PyArray_DATA(running)
    cdef fn_float_mode mode = fn_enter_float_mode()
    for i in range(size):
        if narrow:
            (<float*>cnp.PyArray_DATA(result))[i] = <float>(
                (1 - momentum) * single[i] + momentum * batch[i])
        else:
            (<double*>cnp.PyArray_DATA(result))[i] = (
                (1 - momentum) * whole[i] + momentum * batch[i])
    fn_leave_float_mode(mode)
    return result


def measure_grad(dy, ctx, out):
    """Sums of dy and of dy * (x - mean) over each channel, one behind the other: (2 * C,), float64.
    `out` is only checked, for `finish_backward`."""
    cdef Context c = _context(ctx)
    cdef cnp.ndarray g = _gradient(dy, "dy", c), sums
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


cdef object _param_gradient(Context c, int i, double* sums, double* scale):
    """dweight or dbias of the sums, each times its `scale`, or None where there is no parameter."""
    cdef cnp.ndarray own, wide
    cdef Py_ssize_t k
    cdef double value
    cdef fn_float_mode mode
    if c.params[i] is None:
        return None
    own = _empty(c.p.c, c.grad_types[i])
    wide = own if cnp.PyArray_ITEMSIZE(own) > 2 else _empty(c.p.c, cnp.NPY_FLOAT32)
    mode = fn_enter_float_mode()
    for k in range(c.p.c):
        value = sums[k] if scale == NULL else sums[k] * scale[k]
        if cnp.PyArray_TYPE(wide) == cnp.NPY_FLOAT32:
            (<float*>cnp.PyArray_DATA(wide))[k] = <float>value
        else:
            (<double*>cnp.PyArray_DATA(wide))[k] = value
    fn_leave_float_mode(mode)
    if wide is not own:
        _put_back(wide, own)
    return own


def output_again(ctx):
    """What a finished call gave, made again from its statistics."""
    cdef Context c = _context(ctx)
    cdef cnp.ndarray y = _target(None, c.x, c.axes)
    cdef fn_status status = FN_OK
    _check_places(c)
    result = _returned(y, None, c.axes, c.shape)
    if cnp.PyArray_SIZE(y):
        with nogil:
            status = fn_apply(&c.p, &c.q, c.saved, cnp.PyArray_DATA(c.x), cnp.PyArray_DATA(y))
    _check_status(status)
    return result


def finish_backward(dy, ctx, cnp.ndarray own, cnp.ndarray sums, double count, cnp.ndarray rstd,
                    out, bint weighted=False):
    """The gradients, where `own` are this rank's sums, and `sums` those of all, over `count`
    elements of each channel; with `weighted` of dy * weight. Those of weight and bias are this
    rank's share."""
    cdef Context c = _context(ctx)
    cdef cnp.ndarray g = _gradient(dy, "dy", c), dx
    cdef cnp.ndarray padded = _copied_sums(sums, c.p.c, _padded_channels(c))
    cdef double* mine = _doubles(own, 2 * c.p.c)
    cdef fn_status status
    _check_grad_out(out, g, c)
    dx = _target(out, g, c.axes)
    result = Gradients(_returned(dx, out, c.axes, c.shape),
                       _param_gradient(c, WEIGHT, mine + c.p.c, _doubles(rstd, c.p.c)),
                       _param_gradient(c, BIAS, mine, NULL))
    with nogil:
        status = fn_apply_grad(&c.p, &c.q, c.saved, <double*>cnp.PyArray_DATA(padded), count,
                               weighted, cnp.PyArray_DATA(c.x), cnp.PyArray_DATA(g),
                               cnp.PyArray_DATA(dx))
    _check_status(status)
    _deliver(dx, result[0], c.axes)
    return result
