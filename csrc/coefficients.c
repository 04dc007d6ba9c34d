/* Moments to scale and shift, and gradient sums to the coefficients of dx: here, and only here,
 * normalizers differ.  All in double; arrays of N*C numbers, never of N*C*S.
 *
 * x is centered in its own precision, x - center, with center the mean rounded to that precision;
 * what rounding left of the mean, `low`, goes into the shift.  So y is as exact at a mean of 1e6
 * standard deviations as at 0. */
#include "internal.h"

#include <math.h>

/* the channels of a blocked layout that fill up the last block, and have no parameters */
static int is_padding(const fn_coefs *cf, int64_t channel) { return channel >= cf->plan->p.c; }
static double weight_of(const fn_coefs *cf, int64_t channel) {
    if (is_padding(cf, channel))
        return 0;
    return cf->params->weight ? fn_get(cf->plan, cf->params->weight, channel) : 1;
}
static double bias_of(const fn_coefs *cf, int64_t channel) {
    if (is_padding(cf, channel))
        return 0;
    return cf->params->bias ? fn_get(cf->plan, cf->params->bias, channel) : 0;
}
static double clip(double v, double lo, double hi) { return v < lo ? lo : v > hi ? hi : v; }
static int is_switchable(const fn_coefs *cf) { return cf->plan->p.norm == FN_SWITCHABLE; }
/* statistics are constants of the backward pass */
static int constant_stats(const fn_plan *plan) {
    fn_norm norm = plan->p.norm;
    return !plan->p.training &&
           (norm == FN_BATCH || norm == FN_BATCH_RENORM || norm == FN_INSTANCE);
}
int fn_needs_moments(const fn_plan *plan) { return !constant_stats(plan); }

/* ---- statistics of a domain ----------------------------------------------------------------*/

/* Batch Renorm (Ioffe 2017), also for instance statistics: r = clip(sigma_B / sigma),
 * d = clip((mean_B - mean) / sigma) against the running statistics. */
static void renorm_corrections(fn_coefs *cf, int64_t d) {
    const fn_plan *plan = cf->plan;
    const fn_problem *p = &plan->p;
    const int64_t c = d % plan->c;
    if (constant_stats(plan) || is_padding(cf, c)) {
        cf->r[d] = 1;
        cf->d[d] = 0;
        return;
    }
    const double sigma = sqrt(fn_get(plan, cf->params->running_var, c) + p->eps);
    const double blend = p->norm == FN_INSTANCE_RENORM ? p->blend : 1;
    double r = clip(sqrt(cf->var[d] + p->eps) / sigma, 1 / p->r_max, p->r_max);
    double shift = (cf->mean[d] - fn_get(plan, cf->params->running_mean, c)) / sigma;
    cf->r[d] = 1 + blend * (r - 1);
    cf->d[d] = blend * clip(shift, -p->d_max, p->d_max);
}

void fn_statistics(fn_coefs *cf, int64_t d0, int64_t d1) {
    const fn_plan *plan = cf->plan;
    const double count = (double)plan->count;
    if (constant_stats(plan)) {
        for (int64_t d = d0; d < d1; d++) {
            const int64_t c = d % plan->c;
            cf->mean[d] = is_padding(cf, c) ? 0 : fn_get(plan, cf->params->running_mean, c);
            cf->var[d] = is_padding(cf, c) ? 0 : fn_get(plan, cf->params->running_var, c);
        }
    } else if (plan->p.norm == FN_WEIGHT) { /* sums of squares; both terms positive: exact */
        for (int64_t d = d0; d < d1; d++) {
            cf->var[d] += cf->mean[d] * cf->mean[d] * count;
            cf->mean[d] = 0;
        }
    } else {
        for (int64_t d = d0; d < d1; d++)
            cf->var[d] /= count;
    }
    for (int64_t d = d0; d < d1 && cf->r; d++)
        renorm_corrections(cf, d);
}

