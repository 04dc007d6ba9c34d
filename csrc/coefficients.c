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
/* weight or bias of channels [c, c + n), for padding only not beyond the array; `none` where there
 * is no such parameter, or it belongs to the elements and not to the channels */
static void params_of(const fn_coefs *cf, const void *param, double none, int64_t c, int64_t n,
                      double *v) {
    if (!param || cf->plan->elem) {
        for (int64_t i = 0; i < n; i++)
            v[i] = none;
        return;
    }
    const int64_t real = fn_max(0, fn_min(n, cf->plan->p.c - c));
    fn_get_all(cf->plan, param, c, v, real);
    for (int64_t i = real; i < n; i++)
        v[i] = 0;
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

/* At most BLOCK planes of neighbouring channels that are taken together: planes [plane, plane + n)
 * with channels from c on, which are domains [d, d + domains), or a part of a single one. */
#define BLOCK 64
typedef struct {
    int64_t plane, c, n, d, domains;
} piece;

/* the piece that begins with plane i of domain d, of domains up to d1 */
static piece piece_at(const fn_plan *plan, int64_t d, int64_t d1, int64_t i) {
    const int64_t per = plan->per_domain, plane = fn_first_plane(plan, d) + i;
    if (plan->elem) /* rows have no channel */
        return (piece){plane, 0, fn_min(BLOCK, d1 - d), d, fn_min(BLOCK, d1 - d)};
    if (per > BLOCK)
        return (piece){plane, plane % plan->c, fn_min(BLOCK, per - i), d, 1};
    const int64_t in_sample = plan->sample_domains - d % plan->sample_domains;
    const int64_t domains = fn_min(fn_min(d1 - d, in_sample), BLOCK / per);
    return (piece){plane, plane % plan->c, domains * per, d, domains};
}

/* v[i] for the planes of a piece, from[k] of its domains */
static void spread(piece at, const double *from, double *v) {
    const int64_t each = at.n / at.domains;
    if (each == 1)
        memcpy(v, from, (size_t)at.n * sizeof *v);
    else
        for (int64_t k = 0; k < at.domains; k++)
            for (int64_t i = 0; i < each; i++)
                v[k * each + i] = from[k];
}
/* 1 / sigma of the domains of a piece; of its planes r / sigma, and what renorm adds to it */
static void scales_of(const fn_coefs *cf, piece at, double *rstd, double *scale, double *shift) {
    const double eps = cf->plan->p.eps, *var = cf->var + at.d;
    double scales[BLOCK];
    for (int64_t k = 0; k < at.domains; k++) {
        rstd[k] = 1 / sqrt(var[k] + eps);
        scales[k] = cf->r ? cf->r[at.d + k] * rstd[k] : rstd[k];
    }
    spread(at, scales, scale);
    if (cf->d)
        spread(at, cf->d + at.d, shift);
    else
        memset(shift, 0, (size_t)at.n * sizeof *shift);
}

/* Call function(asize, ...), on coefficients of a piece from element 0 on: with a constant, as only
 * then compilers make vectors of it. */
#define FN_BY_TYPE(cf, function, ...)                                                              \
    ((cf)->plan->asize == 4 ? function(4, __VA_ARGS__) : function(8, __VA_ARGS__))

/* y = ((x - mean) * scale + shift) * weight + bias as (x - center) * scale + shift */
FN_INLINE void put_typed(size_t asize, int64_t n, const double *restrict mean,
                         const double *restrict scale, const double *restrict shift,
                         const double *restrict weight, const double *restrict bias,
                         void *restrict center_to, void *restrict scale_to,
                         void *restrict shift_to) {
    for (int64_t i = 0; i < n; i++) {
        const double center = asize == 4 ? (double)(float)mean[i] : mean[i], low = mean[i] - center;
        const double a = scale[i] * weight[i], whole = shift[i] * weight[i] + bias[i];
        const double less = whole - low * a;
        fn_put_as(asize, center_to, i, center);
        fn_put_as(asize, scale_to, i, a);
        fn_put_as(asize, shift_to, i, low == 0 ? whole : less);
    }
}
static void put_planes(fn_coefs *cf, piece at, const double *mean, const double *scale,
                       const double *shift) {
    double weight[BLOCK], bias[BLOCK];
    params_of(cf, cf->params->weight, 1, at.c, at.n, weight);
    params_of(cf, cf->params->bias, 0, at.c, at.n, bias);
    FN_BY_TYPE(cf, put_typed, at.n, mean, scale, shift, weight, bias,
               fn_element(cf->plan, cf->center, at.plane),
               fn_element(cf->plan, cf->scale, at.plane),
               fn_element(cf->plan, cf->shift, at.plane));
}

static void switchable_coefficients(fn_coefs *cf, int64_t p0, int64_t p1) {
    switchable_mix mix = mix_weights(cf);
    piece at;
    for (int64_t p = p0; p < p1; p += at.n) {
        double mean[BLOCK], scale[BLOCK], shift[BLOCK] = {0};
        at = piece_at(cf->plan, p, p1, 0); /* a plane is a domain */
        for (int64_t i = 0; i < at.n; i++) {
            mix_plane(cf, &mix, p + i, p / cf->plan->c, at.c + i);
            mean[i] = mix.mean;
            scale[i] = 1 / sqrt(mix.var + cf->plan->p.eps);
        }
        put_planes(cf, at, mean, scale, shift);
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

static void plain_piece(fn_coefs *cf, piece at) {
    double mean[BLOCK], rstd[BLOCK], scale[BLOCK], shift[BLOCK];
    scales_of(cf, at, rstd, scale, shift);
    spread(at, cf->mean + at.d, mean);
    put_planes(cf, at, mean, scale, shift);
}

static void plain_coefficients(fn_coefs *cf, int64_t d0, int64_t d1) {
    piece at;
    for (int64_t d = d0; d < d1; d += at.domains) {
        int64_t i = 0;
        do {
            at = piece_at(cf->plan, d, d1, i);
            plain_piece(cf, at);
            i += at.n;
        } while (i < cf->plan->per_domain);
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
        const double rstd = 1 / sqrt(mix.var + cf->plan->p.eps);
        const double w = cf->params->weight ? fn_get(cf->plan, cf->params->weight, c) : 1;
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
    piece at;
    for (int64_t p = p0; p < p1; p += at.n) {
        at = piece_at(plan, p, p1, 0);
        const int64_t n = p / C, real = fn_min(at.n, plan->p.c - at.c);
        for (int64_t i = 0; i < real; i++) {
            const int64_t plane = p + i, c = at.c + i;
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
}

/* what backward makes its coefficients of: of the planes of a piece, and of its domains */
typedef struct {
    double weight[BLOCK], scale[BLOCK], shift[BLOCK], low[BLOCK];
    double s1[BLOCK], s2[BLOCK], b[BLOCK], e[BLOCK];
    double rstd[BLOCK], sum1[BLOCK], sum2[BLOCK];
} grad_piece;

FN_INLINE void take_typed(size_t asize, int64_t n, const double *restrict mean,
                          const void *restrict center, const double *restrict weight,
                          const double *restrict sum_dy, const double *restrict sum_dy_xc,
                          double *restrict low, double *restrict s1, double *restrict s2) {
    for (int64_t i = 0; i < n; i++) {
        low[i] = mean[i] - fn_get_as(asize, center, i);
        s1[i] = weight[i] * sum_dy[i];
        s2[i] = weight[i] * (sum_dy_xc[i] - low[i] * sum_dy[i]);
    }
}
static void take_grad_piece(const fn_coefs *cf, piece at, grad_piece *g) {
    double mean[BLOCK];
    scales_of(cf, at, g->rstd, g->scale, g->shift);
    spread(at, cf->mean + at.d, mean);
    params_of(cf, cf->params->weight, 1, at.c, at.n, g->weight); /* elem: it is in the sums */
    FN_BY_TYPE(cf, take_typed, at.n, mean, fn_element(cf->plan, cf->center, at.plane), g->weight,
               cf->sum_dy + at.plane, cf->sum_dy_xc + at.plane, g->low, g->s1, g->s2);
}

/* the sums of the planes of each domain */
static void sum_domains(piece at, const double *v, double *sum) {
    const int64_t each = at.n / at.domains;
    for (int64_t k = 0; k < at.domains; k++) {
        sum[k] = v[k * each];
        for (int64_t i = 1; i < each; i++)
            sum[k] += v[k * each + i];
    }
}

FN_INLINE void put_grad_typed(size_t asize, int64_t n, const double *restrict scale,
                              const double *restrict shift, const double *restrict weight,
                              const double *restrict low, const double *restrict b,
                              const double *restrict e, const double *restrict sum_dy,
                              double *restrict sum_dy_xc, void *restrict a_to, void *restrict b_to,
                              void *restrict e_to) {
    for (int64_t i = 0; i < n; i++) {
        const double centered = sum_dy_xc[i] - low[i] * sum_dy[i];
        sum_dy_xc[i] = scale[i] * centered + shift[i] * sum_dy[i];
        fn_put_as(asize, a_to, i, weight[i] * scale[i]);
        fn_put_as(asize, b_to, i, b[i]);
        fn_put_as(asize, e_to, i, e[i] - low[i] * b[i]);
    }
}
/* a, b, e of a piece, from the sums of its domains, and sum dy * xhat */
static void put_grad_piece(fn_coefs *cf, piece at, grad_piece *g) {
    const fn_plan *plan = cf->plan;
    const int norm = plan->p.norm == FN_WEIGHT, constant = constant_stats(plan);
    const int uncentered = constant || norm || plan->p.norm == FN_RMS;
    const double part = norm ? 1 : 1 / cf->count;
    const int64_t each = at.n / at.domains;
    double domain_b[BLOCK], domain_e[BLOCK];
    for (int64_t k = 0; k < at.domains; k++) {
        const double scale = g->scale[k * each], rstd = g->rstd[k];
        domain_b[k] = constant ? 0 : -scale * rstd * rstd * g->sum2[k] * part;
        domain_e[k] = uncentered ? 0 : -scale * g->sum1[k] * part;
    }
    spread(at, domain_b, g->b);
    spread(at, domain_e, g->e);
    FN_BY_TYPE(cf, put_grad_typed, at.n, g->scale, g->shift, g->weight, g->low, g->b, g->e,
               cf->sum_dy + at.plane, cf->sum_dy_xc + at.plane,
               fn_element(cf->plan, cf->a, at.plane), fn_element(cf->plan, cf->b, at.plane),
               fn_element(cf->plan, cf->e, at.plane));
}

static void plain_grad_coefficients(fn_coefs *cf, int64_t d0, int64_t d1) {
    grad_piece g;
    piece at;
    for (int64_t d = d0; d < d1; d += at.domains) {
        at = piece_at(cf->plan, d, d1, 0);
        take_grad_piece(cf, at, &g);
        sum_domains(at, g.s1, g.sum1);
        sum_domains(at, g.s2, g.sum2);
        put_grad_piece(cf, at, &g);
    }
}

/* a domain of several pieces */
static void long_grad_coefficients(fn_coefs *cf, int64_t d) {
    const int64_t per = cf->plan->per_domain;
    double s1 = 0, s2 = 0;
    grad_piece g;
    for (int64_t i = 0; i < per; i += BLOCK) {
        const piece at = piece_at(cf->plan, d, d + 1, i);
        take_grad_piece(cf, at, &g);
        sum_domains(at, g.s1, g.sum1);
        sum_domains(at, g.s2, g.sum2);
        s1 += g.sum1[0];
        s2 += g.sum2[0];
    }
    for (int64_t i = 0; i < per; i += BLOCK) {
        const piece at = piece_at(cf->plan, d, d + 1, i);
        take_grad_piece(cf, at, &g);
        g.sum1[0] = s1;
        g.sum2[0] = s2;
        put_grad_piece(cf, at, &g);
    }
}

void fn_centers(fn_coefs *cf, int64_t d0, int64_t d1) {
    const fn_plan *plan = cf->plan;
    if (plan->elem || is_switchable(cf) || plan->c != plan->p.c) {
        fn_coefficients(cf, d0, d1);
        return;
    }
    if (plan->per_domain == 1) {
        fn_put_all(plan, cf->center, d0, cf->mean + d0, d1 - d0);
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
    else if (cf->plan->per_domain <= BLOCK)
        plain_grad_coefficients(cf, d0, d1);
    else
        for (int64_t d = d0; d < d1; d++)
            long_grad_coefficients(cf, d);
    zero_padding(cf, d0, d1, arrays);
}
