# A context between forward and backward: what it remembers of its arrays, what it shows of its
# statistics, how it is pickled.


cdef int _settle(Context ctx) except -1:
    """What is left when the call is done: no running statistics, and where the arrays lie."""
    cdef int i
    ctx.running_mean = ctx.running_var = ctx.mean_used = ctx.var_used = None
    ctx.q.running_mean = ctx.q.running_var = NULL
    ctx.x_place = _place(ctx.x)
    for i in range(PARAMS):
        if ctx.params[i] is not None:
            ctx.places[i] = _place(ctx.params[i])
    return 0


cdef inline Place _place(cnp.ndarray a):
    return Place(cnp.PyArray_DATA(a), cnp.PyArray_TYPE(a))


cdef Context _context(object ctx):
    if not isinstance(ctx, Context) or (<Context>ctx).statistics is None:
        raise TypeError(f"ctx: expected the Context of a forward call with return_ctx=True, got "
                        f"{type(ctx).__name__}")
    _check_places(ctx)
    return ctx


cdef int _check_places(Context c) except -1:
    """Backward trusts that the arrays are what they were in the forward call."""
    cdef int i
    if c.axes is None:  # else it is a copy of the context's own
        _check_place(c.x, c.x_place, c.shape, "v" if c.p.norm == FN_WEIGHT else "x")
    for i in range(PARAMS):
        if c.params[i] is not None:
            _check_place(c.params[i], c.places[i], c.param_shape if i < MEAN_LOGITS else (3,),
                         "g" if c.p.norm == FN_WEIGHT else PARAM_NAMES[i])
    return 0


cdef inline int _check_place(cnp.ndarray a, Place place, tuple shape, str name) except -1:
    if cnp.PyArray_DATA(a) != place.data or cnp.PyArray_TYPE(a) != place.num or not (
            cnp.PyArray_ISCARRAY_RO(a) and _has_shape(a, shape)):
        raise ValueError(f"ctx: expected {name} as it was in the forward call, got one whose "
                         "memory, dtype, shape or strides have been changed since")
    return 0


# ---- statistics ------------------------------------------------------------------------------


