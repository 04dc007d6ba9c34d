# From the arguments of a forward call to the problem that the C library solves: checked, and set in
# a Context.


cdef inline Context _start(object x, fn_norm norm, object eps):
    return _started(_dense_input(x, "x"), norm, eps)


cdef inline Context _start_rows(object x, fn_norm norm, object axis, object eps):
    """Of the normalizers of axes, whose rows may lie apart."""
    cdef cnp.ndarray a = _array(x, "x")
    cdef Context ctx
    cdef fn_rows rows
    if cnp.PyArray_ISCARRAY_RO(a):
        return _started(a, norm, eps)
    if cnp.PyArray_NDIM(a) == 0 or not _find_rows(a, _axes(axis, cnp.PyArray_NDIM(a)), &rows):
        return _start(a, norm, eps)
    _dtype(a, "x")
    ctx = _started(a, norm, eps)
    ctx.has_rows, ctx.x_rows = True, rows
    return ctx


cdef inline Context _started(cnp.ndarray x, fn_norm norm, object eps):
    cdef Context ctx = Context.__new__(Context)
    ctx.x = x
    ctx.shape = (<object>ctx.x).shape
    ctx.p.norm = norm
    ctx.p.dtype = <fn_dtype>_dtype(ctx.x, "x")
    ctx.p.groups = 1
    ctx.p.training = 1
    ctx.p.ddof = 0
    if eps is None and norm == FN_RMS:  # as torch: that of the type which is computed in
        eps = 2.0**-52 if ctx.p.dtype == FN_F64 else 2.0**-23
    ctx.p.eps = _number(eps, "eps", 0, INFINITY)
    ctx.p.sigma_min = 0
    ctx.p.r_max = 1
    ctx.p.d_max = 0
    ctx.p.momentum = 0
    ctx.p.blend = 0
    return ctx


cdef int _set_layout(Context ctx, object layout, object weight, object bias,
                     object running_mean=None, object tau=None) except -1:
    cdef Py_ssize_t rank = cnp.PyArray_NDIM(ctx.x), i, dimensions, axis
    cdef int64_t s = 1
    cdef tuple known = LAYOUTS.get(layout) if type(layout) is str else None
    if known is None or rank < 2:
        if rank < 2 or not isinstance(layout, str) or layout not in LAYOUTS:
            _arguments.refuse_layout(layout, ctx.shape)
        known = LAYOUTS[layout]
    dimensions, axis, ctx.p.block = known
    if dimensions not in (0, rank):
        _arguments.refuse_layout(layout, ctx.shape)
    ctx.p.n = cnp.PyArray_DIM(ctx.x, 0)
    if ctx.p.block > 1:
        ctx.p.layout = FN_BLOCKED
        ctx.p.c = _arguments.blocked_channels(ctx.shape, ctx.p.block, weight, bias, running_mean,
                                              tau)
    else:
        ctx.p.layout = FN_CHANNELS_FIRST if axis == 1 else FN_CHANNELS_LAST
        ctx.p.c = cnp.PyArray_DIM(ctx.x, 1 if axis == 1 else rank - 1)
    for i in range(1 if ctx.p.layout == FN_CHANNELS_LAST else 2,
                   rank if ctx.p.layout == FN_CHANNELS_FIRST else rank - 1):
        s *= cnp.PyArray_DIM(ctx.x, i)
    ctx.p.s = s
    ctx.param_shape = (ctx.p.c,)
    return 0


cdef int _set_axis(Context ctx, object axis) except -1:
    """Rows when the axes are the last ones, columns when they are others side by side; axes with
    others between them are brought to the end, by a copy."""
    cdef Py_ssize_t rank = cnp.PyArray_NDIM(ctx.x), i, first, last
    cdef tuple axes = _axes(axis, rank)
    ctx.over = axes
    first = axes[0]
    last = axes[len(axes) - 1]
    # one axis, as usual, without a list
    ctx.param_shape = (ctx.shape[first],) if first == last else itemgetter(*axes)(ctx.shape)
    if last - first + 1 != len(axes):
        ctx.axes = tuple(sorted(set(range(rank)).difference(axes))) + axes
        ctx.x = _dense_copy(_permuted(ctx.x, ctx.axes, False))
        first = rank - len(axes)
        last = rank - 1
    ctx.p.n = ctx.p.c = ctx.p.s = 1
    for i in range(first):
        ctx.p.n *= cnp.PyArray_DIM(ctx.x, i)
    for i in range(first, last + 1):
        ctx.p.s *= cnp.PyArray_DIM(ctx.x, i)
    for i in range(last + 1, rank):
        ctx.p.c *= cnp.PyArray_DIM(ctx.x, i)
    ctx.p.layout = FN_CHANNELS_FIRST if ctx.p.c == 1 else FN_CHANNELS_LAST
    return 0