/* ---- switchable norm (Luo et al. 2018) -----------------------------------------------------*/

enum { SN_IN, SN_LN, SN_BN };

static void softmax3(const fn_plan *plan, const void *logits, double w[3]) {
    double top = -INFINITY, sum = 0;
    for (int k = 0; k < 3; k++)
        top = fmax(top, fn_get(plan, logits, k));
    for (int k = 0; k < 3; k++)
        sum += w[k] = exp(fn_get(plan, logits, k) - top);
    for (int k = 0; k < 3; k++)
        w[k] /= sum;
}

/* The union of planes of equal size has the mean of the means, and the mean of
 * var + (mean - that)^2 for a variance: layer statistics of sample n. */
void fn_layer_statistics(fn_coefs *cf, int64_t n) {
    const int64_t C = cf->plan->p.c;
    const double *mean = cf->mean + n * cf->plan->c, *var = cf->var + n * cf->plan->c;
    double sum = 0, spread = 0;
    for (int64_t c = 0; c < C; c++)
        sum += mean[c] - mean[0];
    const double m = mean[0] + sum / (double)C;
    for (int64_t c = 0; c < C; c++)
        spread += var[c] + (mean[c] - m) * (mean[c] - m);
    cf->lmean[n] = m;
    cf->lvar[n] = spread / (double)C;
}

/* likewise the batch statistics of channels [c0, c1); samples in order, memory in order */
void fn_batch_statistics(fn_coefs *cf, int64_t c0, int64_t c1) {
    const fn_plan *plan = cf->plan;
    const int64_t C = plan->c;
    const double N = (double)plan->n;
    for (int64_t c = c0; c < c1; c++) {
        const int constant = !plan->p.training && !is_padding(cf, c);
        cf->bmean[c] = constant ? fn_get(plan, cf->params->running_mean, c) : 0;
        cf->bvar[c] = constant ? fn_get(plan, cf->params->running_var, c) : 0;
    }
    if (!plan->p.training)
        return;
    for (int64_t p = 0; p < plan->planes; p += C)
        for (int64_t c = c0; c < c1; c++)
            cf->bmean[c] += cf->mean[p + c] - cf->mean[c];
    for (int64_t c = c0; c < c1; c++)
        cf->bmean[c] = cf->mean[c] + cf->bmean[c] / N;
    for (int64_t p = 0; p < plan->planes; p += C)
        for (int64_t c = c0; c < c1; c++) {
            const double delta = cf->mean[p + c] - cf->bmean[c];
            cf->bvar[c] += (cf->var[p + c] + delta * delta) / N;
        }
}

typedef struct {
    double w[3], wv[3];       /* softmaxes of the logits */
    double means[3], vars[3]; /* of a plane */
    double mean, var;         /* mixed */
} switchable_mix;

static switchable_mix mix_weights(const fn_coefs *cf) {
    switchable_mix mix = {.mean = 0};
    softmax3(cf->plan, cf->params->mean_logits, mix.w);
    softmax3(cf->plan, cf->params->var_logits, mix.wv);
    return mix;
}

static void mix_plane(const fn_coefs *cf, switchable_mix *mix, int64_t plane, int64_t n,
                      int64_t c) {
    mix->means[SN_IN] = cf->mean[plane];
    mix->means[SN_LN] = cf->lmean[n];
    mix->means[SN_BN] = cf->bmean[c];
    mix->vars[SN_IN] = cf->var[plane];
    mix->vars[SN_LN] = cf->lvar[n];
    mix->vars[SN_BN] = cf->bvar[c];
    /* around one of the means: equal means give exactly that mean */
    mix->mean = mix->means[SN_IN];
    mix->var = 0;
    for (int k = 0; k < 3; k++) {
        mix->mean += mix->w[k] * (mix->means[k] - mix->means[SN_IN]);
        mix->var += mix->wv[k] * mix->vars[k];
    }
}

/* ---- forward -------------------------------------------------------------------------------*/

