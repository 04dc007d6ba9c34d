"""The edge between NumPy and the C library: every check of an argument is here.

A call fills a `Context`: the problem, the dense input and the parameters. Everything is checked
before the C library runs; it cannot fail after that but for memory, and then writes nothing.
"""

import math
import os
import warnings

import numpy as np

cimport numpy as cnp
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.math cimport INFINITY
from libc.stdint cimport int64_t

from fastnorm._types import Gradients, SwitchableGradients, WeightGradients

cnp.import_array()

cdef extern from *:
    """
    #ifndef FASTNORM_VERSION
    #define FASTNORM_VERSION "unknown"
    #endif
    """
    const char* FASTNORM_VERSION

__version__ = FASTNORM_VERSION.decode()

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
    ctypedef struct fn_grads:
        void *x
        void *weight
        void *bias
        void *mean_logits
        void *var_logits
    int64_t fn_saved_size(const fn_problem*)
    fn_status fn_forward(const fn_problem*, const fn_params*, const void*, void*, double*)
    fn_status fn_backward(const fn_problem*, const fn_params*, const double*, const void*,
                          const void*, const fn_grads*)
    fn_status fn_measure(const fn_problem*, const void*, int, const double*, double*)
    fn_status fn_apply(const fn_problem*, const fn_params*, const double*, const void*, void*)
    fn_status fn_measure_grad(const fn_problem*, const fn_params*, const double*, const void*,
                              const void*, double*)
    fn_status fn_apply_grad(const fn_problem*, const fn_params*, const double*, const double*,
                            double, const void*, const void*, void*)
    fn_status fn_extremes(fn_dtype, int64_t, int64_t, const void*, double*)
    fn_status fn_affine(fn_dtype, int64_t, int64_t, int, const void*, const double*,
                        const double*, const double*, void*, int*)
    void fn_set_num_threads(int)
    int fn_get_num_threads()
    int fn_isa_count()
    const char* fn_isa_name(int)
    int fn_set_isa(const char*)
    const char* fn_get_isa()
    const char* fn_compiler()
    int fn_has_openmp()
    int64_t fn_cache_bytes(int)
    const char* fn_isas_built()
    void fn_set_buffer_cache(size_t)
    void fn_buffer_cache(size_t*, size_t*)
    void fn_memory_limit(const float*, const float*, float*, int64_t, int)


include "_buffers.pxi"
include "_arguments.pxi"


cdef class Context:
    """What a forward call leaves for :func:`fastnorm.backward`.

    It refers to the input and the weight, and holds the statistics; it copies neither (but
    parameters of 16 bits, as float32). Changing either array between forward and backward changes
    the gradients.
    """

    cdef fn_problem p
    cdef fn_params q
    cdef double* saved
    cdef cnp.ndarray x          # dense, as the C library reads it
    cdef tuple shape            # of the caller's array
    cdef object axes            # a permutation that makes the axes of layer norm adjacent, or None
    cdef tuple param_shape
    cdef object weight, bias, running_mean, running_var, mean_logits, var_logits
    cdef list converted         # float32 copies of parameters of 16 bits, with what they copy

    def __cinit__(self):
        self.saved = NULL

    def __dealloc__(self):
        PyMem_Free(self.saved)

    def __repr__(self):
        return f"<fastnorm.Context of an input of shape {self.shape}>"


cdef inline Context _start(object x, fn_norm norm, object eps):
    cdef Context ctx = Context.__new__(Context)
    ctx.x = _dense_input(x, "x")
    ctx.shape = (<object>ctx.x).shape
    ctx.p.norm = norm
    ctx.p.dtype = <fn_dtype>_dtype(ctx.x, "x")
    ctx.p.groups = 1
    ctx.p.training = 1
    ctx.p.ddof = 0
    ctx.p.eps = _number(eps, "eps", 0, math.inf)
    ctx.p.sigma_min = 0
    ctx.p.r_max = 1
    ctx.p.d_max = 0
    ctx.p.momentum = 0
    ctx.p.blend = 0
    return ctx


