# Forward calls: the arguments, checked and set in a Context, and the call. One function for the
# normalizers of channels, and one for those of axes; `norm` is a place in NORMS.


cdef inline fn_norm _norm(int norm):
    return <fn_norm>norm


cdef inline bint _is_wide(object value, str name, Py_ssize_t rank) except -1:
    """Whether a parameter has more dimensions than one that all samples share."""
    return value is not None and cnp.PyArray_NDIM(_array(value, name)) > rank


cdef inline tuple _numbers(object around):
    """What `_set_around` takes, of the keywords that the caller gave, or as it is; None where a
    stage of `around` has to come first."""
    if type(around) is dict:
        return _around.at_once(around) if len(<dict>around) else ()
    return () if around is None else around


def axis_norm(int norm, x, weight, bias, axis, eps, out, return_ctx, around=None, least=0.0):
    """Over `axis`. What is divided by is at least `least`. around: what stands around it in the
    same pass, as the keywords that the caller gave, or as what `_set_around` takes."""
    cdef Context ctx
    cdef tuple numbers = _numbers(around)
    cdef bint wide = False
    if numbers is not None:
        ctx = _start_rows(x, _norm(norm), axis, eps)
        _set_axis(ctx, axis)
        wide = _is_wide(weight, "weight", len(ctx.param_shape)) or (
            _is_wide(bias, "bias", len(ctx.param_shape)))
    if numbers is None or wide:
        return _around.run(axis_norm, {
            "norm": norm, "x": x, "weight": weight, "bias": bias, "axis": axis, "eps": eps,
            "out": out, "return_ctx": return_ctx, "least": least}, around)
    _set_affine(ctx, weight, bias)
    if numbers:
        _set_around(ctx, numbers)
    ctx.p.sigma_min = _number(least, "eps", 0, INFINITY)
    return _forward(ctx, out, return_ctx)


cdef Context _start_channels(int norm, x, weight, bias, running_mean, running_var, training,
                             momentum, eps, ddof, layout, num_groups, mean_logits, var_logits,
                             tau):
    cdef Context ctx = _start(x, _norm(norm), eps)
    cdef bint corrects = ctx.p.norm == FN_BATCH_RENORM or ctx.p.norm == FN_INSTANCE_RENORM
    cdef str flag = "use_input_stats" if ctx.p.norm == FN_INSTANCE else "training"
    _set_layout(ctx, layout, weight, bias, running_mean, tau)
    if ctx.p.norm == FN_GROUP:
        ctx.p.groups = _groups(num_groups, ctx.p.c)
    _set_affine(ctx, weight, bias)
    if tau is not None:
        _set_param(ctx, TAU, tau, ctx.param_shape, "tau")
    if ctx.p.norm == FN_SWITCHABLE:
        _set_param(ctx, MEAN_LOGITS, mean_logits, (3,), "mean_logits")
        _set_param(ctx, VAR_LOGITS, var_logits, (3,), "var_logits")
    ctx.p.training = _flag(training, flag)
    _set_running(ctx, running_mean, running_var, momentum, ddof, ctx.p.training,
                 corrects or not ctx.p.training,
                 "for the corrections r and d" if corrects else
                 "when use_input_stats is False" if ctx.p.norm == FN_INSTANCE else
                 "when training is False", (x, weight, bias, tau, mean_logits, var_logits))
    return ctx


def channel_norm(int norm, x, weight, bias, running_mean, running_var, training, momentum, eps,
                 ddof, layout, out, return_ctx, around=None, num_groups=None, mean_logits=None,
                 var_logits=None, r_max=None, d_max=None, blend=1.0, tau=None):
    """Of the channels of `layout`; around as in `axis_norm`."""
    cdef Context ctx
    cdef tuple numbers = _numbers(around)
    if numbers is None or _is_wide(weight, "weight", 1) or _is_wide(bias, "bias", 1):
        return _around.run(channel_norm, {
            "norm": norm, "x": x, "weight": weight, "bias": bias, "running_mean": running_mean,
            "running_var": running_var, "training": training, "momentum": momentum, "eps": eps,
            "ddof": ddof, "layout": layout, "out": out, "return_ctx": return_ctx,
            "num_groups": num_groups, "mean_logits": mean_logits, "var_logits": var_logits,
            "r_max": r_max, "d_max": d_max, "blend": blend, "tau": tau}, around)
    ctx = _start_channels(norm, x, weight, bias, running_mean, running_var, training, momentum,
                          eps, ddof, layout, num_groups, mean_logits, var_logits, tau)
    if numbers:
        _set_around(ctx, numbers)
    if ctx.p.norm == FN_BATCH_RENORM or ctx.p.norm == FN_INSTANCE_RENORM:
        ctx.p.r_max = _number(r_max, "r_max", 1, INFINITY)
        ctx.p.d_max = _number(d_max, "d_max", 0, INFINITY)
        ctx.p.blend = _number(blend, "blend", 0, 1)
    _check_count(ctx)
    return _forward(ctx, out, return_ctx)


def weight_norm(v, g, axis, eps, out, return_ctx):
    """The planes of batch norm: `axis` is the channel, with what is before it as the samples."""
    cdef Context ctx = _start(_dense_input(v, "v"), FN_WEIGHT, 0.0)
    cdef Py_ssize_t rank = cnp.PyArray_NDIM(ctx.x), first, i
    if g is not None:
        g = _array(g, "g")
    first, ctx.param_shape = _arguments.weight_axis(axis, g, ctx.shape)
    ctx.p.sigma_min = _number(eps, "eps", 0, INFINITY)
    ctx.p.layout = FN_CHANNELS_FIRST
    ctx.p.n = ctx.p.c = ctx.p.s = 1
    for i in range(rank):
        if i < first:
            ctx.p.n *= cnp.PyArray_DIM(ctx.x, i)
        elif i > first:
            ctx.p.s *= cnp.PyArray_DIM(ctx.x, i)
        else:
            ctx.p.c = cnp.PyArray_DIM(ctx.x, i)
    _set_param(ctx, WEIGHT, g, ctx.param_shape, "g")
    return _forward(ctx, out, return_ctx)
