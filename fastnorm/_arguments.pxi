# Checks of single arguments: what is usual at once; `_arguments.py` converts or refuses the rest.


# NumPy's number for the type of ml_dtypes, once one was seen
cdef int _bfloat16 = cnp.NPY_NOTYPE


cdef int _dtype(cnp.ndarray a, str name) except -1:
    global _bfloat16
    cdef int num = cnp.PyArray_TYPE(a)
    cdef fn_dtype found = FN_BF16
    if num == cnp.NPY_FLOAT32:
        found = FN_F32
    elif num == cnp.NPY_FLOAT64:
        found = FN_F64
    elif num == cnp.NPY_FLOAT16:
        found = FN_F16
    elif num != _bfloat16:
        if a.dtype.name != "bfloat16":
            _arguments.refuse_dtype(name, a.dtype)
        _bfloat16 = num
    if not fn_has_dtype(found):
        _arguments.refuse_dtype(name, a.dtype)
    return found


cdef inline cnp.ndarray _array(object value, str name):
    """`value` itself, or the array that NumPy makes of it; no masked one."""
    return value if type(value) is cnp.ndarray else _arguments.array(value, name)


def as_array(value, name):
    """`value` itself, or the array that NumPy makes of it; no masked one."""
    return _array(value, name)


cdef int _assign(cnp.ndarray to, cnp.ndarray a) except -1:
    """Copy values. Those of ml_dtypes as integers: where memory is missing, NumPy crashes over
    types that are not its own (2.4)."""
    if cnp.PyArray_TYPE(a) == _bfloat16 and cnp.PyArray_ISNOTSWAPPED(a) and (
            cnp.PyArray_ISNOTSWAPPED(to)):
        to, a = to.view(np.int16), a.view(np.int16)
    np.copyto(to, a)
    return 0


cdef cnp.ndarray _dense_copy(cnp.ndarray a):
    """C-contiguous, aligned and in native byte order."""
    copy = np.empty((<object>a).shape, a.dtype.newbyteorder("="))
    _assign(copy, a)
    return copy


cdef cnp.ndarray _dense_input(object value, str name):
    """An aligned, C-contiguous array in native byte order: `value` itself, or a copy."""
    cdef cnp.ndarray a = _array(value, name)
    _dtype(a, name)
    return a if cnp.PyArray_ISCARRAY_RO(a) else _dense_copy(a)


cdef double _number(object value, str name, double low, double high) except? -1:
    cdef double v
    if type(value) is float:
        v = value
        if low <= v <= high and v < INFINITY:
            return v
    return _arguments.number(value, name, low, high)


cdef inline int _flag(object value, str name) except -1:
    return value is True if type(value) is bool else _arguments.flag(value, name)


cdef inline bint _is_parameter_type(int num, int x_num):
    """x's dtype, and where that has 16 bits also float32, in which it is computed."""
    return num == x_num or num == cnp.NPY_FLOAT32 and x_num != cnp.NPY_FLOAT64


cdef cnp.ndarray _parameter(object value, str name, cnp.ndarray x, tuple shape):
    """A dense parameter."""
    cdef cnp.ndarray a
    if value is None:
        _arguments.refuse_parameter(None, name, x.dtype, shape)
    a = _array(value, name)
    if not (_is_parameter_type(cnp.PyArray_TYPE(a), cnp.PyArray_TYPE(x)) and _has_shape(a, shape)):
        _arguments.refuse_parameter(a, name, x.dtype, shape)
    return a if cnp.PyArray_ISCARRAY_RO(a) else _dense_copy(a)


cdef bint _has_shape(cnp.ndarray a, tuple shape):
    cdef Py_ssize_t i
    if cnp.PyArray_NDIM(a) != len(shape):
        return False
    for i in range(len(shape)):
        if cnp.PyArray_DIM(a, i) != <Py_ssize_t>shape[i]:
            return False
    return True


cdef cnp.ndarray _state(object value, str name, cnp.ndarray x, tuple shape, bint update):
    """Running statistics; where they are to be updated, they are used as they lie."""
    if update:
        if not isinstance(value, cnp.ndarray) or (
                _is_parameter_type(cnp.PyArray_TYPE(value), cnp.PyArray_TYPE(x)) and not (
                    cnp.PyArray_ISCARRAY(value))):
            _arguments.refuse_state(value, name)
    return _parameter(value, name, x, shape)


