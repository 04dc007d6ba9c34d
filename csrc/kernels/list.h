/* The kernels: one list, from which the table, the tests of each and the benchmark are made. */
#ifndef FN_LIST_H
#define FN_LIST_H

#include "fastnorm.h"
#include "kernels/built.h"
#include "system/basics.h"

#include <stddef.h>

/* A view: what a kernel walks, and which element belongs to which result.  There are `rows` rows,
 * `stride` elements apart, of len elements each.  A row consists of runs of `run` elements, each
 * with `outputs` outputs of its own, to which its elements belong in turn: element i of a run to
 * output i % outputs.
 *
 *     what                                     rows  stride  len        run    outputs
 *     a plane of x[c][s]                       1     -       s          s      1
 *     three channels of x[n][c][s]             n     c * s   3 * s      s      1
 *     a block of x[n][c / 8][s][8]             n     c * s   8 * s      8 * s  8
 *     a matrix x[s][c], its columns            s     c       c          c      c
 *
 * out_stride: from row to row of what is written, of columns alone; 0: as in x.
 * more: gradient sums are added to those that are there, as of the rows before.
 *
 * fetch: 0 where the array is in the caches; else it comes from memory, some of it (1) or all of it
 * (FN_FAR), and what lies ahead is fetched where that helps. */
typedef struct {
    int64_t rows, stride, len, run, outputs;
    int fetch;
    int64_t out_stride;
    int more;
} fn_view;
enum { FN_FAR = 2 };

/* Whether a view is flat: short runs of one output in many rows, such as the planes of 7 x 7 images
 * of a batch.  They are read as columns, of which those of a run are then added: memory is walked
 * in order, and no run has a rest that fills no vector. */
static inline int fn_is_flat(const fn_view *view) {
    return view->outputs == 1 && view->rows >= 8 && view->run <= 128;
}

/* Gradient sums of a long run, or of the columns of a matrix that is not narrow, are those of
 * stretches of so many rows, of the columns or of lanes of 256 bytes, which are added in order in
 * double.  So a view may be taken in parts that begin with a stretch. */
#define FN_SUM_ROWS 64

/* A matrix of fewer columns than this is narrow: several of its rows are read as one (fold_of in
 * columns.inc).  How many, and so the order of the additions, depends on the number of columns;
 * core/plan.c therefore never cuts a narrow matrix between columns. */
#define FN_NARROW 64
/* Columns of a strip: what column kernels take at a time, so that the state of the columns stays in
 * the L1. */
#define FN_STRIP 1024
/* A narrow matrix is read as one of at most so many columns (fold_of in columns.inc). */
#define FN_FOLD 256
/* A matrix without gaps is written as one whose rows are whole cache lines (rotate_by in map.inc).
 * Such a row, the period, has FN_LEAST_PERIOD elements or more where there are rows enough; where
 * it would need more than FN_PERIOD, the matrix is written as it is. */
#define FN_PERIOD 4096
#define FN_LEAST_PERIOD 256

/* Column kernels need arrays with a number for each column, tables.  They lie in `scratch`, memory
 * that the thread brings: its stack may be small (musl: 128 KiB), and a table of 1024 doubles takes
 * 8 KiB.  fn_table: elements of a table for `cols` columns, more than columns, so that the last of
 * them can be loaded and stored as whole vectors. */
static inline int64_t fn_table(int64_t cols) {
    const int64_t most = cols < FN_STRIP ? cols : FN_STRIP;
    return ((most < FN_FOLD ? FN_FOLD : most) + 127) / 64 * 64;
}
/* Bytes of scratch that column kernels need: for moments two tables of doubles and six of the
 * compute type, or for what is written four coefficients of each element of a period. */
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

/* How a kernel writes, as core/traffic.c decides.  While it does, it fetches the input of the
 * domains that come next, which lies `prefetch` bytes ahead (0: it fetches nothing); in blocks also
 * the lines that these will write, `prefetch_out` bytes ahead.  stream: it writes past the cache.
 */
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
 *     extremes         low = min x,  high = max x, NaN passed over: inf and -inf where there is
 *                      nothing else; of at most FN_STRIP columns
 *     gradients        sum_dy = sum g,  sum_dy_xc = sum g * (x - center),  g = dy * weight; weight
 *                      (NULL: 1): one for each element of a run, of columns one for each row
 *     apply            y = (x - center) * scale + shift, with a floor max(that, floor); or, with
 *                      `add`, max(that + add, floor), of float32 and float64
 *     above            out = dy where (x - center) * scale + shift (+ add) > floor, else 0
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
    X(apply,                                                                                       \
      (const void *x, const void *add, void *y, const fn_view *view, const void *center,           \
       const void *scale, const void *shift, const void *floor, fn_hints hints, void *scratch))    \
    X(above, (const void *x, const void *dy, const void *add, void *out, const fn_view *view,      \
              const void *center, const void *scale, const void *shift, const void *floor,         \
              fn_hints hints, void *scratch))                                                      \
    X(grad_apply,                                                                                  \
      (const void *x, const void *dy, void *dx, const fn_view *view, const void *center,           \
       const void *a, const void *b, const void *e, fn_hints hints, void *scratch))                \
    X(apply_elem, (const void *x, void *y, int64_t rows, int64_t stride, int64_t out_stride,       \
                   int64_t len, int by_row, const void *center, const void *scale,                 \
                   const void *shift, const void *weight, const void *bias, fn_hints hints))       \
    X(grad_apply_elem,                                                                             \
      (const void *x, const void *dy, void *dx, int64_t rows, int64_t stride, int64_t len,         \
       int by_row, const void *center, const void *scale, const void *shift, const void *b,        \
       const void *e, const void *weight, void *dweight, void *dbias, fn_hints hints))             \
    X(widen, (const void *x, int64_t rows, int64_t ld, int64_t cols, const double *origin,         \
              const double *unit, double *to))                                                     \
    X(add_sums, (const void *x, int64_t rows, int64_t ld, int64_t cols, const double *reference,   \
                 double *sum, double *square))                                                     \
    X(narrow, (const double *v, int64_t n, void *to))                                              \
    X(activate, (int kind, double slope, const void *x, const void *add, void *y, int64_t n,       \
                 int stream, const void *next))                                                    \
    X(activate_grad, (int kind, double slope, const void *x, const void *add, const void *dy,      \
                      void *dx, int64_t n, int stream, const void *next))                          \
    X(add_to_both,                                                                                 \
      (const void *x, const void *add, void *y, void *copy, int64_t n, const void *next))          \
    X(gate,                                                                                        \
      (int kind, double slope, const void *x, const void *gate, void *y, int64_t n, int stream))   \
    X(gate_grad, (int kind, double slope, const void *x, const void *gate, const void *dy,         \
                  void *dx, void *dgate, int64_t n))                                               \
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
