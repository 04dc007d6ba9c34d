"""The edge between NumPy and the C library: every check of an argument is here.

A call fills a `Context`: the problem, the dense input and the parameters. Everything is checked
before the C library runs; it cannot fail after that but for memory, and then writes nothing.
"""

import math
import types
from operator import itemgetter

import numpy as np

cimport cython
cimport numpy as cnp
from libc.math cimport INFINITY, NAN, fabs, frexp, ldexp, sqrt
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from fastnorm import _arguments
from fastnorm._types import (
    FilterResponseGradients,
    FusedGradients,
    Gradients,
    SwitchableGradients,
    WeightGradients,
)

cnp.import_array()

cdef dict LAYOUTS = _arguments.LAYOUTS

cdef extern from *:
    """
    #ifndef FASTNORM_VERSION
    #define FASTNORM_VERSION "unknown"
    #endif
    """
    const char* FASTNORM_VERSION

__version__ = FASTNORM_VERSION.decode()

cdef extern from "system/float_mode.h" nogil:
    ctypedef unsigned fn_float_mode  # or another type; it is only kept
    fn_float_mode fn_enter_float_mode()
    void fn_leave_float_mode(fn_float_mode)

cdef extern from "fastnorm.h" nogil:
    ctypedef enum fn_dtype:
        FN_F32
        FN_F64
        FN_F16
        FN_BF16
    ctypedef enum fn_layout:
        FN_CHANNELS_FIRST
        FN_CHANNELS_LAST
        FN_BLOCKED
    ctypedef enum fn_norm:
        FN_BATCH
        FN_BATCH_RENORM
        FN_LAYER
        FN_RMS
        FN_INSTANCE
        FN_GROUP
        FN_SWITCHABLE
        FN_INSTANCE_RENORM
        FN_WEIGHT
        FN_L2
        FN_FILTER_RESPONSE
        FN_GLOBAL_RESPONSE
    ctypedef enum fn_activation:
        FN_IDENTITY
    ctypedef struct fn_rows:
        int levels
        int64_t[8] count
        int64_t[8] stride
    ctypedef struct fn_around:
        fn_activation activation, gate_activation
        double slope
        const void *shortcut
        const void *gate
        const void *residual
        void *sum
        const void *dsum
        const fn_rows *x_rows
        const fn_rows *dy_rows
        const fn_rows *out_rows
    ctypedef enum fn_status:
        FN_OK
        FN_NO_MEMORY
    ctypedef struct fn_problem:
        fn_norm norm
        fn_dtype dtype
        fn_layout layout
        int64_t n, c, s, block, groups
        int training, ddof
        double eps, sigma_min, momentum, r_max, d_max, blend
    ctypedef struct fn_params:
        const void *weight
        const void *bias
        void *running_mean
        void *running_var
        const void *mean_logits
        const void *var_logits
        const void *tau
        const fn_around *around
    ctypedef struct fn_grads:
        void *x
        void *weight
        void *bias
        void *mean_logits
        void *var_logits
        void *tau
        void *shortcut
        void *gate
    int64_t fn_saved_size(const fn_problem*)
    fn_status fn_forward(const fn_problem*, const fn_params*, const void*, void*, double*)
    fn_status fn_backward(const fn_problem*, const fn_params*, const double*, const void*,
                          const void*, const fn_grads*)
    fn_status fn_activate(fn_dtype, fn_activation, double, int64_t, const void*, void*)
    fn_status fn_activate_grad(fn_dtype, fn_activation, double, int64_t, const void*, const void*,
                               void*)
    fn_status fn_measure(const fn_problem*, const void*, int, const double*, double*)
    fn_status fn_apply(const fn_problem*, const fn_params*, const double*, const void*, void*)
    fn_status fn_measure_grad(const fn_problem*, const fn_params*, const double*, const void*,
                              const void*, double*)
    fn_status fn_apply_grad(const fn_problem*, const fn_params*, const double*, const double*,
                            double, int, const void*, const void*, void*)
    fn_status fn_extremes(fn_dtype, int64_t, int64_t, const void*, double*)
    fn_status fn_affine(fn_dtype, int64_t, int64_t, int, const void*, const double*,
                        const double*, const double*, void*, int*)
    ctypedef enum fn_small:
        FN_INT8
    void fn_quantize(fn_small, int64_t, int64_t, int, const float*, float*, void*)
    void fn_set_num_threads(int)
    int fn_get_num_threads()
    ctypedef struct fn_learned_choice:
        fn_norm norm
        fn_dtype dtype
        int backward, training
        int64_t bytes, calls
        int threads, stream, fetch
        double ticks
    double fn_tick_seconds()
    int fn_choice_count()
    int fn_choice_at(int, fn_learned_choice*)
    void fn_forget_choices()
    void fn_force_choice(int, int, int)
    int fn_isa_count()
    const char* fn_isa_name(int)
    int fn_set_isa(const char*)
    const char* fn_get_isa()
    int fn_has_dtype(fn_dtype)
    const char* fn_compiler()
    int fn_has_openmp()
    int64_t fn_cache_bytes(int)
    const char* fn_isas_built()
    void fn_softmax3(const double*, double*)
    void fn_set_buffer_cache(size_t)
    void fn_buffer_cache(size_t*, size_t*)
    void fn_memory_limit(const float*, const float*, float*, int64_t, int)


