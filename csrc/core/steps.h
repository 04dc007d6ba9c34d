/* The steps of a walk, each in two ways: on some domains, by the thread that has them in its cache,
 * or on all of them, by all threads. */
#ifndef FN_STEPS_H
#define FN_STEPS_H

#include "core/job.h"

/* moments to coefficients of y, and gradient sums to coefficients of dx, of domains [d, d1): of one
 * sample in column and block form */
void fn_coefficients_of(fn_job *job, int64_t d, int64_t d1);
void fn_grad_coefficients_of(fn_job *job, int64_t d, int64_t d1);
/* backward: those of y, from what forward saved */
void fn_forward_coefficients_of(fn_job *job, int64_t d, int64_t d1);
/* the sums alone, of planes [p, p1) */
void fn_grad_sums_of(fn_job *job, int64_t p, int64_t p1);

/* the same of all; fn_all_grad_sums looks at sums that leave the range, too */
void fn_all_statistics(fn_job *job);
void fn_all_coefficients(fn_job *job);
void fn_all_forward_coefficients(fn_job *job);
void fn_all_centers(fn_job *job);
void fn_all_grad_sums(fn_job *job);
void fn_all_grad_coefficients(fn_job *job);
/* what is written, from the end of the arrays where that was read last */
void fn_all_out(fn_job *job, int backwards);
/* dx becomes dy where y is above the floor, else 0, and then is dy */
void fn_all_masked(fn_job *job);

/* what goes back to parameters of the channels, and to the running statistics */
void fn_all_param_grads(fn_job *job);
void fn_all_running(fn_job *job);

#endif