cdef tuple _axes(object axis, Py_ssize_t rank):
    """From 0 on, in order."""
    cdef Py_ssize_t i
    if type(axis) is tuple and len(<tuple>axis) == 1:
        axis = (<tuple>axis)[0]
    if type(axis) is int and -rank <= axis < rank:
        i = axis
        return (i + rank if i < 0 else i,)
    return _arguments.axes(axis, rank)


cdef inline int64_t _groups(object num_groups, int64_t channels) except -1:
    cdef int64_t groups
    if type(num_groups) is int and 0 < num_groups <= channels:
        groups = num_groups
        if channels % groups == 0:
            return groups
    return _arguments.groups(num_groups, channels)


# ---- outputs ---------------------------------------------------------------------------------

cdef int _check_out(object out, cnp.ndarray x, tuple shape, str name="out") except -1:
    if not (type(out) is cnp.ndarray and cnp.PyArray_TYPE(<cnp.ndarray>out) == cnp.PyArray_TYPE(
            x) and cnp.PyArray_ISWRITEABLE(<cnp.ndarray>out) and _has_shape(out, shape)):
        _arguments.check_out(out, x.dtype, shape, name)
    return 0


cdef bint _overlap(object first, object second) except -1:
    """Whether both are arrays and share memory. Exact for dense arrays; for others as far as NumPy
    finds out with little work, else as if they did."""
    cdef cnp.ndarray a, b
    cdef char *p
    cdef char *q
    cdef cnp.npy_intp of_a, of_b
    if not (isinstance(first, cnp.ndarray) and isinstance(second, cnp.ndarray)):
        return False
    a, b = first, second
    p = <char*>cnp.PyArray_DATA(a)
    q = <char*>cnp.PyArray_DATA(b)
    of_a, of_b = cnp.PyArray_NBYTES(a), cnp.PyArray_NBYTES(b)
    if of_a == 0 or of_b == 0:
        return False
    if cnp.PyArray_ISCARRAY_RO(a) and cnp.PyArray_ISCARRAY_RO(b):
        return p < q + of_b and q < p + of_a
    return _arguments.may_overlap(a, b)


cdef cnp.ndarray _target(object out, cnp.ndarray source, object axes):
    """Where the C library writes: `out` where it can be written directly, else a new array."""
    cdef cnp.ndarray o
    if out is not None and axes is None:
        o = out
        if cnp.PyArray_ISCARRAY(o) and (
                cnp.PyArray_DATA(o) == cnp.PyArray_DATA(source) or not _overlap(o, source)):
            return o
    return _new(cnp.PyArray_NDIM(source), cnp.PyArray_DIMS(source), cnp.PyArray_TYPE(source),
                cnp.PyArray_NBYTES(source))


cdef cnp.ndarray _permuted(cnp.ndarray a, tuple axes, bint back):
    """A view with the axes in this order, or back from it."""
    cdef cnp.npy_intp[64] order
    cdef cnp.PyArray_Dims dims
    cdef int i
    for i in range(len(axes)):
        if back:
            order[<int>axes[i]] = i
        else:
            order[i] = axes[i]
    dims.ptr, dims.len = order, <int>len(axes)
    return cnp.PyArray_Transpose(a, &dims)


cdef inline object _returned(cnp.ndarray target, object out, object axes, tuple shape):
    """What the caller gets, where the C library writes to `target`."""
    if out is not None:
        return out
    return target if axes is None else np.empty(shape, target.dtype)


cdef object _deliver(cnp.ndarray result, object out, object axes):
    """`result` in the caller's order of axes, and in `out`."""
    if axes is not None:
        view = _permuted(result, axes, True)
        if out is None:
            return _dense_copy(view)
        result = view
    if out is None:
        return result
    if result is not out:
        _assign(out, result)
    return out


cdef int _check_status(fn_status status) except -1:
    if status == FN_NO_MEMORY:
        raise MemoryError("fastnorm: no memory for the moments and coefficients; nothing was "
                          "written")
    if status != FN_OK:
        raise RuntimeError(f"fastnorm: the C library refused the call (status {<int>status}); "
                           "nothing was written")
    return 0