# No comprehensions: where memory is missing, those of Cython drop a reference too many (3.3.1).

include "_buffers.pxi"
include "_arguments.pxi"
include "_sixteen_bits.pxi"

# places in Context.params
cdef enum: WEIGHT, BIAS, TAU, MEAN_LOGITS, VAR_LOGITS, PARAMS
cdef tuple PARAM_NAMES = ("weight", "bias", "tau", "mean_logits", "var_logits")

# places in Context.beside
cdef enum: SHORTCUT, GATE, RESIDUAL, BESIDES
cdef tuple BESIDE_NAMES = ("shortcut", "gate", "residual")

# what backward must find again of an array of the forward call
ctypedef struct Place:
    void* data
    int num  # NumPy's number of the dtype


@cython.auto_pickle(False)
cdef class Context:
    """What a forward call leaves for :func:`fastnorm.backward`.

    It holds the statistics, and refers to the input and the parameters, of which it copies none but
    those of 16 bits. Changing their values between forward and backward changes the gradients;
    where their memory, dtype, shape or strides have changed, backward refuses. A context can be
    copied and pickled, with its arrays.

    Attributes
    ----------
    mean, var, rstd : ndarray, float64
        What x was normalized by, before weight and bias (and the corrections of the renorms):
        ``x_hat = (x - mean) * rstd`` with ``rstd = 1 / sqrt(var + eps)``. Read-only. Their shape is
        (C,) for batch norm and wherever the running statistics were used, (N, C) for instance and
        switchable norm (there mixed of its three), (N, num_groups) for group norm, and for layer
        and RMS norm that of the axes that are not normalized. RMS norm has mean 0, and the mean
        square for a variance, and so has filter response norm, of shape (N, C); weight norm mean 0,
        and the sum of squares. Global response norm, (N, C), has that too, and its N for `rstd`, as
        ``x_hat = x * N``. NaN where x was empty.
    """

    cdef fn_problem p
    cdef fn_params q
    cdef double* saved
    cdef cnp.ndarray statistics  # the memory of `saved`; None before a forward call
    cdef cnp.ndarray x          # dense, as the C library reads it
    cdef tuple shape            # of the caller's array
    cdef tuple over             # the axes of layer norm
    cdef object axes            # a permutation that makes them adjacent, or None
    cdef tuple param_shape
    cdef list params            # as the C library reads them, or None; in the order of PARAM_NAMES
    cdef int[PARAMS] grad_types  # NumPy's numbers of the dtypes of their gradients
    cdef Place[PARAMS] places   # of the parameters
    cdef Place x_place
    cdef fn_around around
    cdef list beside            # what is around, as the C library reads it; None: nothing is
    cdef Place[BESIDES] beside_places
    cdef bint has_rows          # whether the rows of x lie apart, as x_rows says
    cdef fn_rows x_rows, out_rows
    cdef object sum_out         # during a forward call: the caller's array for the sum, and the
    cdef cnp.ndarray sum        # one that the C library writes
    cdef bint has_sum           # whether x is the sum of an input and a residual
    cdef bint updates           # whether running statistics are updated
    cdef object running_mean, running_var   # the caller's
    cdef cnp.ndarray mean_used, var_used    # as the C library reads and writes them

    def __cinit__(self):
        self.saved = NULL
        self.params = [None] * PARAMS

    def __repr__(self):
        return f"<fastnorm.Context of an input of shape {self.shape}>"

    @classmethod
    def __class_getitem__(cls, item):
        return types.GenericAlias(cls, item)

    def __reduce__(self):
        return _contexts.restore, _state_of(_context(self))

    @property
    def mean(self):
        return _contexts.shown(_state_of(_context(self)), "mean")

    @property
    def var(self):
        return _contexts.shown(_state_of(_context(self)), "var")

    @property
    def rstd(self):
        return _contexts.shown(_state_of(_context(self)), "rstd")