/* y = ((x - mean) * scale + shift) * weight + bias as (x - center) * scale + shift */
static void put_plane(fn_coefs *cf, int64_t plane, int64_t c, double mean, double scale,
                      double shift) {
    const fn_plan *plan = cf->plan;
    if (!plan->elem) {
        scale *= weight_of(cf, c);
        shift = shift * weight_of(cf, c) + bias_of(cf, c);
    }
    fn_put(plan, cf->center, plane, mean);
    const double low = mean - fn_get(plan, cf->center, plane);
    fn_put(plan, cf->scale, plane, scale);
    fn_put(plan, cf->shift, plane, low == 0 ? shift : shift - low * scale);
}

static void switchable_coefficients(fn_coefs *cf, int64_t p0, int64_t p1) {
    switchable_mix mix = mix_weights(cf);
    const int64_t C = cf->plan->c;
    for (int64_t plane = p0, n = p0 / C, c = p0 % C; plane < p1; plane++) {
        mix_plane(cf, &mix, plane, n, c);
        put_plane(cf, plane, c, mix.mean, 1 / sqrt(mix.var + cf->plan->p.eps), 0);
        if (++c == C) {
            c = 0;
            n++;
        }
    }
}

/* Planes without a channel, and those that belong to no domain, become 0. */
static void zero_padding(const fn_coefs *cf, int64_t d0, int64_t d1, void *const arrays[3]) {
    const fn_plan *plan = cf->plan;
    if (plan->c == plan->p.c)
        return;
    const int64_t p1 = fn_first_plane(plan, d1);
    for (int64_t p = fn_first_plane(plan, d0); p < p1; p++)
        for (int i = 0; i < 3 && is_padding(cf, p % plan->c); i++)
            fn_put(plan, arrays[i], p, 0);
}

/* the first planes of domain after domain, without a division for each */
typedef struct {
    int64_t plane, c; /* c: its channel */
} position;

static position position_of(const fn_plan *plan, int64_t d) {
    const int64_t plane = fn_first_plane(plan, d);
    return (position){plane, plan->c == 1 ? 0 : plane % plan->c};
}
static void next_domain(const fn_plan *plan, position *at) {
    const int64_t channels = plan->sample_domains * plan->per_domain;
    at->plane += plan->per_domain;
    at->c += plan->per_domain;
    if (at->c == channels) {
        at->plane += plan->c - channels;
        at->c = 0;
    }
}

/* 1 / sigma of domains [d0, d1), at most BLOCK */
#define BLOCK 64
static void rstd_block(const fn_coefs *cf, int64_t d0, int64_t d1, double *rstd) {
    const double eps = cf->plan->p.eps;
    for (int64_t d = d0; d < d1; d++)
        rstd[d - d0] = 1 / sqrt(cf->var[d] + eps);
}

static void plain_coefficients(fn_coefs *cf, int64_t d0, int64_t d1) {
    const fn_plan *plan = cf->plan;
    position at = position_of(plan, d0);
    double rstd[BLOCK];
    for (int64_t d = d0; d < d1; d++, next_domain(plan, &at)) {
        const int64_t k = (d - d0) % BLOCK;
        if (k == 0)
            rstd_block(cf, d, fn_min(d + BLOCK, d1), rstd);
        const double r = cf->r ? cf->r[d] : 1, shift = cf->r ? cf->d[d] : 0;
        for (int64_t i = 0; i < plan->per_domain; i++)
            put_plane(cf, at.plane + i, at.c + i, cf->mean[d], rstd[k] * r, shift);
    }
}

void fn_coefficients(fn_coefs *cf, int64_t d0, int64_t d1) {
    void *const arrays[] = {cf->center, cf->scale, cf->shift};
    if (is_switchable(cf))
        switchable_coefficients(cf, d0, d1);
    else
        plain_coefficients(cf, d0, d1);
    zero_padding(cf, d0, d1, arrays);
}

