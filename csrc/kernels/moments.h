/* The moments of two sets of numbers taken together. */
#ifndef FN_MOMENTS_H
#define FN_MOMENTS_H

#include <stdint.h>

typedef struct {
    double n, mean, m2; /* count, mean, sum of squared deviations */
} fn_moments;

/* Chan, Golub & LeVeque (1979): n numbers with these moments join those of *a. */
static inline void fn_merge(fn_moments *a, double n, double mean, double m2) {
    double total = a->n + n;
    if (n == 0)
        return;
    if (a->n == 0) {
        *a = (fn_moments){n, mean, m2};
        return;
    }
    double delta = mean - a->mean, part = n / total;
    a->mean += delta * part;
    a->m2 += m2 + delta * delta * a->n * part;
    a->n = total;
}

/* The same for `count` pairs of sets: each has n elements in the first, n_k in the second. */
static inline void fn_merge_each(double *restrict mean, double *restrict m2, double n,
                                 const double *restrict mean_k, const double *restrict m2_k,
                                 double n_k, int64_t count) {
    const double part = n_k / (n + n_k), cross = n * part;
    for (int64_t j = 0; j < count; j++) {
        const double delta = mean_k[j] - mean[j];
        mean[j] += delta * part;
        m2[j] += m2_k[j] + delta * delta * cross;
    }
}

#endif