cdef int _set_layout(Context ctx, object layout, object weight, object bias,
                     object running_mean=None) except -1:
    cdef Py_ssize_t rank = cnp.PyArray_NDIM(ctx.x), i
    cdef int64_t s = 1
    if rank < 2:
        raise ValueError(f"x: expected at least 2 dimensions (samples, channels), got shape "
                         f"{ctx.shape}")
    ctx.p.layout = <fn_layout>_layout(layout, rank)
    for i in range(1 if ctx.p.layout == FN_CHANNELS_LAST else 2,
                   rank if ctx.p.layout == FN_CHANNELS_FIRST else rank - 1):
        s *= cnp.PyArray_DIM(ctx.x, i)
    ctx.p.n = cnp.PyArray_DIM(ctx.x, 0)
    ctx.p.s = s
    if ctx.p.layout == FN_BLOCKED:
        ctx.p.block = 16 if layout.endswith("16c") else 8
        ctx.p.c = _blocked_channels(ctx.x, ctx.p.block, (
            ("weight", weight), ("bias", bias), ("running_mean", running_mean)))
    else:
        ctx.p.c = cnp.PyArray_DIM(ctx.x, 1 if ctx.p.layout == FN_CHANNELS_FIRST else rank - 1)
    ctx.param_shape = (ctx.p.c,)
    return 0


cdef int _set_axis(Context ctx, object axis) except -1:
    """Rows when the axes are the last ones, columns when they are others side by side; axes with
    others between them are brought to the end, by a copy."""
    cdef Py_ssize_t rank = cnp.PyArray_NDIM(ctx.x), i, first, last
    cdef tuple axes = _axes(axis, rank)
    first = axes[0]
    last = axes[len(axes) - 1]
    # one axis, as usual, without a list
    ctx.param_shape = (ctx.shape[first],) if first == last else tuple(
        [ctx.shape[i] for i in axes])
    if last - first + 1 != len(axes):
        kept = tuple([i for i in range(rank) if i not in axes])
        ctx.axes = kept + axes
        ctx.x = np.ascontiguousarray(ctx.x.transpose(ctx.axes))
        first = rank - len(axes)
        last = rank - 1
    ctx.p.n = ctx.p.c = ctx.p.s = 1
    for i in range(first):
        ctx.p.n *= cnp.PyArray_DIM(ctx.x, i)
    for i in range(first, last + 1):
        ctx.p.s *= cnp.PyArray_DIM(ctx.x, i)
    for i in range(last + 1, rank):
        ctx.p.c *= cnp.PyArray_DIM(ctx.x, i)
    ctx.p.layout = FN_CHANNELS_FIRST if ctx.p.c == 1 else FN_CHANNELS_LAST
    return 0


cdef void* _pointer(Context ctx, cnp.ndarray param, bint update=False):
    """Where the C library reads a parameter: its own memory, or that of a copy in float32."""
    if cnp.PyArray_ITEMSIZE(param) == 2:
        if ctx.converted is None:
            ctx.converted = []
        copy = param.astype(np.float32)
        ctx.converted.append((param if update else None, copy))
        param = copy
    return cnp.PyArray_DATA(param)


cdef inline int _set_affine(Context ctx, object weight, object bias) except -1:
    if weight is not None:
        ctx.weight = _parameter(weight, "weight", ctx.x, ctx.param_shape)
        ctx.q.weight = _pointer(ctx, ctx.weight)
    if bias is not None:
        ctx.bias = _parameter(bias, "bias", ctx.x, ctx.param_shape)
        ctx.q.bias = _pointer(ctx, ctx.bias)
    return 0


