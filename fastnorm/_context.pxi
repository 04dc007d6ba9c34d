# A context between forward and backward: what it remembers of its arrays. What it shows of its
# statistics, and how it is pickled, is in `_contexts.py`.


cdef int _settle(Context ctx) except -1:
    """What is left when the call is done: no running statistics, and where the arrays lie."""
    ctx.running_mean = ctx.running_var = ctx.mean_used = ctx.var_used = None
    ctx.q.running_mean = ctx.q.running_var = NULL
    return _remember(ctx)


cdef int _remember(Context ctx) except -1:
    """Where the arrays lie, for `_check_places`."""
    cdef int i
    ctx.x_place = _place(ctx.x)
    for i in range(PARAMS):
        if ctx.params[i] is not None:
            ctx.places[i] = _place(ctx.params[i])
    for i in range(BESIDES):
        if ctx.beside is not None and ctx.beside[i] is not None:
            ctx.beside_places[i] = _place(ctx.beside[i])
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
        _check_place(c.x, c.x_place, c.shape, "v" if c.p.norm == FN_WEIGHT else "x",
                     c.over if c.has_rows else None)
    for i in range(PARAMS):
        if c.params[i] is not None:
            _check_place(c.params[i], c.places[i], c.param_shape if i < MEAN_LOGITS else (3,),
                         "g" if c.p.norm == FN_WEIGHT else PARAM_NAMES[i])
    for i in range(BESIDES):
        if c.axes is None and c.beside is not None and c.beside[i] is not None:
            _check_place(c.beside[i], c.beside_places[i], c.shape, BESIDE_NAMES[i])
    return 0


cdef inline int _check_place(cnp.ndarray a, Place place, tuple shape, str name,
                             tuple over=None) except -1:
    """`over`: its rows over these axes may lie apart, as they did."""
    cdef fn_rows rows
    if cnp.PyArray_DATA(a) != place.data or cnp.PyArray_TYPE(a) != place.num or not (
            _has_shape(a, shape) and (cnp.PyArray_ISCARRAY_RO(a) if over is None else
                                      _find_rows(a, over, &rows))):
        _arguments.refuse_changed(name)
    return 0


# of `Context.p["norm"]`, in the order of fastnorm.h; BLOCKED is a layout there
NORMS = ("batch", "batch_renorm", "layer", "rms", "instance", "group", "switchable",
         "instance_renorm", "weight", "l2", "filter_response", "global_response")
BLOCKED = FN_BLOCKED


def softmax3(double first, double second, double third):
    """The weights of switchable norm, of its logits."""
    cdef double[3] logits = [first, second, third]
    cdef double[3] weights
    fn_softmax3(logits, weights)
    return weights[0], weights[1], weights[2]


cdef tuple _state_of(Context c):
    """`State` of `_contexts.py`."""
    cdef int i
    types = [None] * PARAMS
    for i in range(PARAMS):
        if c.params[i] is not None:
            types[i] = cnp.PyArray_DescrFromType(c.grad_types[i])
    around = None if c.beside is None else (
        <int>c.around.activation, <int>c.around.gate_activation, c.around.slope,
        c.beside[SHORTCUT], c.beside[GATE], c.has_sum)
    return (c.p, c.shape, c.over, c.axes, c.param_shape, c.x, c.params, types, c.statistics,
            around)


cdef int64_t _whole(dict problem, str name) except? -1:
    return problem[name]


cdef double _real(dict problem, str name) except? -1:
    return problem[name]


cdef int _set_problem(fn_problem* p, dict problem) except -1:
    """What Cython would make of a dict, in a tenth of the code."""
    p.norm = <fn_norm>_whole(problem, "norm")
    p.dtype = <fn_dtype>_whole(problem, "dtype")
    p.layout = <fn_layout>_whole(problem, "layout")
    p.n = _whole(problem, "n")
    p.c = _whole(problem, "c")
    p.s = _whole(problem, "s")
    p.block = _whole(problem, "block")
    p.groups = _whole(problem, "groups")
    p.training = <int>_whole(problem, "training")
    p.ddof = <int>_whole(problem, "ddof")
    p.eps = _real(problem, "eps")
    p.sigma_min = _real(problem, "sigma_min")
    p.momentum = _real(problem, "momentum")
    p.r_max = _real(problem, "r_max")
    p.d_max = _real(problem, "d_max")
    p.blend = _real(problem, "blend")
    return 0


def made_context(problem, shape, over, axes, param_shape, x, params, types, statistics, around):
    """A context of what has been checked; None where its statistics, or the dtype of x, are others
    than those of the problem. Parameters are dense, and of the dtype in which is computed."""
    cdef Context c = Context.__new__(Context)
    cdef int i
    _set_problem(&c.p, problem)
    c.shape, c.over, c.axes, c.param_shape = shape, over, axes, param_shape
    c.x = _dense_input(x, "x")
    for i in range(PARAMS):
        if params[i] is not None:
            c.params[i] = params[i]
            c.grad_types[i] = types[i].num
    if <fn_dtype>_dtype(c.x, "x") != c.p.dtype:
        return None
    size = _make_saved(c)
    if cnp.PyArray_SIZE(c.x) == 0 and c.p.norm == FN_BATCH:  # those of other ranks, or nothing
        size = min(len(statistics), 2 * _padded_channels(c))
        c.statistics = _empty(size, cnp.NPY_FLOAT64)
        c.saved = <double*>cnp.PyArray_DATA(c.statistics)
    if np.shape(statistics) != (size,):
        return None
    c.statistics[:] = statistics
    if around is not None:
        c.around.activation = <fn_activation><int>around[0]
        c.around.gate_activation = <fn_activation><int>around[1]
        c.around.slope = around[2]
        c.beside = [around[3], around[4], None]
        c.has_sum = around[5]
    _point(c)
    _settle(c)
    return c
