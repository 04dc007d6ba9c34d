# Checks of single arguments. A message names the argument, what was expected and what was given.


# NumPy's number for the type of ml_dtypes, once one was seen
cdef int _bfloat16 = cnp.NPY_NOTYPE


cdef int _dtype(cnp.ndarray a, str name) except -1:
    global _bfloat16
    cdef int num = cnp.PyArray_TYPE(a)
    if num == cnp.NPY_FLOAT32:
        return FN_F32
    if num == cnp.NPY_FLOAT64:
        return FN_F64
    if num == cnp.NPY_FLOAT16:
        return FN_F16
    if num == _bfloat16:
        return FN_BF16
    if a.dtype.name == "bfloat16":
        _bfloat16 = num
        return FN_BF16
    raise TypeError(f"{name}: expected dtype float32, float64, float16 or bfloat16, got {a.dtype}")


cdef cnp.ndarray _dense_input(object value, str name):
    """An aligned, C-contiguous array in native byte order: `value` itself, or a copy."""
    cdef cnp.ndarray a
    if isinstance(value, cnp.ndarray):
        a = value
    else:
        a = np.asarray(value)
    _dtype(a, name)
    if not cnp.PyArray_ISCARRAY_RO(a):
        a = np.require(a, a.dtype.newbyteorder("="), ["C", "A"])
    return a


cdef double _number(object value, str name, double low, double high) except? -1:
    cdef double v
    if type(value) is float:  # the usual case, at once
        v = value
        if low <= v <= high and v < INFINITY:
            return v
    if isinstance(value, (bool, str, bytes)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        v = value
    except TypeError:
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None
    if not low <= v <= high or v == math.inf and name == "eps":
        wanted = f"in [{low:g}, {high:g}]" if high != math.inf else f"of at least {low:g}"
        raise ValueError(f"{name}: expected a finite number {wanted}, got {value!r}")
    return v


cdef int _flag(object value, str name) except -1:
    if type(value) is bool:  # the usual case, at once
        return value is True
    if not isinstance(value, (bool, np.bool_, int)):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")
    return 1 if value else 0


cdef inline bint _is_parameter_type(int num, int x_num):
    """x's dtype, and where that has 16 bits also float32, in which it is computed."""
    return num == x_num or num == cnp.NPY_FLOAT32 and x_num != cnp.NPY_FLOAT64


cdef cnp.ndarray _parameter(object value, str name, cnp.ndarray x, tuple shape):
    """A dense parameter."""
    cdef cnp.ndarray a
    if isinstance(value, cnp.ndarray):
        a = value
    elif value is None:
        raise ValueError(f"{name}: expected an array of shape {shape}, got None")
    else:
        a = np.asarray(value)
    if not _is_parameter_type(cnp.PyArray_TYPE(a), cnp.PyArray_TYPE(x)):
        wanted = x.dtype if x.itemsize > 2 else f"{x.dtype} or float32"
        raise TypeError(f"{name}: expected dtype {wanted}, got {a.dtype}")
    if not _has_shape(a, shape):
        raise ValueError(f"{name}: expected shape {shape}, got {(<object>a).shape}")
    if not cnp.PyArray_ISCARRAY_RO(a):
        a = np.require(a, a.dtype.newbyteorder("="), ["C", "A"])
    return a


cdef inline bint _has_shape(cnp.ndarray a, tuple shape):
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
        if not isinstance(value, np.ndarray):
            raise TypeError(f"{name}: expected an ndarray, which is updated in place, got "
                            f"{type(value).__name__}")
        if _is_parameter_type(cnp.PyArray_TYPE(value), cnp.PyArray_TYPE(x)) and not (
                cnp.PyArray_ISCARRAY(value)):
            raise ValueError(f"{name}: expected a writeable, C-contiguous, aligned array, which "
                             f"is updated in place, got one with {_lacking(value)}")
    return _parameter(value, name, x, shape)


cdef str _lacking(object array):
    flags = array.flags
    return ", ".join([f"{flag}=False" for flag in ("writeable", "c_contiguous", "aligned")
                      if not getattr(flags, flag)]) or "another byte order"


cdef dict _LAYOUTS = {
    (2, "NC"): FN_CHANNELS_FIRST,
    (3, "NCL"): FN_CHANNELS_FIRST, (3, "NLC"): FN_CHANNELS_LAST,
    (4, "NCHW"): FN_CHANNELS_FIRST, (4, "NHWC"): FN_CHANNELS_LAST,
    (5, "NCDHW"): FN_CHANNELS_FIRST, (5, "NDHWC"): FN_CHANNELS_LAST,
    (4, "NCL8c"): FN_BLOCKED, (4, "NCL16c"): FN_BLOCKED,
    (5, "NCHW8c"): FN_BLOCKED, (5, "NCHW16c"): FN_BLOCKED,
    (6, "NCDHW8c"): FN_BLOCKED, (6, "NCDHW16c"): FN_BLOCKED,
}
# for any rank: the default should not have to be spelled out for each
cdef dict _ANY_LAYOUT = {
    "channels_first": FN_CHANNELS_FIRST, "channels_last": FN_CHANNELS_LAST,
    "NCHW": FN_CHANNELS_FIRST, "NHWC": FN_CHANNELS_LAST,
}


cdef int _layout(object layout, Py_ssize_t rank) except -1:
    if not isinstance(layout, str):
        raise TypeError(f"layout: expected a str, got {type(layout).__name__}")
    found = _ANY_LAYOUT.get(layout)
    if found is None:
        found = _LAYOUTS.get((rank, layout))
    if found is None:
        choices = dict.fromkeys([*_ANY_LAYOUT, *[name for r, name in _LAYOUTS if r == rank]])
        raise ValueError(f"layout: expected one of {', '.join(choices)} for {rank} dimensions, "
                         f"got {layout!r}")
    return found


cdef int64_t _blocked_channels(cnp.ndarray x, int64_t block, tuple params) except -1:
    """How many of the channels in the blocks are no padding: as many as there are parameters."""
    cdef int64_t most = cnp.PyArray_DIM(x, 1) * block, channels = most
    if cnp.PyArray_DIM(x, cnp.PyArray_NDIM(x) - 1) != block:
        raise ValueError(f"x: expected blocks of {block} channels along the last axis, got shape "
                         f"{(<object>x).shape}")
    for name, value in params:
        if value is not None:
            channels = np.size(value)
            if not most - block < channels <= most:
                raise ValueError(f"{name}: expected {most - block + 1} to {most} channels for x of "
                                 f"shape {(<object>x).shape}, got {channels}")
            break
    return channels


cdef tuple _axes(object axis, Py_ssize_t rank):
    cdef Py_ssize_t i
    if rank == 0:
        raise ValueError("x: expected at least 1 dimension, got a scalar")
    if type(axis) is int and -rank <= axis < rank:
        i = axis
        return (i + rank if i < 0 else i,)
    values = axis if isinstance(axis, tuple) else (axis,)
    if not values:
        raise ValueError("axis: expected at least one axis, got ()")
    axes = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"axis: expected an int or a tuple of ints, got {axis!r}")
        i = value
        if not -rank <= i < rank:
            raise ValueError(f"axis: expected axes in [{-rank}, {rank}) for x of {rank} "
                             f"dimensions, got {axis!r}")
        axes.append(i + rank if i < 0 else i)
    if len(axes) > 1:
        if len(set(axes)) != len(axes):
            raise ValueError(f"axis: expected distinct axes, got {axis!r}")
        axes.sort()
    return tuple(axes)


