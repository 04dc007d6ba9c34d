/* Exact moments, whatever the dtype. */
#ifndef FN_MEASURE_H
#define FN_MEASURE_H

#include "core/plan.h"

/* Of all features, the domains of the plan (of a group of channels, its planes; the padding of
 * blocks too): arrays of count, mean, mean_low, m2 and exponent, where mean + mean_low is the mean
 * and m2 * 4^exponent the sum of squared deviations.  NaN does not count with skip_nan; weight: of
 * each row, or NULL. */
fn_status fn_measure_features(const fn_plan *pl, const void *x, int threads, int skip_nan,
                              const double *weight, double *statistics);
/* those of domain d: mean, and m2 * 4^exponent; scratch as kernels need it */
void fn_exact_moments(const fn_plan *pl, const void *x, char *scratch, int64_t d, double *mean,
                      double *m2, int *exponent);

#endif
