# Activations of whole arrays, without a normalizer; a number is that of fn_activation.


def activate(int kind, double slope, x, out):
    """y = act(x), in `out` where that is given."""
    cdef cnp.ndarray a = _dense_input(x, "x"), y
    cdef fn_dtype dtype = <fn_dtype>_dtype(a, "x")
    cdef fn_status status
    if out is not None:
        _check_out(out, a, (<object>a).shape)
    y = _target(out, a, None)
    with nogil:
        status = fn_activate(dtype, <fn_activation>kind, slope, cnp.PyArray_SIZE(a),
                             cnp.PyArray_DATA(a), cnp.PyArray_DATA(y))
    _check_status(status)
    return _deliver(y, out, None)


def activate_grad(int kind, double slope, dy, x, out):
    """dx = dy * act'(x), in `out` where that is given."""
    cdef cnp.ndarray a = _dense_input(x, "x"), g = _dense_input(dy, "dy"), dx
    cdef fn_dtype dtype = <fn_dtype>_dtype(a, "x")
    cdef fn_status status
    shape = (<object>a).shape
    if cnp.PyArray_TYPE(g) != cnp.PyArray_TYPE(a) or not _has_shape(g, shape):
        _arguments.refuse_gradient(g, "dy", a.dtype, shape)
    if out is not None:
        _check_out(out, a, shape)
        if _overlap(out, a) and cnp.PyArray_DATA(<cnp.ndarray>out) != cnp.PyArray_DATA(a):
            a = a.copy()
    dx = _target(out, g, None)
    with nogil:
        status = fn_activate_grad(dtype, <fn_activation>kind, slope, cnp.PyArray_SIZE(a),
                                  cnp.PyArray_DATA(a), cnp.PyArray_DATA(g), cnp.PyArray_DATA(dx))
    _check_status(status)
    return _deliver(dx, out, None)