/* ---- backward ------------------------------------------------------------------------------
 * With g = dy * weight, S1 = sum g and S2 = sum g * (x - mean) over the domain of m elements:
 *     dx = g * r/sigma - r/sigma^3 * S2/m * (x - mean) - r/sigma * S1/m
 * (r = 1 but in renorm, where it is a constant of the backward pass; RMS norm has no S1 term, nor
 * has weight norm, whose sigma is the norm: m = 1). */

/* x - mean = (x - center) - low */
static double low_of(const fn_coefs *cf, int64_t plane, double mean) {
    return mean - fn_get(cf->plan, cf->center, plane);
}
static double centered_sum(const fn_coefs *cf, int64_t plane, double mean) {
    return cf->sum_dy_xc[plane] - low_of(cf, plane, mean) * cf->sum_dy[plane];
}
static void put_grad_plane(fn_coefs *cf, int64_t plane, double a, double b, double e) {
    fn_put(cf->plan, cf->a, plane, a);
    fn_put(cf->plan, cf->b, plane, b);
    fn_put(cf->plan, cf->e, plane, e);
}

/* The paths through the three means and variances: with mu and v mixed for each plane,
 *     dmu = -weight/sigma * sum dy,  dv = -weight/(2 sigma^3) * sum dy*(x - mu)
 * and each component k passes w[k]*dmu and wv[k]*dv, summed over its domain, on to x. */

/* dmu and dv of the planes of sample n, their sums, and what they give to the logits */
void fn_layer_grad_sums(fn_coefs *cf, int64_t n) {
    const int64_t C = cf->plan->p.c;
    switchable_mix mix = mix_weights(cf);
    double *logits = cf->dlogits + 6 * n;
    cf->dlmean[n] = cf->dlvar[n] = 0;
    for (int k = 0; k < 6; k++)
        logits[k] = 0;
    for (int64_t c = 0; c < C; c++) {
        const int64_t plane = n * cf->plan->c + c;
        mix_plane(cf, &mix, plane, n, c);
        const double rstd = 1 / sqrt(mix.var + cf->plan->p.eps), w = weight_of(cf, c);
        const double sum_dy_xhat = rstd * centered_sum(cf, plane, mix.mean);
        const double dmu = -w * rstd * cf->sum_dy[plane];
        const double dv = -0.5 * w * rstd * rstd * sum_dy_xhat;
        cf->sum_dy_xc[plane] = sum_dy_xhat;
        fn_put(cf->plan, cf->a, plane, w * rstd);
        cf->dmu[plane] = dmu;
        cf->dv[plane] = dv;
        cf->dlmean[n] += dmu;
        cf->dlvar[n] += dv;
        for (int k = 0; k < 3; k++) { /* through the softmax */
            logits[k] += mix.w[k] * dmu * (mix.means[k] - mix.mean);
            logits[3 + k] += mix.wv[k] * dv * (mix.vars[k] - mix.var);
        }
    }
}

/* the sums of dmu and dv of channels [c0, c1) */
void fn_batch_grad_sums(fn_coefs *cf, int64_t c0, int64_t c1) {
    c1 = fn_min(c1, cf->plan->p.c);
    for (int64_t c = c0; c < c1; c++)
        cf->dbmean[c] = cf->dbvar[c] = 0;
    for (int64_t p = 0; p < cf->plan->planes; p += cf->plan->c)
        for (int64_t c = c0; c < c1; c++) {
            cf->dbmean[c] += cf->dmu[p + c];
            cf->dbvar[c] += cf->dv[p + c];
        }
}

