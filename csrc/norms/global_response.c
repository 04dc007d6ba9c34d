/* Global Response Norm (Woo et al. 2023, ConvNeXt V2).  With G the Euclidean norm of a plane, M the
 * mean of G over the channels of a sample, and N = G / (M + eps):
 *     y = weight * (x * N) + bias + x = x * (1 + weight * N) + bias
 * Backward, with s = sum dy * x of a plane, divided by M + eps, and t the sum of weight * s * N
 * over the channels: dG = weight * s - t / C,  dx = dy * (1 + weight * N) + x * dG / G,  dweight =
 * s * G A plane of zeros has no direction: x * dG / G is 0 there.
 *
 * Sums are divided by M + eps first, so that they are as large as dy, however large x is. */
#include "norms/formulas.h"

/* M + eps and t of each sample, and dG of each plane */
static double *divisors(const fn_coefs *cf) { return cf->own; }
static double *sums(const fn_coefs *cf) { return cf->own + cf->plan->n; }
static double *length_grads(const fn_coefs *cf) { return cf->own + 2 * cf->plan->n; }
int64_t fn_global_own(const fn_plan *plan, int backward) {
    return 2 * plan->n + (backward ? plan->planes : 0);
}

static double weight_of(const fn_coefs *cf, int64_t plane) {
    double weight;
    fn_params_of(cf, cf->params->weight, 1, plane % cf->plan->c, 1, &weight);
    return weight;
}
static double response(const fn_coefs *cf, int64_t plane) { /* N */
    const double divisor = divisors(cf)[plane / cf->plan->c], length = cf->std[plane];
    return length == 0 ? 0 : length / divisor;
}

void fn_global_sample(fn_coefs *cf, int64_t n) {
    const int64_t C = cf->plan->p.c, first = n * cf->plan->c;
    double mean = 0;
    for (int64_t c = 0; c < C; c++)
        mean += cf->std[first + c] / (double)C;
    divisors(cf)[n] = mean + cf->plan->p.eps;
}

void fn_global_coefficients(fn_coefs *cf, int64_t p0, int64_t p1) {
    const fn_range range = fn_range_of(cf->plan->asize);
    for (int64_t p = p0; p < p1; p++) {
        const fn_careful w = fn_global_careful(cf, p, 0);
        fn_put(cf->plan, cf->center, p, 0);
        fn_put(cf->plan, cf->scale, p, w.scale);
        fn_put(cf->plan, cf->shift, p, w.shift);
        cf->marks[p] = fabs(w.scale) > range.high || fabs(w.shift) > range.high ? FN_CAREFUL : 0;
    }
}

/* sum dy * x of each plane becomes s, and t is made of it */
void fn_global_sample_grads(fn_coefs *cf, int64_t n) {
    const int64_t first = n * cf->plan->c;
    fn_global_sample(cf, n);
    sums(cf)[n] = 0;
    for (int64_t p = first; p < first + cf->plan->p.c; p++) {
        const double unit = cf->marks[p] & FN_SCALED ? fn_size_of(cf->std[p]) : 1;
        cf->sum_dy_xc[p] *= cf->std[p] == 0 ? 0 : unit / divisors(cf)[n];
        sums(cf)[n] += weight_of(cf, p) * cf->sum_dy_xc[p] * response(cf, p);
    }
}

/* s becomes what dweight takes */
void fn_global_grad_coefficients(fn_coefs *cf, int64_t p0, int64_t p1) {
    const fn_range range = fn_range_of(cf->plan->asize);
    for (int64_t p = p0; p < p1; p++) {
        const double mean = sums(cf)[p / cf->plan->c] / (double)cf->plan->p.c;
        const double dG = cf->std[p] == 0 ? 0 : weight_of(cf, p) * cf->sum_dy_xc[p] - mean;
        length_grads(cf)[p] = dG;
        cf->sum_dy_xc[p] *= cf->std[p];
        const fn_careful w = fn_global_careful(cf, p, 1);
        const double b = dG / w.sigma;
        fn_put(cf->plan, cf->a, p, w.scale);
        fn_put(cf->plan, cf->b, p, b);
        fn_put(cf->plan, cf->e, p, 0);
        if (fn_outside(w.scale, -range.high, range.high) + fn_product_outside(b, dG, range) > 0 &&
            !isnan(w.scale + b))
            cf->marks[p] |= FN_CAREFUL;
    }
}

fn_careful fn_global_careful(const fn_coefs *cf, int64_t plane, int backward) {
    const double scale = 1 + weight_of(cf, plane) * response(cf, plane);
    double bias;
    fn_params_of(cf, cf->params->bias, 0, plane % cf->plan->c, 1, &bias);
    if (!backward)
        return (fn_careful){.sigma = 1, .scale = scale, .shift = bias};
    const double sigma = cf->std[plane] == 0 ? 1 : cf->std[plane];
    return (fn_careful){.sigma = sigma, .over = 1, .scale = scale, .b = length_grads(cf)[plane]};
}
