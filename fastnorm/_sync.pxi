# The arithmetic of sync batch norm, on vectors of (C,) float64 numbers. Not by NumPy's functions,
# which where memory is missing crash, or fail without an error, and which np.errstate makes raise.
#
# They compute in the mode of the C library (FloatMode), like all that decides bits.
#
# The moments of all channels in one vector, for a message: the count, the means, and the roots of
# the sums of squared deviations, which are float64 where the sums are not.


cdef double* _doubles(cnp.ndarray a, Py_ssize_t size) except NULL:
    if cnp.PyArray_TYPE(a) != cnp.NPY_FLOAT64 or not cnp.PyArray_ISCARRAY_RO(a) or (
            cnp.PyArray_SIZE(a) != size):
        raise ValueError(f"expected {size} numbers of float64, side by side")
    return <double*>cnp.PyArray_DATA(a)


cdef inline cnp.ndarray _empty(cnp.npy_intp size, int num):
    return cnp.PyArray_EMPTY(1, &size, num, 0)


cdef double _unit(double a, double b, double c) noexcept:
    """A power of two by which numbers are divided whose squares are to be added: 1 for most."""
    cdef double most = max(fabs(a), fabs(b), fabs(c))
    cdef int exponent
    if 2.0**-480 < most < 2.0**480 or not 0 < most < INFINITY:
        return 1
    frexp(most, &exponent)
    return ldexp(1, min(max(exponent, -1000), 1000))


@cython.cdivision(True)
def pack_moments(double count, Py_ssize_t channels, cnp.ndarray statistics):
    """From what `measure` returns."""
    cdef fn_float_mode mode
    cdef Py_ssize_t features = cnp.PyArray_SIZE(statistics) // 5, c
    cdef double* found = _doubles(statistics, 5 * features)
    cdef cnp.ndarray packed = _empty(1 + 2 * channels, cnp.NPY_FLOAT64)
    cdef double* to = <double*>cnp.PyArray_DATA(packed)
    to[0] = count
    mode = fn_enter_float_mode()
    for c in range(channels):
        to[1 + c] = found[features + c]
        to[1 + channels + c] = ldexp(sqrt(found[3 * features + c]), <int>found[4 * features + c])
    fn_leave_float_mode(mode)
    return packed


@cython.cdivision(True)
def merge_moments(cnp.ndarray first, cnp.ndarray second):
    """The moments of the union (Chan, Golub & LeVeque 1979)."""
    cdef fn_float_mode mode
    cdef Py_ssize_t size = cnp.PyArray_SIZE(first), channels = (size - 1) // 2, c
    cdef double* a = _doubles(first, size)
    cdef double* b = _doubles(second, size)
    cdef cnp.ndarray merged = _empty(size, cnp.NPY_FLOAT64)
    cdef double* to = <double*>cnp.PyArray_DATA(merged)
    cdef double part, delta, unit, root, x, y, d
    if a[0] == 0 or b[0] == 0:
        memcpy(to, b if a[0] == 0 else a, size * sizeof(double))
        return merged
    mode = fn_enter_float_mode()
    to[0] = a[0] + b[0]
    part = b[0] / to[0]
    for c in range(1, 1 + channels):
        delta = b[c] - a[c]
        unit = _unit(a[c + channels], b[c + channels], delta)
        x, y, d = a[c + channels] / unit, b[c + channels] / unit, delta / unit
        root = sqrt(x * x + y * y + d * d * (a[0] * part))
        to[c] = a[c] + delta * part
        to[c + channels] = unit * root
    fn_leave_float_mode(mode)
    return merged


