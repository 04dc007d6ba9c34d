/* The kernels: one list, from which the table, the tests of each and the benchmark are made. */
#ifndef FN_LIST_H
#define FN_LIST_H

#include "fastnorm.h"
#include "kernels/built.h"
#include "system/basics.h"

#include <stddef.h>

/* What a kernel walks.  There are `rows` rows, `stride` elements apart, of len elements each.  A
 * row consists of runs of `run` elements, each with `outputs` outputs of its own, to which its
 * elements belong in turn: element i of a run to output i % outputs.
 *
 *     what                                     rows  stride  len        run    outputs
 *     a plane of x[c][s]                       1     -       s          s      1
 *     three channels of x[n][c][s]             n     c * s   3 * s      s      1
 *     a block of x[n][c / 8][s][8]             n     c * s   8 * s      8 * s  8
 *     a matrix x[s][c], its columns            s     c       c          c      c
 *
 * fetch: it comes from memory, and what is ahead is fetched where that helps; FN_FAR: all of it. */
typedef struct {
    int64_t rows, stride, len, run, outputs;
    int fetch;
} fn_view;
enum { FN_FAR = 2 };

/* Short runs of one output in many rows are read as columns, whose sums are added: memory is walked
 * in long lines, and no run has a tail of its own. */
static inline int fn_is_flat(const fn_view *view) {
    return view->outputs == 1 && view->rows >= 8 && view->run <= 128;
}

/* Fewer columns than this are read several rows at a time; then a unit has all columns, because the
 * sums depend on it. */
#define FN_NARROW 64
/* Columns that column kernels keep the state of in the L1; those of a tile are taken so many at a
 * time. */
#define FN_STRIP 1024
/* A narrow matrix is read as one of at most so many columns (kernels_col.inc). */
#define FN_FOLD 256
/* Elements of the period of a matrix that is written by whole lines (kernels_col.inc). */
#define FN_PERIOD 4096
#define FN_LEAST_PERIOD 256

/* Kernels that keep a table of columns have it in `scratch`, memory of the thread: a thread may
 * have a small stack (musl: 128 KiB), and a table of 1024 doubles fills 8 KiB of it.  A table has
 * this many elements, for a matrix of `cols` columns; the vectors of the last columns may be whole.
 */
static inline int64_t fn_table(int64_t cols) {
    const int64_t most = cols < FN_STRIP ? cols : FN_STRIP;
    return ((most < FN_FOLD ? FN_FOLD : most) + 127) / 64 * 64;
}
/* Bytes of scratch that column kernels need: the tables of moments, or for narrow rows those of the
 * coefficients of a period. */
static inline size_t fn_scratch_bytes(size_t esize, size_t asize, int64_t cols) {
    const int64_t line = (int64_t)(64 / esize);
    int64_t period = cols < 1 || cols > FN_PERIOD ? 0 : cols;
    while (period % line && period <= FN_PERIOD)
        period += cols;
    while (0 < period && period < FN_LEAST_PERIOD)
        period *= 2;
    const size_t moments = (size_t)fn_table(cols) * (2 * sizeof(double) + 6 * asize);
    const size_t coefficients = period <= FN_PERIOD ? 4 * (size_t)period * asize : 0;
    return moments > coefficients ? moments : coefficients;
}

/* How a kernel writes: `prefetch` bytes ahead of the element of x that is read, the input of the
 * next unit is fetched (0: none), and in blocks `prefetch_out` bytes ahead the lines of
 * the output that it writes; `stream` writes past the cache. */
typedef struct {
    int64_t prefetch, prefetch_out;
    int stream;
} fn_hints;

/* Every entry is a kernel of the table, made for each dtype and instruction set.  `void` stands for
 * an element of x's dtype (x, y, dy, dx), or for the compute type (coefficients, weight, bias:
 * double for FN_F64, else float).  scratch: fn_scratch_bytes.
 *
 *     moments          mean = sum x / n,  m2 = sum (x - mean)^2
 *     squares          sum = sum x^2
 *     extremes         low = min x,  high = max x, NaN passed over; inf, -inf of nothing else;
 *                      of at most FN_STRIP columns
 *     gradients        sum_dy = sum g,  sum_dy_xc = sum g * (x - center),  g = dy * weight; weight
 *                      (NULL: 1): one for each element of a run, of columns one for each row
 *     apply            y = (x - center) * scale + shift, with a floor max(that, floor)
 *     above            out = dy where (x - center) * scale + shift > floor, else 0
 *     grad_apply       dx = a * dy + (b * (x - center) + e)
 *     apply_elem, grad_apply_elem      see elem.inc
 *     widen, add_sums, narrow          see double.inc
 *     limit            y = x, or y = x + dy: what a pass over memory costs */
#define FN_KERNELS(X)                                                                              \
    X(moments, (const void *x, const fn_view *view, void *scratch, double *mean, double *m2))      \
    X(squares, (const void *x, const fn_view *view, void *scratch, double *sum))                   \
    X(extremes, (const void *x, const fn_view *view, void *scratch, double *low, double *high))    \
    X(gradients, (const void *x, const void *dy, const fn_view *view, const void *center,          \
                  const void *weight, void *scratch, double *sum_dy, double *sum_dy_xc))           \
    X(apply, (const void *x, void *y, const fn_view *view, const void *center, const void *scale,  \
              const void *shift, const void *floor, fn_hints hints, void *scratch))                \
    X(above,                                                                                       \
      (const void *x, const void *dy, void *out, const fn_view *view, const void *center,          \
       const void *scale, const void *shift, const void *floor, fn_hints hints, void *scratch))    \
    X(grad_apply,                                                                                  \
      (const void *x, const void *dy, void *dx, const fn_view *view, const void *center,           \
       const void *a, const void *b, const void *e, fn_hints hints, void *scratch))                \
    X(apply_elem, (const void *x, void *y, int64_t rows, int64_t stride, int64_t len, int by_row,  \
                   const void *center, const void *scale, const void *shift, const void *weight,   \
                   const void *bias, int stream))                                                  \
    X(grad_apply_elem,                                                                             \
      (const void *x, const void *dy, void *dx, int64_t rows, int64_t stride, int64_t len,         \
       int by_row, const void *center, const void *scale, const void *shift, const void *b,        \
       const void *e, const void *weight, void *dweight, void *dbias, int stream))                 \
    X(widen, (const void *x, int64_t rows, int64_t ld, int64_t cols, const double *origin,         \
              const double *unit, double *to))                                                     \
    X(add_sums, (const void *x, int64_t rows, int64_t ld, int64_t cols, const double *reference,   \
                 double *sum, double *square))                                                     \
    X(narrow, (const double *v, int64_t n, void *to))                                              \
    X(limit, (const void *x, const void *dy, void *y, int64_t len, int stream))

#define FN_KERNEL_FIELD(name, args) void(*name) args;
typedef struct {
    FN_KERNELS(FN_KERNEL_FIELD)
} fn_kernels;

/* of an instruction set and a dtype; those that were not built are not defined (kernels/built.h) */
#define FN_TABLES(isa)                                                                             \
    extern const fn_kernels fn_kernels_##isa##_f32, fn_kernels_##isa##_f64,                        \
        fn_kernels_##isa##_f16, fn_kernels_##isa##_bf16;
FN_TABLES(base)
FN_TABLES(avx2)
FN_TABLES(avx512)

/* the table in use; NULL where this build has none for the dtype, or for the processor */
const fn_kernels *fn_active_kernels(fn_dtype dtype);

#endif