cdef tuple _domains(Context c):
    """The shape of the statistics, with the channels that fill up the last block."""
    cdef int64_t channels = c.p.c
    if c.over is not None:
        return tuple(np.delete(c.shape, c.over).tolist())
    if c.p.norm == FN_WEIGHT:
        return (channels,) if c.param_shape else ()
    if c.p.norm == FN_GROUP:
        return (c.shape[0], c.p.groups)
    if c.p.layout == FN_BLOCKED:
        channels = -(-channels // c.p.block) * c.p.block
    if c.p.norm in (FN_BATCH, FN_BATCH_RENORM) or c.p.norm == FN_INSTANCE and not c.p.training:
        return (channels,)
    return (c.shape[0], channels)


cdef object _statistic(Context c, int i):
    """The means (i = 0), or the deviations (1)."""
    shape = _domains(c)
    size = math.prod(shape)
    if cnp.PyArray_SIZE(c.x) == 0:
        found = np.full(shape, math.nan)
    else:
        found = c.statistics[i * size:(i + 1) * size].reshape(shape)
    return found[..., :c.p.c] if c.p.layout == FN_BLOCKED else found


cdef object _mixed(Context c, int i, object instance, int param):
    """Statistics of switchable norm: those of the instances, the samples (from the means, i = 0, or
    the deviations, whose squares are mixed, on) and the channels, by the softmax of the logits."""
    samples, channels = _domains(c)
    at = 2 * samples * channels + i * samples
    layer = c.statistics[at:at + samples]
    at = 2 * samples * (channels + 1) + i * channels
    batch = c.statistics[at:at + c.p.c]
    if i:
        layer, batch = _squared(layer), _squared(batch)
    cdef double logits[3]
    cdef double weights[3]
    logits[0], logits[1], logits[2] = c.params[param]
    fn_softmax3(logits, weights)
    return weights[0] * instance + weights[1] * layer[:, np.newaxis] + weights[2] * batch


cdef object _squared(object std):
    """Variances. One below 0, as others' rounding may leave it, has a std below 0."""
    return std * np.abs(std)


cdef object _mean(Context c):
    mean = _statistic(c, 0)
    if c.p.norm == FN_SWITCHABLE and cnp.PyArray_SIZE(c.x):
        return _mixed(c, 0, mean, MEAN_LOGITS)
    return mean


cdef object _std(Context c):
    std = _statistic(c, 1)
    if c.p.norm == FN_SWITCHABLE and cnp.PyArray_SIZE(c.x):
        var = _mixed(c, 1, _squared(std), VAR_LOGITS)
        return np.copysign(np.sqrt(np.abs(var)), var)
    return std


cdef object _sigma(object std, double eps):
    """``sqrt(std**2 + eps)``, where the square may be no float64; as fn_sigma of csrc/coefs.h."""
    var = _squared(std) + eps
    most, least = np.maximum(std, math.sqrt(eps)), np.minimum(std, math.sqrt(eps))
    scaled = most * np.sqrt(1 + np.square(least / most))
    return np.where((var > 2.0**-960) & (var < 2.0**960) | ~(std >= 0), np.sqrt(var),
                    np.where(most == 0, 0, scaled))


cdef object _shown_statistic(Context c, str name):
    with FloatMode(), np.errstate(all="ignore"):  # infinities; eps=0 and a constant domain
        if name == "mean":
            found = _mean(c)
        elif name == "var":
            found = _squared(_std(c))
        else:
            found = 1 / np.maximum(_sigma(_std(c), c.p.eps), c.p.sigma_min)
    found = np.array(found)
    found.setflags(write=False)
    return found


# ---- pickles ---------------------------------------------------------------------------------

cdef tuple _reduced(Context c):
    cdef int i
    types = [None] * PARAMS
    for i in range(PARAMS):
        if c.params[i] is not None:
            types[i] = cnp.PyArray_DescrFromType(c.grad_types[i])
    return _restore, (c.p, c.shape, c.over, c.axes, c.param_shape, c.x, c.params, types,
                      c.statistics)


def _restore(problem, shape, over, axes, param_shape, x, params, types, statistics):
    """A context from its pickle. What could make the C library read or write beside its arrays is
    checked."""
    cdef Context c = Context.__new__(Context)
    cdef int i
    cdef bint fits
    c.p = problem
    c.shape, c.over, c.axes, c.param_shape = shape, over, axes, param_shape
    c.x = _dense_input(x, "x")
    for i in range(PARAMS):
        if params[i] is not None:
            c.params[i] = np.require(params[i], np.float64 if c.p.dtype == FN_F64 else np.float32,
                                     ["C", "A"])
            c.grad_types[i] = types[i].num
    channels = c.p.c
    if c.p.layout == FN_BLOCKED:
        channels = -(-c.p.c // c.p.block) * c.p.block
    fits = <fn_dtype>_dtype(c.x, "x") == c.p.dtype and math.prod(shape) == c.x.size and (
        c.p.n * channels * c.p.s == c.x.size)
    fits = fits and math.prod(param_shape) == (c.p.s if over is not None else c.p.c)
    size = _make_saved(c)
    fits = fits and np.shape(statistics) == (size,)
    fits = fits and (axes is None or sorted(axes) == list(range(len(shape))))
    for i in range(PARAMS):
        fits = fits and (c.params[i] is None or np.shape(c.params[i]) == (
            param_shape if i < MEAN_LOGITS else (3,)))
        fits = fits and (c.params[i] is None or _is_parameter_type(
            c.grad_types[i], cnp.PyArray_TYPE(c.x)))
    if not fits:
        raise ValueError("statistics: expected those of the pickled context")
    c.statistics[:] = statistics
    _point(c)
    _settle(c)
    return c
