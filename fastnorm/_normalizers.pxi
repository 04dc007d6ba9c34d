# One function for each normalizer: its arguments, checked and set in a Context, and the call.


def layer_norm(x, weight, bias, axis, eps, out, return_ctx):
    cdef Context ctx = _start(x, FN_LAYER, eps)
    _set_axis(ctx, axis)
    _set_affine(ctx, weight, bias)
    return _forward(ctx, out, return_ctx)


def rms_norm(x, weight, axis, eps, out, return_ctx):
    cdef Context ctx = _start(x, FN_RMS, eps)
    _set_axis(ctx, axis)
    _set_affine(ctx, weight, None)
    return _forward(ctx, out, return_ctx)


cdef Context _start_batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps,
                               ddof, layout):
    cdef Context ctx = _start(x, FN_BATCH, eps)
    _set_layout(ctx, layout, weight, bias, running_mean)
    _set_affine(ctx, weight, bias)
    ctx.p.training = _flag(training, "training")
    _set_running(ctx, running_mean, running_var, momentum, ddof, ctx.p.training,
                 not ctx.p.training, "when training is False", (x, weight, bias))
    return ctx


def batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps, ddof, layout,
               out, return_ctx):
    cdef Context ctx = _start_batch_norm(x, weight, bias, running_mean, running_var, training,
                                         momentum, eps, ddof, layout)
    _check_count(ctx, ctx.p.n * ctx.p.s, "channel in training", ctx.p.n * ctx.p.s)
    return _forward(ctx, out, return_ctx)


def batch_renorm(x, weight, bias, running_mean, running_var, training, momentum, eps, r_max,
                 d_max, ddof, layout, out, return_ctx):
    cdef Context ctx = _start(x, FN_BATCH_RENORM, eps)
    _set_layout(ctx, layout, weight, bias, running_mean)
    _set_affine(ctx, weight, bias)
    ctx.p.training = _flag(training, "training")
    _set_running(ctx, running_mean, running_var, momentum, ddof, ctx.p.training, True,
                 "for the corrections r and d", (x, weight, bias))
    ctx.p.r_max = _number(r_max, "r_max", 1, math.inf)
    ctx.p.d_max = _number(d_max, "d_max", 0, math.inf)
    _check_count(ctx, ctx.p.n * ctx.p.s, "channel in training", ctx.p.n * ctx.p.s)
    return _forward(ctx, out, return_ctx)


def group_norm(x, num_groups, weight, bias, eps, layout, out, return_ctx):
    cdef Context ctx = _start(x, FN_GROUP, eps)
    _set_layout(ctx, layout, weight, bias)
    ctx.p.groups = _groups(num_groups, ctx.p.c)
    _set_affine(ctx, weight, bias)
    return _forward(ctx, out, return_ctx)


def instance_norm(x, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, ddof,
                  layout, out, return_ctx):
    cdef Context ctx = _start(x, FN_INSTANCE, eps)
    _set_layout(ctx, layout, weight, bias, running_mean)
    _set_affine(ctx, weight, bias)
    ctx.p.training = _flag(use_input_stats, "use_input_stats")
    _set_running(ctx, running_mean, running_var, momentum, ddof, ctx.p.training,
                 not ctx.p.training, "when use_input_stats is False", (x, weight, bias))
    _check_count(ctx, ctx.p.s, "channel of a sample", ctx.p.s)
    return _forward(ctx, out, return_ctx)


def switchable_norm(x, weight, bias, mean_logits, var_logits, running_mean, running_var, training,
                    momentum, eps, ddof, layout, out, return_ctx):
    cdef Context ctx = _start(x, FN_SWITCHABLE, eps)
    _set_layout(ctx, layout, weight, bias, running_mean)
    _set_affine(ctx, weight, bias)
    _set_param(ctx, MEAN_LOGITS, mean_logits, (3,), "mean_logits")
    _set_param(ctx, VAR_LOGITS, var_logits, (3,), "var_logits")
    ctx.p.training = _flag(training, "training")
    _set_running(ctx, running_mean, running_var, momentum, ddof, ctx.p.training,
                 not ctx.p.training, "when training is False",
                 (x, weight, bias, mean_logits, var_logits))
    _check_count(ctx, ctx.p.n * ctx.p.c * ctx.p.s, "batch", ctx.p.n * ctx.p.s)
    return _forward(ctx, out, return_ctx)


def instance_renorm(x, weight, bias, running_mean, running_var, r_max, d_max, blend, training,
                    momentum, eps, ddof, layout, out, return_ctx):
    cdef Context ctx = _start(x, FN_INSTANCE_RENORM, eps)
    _set_layout(ctx, layout, weight, bias, running_mean)
    _set_affine(ctx, weight, bias)
    ctx.p.training = _flag(training, "training")
    _set_running(ctx, running_mean, running_var, momentum, ddof, ctx.p.training, True,
                 "for the corrections r and d", (x, weight, bias))
    ctx.p.r_max = _number(r_max, "r_max", 1, math.inf)
    ctx.p.d_max = _number(d_max, "d_max", 0, math.inf)
    ctx.p.blend = _number(blend, "blend", 0, 1)
    _check_count(ctx, ctx.p.n * ctx.p.s, "channel", ctx.p.n * ctx.p.s)
    return _forward(ctx, out, return_ctx)


def weight_norm(v, g, axis, eps, out, return_ctx):
    """The planes of batch norm: `axis` is the channel, with what is before it as the samples."""
    cdef Context ctx = _start(_dense_input(v, "v"), FN_WEIGHT, 0.0)
    cdef Py_ssize_t rank = cnp.PyArray_NDIM(ctx.x)
    if rank == 0:
        raise ValueError("v: expected at least 1 dimension, got a scalar")
    if axis is None:
        first = rank
        ctx.p.c = 1
        kept = ()
    else:
        if isinstance(axis, (tuple, list)):
            raise TypeError(f"axis: expected an int or None, got {_shown(axis)}")
        first, = _axes(axis, rank)
        ctx.p.c = ctx.shape[first]
        kept = (1,) * first + (ctx.shape[first],) + (1,) * (rank - first - 1)
    ctx.p.sigma_min = _number(eps, "eps", 0, math.inf)
    ctx.p.layout = FN_CHANNELS_FIRST
    ctx.p.n = math.prod(ctx.shape[:first])
    ctx.p.s = math.prod(ctx.shape[first + 1:])
    # torch's shape of g as well
    if g is not None:
        g = _array(g, "g")
    ctx.param_shape = kept if kept and np.shape(g) == kept else kept[first:first + 1]
    _set_param(ctx, WEIGHT, g, ctx.param_shape, "g")
    return _forward(ctx, out, return_ctx)
