/* The moments of a union. */
#ifndef FN_MOMENTS_H
#define FN_MOMENTS_H

typedef struct {
    double n, mean, m2; /* count, mean, sum of squared deviations */
} fn_moments;

/* Chan, Golub & LeVeque (1979): the moments of the union. */
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

#endif
