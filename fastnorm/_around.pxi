# What stands around a normalizer in the same pass: fn_around of fastnorm.h. The Python module
# `around` has looked at the names; here the arrays are checked and placed.


cdef int _set_around(Context ctx, tuple around) except -1:
    """activation, gate_activation (numbers), slope, shortcut, gate, residual, sum_out"""
    ctx.around.activation = <fn_activation><int>around[0]
    ctx.around.gate_activation = <fn_activation><int>around[1]
    ctx.around.slope = around[2]
    ctx.beside = [None] * BESIDES
    cdef int i
    for i in range(BESIDES):
        if around[3 + i] is not None:
            ctx.beside[i] = _like_x(ctx, around[3 + i], BESIDE_NAMES[i])
    ctx.has_sum = around[5] is not None
    ctx.sum_out = around[6]
    return 0


cdef cnp.ndarray _like_x(Context ctx, object value, str name):
    cdef cnp.ndarray a = _dense_input(value, name)
    if cnp.PyArray_TYPE(a) != cnp.PyArray_TYPE(ctx.x) or not _has_shape(a, ctx.shape):
        _arguments.refuse_gradient(a, name, ctx.x.dtype, ctx.shape)
    return a if ctx.axes is None else _dense_copy(_permuted(a, ctx.axes, False))


cdef int _set_sum(Context ctx, object out, bint keep) except -1:
    """Where the sum goes, and copies of what lies where is written before it is read."""
    cdef int i
    cdef cnp.ndarray a
    if ctx.sum_out is not None:
        _check_out(ctx.sum_out, ctx.x, ctx.shape, "sum_out")
        for name, other in (("out", out), ("running_mean", ctx.running_mean),
                            ("running_var", ctx.running_var)):
            if _overlap(ctx.sum_out, other):
                _arguments.refuse_shared("sum_out", name)
        _detach(ctx, ctx.sum_out)
    if ctx.has_sum:
        ctx.sum = _target(ctx.sum_out, ctx.x, ctx.axes)
        if _overlap(ctx.sum, ctx.beside[RESIDUAL]) and cnp.PyArray_DATA(ctx.sum) != (
                cnp.PyArray_DATA(<cnp.ndarray>ctx.beside[RESIDUAL])):
            ctx.beside[RESIDUAL] = ctx.beside[RESIDUAL].copy()
    for i in range(BESIDES):
        if ctx.beside[i] is None:
            continue
        a = ctx.beside[i]
        # element by element, y may be what it is made of; but backward reads it again
        same = out is not None and cnp.PyArray_DATA(a) == cnp.PyArray_DATA(<cnp.ndarray>out) and (
            cnp.PyArray_ISCARRAY(<cnp.ndarray>out)) and not keep
        if (_overlap(out, a) and not same) or (i != RESIDUAL and _overlap(ctx.sum_out, a)):
            ctx.beside[i] = a.copy()
    return 0


cdef int _point_around(Context ctx) except -1:
    ctx.q.around = NULL
    ctx.around.x_rows = &ctx.x_rows if ctx.has_rows else NULL
    if ctx.has_rows or ctx.around.out_rows != NULL:
        ctx.q.around = &ctx.around
    if ctx.beside is None:
        return 0
    ctx.around.shortcut = _data(ctx.beside[SHORTCUT])
    ctx.around.gate = _data(ctx.beside[GATE])
    ctx.around.residual = _data(ctx.beside[RESIDUAL])
    ctx.around.sum = _data(ctx.sum)
    ctx.around.dsum = NULL
    ctx.q.around = &ctx.around
    return 0


cdef int _take_sum(Context ctx, object total) except -1:
    """The caller gets the sum in `total`. From now on it is what was normalized."""
    _deliver(ctx.sum, total, ctx.axes)
    ctx.x = ctx.sum
    ctx.has_rows = False
    ctx.sum = ctx.sum_out = ctx.beside[RESIDUAL] = None
    ctx.around.residual = ctx.around.sum = NULL
    return 0


cdef int _zero_padding(Context ctx, object array) except -1:
    """What is behind the last channel of blocks is 0, whatever the activation of 0 is."""
    cdef int64_t last = ctx.p.c % ctx.p.block if ctx.p.layout == FN_BLOCKED else 0
    if last:
        _assign_zero(array[:, -1, ..., last:])
    return 0


cdef int _assign_zero(cnp.ndarray a) except -1:
    """Zeros, whose bits are 0 in every dtype; ml_dtypes' as integers, as in _assign."""
    if cnp.PyArray_TYPE(a) == _bfloat16:
        a = a.view(np.int16)
    a[...] = 0
    return 0


