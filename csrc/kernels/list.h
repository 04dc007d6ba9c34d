/* The kernels: one list, from which the table, the tests of each and the benchmark are made. */
#ifndef FN_LIST_H
#define FN_LIST_H

#include "fastnorm.h"
#include "kernels/built.h"
#include "system/basics.h"

#include <stddef.h>

/* ---- kernels -------------------------------------------------------------------------------
 * One list: every entry is a kernel of the table, instantiated for each dtype and instruction
 * set.  `void` stands for an element of x's dtype (x, y, dy, dx), or for the compute type (the
 * coefficients, weight, bias: double for FN_F64, else float).  Contracts: kernels_*.inc. */

/* Which elements a row or block kernel walks: nseg segments of len contiguous elements.  `fetch`:
 * it comes from memory, and moments and sums fetch ahead where that helps. */
typedef struct {
    int64_t nseg, seg_stride, len;
    int fetch;
} fn_run;
enum { FN_FAR = 2 }; /* of `fetch`: it comes from memory, all of it */

/* Column kernels fill their registers with several rows when there are fewer columns than this;
 * then a unit has all columns, because the sums depend on it. */
#define FN_NARROW 64

/* Which elements a tile kernel walks: in each of nseg segments `planes` planes of `inner` elements.
 */
typedef struct {
    int64_t nseg, seg_stride, planes, inner;
} fn_tile;

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

#define FN_KERNELS(X)                                                                              \
    X(row_moments, (const void *x, int64_t items, fn_run run, double *mean, double *m2))           \
    X(row_squares, (const void *x, int64_t items, fn_run run, double *mean, double *m2))           \
    X(row_apply, (const void *x, void *y, int64_t planes, fn_run run, const void *center,          \
                  const void *scale, const void *shift, fn_hints hints))                           \
    X(row_apply_elem,                                                                              \
      (const void *x, void *y, int64_t rows, int64_t stride, int64_t len, const void *center,      \
       const void *scale, const void *shift, const void *weight, const void *bias, int stream))    \
    X(row_grad_moments,                                                                            \
      (const void *x, const void *dy, int64_t items, fn_run run, const void *center,               \
       const void *weight, double *sum_dy, double *sum_dy_xc))                                     \
    X(row_grad_apply,                                                                              \
      (const void *x, const void *dy, void *dx, int64_t planes, fn_run run, const void *center,    \
       const void *a, const void *b, const void *e, fn_hints hints))                               \
    X(row_grad_apply_elem,                                                                         \
      (const void *x, const void *dy, void *dx, int64_t rows, int64_t stride, int64_t len,         \
       const void *center, const void *scale, const void *shift, const void *b, const void *e,     \
       const void *weight, void *dweight, void *dbias, int stream))                                \
    X(col_moments, (const void *x, int64_t rows, int64_t ld, int64_t cols, int fetch,              \
                    void *scratch, double *mean, double *m2))                                      \
    X(col_squares, (const void *x, int64_t rows, int64_t ld, int64_t cols, int fetch,              \
                    void *scratch, double *mean, double *m2))                                      \
    X(col_extremes, (const void *x, int64_t rows, int64_t ld, int64_t cols, int fetch,             \
                     void *scratch, double *low, double *high))                                    \
    X(col_apply, (const void *x, void *y, int64_t rows, int64_t ld, int64_t cols,                  \
                  const void *center, const void *scale, const void *shift, const void *weight,    \
                  const void *bias, int stream, void *scratch))                                    \
    X(col_grad_moments,                                                                            \
      (const void *x, const void *dy, int64_t rows, int64_t ld, int64_t cols, int fetch,           \
       const void *center, const void *weight, void *scratch, double *sum_dy, double *sum_dy_xc))  \
    X(col_grad_apply, (const void *x, const void *dy, void *dx, int64_t rows, int64_t ld,          \
                       int64_t cols, const void *center, const void *a, const void *b,             \
                       const void *e, int stream, void *scratch))                                  \
    X(col_grad_apply_elem,                                                                         \
      (const void *x, const void *dy, void *dx, int64_t rows, int64_t ld, int64_t cols,            \
       const void *center, const void *scale, const void *shift, const void *b, const void *e,     \
       const void *weight, double *dweight, double *dbias))                                        \
    X(block_moments, (const void *x, fn_run run, int64_t block, double *mean, double *m2))         \
    X(block_apply, (const void *x, void *y, int64_t runs, fn_run run, int64_t block,               \
                    const void *center, const void *scale, const void *shift, fn_hints hints))     \
    X(block_grad_moments, (const void *x, const void *dy, fn_run run, int64_t block,               \
                           const void *center, double *sum_dy, double *sum_dy_xc))                 \
    X(block_grad_apply,                                                                            \
      (const void *x, const void *dy, void *dx, int64_t runs, fn_run run, int64_t block,           \
       const void *center, const void *a, const void *b, const void *e, fn_hints hints))           \
    X(tile_moments,                                                                                \
      (const void *x, fn_tile tile, int fetch, void *scratch, double *mean, double *m2))           \
    X(tile_grad_moments, (const void *x, const void *dy, fn_tile tile, int fetch,                  \
                          const void *center, void *scratch, double *sum_dy, double *sum_dy_xc))   \
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