cdef int _set_running(Context ctx, object mean, object var, object momentum, object ddof,
                      bint update, bint required, str why) except -1:
    if (mean is None) != (var is None):
        raise ValueError("running_mean, running_var: expected both or neither, got only "
                         + ("running_var" if mean is None else "running_mean"))
    if mean is None:
        if required:
            raise ValueError(f"running_mean, running_var: expected arrays of shape "
                             f"({ctx.p.c},) {why}, got None")
    else:
        ctx.running_mean = _state(mean, "running_mean", ctx.x, ctx.param_shape, update)
        ctx.running_var = _state(var, "running_var", ctx.x, ctx.param_shape, update)
        ctx.q.running_mean = _pointer(ctx, ctx.running_mean, update)
        ctx.q.running_var = _pointer(ctx, ctx.running_var, update)
    if momentum is None:
        raise TypeError("momentum: expected a number, got None (the cumulative average belongs to "
                        "the layers, which count batches)")
    ctx.p.momentum = _number(momentum, "momentum", 0, 1)
    if not (type(ddof) is int or isinstance(ddof, (int, np.integer))) or ddof not in (0, 1):
        raise ValueError(f"ddof: expected 0 or 1, got {ddof!r}")
    ctx.p.ddof = ddof
    return 0


cdef int _check_count(Context ctx, int64_t per_domain, str domain, bint updates,
                      int64_t updated_from) except -1:
    """A variance needs two values, an unbiased one for the running statistics too."""
    if ctx.p.n * ctx.p.c * ctx.p.s == 0:
        return 0
    if per_domain == 1:
        raise ValueError(f"x: expected more than one value for each {domain}, whose variance is "
                         f"0 otherwise, got shape {ctx.shape}")
    if updates and ctx.running_mean is not None and updated_from <= ctx.p.ddof:
        raise ValueError(f"ddof: expected less than the {updated_from} value(s) of a channel that "
                         f"update running_var, got {ctx.p.ddof}")
    return 0


cdef int _check_forward_out(Context ctx, object out, bint keep) except -1:
    if out is not None:
        _check_out(out, ctx.x, ctx.shape)
        if keep and _overlap(out, ctx.x):
            raise ValueError("out: expected an array apart from x when return_ctx is True, since "
                             "backward reads x; got one that shares memory with it")
    return 0


cdef object _forward(Context ctx, object out, bint keep):
    """Run the C library into `out`, or into a temporary where `out` is no dense array or shares
    memory with the input in another way than being it."""
    cdef cnp.ndarray y
    cdef bint given = ctx.saved != NULL  # statistics that come from elsewhere
    cdef fn_status status
    _check_forward_out(ctx, out, keep)
    y = _target(out, ctx.x, ctx.axes)
    if out is not None:
        _detach(ctx, y)
    if keep and not given:
        _make_saved(ctx)
    with nogil:
        if given:
            status = fn_apply(&ctx.p, &ctx.q, ctx.saved, cnp.PyArray_DATA(ctx.x),
                              cnp.PyArray_DATA(y))
        else:
            status = fn_forward(&ctx.p, &ctx.q, cnp.PyArray_DATA(ctx.x), cnp.PyArray_DATA(y),
                                ctx.saved)
    _check_status(status)
    if ctx.converted is not None:
        _write_back(ctx)
    result = _deliver(y, out, ctx.axes)
    if keep:
        ctx.running_mean = ctx.running_var = None
        ctx.q.running_mean = ctx.q.running_var = NULL
        return result, ctx
    return result


cdef int64_t _make_saved(Context ctx) except -1:
    cdef int64_t size = fn_saved_size(&ctx.p)
    ctx.saved = <double*>PyMem_Malloc(<size_t>(size + 1) * sizeof(double))
    if ctx.saved == NULL:
        raise MemoryError
    return size


cdef int _write_back(Context ctx) except -1:
    """Running statistics of 16 bits take the update of their copies."""
    with np.errstate(over="ignore"):  # nothing may fail any more
        for state, copy in ctx.converted:
            if state is not None:
                state[...] = copy
    return 0


