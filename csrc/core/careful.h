/* What leaves the range of the kernels, computed in double. */
#ifndef FN_CAREFUL_H
#define FN_CAREFUL_H

#include "core/job.h"

/* domains [d, d1) whose deviation kernels cannot be trusted with are measured again */
void fn_careful_moments(fn_job *job, int64_t d, int64_t d1);
/* gradient sums of the planes of domains [d, d1) likewise; FN_FLAT where dx is 0 */
void fn_careful_grads(fn_job *job, int64_t d, int64_t d1);
/* FN_FLAT likewise, where the sums are those of several processes */
void fn_flat_everywhere(fn_job *job);
static inline int fn_any_careful(const fn_coefs *cf, int64_t p, int64_t p1) {
    int any = 0;
    for (; p < p1; p++)
        any |= cf->marks[p];
    return any & FN_CAREFUL;
}
/* y, or dx, of planes [p, p1) in segments [g, g1): in each, elements [from, to) of the group that
 * the planes lie in (fn_group_end).  Where sums are given: what the elements add to dweight and
 * dbias of their row. */
void fn_careful_part(fn_job *job, int64_t p, int64_t p1, int64_t g, int64_t g1, int64_t from,
                     int64_t to, double *dweight, double *dbias);

#endif