cdef int64_t _groups(object num_groups, int64_t channels) except -1:
    if isinstance(num_groups, bool) or not isinstance(num_groups, (int, np.integer)):
        raise TypeError(f"num_groups: expected an int, got {type(num_groups).__name__}")
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"num_groups: expected a positive divisor of the {channels} channels, "
                         f"got {num_groups}")
    return num_groups


# ---- outputs ---------------------------------------------------------------------------------

cdef int _check_out(object out, cnp.ndarray x, tuple shape) except -1:
    if isinstance(out, cnp.ndarray) and cnp.PyArray_TYPE(<cnp.ndarray>out) == cnp.PyArray_TYPE(
            x) and cnp.PyArray_ISWRITEABLE(<cnp.ndarray>out) and _has_shape(out, shape):
        return 0
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected an ndarray, got {type(out).__name__}")
    if out.dtype != x.dtype and out.dtype.newbyteorder("=") != x.dtype:
        raise TypeError(f"out: expected dtype {x.dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"out: expected shape {shape}, got {out.shape}")
    if not cnp.PyArray_ISWRITEABLE(<cnp.ndarray>out):
        raise ValueError("out: expected a writeable array, got a read-only one")
    return 0


cdef bint _overlap(cnp.ndarray a, cnp.ndarray b):
    """Whether a and b share memory. Exact for dense arrays; for others as far as NumPy finds out
    with little work, else as if they did."""
    cdef char* p = <char*>cnp.PyArray_DATA(a)
    cdef char* q = <char*>cnp.PyArray_DATA(b)
    if cnp.PyArray_ISCARRAY_RO(a) and cnp.PyArray_ISCARRAY_RO(b):
        return p < q + cnp.PyArray_NBYTES(b) and q < p + cnp.PyArray_NBYTES(a)
    try:
        return np.shares_memory(a, b, max_work=1000)
    except np.exceptions.TooHardError:
        return True


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


cdef object _deliver(cnp.ndarray result, object out, object axes):
    """`result` in the caller's order of axes, and in `out`."""
    if axes is not None:
        view = result.transpose(np.argsort(axes))
        if out is None:
            return np.ascontiguousarray(view)
        result = view
    if out is None:
        return result
    if result is not out:
        np.copyto(out, result)
    return out


cdef int _check_status(fn_status status) except -1:
    if status == FN_NO_MEMORY:
        raise MemoryError("fastnorm: no memory for the moments and coefficients; nothing was "
                          "written")
    if status != FN_OK:
        raise RuntimeError(f"fastnorm: the C library refused the call (status {<int>status}); "
                           "nothing was written")
    return 0