cdef object _forward(Context ctx, object out, object return_ctx):
    """Run the C library into `out`, or into a temporary where `out` is no dense array or shares
    memory with the input in another way than being it. All that can fail comes before anything of
    the caller's is written."""
    cdef cnp.ndarray y
    cdef bint given = ctx.saved != NULL  # statistics that come from elsewhere
    cdef bint keep = _check_forward_out(ctx, out, return_ctx)
    cdef bint empty = cnp.PyArray_SIZE(ctx.x) == 0
    cdef fn_status status = FN_OK
    y = _target(out, ctx.x, ctx.axes) if ctx.over is None else _rows_target(ctx, out, ctx.x)
    if ctx.beside is not None:
        _set_sum(ctx, out, keep)
    if out is not None:
        _detach(ctx, out)
        if ctx.updates and y is not out:  # it is copied there before they may change
            ctx.mean_used, ctx.var_used = ctx.mean_used.copy(), ctx.var_used.copy()
    out = _returned(y, out, ctx.axes, ctx.shape)
    _point(ctx)
    if keep and not given:
        _make_saved(ctx)
    if ctx.has_sum:
        total = _returned(ctx.sum, ctx.sum_out, ctx.axes, ctx.shape)
        result = (out, total, ctx) if keep else (out, total)
    else:
        result = (out, ctx) if keep else out
    if not empty:
        with nogil:
            if given:
                status = fn_apply(&ctx.p, &ctx.q, ctx.saved, cnp.PyArray_DATA(ctx.x),
                                  cnp.PyArray_DATA(y))
            else:
                status = fn_forward(&ctx.p, &ctx.q, cnp.PyArray_DATA(ctx.x), cnp.PyArray_DATA(y),
                                    ctx.saved)
        _check_status(status)
        _deliver(y, out, ctx.axes)
    if ctx.beside is not None:
        _zero_padding(ctx, out)
    if ctx.has_sum:
        _take_sum(ctx, total)
    if ctx.updates and (given or not empty):  # a rank without samples takes what the others have
        _update(ctx)
    if keep:
        _settle(ctx)
    return result


cdef int _point(Context ctx) except -1:
    ctx.q.weight = _data(ctx.params[WEIGHT])
    ctx.q.bias = _data(ctx.params[BIAS])
    ctx.q.tau = _data(ctx.params[TAU])
    ctx.q.mean_logits = _data(ctx.params[MEAN_LOGITS])
    ctx.q.var_logits = _data(ctx.params[VAR_LOGITS])
    ctx.q.running_mean = _data(ctx.mean_used)
    ctx.q.running_var = _data(ctx.var_used)
    _point_around(ctx)
    return 0


cdef inline void* _data(object array):
    return NULL if array is None else cnp.PyArray_DATA(<cnp.ndarray>array)


cdef int64_t _make_saved(Context ctx) except -1:
    """Memory for the statistics; an empty x has none, whatever its other sizes."""
    cdef cnp.npy_intp size = fn_saved_size(&ctx.p) if cnp.PyArray_SIZE(ctx.x) else 0
    ctx.statistics = cnp.PyArray_EMPTY(1, &size, cnp.NPY_FLOAT64, 0)
    ctx.saved = <double*>cnp.PyArray_DATA(ctx.statistics)
    return size


cdef int _update(Context ctx) except -1:
    """Running statistics that the C library has a copy of take its values."""
    if ctx.mean_used is not ctx.running_mean:
        _put_back(ctx.mean_used, ctx.running_mean)
    if ctx.var_used is not ctx.running_var:
        _put_back(ctx.var_used, ctx.running_var)
    return 0


cdef int _detach(Context ctx, object out) except -1:
    """Copy parameters that lie in the memory that will be written."""
    cdef int i
    for i in range(PARAMS):
        if ctx.params[i] is not None and _overlap(out, ctx.params[i]):
            ctx.params[i] = ctx.params[i].copy()
    return 0


include "_around.pxi"


cdef cnp.ndarray _gradient(object dy, str name, Context c):
    """dy as the C library reads it."""
    cdef cnp.ndarray g = _input(dy, name, c.over if c.axes is None else None, NULL)
    if cnp.PyArray_TYPE(g) != cnp.PyArray_TYPE(c.x) or not _has_shape(g, c.shape):
        _arguments.refuse_gradient(g, name, c.x.dtype, c.shape)
    _check_places(c)  # the caller's code may have run
    if c.axes is not None:
        g = _dense_copy(_permuted(g, c.axes, False))
    return g


