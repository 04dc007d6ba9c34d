/* From (plan, range) to a kernel call: the only file that calls the kernels of moments, gradient
 * sums, y and dx. */
#ifndef FN_PLACE_H
#define FN_PLACE_H

#include "core/job.h"

/* Where planes lie, in elements: segment g of plane p; in column form row r of it. */
static inline int64_t fn_plane_at(const fn_plan *pl, int64_t p, int64_t g) {
    return g * pl->seg_stride + p * pl->s;
}
static inline int64_t fn_row_at(const fn_plan *pl, int64_t p, int64_t r) {
    return (p / pl->cols * pl->s + r) * pl->ld + p % pl->cols;
}

/* Chunk k of the reductions [i, i1), domains in row form, else planes: moments; gradient sums of
 * planes [p, p1).  Of one matrix or block; in row form of one when there are several chunks. */
void fn_moments_chunk(fn_job *job, int64_t i, int64_t i1, int64_t k);
void fn_grad_chunk(fn_job *job, int64_t p, int64_t p1, int64_t k);
/* the chunks, in order, to the moments of domains [d, d1), the sums of planes [p, p1) */
void fn_merge_domains(fn_job *job, int64_t d, int64_t d1);
void fn_merge_grad_planes(fn_job *job, int64_t p, int64_t p1);

/* y, or dx, of planes [p, p1): in segments [g, g1) `len` elements from `off` on, of each plane or
 * block; in column form rows [r, r1) of planes of one matrix */
void fn_place_rows(fn_job *job, int64_t p, int64_t p1, int64_t g, int64_t g1, int64_t off,
                   int64_t len, fn_hints hints);
void fn_place_columns(fn_job *job, int64_t p, int64_t p1, int64_t r, int64_t r1, fn_hints hints);
/* all of them, in all segments or rows */
void fn_place_unit(fn_job *job, int64_t p, int64_t p1, fn_hints hints);

/* dx likewise, of planes whose elements have parameters, and what it adds to dweight and dbias of
 * the elements: rows, to `block`, len of each in the compute type, or where a plane is careful to
 * `sums`; columns, to `sums`.  sums: s doubles of dweight, then of dbias. */
void fn_place_elem_rows(fn_job *job, int64_t p, int64_t p1, int64_t off, int64_t len,
                        fn_hints hints, char *block, double *sums);
void fn_place_elem_columns(fn_job *job, int64_t p, int64_t p1, int64_t r, int64_t r1, double *sums);

#endif