cdef inline bint _is_read(object param):
    """Whether the C library reads the parameter itself: those of 16 bits it has as copies."""
    return param is not None and cnp.PyArray_ITEMSIZE(<cnp.ndarray>param) > 2


cdef int _detach(Context ctx, cnp.ndarray y) except -1:
    """Copy parameters that lie in the memory that will be written."""
    if _is_read(ctx.weight) and _overlap(y, ctx.weight):
        ctx.weight = ctx.weight.copy()
        ctx.q.weight = _pointer(ctx, ctx.weight)
    if _is_read(ctx.bias) and _overlap(y, ctx.bias):
        ctx.bias = ctx.bias.copy()
        ctx.q.bias = _pointer(ctx, ctx.bias)
    if ctx.running_mean is None:
        return 0
    for name, state in (("running_mean", ctx.running_mean), ("running_var", ctx.running_var)):
        if _overlap(y, state):
            raise ValueError(f"out: expected an array apart from {name}, got one that shares "
                             "memory with it")
    return 0


def layer_norm(x, weight, bias, axis, eps, out, return_ctx):
    cdef Context ctx = _start(x, FN_LAYER, eps)
    _set_axis(ctx, axis)
    _set_affine(ctx, weight, bias)
    return _forward(ctx, out, return_ctx)


def rms_norm(x, weight, axis, eps, out, return_ctx):
    cdef Context ctx = _start(x, FN_RMS, eps)
    _set_axis(ctx, axis)
    _set_affine(ctx, weight, None)
    return _forward(ctx, out, return_ctx)


cdef Context _start_batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps,
                               ddof, layout):
    cdef Context ctx = _start(x, FN_BATCH, eps)
    _set_layout(ctx, layout, weight, bias, running_mean)
    _set_affine(ctx, weight, bias)
    ctx.p.training = _flag(training, "training")
    _set_running(ctx, running_mean, running_var, momentum, ddof, ctx.p.training,
                 not ctx.p.training, "when training is False")
    return ctx


def batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps, ddof, layout,
               out, return_ctx):
    cdef Context ctx = _start_batch_norm(x, weight, bias, running_mean, running_var, training,
                                         momentum, eps, ddof, layout)
    if ctx.p.training:
        _check_count(ctx, ctx.p.n * ctx.p.s, "channel in training", True, ctx.p.n * ctx.p.s)
    return _forward(ctx, out, return_ctx)


def batch_renorm(x, weight, bias, running_mean, running_var, training, momentum, eps, r_max,
                 d_max, ddof, layout, out, return_ctx):
    cdef Context ctx = _start(x, FN_BATCH_RENORM, eps)
    _set_layout(ctx, layout, weight, bias, running_mean)
    _set_affine(ctx, weight, bias)
    ctx.p.training = _flag(training, "training")
    _set_running(ctx, running_mean, running_var, momentum, ddof, ctx.p.training, True,
                 "for the corrections r and d")
    ctx.p.r_max = _number(r_max, "r_max", 1, math.inf)
    ctx.p.d_max = _number(d_max, "d_max", 0, math.inf)
    if ctx.p.training:
        _check_count(ctx, ctx.p.n * ctx.p.s, "channel in training", True, ctx.p.n * ctx.p.s)
    return _forward(ctx, out, return_ctx)


