# From the arguments of a forward call to the problem that the C library solves: checked, and set in
# a Context.


cdef inline Context _start(object x, fn_norm norm, object eps):
    cdef Context ctx = Context.__new__(Context)
    ctx.x = _dense_input(x, "x")
    ctx.shape = (<object>ctx.x).shape
    ctx.p.norm = norm
    ctx.p.dtype = <fn_dtype>_dtype(ctx.x, "x")
    ctx.p.groups = 1
    ctx.p.training = 1
    ctx.p.ddof = 0
    if eps is None and norm == FN_RMS:  # as torch: that of the type which is computed in
        eps = 2.0**-52 if ctx.p.dtype == FN_F64 else 2.0**-23
    ctx.p.eps = _number(eps, "eps", 0, math.inf)
    ctx.p.sigma_min = 0
    ctx.p.r_max = 1
    ctx.p.d_max = 0
    ctx.p.momentum = 0
    ctx.p.blend = 0
    return ctx


cdef int _set_layout(Context ctx, object layout, object weight, object bias,
                     object running_mean=None) except -1:
    cdef Py_ssize_t rank = cnp.PyArray_NDIM(ctx.x), i
    cdef int64_t s = 1
    if rank < 2:
        raise ValueError(f"x: expected at least 2 dimensions (samples, channels), got shape "
                         f"{ctx.shape}")
    ctx.p.layout = <fn_layout>_layout(layout, rank)
    for i in range(1 if ctx.p.layout == FN_CHANNELS_LAST else 2,
                   rank if ctx.p.layout == FN_CHANNELS_FIRST else rank - 1):
        s *= cnp.PyArray_DIM(ctx.x, i)
    ctx.p.n = cnp.PyArray_DIM(ctx.x, 0)
    ctx.p.s = s
    if ctx.p.layout == FN_BLOCKED:
        ctx.p.block = 16 if layout.endswith("16c") else 8
        ctx.p.c = _blocked_channels(ctx.x, ctx.p.block, (
            ("weight", weight), ("bias", bias), ("running_mean", running_mean)))
    else:
        ctx.p.c = cnp.PyArray_DIM(ctx.x, 1 if ctx.p.layout == FN_CHANNELS_FIRST else rank - 1)
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
    if (mean is None) != (var is None):
        raise ValueError("running_mean, running_var: expected both or neither, got only "
                         + ("running_var" if mean is None else "running_mean"))
    if mean is None:
        if required:
            raise ValueError(f"running_mean, running_var: expected arrays of shape "
                             f"({ctx.p.c},) {why}, got None")
    else:
        ctx.updates = update
        ctx.running_mean, ctx.running_var = mean, var
        ctx.mean_used = _widened(_state(mean, "running_mean", ctx.x, ctx.param_shape, update))
        ctx.var_used = _widened(_state(var, "running_var", ctx.x, ctx.param_shape, update))
        if update:
            _check_apart(mean, "running_mean", read)
            _check_apart(var, "running_var", read)
            if _overlap(mean, var):
                raise ValueError("running_var: expected an array apart from running_mean, got one "
                                 "that shares memory with it")
    if momentum is None:
        raise TypeError("momentum: expected a number, got None (the cumulative average belongs to "
                        "the layers, which count batches)")
    ctx.p.momentum = _number(momentum, "momentum", 0, 1)
    if not (type(ddof) is int or isinstance(ddof, (int, np.integer))) or ddof not in (0, 1):
        raise ValueError(f"ddof: expected 0 or 1, got {_shown(ddof)}")
    ctx.p.ddof = ddof
    return 0


cdef int _check_apart(object state, str name, tuple read) except -1:
    """An update must not write to what the caller gave to be read."""
    cdef Py_ssize_t i
    for i in range(len(read)):
        if _overlap(state, read[i]):
            other = PARAM_NAMES[i - 1] if i else "x"
            raise ValueError(f"{name}: expected an array apart from {other}, since it is updated, "
                             "got one that shares memory with it")
    return 0


cdef int _check_count(Context ctx, int64_t count, str domain, int64_t updated_from) except -1:
    """The variance that running_var takes needs two values, and more than ddof."""
    if not ctx.updates or cnp.PyArray_SIZE(ctx.x) == 0:
        return 0
    if count == 1:
        raise ValueError(f"x: expected more than one value for each {domain}, whose variance "
                         f"running_var takes, got shape {ctx.shape}")
    if updated_from <= ctx.p.ddof:
        raise ValueError(f"ddof: expected less than the {updated_from} value(s) of a channel that "
                         f"update running_var, got {ctx.p.ddof}")
    return 0


cdef int _check_forward_out(Context ctx, object out, object return_ctx) except -1:
    """Check both arguments; return the second."""
    cdef bint keep = _flag(return_ctx, "return_ctx")
    if out is None:
        return keep
    _check_out(out, ctx.x, ctx.shape)
    if keep and _overlap(out, ctx.x):
        raise ValueError("out: expected an array apart from x when return_ctx is True, since "
                         "backward reads x; got one that shares memory with it")
    for name, state in (("running_mean", ctx.running_mean), ("running_var", ctx.running_var)):
        if state is not None and _overlap(out, state):
            raise ValueError(f"out: expected an array apart from {name}, got one that shares "
                             "memory with it")
    return keep