cdef int _check_grad_out(object out, cnp.ndarray g, Context c) except -1:
    cdef int i
    if out is None:
        return 0
    _check_out(out, g, c.shape)
    shared = None
    if _overlap(out, c.x):
        shared = "x"
    for i in range(PARAMS):
        if i == BIAS and c.params[TAU] is None and c.beside is None:
            continue  # it is not read
        if c.params[i] is not None and _overlap(out, c.params[i]):
            shared = PARAM_NAMES[i]
    for i in range(BESIDES):
        if c.beside is not None and _overlap(out, c.beside[i]):
            shared = BESIDE_NAMES[i]
    if shared is not None:
        _arguments.refuse_shared("out", f"the {shared} of the forward call")
    return 0


cdef object _new_gradient(Context c, int i, bint wide):
    """For a parameter; `wide`: in float32 where it has 16 bits, as the C library writes it."""
    cdef cnp.ndarray param
    cdef int num
    if c.params[i] is None:
        return None
    param = c.params[i]
    num = cnp.PyArray_TYPE(param) if wide else c.grad_types[i]
    if cnp.PyArray_SIZE(c.x) == 0:  # a sum of nothing
        return cnp.PyArray_ZEROS(cnp.PyArray_NDIM(param), cnp.PyArray_DIMS(param), num, 0)
    return cnp.PyArray_EMPTY(cnp.PyArray_NDIM(param), cnp.PyArray_DIMS(param), num, 0)


def backward(dy, ctx, out, ds):
    cdef Context c = _context(ctx)
    cdef cnp.ndarray g = _gradient(dy, "dy", c), dx
    cdef fn_rows dy_rows
    cdef object dsum = _gradient_of_sum(ds, c, out)
    cdef fn_around around = c.around
    cdef fn_params q = c.q
    cdef fn_grads grads
    cdef fn_status status = FN_OK
    cdef int i
    cdef list own = [None] * PARAMS, wide = [None] * PARAMS  # the caller's; those of the C library
    _check_grad_out(out, g, c)
    around.x_rows = &c.x_rows if c.has_rows else NULL
    around.dy_rows = NULL if cnp.PyArray_ISCARRAY_RO(g) else &dy_rows
    if around.dy_rows != NULL:
        _find_rows(g, c.over, &dy_rows)
    dx = _rows_target(c, out, g)
    around.out_rows = c.around.out_rows
    if around.x_rows != NULL or around.dy_rows != NULL or around.out_rows != NULL:
        q.around = &around
    out = _returned(dx, out, c.axes, c.shape)
    for i in range(PARAMS):
        own[i] = wide[i] = _new_gradient(c, i, False)
        if own[i] is not None and cnp.PyArray_ITEMSIZE(<cnp.ndarray>own[i]) == 2:
            wide[i] = _new_gradient(c, i, True)
    grads.shortcut = grads.gate = NULL
    grads.x = cnp.PyArray_DATA(dx)
    grads.weight = _data(wide[WEIGHT])
    grads.bias = _data(wide[BIAS])
    grads.tau = _data(wide[TAU])
    grads.mean_logits = _data(wide[MEAN_LOGITS])
    grads.var_logits = _data(wide[VAR_LOGITS])
    if c.beside is not None:
        around.dsum = _data(dsum)
        q.around = &around
        beside = _new_beside(c, g, &grads)
        result = FusedGradients(out, own[WEIGHT], own[BIAS], beside[SHORTCUT][1], beside[GATE][1],
                                own[TAU], own[MEAN_LOGITS], own[VAR_LOGITS])
    elif c.p.norm == FN_SWITCHABLE:
        result = SwitchableGradients(out, own[WEIGHT], own[BIAS], own[MEAN_LOGITS],
                                     own[VAR_LOGITS])
    elif c.p.norm == FN_FILTER_RESPONSE:
        result = FilterResponseGradients(out, own[WEIGHT], own[BIAS], own[TAU])
    elif c.p.norm == FN_WEIGHT:
        result = WeightGradients(out, own[WEIGHT])
    else:
        result = Gradients(out, own[WEIGHT], own[BIAS])
    if cnp.PyArray_SIZE(c.x):
        with nogil:
            status = fn_backward(&c.p, &q, c.saved, cnp.PyArray_DATA(c.x), cnp.PyArray_DATA(g),
                                 &grads)
        _check_status(status)
        _deliver(dx, out, c.axes)
    if c.beside is not None:
        _zero_padding(c, out)
        for target, given in beside:
            if given is not None:
                _put_beside(c, target, given)
    for i in range(PARAMS):
        if wide[i] is not own[i]:
            _put_back(wide[i], own[i])
    return result


include "_problem.pxi"
include "_normalizers.pxi"
include "_activations.pxi"
include "_context.pxi"
include "_steps.pxi"
include "_sync.pxi"
include "_settings.pxi"

from fastnorm import _contexts, around as _around  # which need this module