static void switchable_grad_coefficients(fn_coefs *cf, int64_t p0, int64_t p1) {
    const fn_plan *plan = cf->plan;
    const int64_t C = plan->c;
    const double s = (double)plan->s;
    /* one over the elements of a domain; in inference the batch statistics are constants */
    const double part[3] = {1 / s, 1 / (s * (double)plan->p.c),
                            plan->p.training ? 1 / (s * (double)plan->n) : 0};
    switchable_mix mix = mix_weights(cf);
    for (int64_t plane = p0; plane < p1; plane++) {
        const int64_t n = plane / C, c = plane % C;
        if (is_padding(cf, c))
            continue;
        const double center = fn_get(plan, cf->center, plane);
        const double means[3] = {cf->mean[plane], cf->lmean[n], cf->bmean[c]};
        const double dmu[3] = {cf->dmu[plane], cf->dlmean[n], cf->dbmean[c]};
        const double dv[3] = {cf->dv[plane], cf->dlvar[n], cf->dbvar[c]};
        double b = 0, e = 0;
        for (int k = 0; k < 3; k++) {
            const double to_x = 2 * mix.wv[k] * dv[k] * part[k];
            b += to_x;
            e += mix.w[k] * dmu[k] * part[k] + to_x * (center - means[k]);
        }
        fn_put(plan, cf->b, plane, b);
        fn_put(plan, cf->e, plane, e);
    }
}

static void plain_grad_coefficients(fn_coefs *cf, int64_t d0, int64_t d1) {
    const fn_plan *plan = cf->plan;
    const int64_t per = plan->per_domain;
    const int constant = constant_stats(plan), norm = plan->p.norm == FN_WEIGHT;
    const int uncentered = norm || plan->p.norm == FN_RMS;
    const double part = norm ? 1 : 1 / cf->count;
    double rstds[BLOCK];
    position at = position_of(plan, d0);
    for (int64_t d = d0; d < d1; d++, next_domain(plan, &at)) {
        const int64_t k = (d - d0) % BLOCK;
        if (k == 0)
            rstd_block(cf, d, fn_min(d + BLOCK, d1), rstds);
        const double mean = cf->mean[d], r = cf->r ? cf->r[d] : 1, shift = cf->r ? cf->d[d] : 0;
        const double rstd = rstds[k], scale = r * rstd;
        double s1 = 0, s2 = 0;
        for (int64_t i = 0; i < per; i++) {
            const int64_t p = at.plane + i;
            const double w = plan->elem ? 1 : weight_of(cf, at.c + i); /* elem: in the sums */
            const double centered = centered_sum(cf, p, mean);
            s1 += w * cf->sum_dy[p];
            s2 += w * centered;
            cf->sum_dy_xc[p] = scale * centered + shift * cf->sum_dy[p]; /* now of xhat */
        }
        const double b = constant ? 0 : -scale * rstd * rstd * s2 * part;
        const double e = constant || uncentered ? 0 : -scale * s1 * part;
        for (int64_t i = 0; i < per; i++) {
            const double w = plan->elem ? 1 : weight_of(cf, at.c + i);
            put_grad_plane(cf, at.plane + i, w * scale, b, e - low_of(cf, at.plane + i, mean) * b);
        }
    }
}

void fn_centers(fn_coefs *cf, int64_t d0, int64_t d1) {
    const fn_plan *plan = cf->plan;
    if (plan->elem || is_switchable(cf) || plan->c != plan->p.c) {
        fn_coefficients(cf, d0, d1);
        return;
    }
    if (plan->per_domain == 1) {
        fn_put_all(plan, (char *)cf->center + d0 * (int64_t)plan->asize, cf->mean + d0, d1 - d0);
        return;
    }
    for (int64_t d = d0; d < d1; d++)
        for (int64_t i = 0; i < plan->per_domain; i++)
            fn_put(plan, cf->center, d * plan->per_domain + i, cf->mean[d]);
}

void fn_center_sums(fn_coefs *cf, int back) {
    for (int64_t p = 0; p < cf->plan->planes; p++) {
        const double shift = low_of(cf, p, cf->mean[p]) * cf->sum_dy[p];
        cf->sum_dy_xc[p] += back ? shift : -shift;
    }
}