def group_norm(x, num_groups, weight, bias, eps, layout, out, return_ctx):
    cdef Context ctx = _start(x, FN_GROUP, eps)
    _set_layout(ctx, layout, weight, bias)
    ctx.p.groups = _groups(num_groups, ctx.p.c)
    _set_affine(ctx, weight, bias)
    _check_count(ctx, ctx.p.c // ctx.p.groups * ctx.p.s, "group", False, 0)
    return _forward(ctx, out, return_ctx)


def instance_norm(x, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, ddof,
                  layout, out, return_ctx):
    cdef Context ctx = _start(x, FN_INSTANCE, eps)
    _set_layout(ctx, layout, weight, bias, running_mean)
    _set_affine(ctx, weight, bias)
    ctx.p.training = _flag(use_input_stats, "use_input_stats")
    _set_running(ctx, running_mean, running_var, momentum, ddof, ctx.p.training,
                 not ctx.p.training, "when use_input_stats is False")
    if ctx.p.training:
        _check_count(ctx, ctx.p.s, "channel of a sample", True, ctx.p.s)
    return _forward(ctx, out, return_ctx)


def switchable_norm(x, weight, bias, mean_logits, var_logits, running_mean, running_var, training,
                    momentum, eps, ddof, layout, out, return_ctx):
    cdef Context ctx = _start(x, FN_SWITCHABLE, eps)
    _set_layout(ctx, layout, weight, bias, running_mean)
    _set_affine(ctx, weight, bias)
    ctx.mean_logits = _parameter(mean_logits, "mean_logits", ctx.x, (3,))
    ctx.q.mean_logits = _pointer(ctx, ctx.mean_logits)
    ctx.var_logits = _parameter(var_logits, "var_logits", ctx.x, (3,))
    ctx.q.var_logits = _pointer(ctx, ctx.var_logits)
    ctx.p.training = _flag(training, "training")
    _set_running(ctx, running_mean, running_var, momentum, ddof, ctx.p.training,
                 not ctx.p.training, "when training is False")
    _check_count(ctx, ctx.p.n * ctx.p.c * ctx.p.s, "batch", ctx.p.training, ctx.p.n * ctx.p.s)
    return _forward(ctx, out, return_ctx)


def instance_renorm(x, weight, bias, running_mean, running_var, r_max, d_max, blend, training,
                    momentum, eps, ddof, layout, out, return_ctx):
    cdef Context ctx = _start(x, FN_INSTANCE_RENORM, eps)
    _set_layout(ctx, layout, weight, bias, running_mean)
    _set_affine(ctx, weight, bias)
    ctx.p.training = _flag(training, "training")
    _set_running(ctx, running_mean, running_var, momentum, ddof, ctx.p.training, True,
                 "for the corrections r and d")
    ctx.p.r_max = _number(r_max, "r_max", 1, math.inf)
    ctx.p.d_max = _number(d_max, "d_max", 0, math.inf)
    ctx.p.blend = _number(blend, "blend", 0, 1)
    _check_count(ctx, ctx.p.s, "channel of a sample", ctx.p.training, ctx.p.n * ctx.p.s)
    return _forward(ctx, out, return_ctx)


def weight_norm(v, g, axis, out, return_ctx):
    """The planes of batch norm: `axis` is the channel, with what is before it as the samples."""
    cdef Context ctx = _start(_dense_input(v, "v"), FN_WEIGHT, 0.0)
    cdef Py_ssize_t rank = cnp.PyArray_NDIM(ctx.x), i
    if rank == 0:
        raise ValueError("v: expected at least 1 dimension, got a scalar")
    if axis is None:
        first = rank
        ctx.p.c = 1
        kept = ()
    else:
        if isinstance(axis, tuple):
            raise TypeError(f"axis: expected an int or None, got {axis!r}")
        first, = _axes(axis, rank)
        ctx.p.c = ctx.shape[first]
        kept = tuple([n if i == first else 1 for i, n in enumerate(ctx.shape)])
    ctx.p.layout = FN_CHANNELS_FIRST
    ctx.p.n = math.prod(ctx.shape[:first])
    ctx.p.s = math.prod(ctx.shape[first + 1:])
    # torch's shape of g as well
    ctx.param_shape = kept if kept and np.shape(g) == kept else kept[first:first + 1]
    ctx.weight = _parameter(g, "g", ctx.x, ctx.param_shape)
    ctx.q.weight = _pointer(ctx, ctx.weight)
    return _forward(ctx, out, return_ctx)


cdef object _grad_like(object param):
    if param is None:
        return None
    cdef cnp.ndarray p = param
    return cnp.PyArray_EMPTY(
        cnp.PyArray_NDIM(p), cnp.PyArray_DIMS(p),
        cnp.NPY_FLOAT32 if cnp.PyArray_ITEMSIZE(p) == 2 else cnp.PyArray_TYPE(p), 0)


cdef object _as_param(object grad, object param):
    """A gradient in its parameter's dtype."""
    if param is None or grad.dtype == param.dtype:
        return grad
    with np.errstate(over="ignore"):
        return grad.astype(param.dtype)


cdef inline void* _data(object array):
    return NULL if array is None else cnp.PyArray_DATA(<cnp.ndarray>array)


cdef Context _context(object ctx):
    if not isinstance(ctx, Context) or (<Context>ctx).saved == NULL:
        raise TypeError(f"ctx: expected the Context of a forward call with return_ctx=True, got "
                        f"{type(ctx).__name__}")
    return ctx


cdef cnp.ndarray _gradient(object dy, Context c):
    """dy as the C library reads it."""
    cdef cnp.ndarray g = _dense_input(dy, "dy")
    if not _has_shape(g, c.shape):
        raise ValueError(f"dy: expected x's shape {c.shape}, got {(<object>g).shape}")
    if cnp.PyArray_TYPE(g) != cnp.PyArray_TYPE(c.x):
        raise TypeError(f"dy: expected x's dtype {c.x.dtype}, got {g.dtype}")
    if c.axes is not None:
        g = np.ascontiguousarray(g.transpose(c.axes))
    return g


cdef int _check_grad_out(object out, cnp.ndarray g, Context c) except -1:
    if out is None:
        return 0
    _check_out(out, g, c.shape)
    shared = None
    if _overlap(out, c.x):
        shared = "x"
    elif c.weight is not None and _overlap(out, c.weight):
        shared = "weight"
    elif c.mean_logits is not None and _overlap(out, c.mean_logits):
        shared = "mean_logits"
    elif c.var_logits is not None and _overlap(out, c.var_logits):
        shared = "var_logits"
    if shared is not None:
        raise ValueError(f"out: expected an array apart from the {shared} of the forward call, "
                         "got one that shares memory with it")
    return 0


def backward(dy, ctx, out):
    cdef Context c = _context(ctx)
    cdef cnp.ndarray g = _gradient(dy, c), dx
    cdef fn_grads grads
    cdef fn_status status
    _check_grad_out(out, g, c)
    dx = _target(out, g, c.axes)
    dweight = _grad_like(c.weight)
    dbias = _grad_like(c.bias)
    dmean_logits = _grad_like(c.mean_logits)
    dvar_logits = _grad_like(c.var_logits)
    grads.x = cnp.PyArray_DATA(dx)
    grads.weight = _data(dweight)
    grads.bias = _data(dbias)
    grads.mean_logits = _data(dmean_logits)
    grads.var_logits = _data(dvar_logits)
    with nogil:
        status = fn_backward(&c.p, &c.q, c.saved, cnp.PyArray_DATA(c.x), cnp.PyArray_DATA(g),
                             &grads)
    _check_status(status)
    result = _deliver(dx, out, c.axes)
    if c.converted is not None:
        dweight, dbias = _as_param(dweight, c.weight), _as_param(dbias, c.bias)
        dmean_logits = _as_param(dmean_logits, c.mean_logits)
        dvar_logits = _as_param(dvar_logits, c.var_logits)
    if c.p.norm == FN_SWITCHABLE:
        return SwitchableGradients(result, dweight, dbias, dmean_logits, dvar_logits)
    if c.p.norm == FN_WEIGHT:
        return WeightGradients(result, dweight)
    return Gradients(result, dweight, dbias)


include "_steps.pxi"
include "_settings.pxi"