@cython.cdivision(True)
def unpack_moments(cnp.ndarray packed, double ddof, double eps):
    """Mean, std, the variance with ddof, and ``1 / sqrt(std**2 + eps)``, each (C,)."""
    cdef fn_float_mode mode
    cdef Py_ssize_t size = cnp.PyArray_SIZE(packed), channels = (size - 1) // 2, c
    cdef double* moments = _doubles(packed, size)
    cdef double root = sqrt(eps), count = moments[0], deviation, unit, s, e
    found = _empty(4 * channels, cnp.NPY_FLOAT64)
    cdef double* mean = <double*>cnp.PyArray_DATA(found)
    cdef double* std = mean + channels
    cdef double* var = std + channels
    cdef double* rstd = var + channels
    mode = fn_enter_float_mode()
    for c in range(channels):
        deviation = moments[1 + channels + c]
        mean[c] = moments[1 + c]
        std[c] = deviation / sqrt(count) if count > 0 else 0
        unit = _unit(deviation, 0, 0)
        s = deviation / unit
        var[c] = s * s / (count - ddof) * unit * unit if count > ddof else NAN
        unit = _unit(std[c], root, 0)
        s, e = std[c] / unit, root / unit
        rstd[c] = 1 / (unit * sqrt(s * s + (eps if unit == 1 else e * e)))
    fn_leave_float_mode(mode)
    return found.reshape((4, channels))


cdef cnp.ndarray _of_type(cnp.ndarray values, int num):
    """float64 values in NumPy's type of that number; 16 bits by way of float32, as everywhere."""
    cdef Py_ssize_t size = cnp.PyArray_SIZE(values), i
    cdef double* source = _doubles(values, size)
    cdef cnp.ndarray result, wide
    cdef float* to
    cdef fn_float_mode mode
    if num == cnp.NPY_FLOAT64:
        return values
    result = _empty(size, num)
    wide = result if num == cnp.NPY_FLOAT32 else _empty(size, cnp.NPY_FLOAT32)
    to = <float*>cnp.PyArray_DATA(wide)
    mode = fn_enter_float_mode()
    for i in range(size):
        to[i] = <float>source[i]
    fn_leave_float_mode(mode)
    if wide is not result:
        _put_back(wide, result)
    return result


def moved(cnp.ndarray running, cnp.ndarray batch, double momentum):
    """``(1 - momentum) * running + momentum * batch``, of running's dtype."""
    cdef fn_float_mode mode
    cdef Py_ssize_t size = cnp.PyArray_SIZE(running), i
    cdef cnp.ndarray wide = _widened(running), values = _empty(size, cnp.NPY_FLOAT64)
    cdef double* more = _doubles(batch, size)
    cdef double* to = <double*>cnp.PyArray_DATA(values)
    cdef bint narrow = cnp.PyArray_TYPE(wide) == cnp.NPY_FLOAT32
    cdef double old
    mode = fn_enter_float_mode()
    for i in range(size):
        if narrow:
            old = (<float*>cnp.PyArray_DATA(wide))[i]
        else:
            old = (<double*>cnp.PyArray_DATA(wide))[i]
        to[i] = (1 - momentum) * old + momentum * more[i]
    fn_leave_float_mode(mode)
    return _of_type(values, cnp.PyArray_TYPE(running))


def put_running(cnp.ndarray running_mean, cnp.ndarray mean, cnp.ndarray running_var,
                cnp.ndarray var):
    """Both running statistics take what `moved` has made; that cannot fail."""
    _put_back(mean, running_mean)
    _put_back(var, running_var)


def param_grads(cnp.ndarray sums, cnp.ndarray rstd, object weight_dtype, object bias_dtype):
    """dweight and dbias of the sums of `measure_grad`, or None where there is no dtype."""
    cdef fn_float_mode mode
    cdef Py_ssize_t channels = cnp.PyArray_SIZE(rstd), c
    cdef double* source = _doubles(sums, 2 * channels)
    cdef double* scale = _doubles(rstd, channels)
    cdef cnp.ndarray weight = _empty(channels, cnp.NPY_FLOAT64)
    cdef cnp.ndarray bias = _empty(channels, cnp.NPY_FLOAT64)
    mode = fn_enter_float_mode()
    for c in range(channels):
        (<double*>cnp.PyArray_DATA(bias))[c] = source[c]
        (<double*>cnp.PyArray_DATA(weight))[c] = source[channels + c] * scale[c]
    fn_leave_float_mode(mode)
    return (None if weight_dtype is None else _of_type(weight, weight_dtype.num),
            None if bias_dtype is None else _of_type(bias, bias_dtype.num))