void fn_grad_coefficients(fn_coefs *cf, int64_t d0, int64_t d1) {
    void *const arrays[] = {cf->a, cf->b, cf->e};
    if (is_switchable(cf))
        switchable_grad_coefficients(cf, d0, d1);
    else
        plain_grad_coefficients(cf, d0, d1);
    zero_padding(cf, d0, d1, arrays);
}

/* dweight = sum dy * xhat and dbias = sum dy of channels [c0, c1): over the samples, in order */
void fn_param_grads(const fn_coefs *cf, const fn_grads *grads, int64_t c0, int64_t c1) {
    const fn_plan *plan = cf->plan;
    double dweight[FN_CHANNELS], dbias[FN_CHANNELS];
    for (int64_t c = c0; c < c1; c++)
        dweight[c - c0] = dbias[c - c0] = 0;
    for (int64_t p = 0; p < plan->planes; p += plan->c)
        for (int64_t c = c0; c < c1; c++) {
            dweight[c - c0] += cf->sum_dy_xc[p + c];
            dbias[c - c0] += cf->sum_dy[p + c];
        }
    for (int64_t c = c0; c < fn_min(c1, plan->p.c); c++) {
        if (grads->weight)
            fn_put(plan, grads->weight, c, dweight[c - c0]);
        if (grads->bias)
            fn_put(plan, grads->bias, c, dbias[c - c0]);
    }
}

void fn_logit_grads(const fn_coefs *cf, const fn_grads *grads) {
    for (int k = 0; k < 6; k++) {
        void *to = k < 3 ? grads->mean_logits : grads->var_logits;
        double sum = 0;
        for (int64_t n = 0; n < cf->plan->n; n++)
            sum += cf->dlogits[6 * n + k];
        if (to)
            fn_put(cf->plan, to, k % 3, sum);
    }
}

/* ---- running statistics --------------------------------------------------------------------*/

/* What the running statistics take of channels [c0, c1): batch moments, by fn_merge for planes of
 * equal size; for instance norm the means over the samples, as in torch. */
static void running_moments(const fn_coefs *cf, int64_t c0, int64_t c1, double *mean, double *var) {
    const fn_plan *plan = cf->plan;
    const double ddof = plan->p.ddof, count = (double)(plan->s * plan->nseg);
    const double N = (double)plan->n;
    const int means = plan->p.norm == FN_INSTANCE;
    memcpy(mean, cf->mean + c0, (size_t)(c1 - c0) * sizeof *mean);
    memcpy(var, cf->var + c0, (size_t)(c1 - c0) * sizeof *var);
    for (int64_t n = 1, p = c0 + plan->c; n < plan->n; n++, p += plan->c) {
        const double part = 1 / (double)(n + 1), cross = means ? 0 : (double)n * part;
        for (int64_t c = 0; c < c1 - c0; c++) {
            const double delta = cf->mean[p + c] - mean[c];
            mean[c] += delta * part;
            var[c] += cf->var[p + c] + delta * delta * cross;
        }
    }
    const double each = means ? count / (count - ddof) / N : count / (count * N - ddof);
    for (int64_t c = 0; c < c1 - c0; c++)
        var[c] *= each;
}

void fn_update_running(const fn_coefs *cf, int64_t c0, int64_t c1) {
    const fn_plan *plan = cf->plan;
    const fn_params *q = cf->params;
    const int has_none = plan->elem || plan->p.norm == FN_GROUP;
    if (has_none || !plan->p.training || !q->running_mean || !q->running_var)
        return;
    const double keep = 1 - plan->p.momentum, take = plan->p.momentum;
    double mean[FN_CHANNELS], var[FN_CHANNELS];
    running_moments(cf, c0, c1, mean, var);
    for (int64_t c = c0; c < fn_min(c1, plan->p.c); c++) {
        void *const to[2] = {q->running_mean, q->running_var};
        const double moments[2] = {mean[c - c0], var[c - c0]};
        for (int i = 0; i < 2; i++)
            fn_put(plan, to[i], c, keep * fn_get(plan, to[i], c) + take * moments[i]);
    }
}
