/* What stands around a normalizer in the same pass (fn_around of fastnorm.h): by pieces that stay
 * in the L1.  A piece of y or dx is written to a tile, memory of the thread, by the ordinary
 * kernels; what follows reads it there, and writes to the output.  So each stage rounds as the call
 * of its own would, and no kernel of a normalizer knows of it. */
#ifndef FN_AROUND_H
#define FN_AROUND_H

#include "core/job.h"
#include "core/workspace.h"

/* Rows of elements of x, from element i on, and where a kernel wrote them. */
struct fn_piece {
    int64_t i, rows, len, stride;
    const char *from;
    int64_t from_stride;
};

/* bytes that a thread needs, beyond the scratch of kernels */
int64_t fn_around_bytes(const fn_plan *plan, const fn_around *around);
/* what is around a job that is otherwise made; the arrays begin `start` bytes before its own */
void fn_start_around(fn_job *job, const fn_around *around, const fn_grads *grads, int64_t start);

/* the memory that it needs, beside that of threads */
void fn_take_floor(fn_job *job, fn_workspace *from);

/* whether what is written now is y, or is made of y: not dx */
int fn_is_of_y(const fn_job *job);

/* s = x + residual of what a view holds, from element i on */
void fn_add_residual(const fn_job *job, int64_t i, const fn_view *view);

/* fn_place_rows and fn_place_columns of a job that has something behind them */
void fn_after_rows(fn_job *job, int64_t p, int64_t p1, int64_t g, int64_t g1, int64_t off,
                   int64_t len, fn_hints hints);
void fn_after_columns(fn_job *job, int64_t p, int64_t p1, int64_t r, int64_t r1, fn_hints hints);
/* what follows rows of dx that have been written where they belong */
void fn_after_in_place(fn_job *job, int64_t i, int64_t rows, int64_t len, int64_t stride);
/* what follows rows of dx that have been written to a tile.  fn_tile: the tile in the place of
 * job->out, for n elements from element i on; NULL where they do not fit */
char *fn_tile(const fn_job *job, int64_t i, int64_t n);
void fn_after_tile(fn_job *job, int64_t i, int64_t n, int stream);

/* Backward: the gradient of what the normalizer gave is made from that of y, and takes its place as
 * job->dy.  By chunks: fn_grad_chunk makes it part by part, between the begin and the end of
 * domains [d, d1), or of all.  Ahead: all of it before the first sum, where the forward
 * coefficients are no coefficients to take sums with (switchable norm), or dy is changed a second
 * time (a floor). */
void fn_begin_grads_before(fn_job *job, int64_t d, int64_t d1);
void fn_end_grads_before(fn_job *job, int64_t d, int64_t d1);
void fn_begin_all_grads_before(fn_job *job);
void fn_end_all_grads_before(fn_job *job);
void fn_make_rows_before(fn_job *job, int64_t p, int64_t p1, int64_t g, int64_t g1, int64_t off,
                         int64_t len);
void fn_make_columns_before(fn_job *job, int64_t p, int64_t p1, int64_t r, int64_t r1);
void fn_grads_before(fn_job *job, int64_t d, int64_t d1);
void fn_all_grads_before(fn_job *job);

#endif
