# Checks of single arguments. A message names the argument, what was expected and what was given.


cdef str _shown(object value):
    """A value in a message: one short line, also where its repr is long or raises."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of an int of thousands of digits, or of a class of the caller's
        text = f"one of type {type(value).__name__}"
    return text if len(text) <= 120 else text[:117] + "..."


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


cdef object _computed(object value):
    """The array of a lazy one of dask, of which NumPy would make one without its mask."""
    return value.compute() if hasattr(value, "_meta") and hasattr(value, "compute") else value


cdef int _no_mask(object value, str name, int depth=0) except -1:
    """Raise where a mask would be lost: masked values would count as data."""
    if isinstance(value, (list, tuple, deque)) and depth < 64:  # what NumPy can take
        for item in value:
            if not isinstance(item, (float, int)):
                _no_mask(_computed(item), name, depth + 1)
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask, got a masked array; use "
                        f"{name}.filled(value), or {name}.data where nothing is masked")
    return 0


cdef cnp.ndarray _array(object value, str name):
    """`value` itself, or the array that NumPy makes of it."""
    if type(value) is cnp.ndarray:  # the usual case, at once
        return value
    _no_mask(value, name)
    if isinstance(value, cnp.ndarray):
        return value
    try:
        array = np.asanyarray(_computed(value))
    except MemoryError:
        raise
    except Exception as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"{name}: expected an array, got {_shown(value)}, of which NumPy makes none: "
                   f"{_shown(error)}") from error
    _no_mask(array, name)
    return array


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
    if type(value) is float:  # the usual case, at once
        v = value
        if low <= v <= high and v < INFINITY:
            return v
    # what float() would take, though it is no number
    if isinstance(value, (bool, np.bool_, str, bytes, complex, np.complexfloating)) or isinstance(
            value, cnp.ndarray) and (value.ndim or value.dtype.kind not in "fiu"):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        v = value
    except MemoryError:
        raise
    except OverflowError:  # of an int
        v = math.nan
    except Exception:
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None
    if not low <= v <= high or v == math.inf and name == "eps":
        wanted = f"in [{low:g}, {high:g}]" if high != math.inf else f"of at least {low:g}"
        raise ValueError(f"{name}: expected a finite number {wanted}, got {_shown(value)}")
    return v


cdef object _integer(object value, str name):
    if isinstance(value, (bool, np.timedelta64)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    return value


cdef int _flag(object value, str name) except -1:
    if type(value) is bool:  # the usual case, at once
        return value is True
    if not isinstance(value, (np.bool_, int)) or value not in (0, 1):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")
    return 1 if value else 0


cdef inline bint _is_parameter_type(int num, int x_num):
    """x's dtype, and where that has 16 bits also float32, in which it is computed."""
    return num == x_num or num == cnp.NPY_FLOAT32 and x_num != cnp.NPY_FLOAT64


cdef cnp.ndarray _parameter(object value, str name, cnp.ndarray x, tuple shape):
    """A dense parameter."""
    cdef cnp.ndarray a
    if value is None:
        raise ValueError(f"{name}: expected an array of shape {shape}, got None")
    a = _array(value, name)
    if not _is_parameter_type(cnp.PyArray_TYPE(a), cnp.PyArray_TYPE(x)):
        wanted = x.dtype if x.itemsize > 2 else f"{x.dtype} or float32"
        raise TypeError(f"{name}: expected dtype {wanted}, got {a.dtype}")
    if not _has_shape(a, shape):
        raise ValueError(f"{name}: expected shape {shape}, got {(<object>a).shape}")
    return a if cnp.PyArray_ISCARRAY_RO(a) else _dense_copy(a)


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
        if not isinstance(value, cnp.ndarray):
            raise TypeError(f"{name}: expected an ndarray, which is updated in place, got "
                            f"{type(value).__name__}")
        if _is_parameter_type(cnp.PyArray_TYPE(value), cnp.PyArray_TYPE(x)) and not (
                cnp.PyArray_ISCARRAY(value)):
            raise ValueError(f"{name}: expected a writeable, C-contiguous, aligned array, which "
                             f"is updated in place, got one with {_lacking(value)}")
    return _parameter(value, name, x, shape)