cdef object _gradient_of_sum(object ds, Context c, object out):
    cdef cnp.ndarray g
    if ds is None:
        return None
    if not c.has_sum:
        raise ValueError("ds: expected None, as the forward call had no residual")
    g = _gradient(_dense_input(ds, "ds"), "ds", c)
    return g.copy() if _overlap(out, g) else g


cdef list _new_beside(Context c, cnp.ndarray g, fn_grads* grads):
    """Of shortcut and gate: where the C library writes the gradient, and the caller's array."""
    cdef list made = []
    cdef int i
    for i in range(RESIDUAL):
        if c.beside[i] is None:
            made.append((None, None))
            continue
        target = _target(None, g, c.axes)
        made.append((target, _returned(target, None, c.axes, c.shape)))
    grads.shortcut = _data(made[SHORTCUT][0])
    grads.gate = _data(made[GATE][0])
    return made


cdef int _put_beside(Context c, cnp.ndarray target, cnp.ndarray given) except -1:
    if given is not target:
        _assign(given, _permuted(target, c.axes, True))
    _zero_padding(c, given)
    return 0


# ---- rows that lie apart ---------------------------------------------------------------------

cdef enum: TURN_ROW = 32 * 1024  # FN_TURN_ROW of core/turns.h


cdef bint _find_rows(cnp.ndarray a, tuple over, fn_rows* rows):
    """Whether the elements of the axes `over`, the last ones, lie behind one another, as rows that
    lie apart: `x[..., :128]`, one head of many. Where they lie goes to `rows`."""
    cdef int rank = cnp.PyArray_NDIM(a), last = rank - <int>len(over), i
    cdef int64_t size = cnp.PyArray_ITEMSIZE(a), row = size, count, stride
    if not cnp.PyArray_ISBEHAVED_RO(a) or cnp.PyArray_SIZE(a) == 0 or <int>over[0] != last:
        return False
    for i in range(rank - 1, last - 1, -1):
        if cnp.PyArray_DIM(a, i) != 1 and cnp.PyArray_STRIDE(a, i) != row:
            return False
        row *= cnp.PyArray_DIM(a, i)
    if row > TURN_ROW:
        return False
    rows.levels = 0
    for i in range(last):
        count, stride = cnp.PyArray_DIM(a, i), cnp.PyArray_STRIDE(a, i)
        if count == 1:
            continue
        if stride % size:
            return False
        stride //= size
        if rows.levels and rows.stride[rows.levels - 1] == stride * count:
            rows.count[rows.levels - 1] *= count
            rows.stride[rows.levels - 1] = stride
            continue
        if rows.levels == 8:
            return False
        rows.count[rows.levels], rows.stride[rows.levels] = count, stride
        rows.levels += 1
    return True


cdef cnp.ndarray _input(object value, str name, tuple over, fn_rows* rows):
    """As `_dense_input`; but an array whose rows lie apart is itself."""
    cdef cnp.ndarray a = _array(value, name)
    cdef fn_rows unused
    if over is None or cnp.PyArray_ISCARRAY_RO(a) or not _find_rows(
            a, over, &unused if rows == NULL else rows):
        return _dense_input(a, name)
    _dtype(a, name)
    return a


cdef cnp.ndarray _rows_target(Context ctx, object out, cnp.ndarray source):
    """As `_target`; but what has rows that lie apart is written as it lies."""
    cdef cnp.ndarray o
    ctx.around.out_rows = NULL
    if out is not None and ctx.over is not None and ctx.axes is None and (
            not cnp.PyArray_ISCARRAY(<cnp.ndarray>out)):
        o = out
        # over x or dy itself: a turn is read before it is written
        same = cnp.PyArray_DATA(o) == cnp.PyArray_DATA(source) and (
            (<object>o).strides == (<object>source).strides)
        if cnp.PyArray_ISBEHAVED(o) and _find_rows(o, ctx.over, &ctx.out_rows) and (
                same or not _overlap(o, source)) and _is_injective(&ctx.out_rows):
            ctx.around.out_rows = &ctx.out_rows
            return o
    return _target(out, source, ctx.axes)


cdef bint _is_injective(fn_rows* rows):
    """Whether no two rows are the same memory, as those of a broadcast array are."""
    cdef int i
    for i in range(rows.levels):
        if rows.stride[i] == 0:
            return False
    return True
