# Between 16 bits and float32, by the rounding of NumPy, which could fail here: for want of memory,
# or because np.errstate makes it raise.
cdef extern from *:
    """
    static float fn_np_from_half(uint16_t h) {
        const uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
        const float small = (float)rest * 0x1p-24f;
        uint32_t u = rest >= 0x7c00 ? rest << 13 | 0x7f800000 : (rest << 13) + 0x38000000;
        float v;
        if (rest < 0x0400)
            memcpy(&u, &small, sizeof u);
        u |= sign;
        memcpy(&v, &u, sizeof v);
        return v;
    }
    static uint16_t fn_np_to_half(float v) {
        uint32_t u, rest;
        memcpy(&u, &v, sizeof u);
        rest = u & 0x7fffffff;
        u = u >> 16 & 0x8000;
        if (rest > 0x7f800000)
            return u | 0x7e00;
        if (rest >= 0x477ff000) /* from 65520 on */
            return u | 0x7c00;
        if (rest < 0x38800000) { /* subnormal: 0.5 has the spacing of the result */
            float shifted;
            memcpy(&shifted, &rest, sizeof shifted);
            shifted += 0.5f;
            memcpy(&rest, &shifted, sizeof rest);
            return u | (rest - 0x3f000000);
        }
        return u | (rest - 0x38000000 + 0x0fff + (rest >> 13 & 1)) >> 13;
    }
    static void fn_np_widen(const uint16_t *from, float *to, int64_t n, int bfloat16) {
        for (int64_t i = 0; i < n; i++) {
            const uint32_t u = (uint32_t)from[i] << 16;
            if (bfloat16)
                memcpy(&to[i], &u, sizeof u);
            else
                to[i] = fn_np_from_half(from[i]);
        }
    }
    static void fn_np_narrow(const float *from, uint16_t *to, int64_t n, int bfloat16) {
        for (int64_t i = 0; i < n; i++) {
            uint32_t u;
            memcpy(&u, &from[i], sizeof u);
            if (!bfloat16)
                to[i] = fn_np_to_half(from[i]);
            else if ((u & 0x7fffffff) > 0x7f800000)
                to[i] = u >> 16 | 0x40;
            else
                to[i] = (u + 0x7fff + (u >> 16 & 1)) >> 16;
        }
    }
    """
    void fn_np_widen(const void* source, void* to, int64_t n, int bfloat16) nogil
    void fn_np_narrow(const void* source, void* to, int64_t n, int bfloat16) nogil


cdef cnp.ndarray _widened(cnp.ndarray a):
    """`a` as the C library reads a parameter: itself, or a copy in float32 where it has 16 bits."""
    cdef cnp.ndarray wide
    if cnp.PyArray_ITEMSIZE(a) > 2:
        return a
    wide = cnp.PyArray_EMPTY(cnp.PyArray_NDIM(a), cnp.PyArray_DIMS(a), cnp.NPY_FLOAT32, 0)
    fn_np_widen(cnp.PyArray_DATA(a), cnp.PyArray_DATA(wide), cnp.PyArray_SIZE(a),
                cnp.PyArray_TYPE(a) == _bfloat16)
    return wide


cdef void _put_back(cnp.ndarray a, cnp.ndarray to) noexcept:
    """Write dense `a` to dense `to`, of 16 bits or of a's dtype; it cannot fail."""
    if cnp.PyArray_TYPE(a) == cnp.PyArray_TYPE(to):
        memcpy(cnp.PyArray_DATA(to), cnp.PyArray_DATA(a), cnp.PyArray_NBYTES(a))
    else:
        fn_np_narrow(cnp.PyArray_DATA(a), cnp.PyArray_DATA(to), cnp.PyArray_SIZE(a),
                     cnp.PyArray_TYPE(to) == _bfloat16)