cdef str _lacking(object array):
    lacking = ""
    for flag in ("writeable", "c_contiguous", "aligned"):
        if not getattr(array.flags, flag):
            lacking += f", {flag}=False"
    return lacking[2:] or "another byte order"


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
        choices = ", ".join(_ANY_LAYOUT)
        for of_rank, name in _LAYOUTS:
            if of_rank == rank and name not in _ANY_LAYOUT:
                choices += f", {name}"
        raise ValueError(f"layout: expected one of {choices} for {rank} dimensions, "
                         f"got {_shown(layout)}")
    return found


cdef int64_t _blocked_channels(cnp.ndarray x, int64_t block, tuple params) except -1:
    """How many of the channels in the blocks are no padding: as many as there are parameters."""
    cdef int64_t most = cnp.PyArray_DIM(x, 1) * block, channels = most
    if cnp.PyArray_DIM(x, cnp.PyArray_NDIM(x) - 1) != block:
        raise ValueError(f"x: expected blocks of {block} channels along the last axis, got shape "
                         f"{(<object>x).shape}")
    for name, value in params:
        if value is not None:
            channels = _array(value, name).size
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
    values = axis if isinstance(axis, (tuple, list)) else (axis,)
    if not values:
        raise ValueError(f"axis: expected at least one axis, got {axis!r}")
    axes = []
    for value in values:
        if isinstance(value, (bool, np.timedelta64)) or not isinstance(value, (int, np.integer)):
            raise TypeError("axis: expected an int or a tuple of ints, got " + _shown(axis))
        if not -rank <= value < rank:
            raise ValueError(f"axis: expected axes in [{-rank}, {rank}) for x of {rank} "
                             f"dimensions, got {_shown(axis)}")
        i = value
        axes.append(i + rank if i < 0 else i)
    if len(axes) > 1:
        if len(set(axes)) != len(axes):
            raise ValueError(f"axis: expected distinct axes, got {_shown(axis)}")
        axes.sort()
    return tuple(axes)


cdef int64_t _groups(object num_groups, int64_t channels) except -1:
    _integer(num_groups, "num_groups")
    if not 1 <= num_groups < 2**63 or channels % num_groups:
        raise ValueError(f"num_groups: expected a positive divisor of the {channels} channels, "
                         f"got {_shown(num_groups)}")
    return num_groups


# ---- outputs ---------------------------------------------------------------------------------

cdef int _check_out(object out, cnp.ndarray x, tuple shape) except -1:
    if type(out) is cnp.ndarray and cnp.PyArray_TYPE(<cnp.ndarray>out) == cnp.PyArray_TYPE(
            x) and cnp.PyArray_ISWRITEABLE(<cnp.ndarray>out) and _has_shape(out, shape):
        return 0
    if not isinstance(out, cnp.ndarray):
        raise TypeError(f"out: expected an ndarray, got {type(out).__name__}")
    _no_mask(out, "out")
    if cnp.PyArray_TYPE(<cnp.ndarray>out) != cnp.PyArray_TYPE(x):
        raise TypeError(f"out: expected dtype {x.dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"out: expected shape {shape}, got {out.shape}")
    if not cnp.PyArray_ISWRITEABLE(<cnp.ndarray>out):
        raise ValueError("out: expected a writeable array, got a read-only one")
    return 0


cdef bint _overlap(object first, object second) except -1:
    """Whether both are arrays and share memory. Exact for dense arrays; for others as far as NumPy
    finds out with little work, else as if they did."""
    cdef cnp.ndarray a, b
    cdef char *p
    cdef char *q
    if not (isinstance(first, cnp.ndarray) and isinstance(second, cnp.ndarray)):
        return False
    a, b = first, second
    p = <char*>cnp.PyArray_DATA(a)
    q = <char*>cnp.PyArray_DATA(b)
    if cnp.PyArray_SIZE(a) == 0 or cnp.PyArray_SIZE(b) == 0:
        return False
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