cdef int _set_param(Context ctx, int i, object value, tuple shape, str name) except -1:
    cdef cnp.ndarray param = _parameter(value, name, ctx.x, shape)
    ctx.grad_types[i] = cnp.PyArray_TYPE(param)
    ctx.params[i] = _widened(param)
    return 0


cdef inline int _set_affine(Context ctx, object weight, object bias) except -1:
    if weight is not None:
        _set_param(ctx, WEIGHT, weight, ctx.param_shape, "weight")
    if bias is not None:
        _set_param(ctx, BIAS, bias, ctx.param_shape, "bias")
    return 0


cdef int _set_running(Context ctx, object mean, object var, object momentum, object ddof,
                      bint update, bint required, str why, tuple read) except -1:
    """`read` are x and the parameters as they were given, in the order of PARAM_NAMES."""
    if (mean is None) != (var is None) or mean is None and required:
        _arguments.refuse_running(mean, var, ctx.p.c, why)
    if mean is not None:
        ctx.updates = update
        ctx.running_mean, ctx.running_var = mean, var
        ctx.mean_used = _widened(_state(mean, "running_mean", ctx.x, ctx.param_shape, update))
        ctx.var_used = _widened(_state(var, "running_var", ctx.x, ctx.param_shape, update))
        if update:
            _check_apart(mean, "running_mean", read)
            _check_apart(var, "running_var", read)
            if _overlap(mean, var):
                _arguments.refuse_shared("running_var", "running_mean")
    if momentum is None:
        _arguments.refuse_momentum()
    ctx.p.momentum = _number(momentum, "momentum", 0, 1)
    ctx.p.ddof = ddof if type(ddof) is int and (ddof == 1 or ddof == 0) else _arguments.ddof(ddof)
    return 0


cdef int _check_apart(object state, str name, tuple read) except -1:
    """An update must not write to what the caller gave to be read."""
    cdef Py_ssize_t i
    for i in range(len(read)):
        if _overlap(state, read[i]):
            _arguments.refuse_shared(name, PARAM_NAMES[i - 1] if i else "x",
                                     "since it is updated, ")
    return 0


cdef int _check_count(Context ctx) except -1:
    """The variance that running_var takes needs two values, and more than ddof."""
    cdef int64_t count = ctx.p.s, of_channel
    if not ctx.updates or cnp.PyArray_SIZE(ctx.x) == 0:
        return 0
    domain = "channel in training"
    if ctx.p.norm == FN_INSTANCE:
        domain = "channel of a sample"
    else:
        count *= ctx.p.n
    of_channel = count
    if ctx.p.norm == FN_SWITCHABLE:
        domain = "batch"
        count *= ctx.p.c
    elif ctx.p.norm == FN_INSTANCE_RENORM:
        domain = "channel"
    if count == 1 or of_channel <= ctx.p.ddof:
        _arguments.refuse_count(domain, count, of_channel, ctx.p.ddof, ctx.shape)
    return 0


cdef int _check_forward_out(Context ctx, object out, object return_ctx) except -1:
    """Check both arguments; return the second."""
    cdef bint keep = _flag(return_ctx, "return_ctx")
    if out is None:
        return keep
    _check_out(out, ctx.x, ctx.shape)
    if keep and not ctx.has_sum and _overlap(out, ctx.x):
        _arguments.refuse_out_over_x()
    if _overlap(out, ctx.running_mean):
        _arguments.refuse_shared("out", "running_mean")
    if _overlap(out, ctx.running_var):
        _arguments.refuse_shared("out", "running_var")
    return keep
