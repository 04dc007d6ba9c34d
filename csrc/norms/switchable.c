/* Switchable norm (Luo et al. 2018): instance, layer and batch statistics, all from the moments of
 * the planes, mixed by two softmaxes.  What is computed from variances is computed from ratios of
 * deviations, since the square of one may be no double. */
#include "norms/common.h"

enum { SN_IN, SN_LN, SN_BN };

/* What it has beyond the statistics of the planes.  Saved: */
typedef struct {
    double *lmean, *lstd; /* layer statistics of each sample */
    double *bmean, *bstd; /* batch statistics of each channel */
    /* of a backward call: */
    double *sigma;      /* mixed, of each plane; */
    double *dmu, *dvar; /* gradients of its mean, and of its variance times sigma^2; */
    double *dlmean,
        *dlvar; /* of each sample, the mean of dmu, the sum of dvar * (lstd / sigma)^2; */
    double *dbmean, *dbvar; /* over each channel, likewise with bstd; */
    double *dlogits;        /* and of each sample, what goes to the six logits */
} own;
static own own_of(const fn_coefs *cf) {
    const int64_t n = cf->plan->n, c = cf->plan->c, planes = cf->plan->planes;
    double *of_samples = cf->own + 3 * planes, *of_channels = of_samples + 8 * n;
    return (own){.lmean = cf->more,
                 .lstd = cf->more + n,
                 .bmean = cf->more + 2 * n,
                 .bstd = cf->more + 2 * n + c,
                 .sigma = cf->own,
                 .dmu = cf->own + planes,
                 .dvar = cf->own + 2 * planes,
                 .dlmean = of_samples,
                 .dlvar = of_samples + n,
                 .dlogits = of_samples + 2 * n,
                 .dbmean = of_channels,
                 .dbvar = of_channels + c};
}
int64_t fn_switchable_saved(const fn_plan *plan) { return 2 * (plan->n + plan->c); }
int64_t fn_switchable_own(const fn_plan *plan, int backward) {
    return backward ? 3 * plan->planes + 8 * plan->n + 2 * plan->c : 0;
}
int fn_switchable_valid(const fn_problem *p, const fn_params *q, int running) {
    return q->mean_logits && q->var_logits && (p->training || running);
}

/* e^x of x <= 0, to an ulp; 0 below e^-708.  The C library's exp differs in its last bit between
 * C libraries, and between processors with and without multiply-add; these operations are exactly
 * specified.  x = k ln 2 + r, ln 2 in two parts, and the series of e^r up to r^13. */
static double exponential(double x) {
    static const double c[] = {1.0 / 6227020800,
                               1.0 / 479001600,
                               1.0 / 39916800,
                               1.0 / 3628800,
                               1.0 / 362880,
                               1.0 / 40320,
                               1.0 / 5040,
                               1.0 / 720,
                               1.0 / 120,
                               1.0 / 24,
                               1.0 / 6,
                               0.5,
                               1,
                               1};
    const double magic = 0x1.8p52; /* a double of this size has no digits behind the point */
    if (!(x > -708))
        return x == x ? 0 : x;
    const double k = (x * 0x1.71547652b82fep+0 + magic) - magic;
    const double r = (x - k * 0x1.62e42feep-1) - k * 0x1.a39ef35793c76p-33;
    double sum = c[0];
    for (int i = 1; i < (int)(sizeof c / sizeof *c); i++)
        sum = sum * r + c[i];
    return ldexp(sum, (int)k);
}

void fn_softmax3(const double logits[3], double w[3]) {
    double top = -INFINITY, sum = 0;
    for (int k = 0; k < 3; k++)
        top = logits[k] > top ? logits[k] : top;
    for (int k = 0; k < 3; k++)
        sum += w[k] = exponential(logits[k] - top);
    for (int k = 0; k < 3; k++)
        w[k] /= sum;
}

/* ---- statistics ----------------------------------------------------------------------------*/

/* The union of planes of equal size has the mean of the means, and the mean of
 * std^2 + (mean - that)^2 for a variance: layer statistics of sample n. */
void fn_switchable_sample(fn_coefs *cf, int64_t n) {
    const own o = own_of(cf);
    const int64_t C = cf->plan->p.c;
    const double *mean = cf->mean + n * cf->plan->c, *std = cf->std + n * cf->plan->c;
    double sum = 0, most = 0, squares = 0;
    for (int64_t c = 0; c < C; c++)
        sum += mean[c] - mean[0];
    const double m = mean[0] + sum / (double)C;
    for (int64_t c = 0; c < C; c++) {
        const double far = fabs(mean[c] - m);
        most = far > most ? far : most;
        most = std[c] > most ? std[c] : most;
    }
    const double unit = fn_unit_of(most), part = 1 / unit;
    for (int64_t c = 0; c < C; c++) {
        const double delta = (mean[c] - m) * part, s = std[c] * part;
        squares += s * s + delta * delta;
    }
    o.lmean[n] = m;
    o.lstd[n] = unit * sqrt(squares / (double)C);
}

/* likewise the batch statistics of channels [c0, c1), at most FN_CHANNELS; samples in order, memory
 * in order */
void fn_switchable_channels(fn_coefs *cf, int64_t c0, int64_t c1) {
    const own o = own_of(cf);
    const fn_plan *plan = cf->plan;
    const int64_t C = plan->c;
    const double N = (double)plan->n;
    double most[FN_CHANNELS] = {0}, unit[FN_CHANNELS];
    for (int64_t c = c0; c < c1; c++) {
        const int constant = !plan->p.training && !fn_is_padding(cf, c);
        const double var = constant ? fn_get(plan, cf->params->running_var, c) : 0;
        o.bmean[c] = constant ? fn_get(plan, cf->params->running_mean, c) : 0;
        o.bstd[c] = copysign(sqrt(fabs(var)), var);
    }
    if (!plan->p.training)
        return;
    for (int64_t p = 0; p < plan->planes; p += C)
        for (int64_t c = c0; c < c1; c++)
            o.bmean[c] += cf->mean[p + c] - cf->mean[c];
    for (int64_t c = c0; c < c1; c++)
        o.bmean[c] = cf->mean[c] + o.bmean[c] / N;
    for (int64_t p = 0; p < plan->planes; p += C)
        for (int64_t c = c0; c < c1; c++) {
            const double far = fabs(cf->mean[p + c] - o.bmean[c]), std = cf->std[p + c];
            const double larger = far > std ? far : std;
            most[c - c0] = larger > most[c - c0] ? larger : most[c - c0];
        }
    for (int64_t c = c0; c < c1; c++)
        unit[c - c0] = fn_unit_of(most[c - c0]);
    for (int64_t p = 0; p < plan->planes; p += C)
        for (int64_t c = c0; c < c1; c++) {
            const double part = 1 / unit[c - c0];
            const double delta = (cf->mean[p + c] - o.bmean[c]) * part;
            const double std = cf->std[p + c] * part;
            o.bstd[c] += (std * std + delta * delta) / N;
        }
    for (int64_t c = c0; c < c1; c++)
        o.bstd[c] = unit[c - c0] * sqrt(o.bstd[c]);
}

/* ---- mixing --------------------------------------------------------------------------------*/

typedef struct {
    own o;
    double w[3], wv[3]; /* softmaxes of the logits */
    double part[3];     /* one over the elements of a domain; 0: its statistics are constants */
    double means[3], stds[3]; /* of a plane */
    double mean, sigma;       /* mixed */
    double var, unit;         /* the mixed variance is var * unit^2 */
} mixture;

static mixture mix_weights(const fn_coefs *cf) {
    const fn_plan *plan = cf->plan;
    const double s = (double)plan->s, batch = plan->p.training ? (double)plan->n : INFINITY;
    mixture mix = {.o = own_of(cf), .part = {1 / s, 1 / (s * (double)plan->p.c), 1 / (s * batch)}};
    double logits[3];
    fn_get_all(plan, cf->params->mean_logits, 0, logits, 3);
    fn_softmax3(logits, mix.w);
    fn_get_all(plan, cf->params->var_logits, 0, logits, 3);
    fn_softmax3(logits, mix.wv);
    return mix;
}

/* plane: that of sample n and channel c */
static void mix_plane(const fn_coefs *cf, mixture *mix, int64_t n, int64_t c) {
    const int64_t plane = n * cf->plan->c + c;
    mix->means[SN_IN] = cf->mean[plane];
    mix->means[SN_LN] = mix->o.lmean[n];
    mix->means[SN_BN] = mix->o.bmean[c];
    mix->stds[SN_IN] = cf->std[plane];
    mix->stds[SN_LN] = mix->o.lstd[n];
    mix->stds[SN_BN] = mix->o.bstd[c];
    /* around one of the means: equal means give exactly that mean */
    double most = 0;
    mix->mean = mix->means[SN_IN];
    for (int k = 0; k < 3; k++) {
        mix->mean += mix->w[k] * (mix->means[k] - mix->means[SN_IN]);
        most = fabs(mix->stds[k]) > most ? fabs(mix->stds[k]) : most;
    }
    const double unit = fn_unit_of(most), part = unit == 1 ? 1 : 1 / unit;
    mix->unit = unit;
    mix->var = 0;
    for (int k = 0; k < 3; k++) {
        const double s = mix->stds[k] * part;
        mix->var += mix->wv[k] * s * fabs(s);
    }
    if (unit == 1)
        mix->sigma = sqrt(mix->var + cf->plan->p.eps);
    else
        mix->sigma = fn_sigma(unit * copysign(sqrt(fabs(mix->var)), mix->var), cf->plan->p.eps);
}

void fn_switchable_coefficients(fn_coefs *cf, int64_t p0, int64_t p1) {
    mixture mix = mix_weights(cf);
    bundle at;
    for (int64_t p = p0; p < p1; p += at.n) {
        double mean[BUNDLE], scale[BUNDLE], shift[BUNDLE] = {0};
        at = fn_bundle_at(cf->plan, p, p1, 0); /* a plane is a domain */
        const int64_t n = p / cf->plan->c;
        for (int64_t i = 0; i < at.n; i++) {
            mix_plane(cf, &mix, n, at.c + i);
            mean[i] = mix.mean;
            scale[i] = 1 / mix.sigma;
        }
        fn_put_planes(cf, at, mean, scale, shift);
    }
}

/* ---- backward ------------------------------------------------------------------------------
 * The paths through the three means and variances: with mean mu and sigma mixed for each plane,
 *     dmu = -weight/sigma * sum dy,  dvar = -weight/(2 sigma^3) * sum dy*(x - mu)
 * and each component k passes w[k]*dmu and wv[k]*dvar, summed over its domain, on to x:
 *     dx += sum_k w[k] * (mean dmu) / s + 2 wv[k] * (sum dvar) / m_k * (x - mean_k)
 * What is summed is dvar * std_k^2, a number of the size of dy: dvar may be none that a double
 * holds. */

static double weight_of(const fn_coefs *cf, int64_t c) {
    return cf->params->weight ? fn_get(cf->plan, cf->params->weight, c) : 1;
}
static double squared_ratio(double std, double sigma) {
    const double ratio = std / sigma;
    return ratio * fabs(ratio);
}

/* dmu and dvar of the planes of sample n, the mean of one and the sum of the other, and what they
 * give to the logits */
void fn_switchable_sample_grads(fn_coefs *cf, int64_t n) {
    const own o = own_of(cf);
    const int64_t C = cf->plan->p.c;
    mixture mix = mix_weights(cf);
    double *logits = o.dlogits + 6 * n;
    double first = 0, rest = 0;
    o.dlvar[n] = 0;
    for (int k = 0; k < 6; k++)
        logits[k] = 0;
    for (int64_t c = 0; c < C; c++) {
        const int64_t plane = n * cf->plan->c + c;
        mix_plane(cf, &mix, n, c);
        const double weight = weight_of(cf, c),
                     low = mix.mean - fn_get(cf->plan, cf->center, plane);
        const double unit = cf->marks[plane] & FN_SCALED ? fn_size_of(cf->std[plane]) : 1;
        const double sum_dy_xhat =
            (cf->sum_dy_xc[plane] - low / unit * cf->sum_dy[plane]) / (mix.sigma / unit);
        const double dmu = -weight / mix.sigma * cf->sum_dy[plane];
        const double dvar = -0.5 * weight * sum_dy_xhat;
        cf->sum_dy_xc[plane] = sum_dy_xhat;
        o.sigma[plane] = mix.sigma;
        o.dmu[plane] = dmu;
        o.dvar[plane] = dvar;
        first = c == 0 ? dmu : first;
        rest += dmu - first;
        const double rstd = mix.unit / mix.sigma, mixed = mix.var * rstd * rstd;
        o.dlvar[n] += dvar * squared_ratio(mix.stds[SN_LN], mix.sigma);
        for (int k = 0; k < 3; k++) { /* through the softmax */
            logits[k] += mix.w[k] * dmu * (mix.means[k] - mix.mean);
            logits[3 + k] += mix.wv[k] * dvar * (squared_ratio(mix.stds[k], mix.sigma) - mixed);
        }
    }
    o.dlmean[n] = first + rest / (double)C;
}

/* the mean of dmu and the sum of dvar of channels [c0, c1) */
void fn_switchable_channel_grads(fn_coefs *cf, int64_t c0, int64_t c1) {
    const own o = own_of(cf);
    c1 = fn_min(c1, cf->plan->p.c);
    for (int64_t c = c0; c < c1; c++)
        o.dbmean[c] = o.dbvar[c] = 0;
    for (int64_t p = 0; p < cf->plan->planes; p += cf->plan->c)
        for (int64_t c = c0; c < c1; c++) {
            o.dbmean[c] += o.dmu[p + c] - o.dmu[c];
            o.dbvar[c] += o.dvar[p + c] * squared_ratio(o.bstd[c], o.sigma[p + c]);
        }
    for (int64_t c = c0; c < c1; c++)
        o.dbmean[c] = o.dmu[c] + o.dbmean[c] / (double)cf->plan->n;
}

/* What a component adds to dx, b * xhat + e around `center`, and to x all components together. */
static fn_careful careful_of(const fn_coefs *cf, const mixture *mix, int64_t n, int64_t c,
                             double center) {
    const fn_plan *plan = cf->plan;
    const int64_t plane = n * plan->c + c;
    const double dmu[3] = {mix->o.dmu[plane], mix->o.dlmean[n], mix->o.dbmean[c]};
    const double dvar[3] = {mix->o.dvar[plane] * squared_ratio(cf->std[plane], mix->sigma),
                            mix->o.dlvar[n], mix->o.dbvar[c]};
    fn_careful w = {
        .mean = center, .sigma = mix->sigma, .scale = weight_of(cf, c), .over = mix->sigma};
    /* Where dy is constant over the plane, dy * scale / sigma is -dmu / s, and goes into e with the
     * rest: equal ones leave exactly 0. */
    const double s = (double)plan->s;
    const int flat = plan->s == 1 || (cf->marks[plane] & FN_FLAT);
    if (flat)
        w.scale = 0;
    for (int k = 0; k < 3; k++) {
        const double std = mix->stds[k];
        /* of equal elements x - mean is 0, and with it what goes through their variance */
        const double to_x = std > 0 ? 2 * mix->wv[k] * dvar[k] * mix->part[k] / std : 0;
        const int constant = mix->part[k] == 0; /* its statistics are */
        if (constant && !flat)
            continue;
        w.e += mix->w[k] * ((constant ? 0 : dmu[k]) - (flat ? dmu[SN_IN] : 0)) / s;
        if (constant)
            continue;
        if (to_x != 0) {
            w.b += to_x * (mix->sigma / std);
            w.e += to_x * ((center - mix->means[k]) / std);
        }
    }
    return w;
}

void fn_switchable_grad_coefficients(fn_coefs *cf, int64_t p0, int64_t p1) {
    const fn_plan *plan = cf->plan;
    mixture mix = mix_weights(cf);
    int64_t n = p0 / plan->c, c = p0 % plan->c - 1;
    for (int64_t p = p0; p < p1; p++) {
        if (++c == plan->c) {
            n++;
            c = 0;
        }
        if (fn_is_padding(cf, c))
            continue;
        mix_plane(cf, &mix, n, c);
        const fn_careful w = careful_of(cf, &mix, n, c, fn_get(plan, cf->center, p));
        const double a = w.scale / w.sigma, b = w.b / w.sigma;
        fn_put(plan, cf->a, p, a);
        fn_put(plan, cf->b, p, b);
        fn_put(plan, cf->e, p, w.e);
        if (fn_grad_outside(fn_range_of(plan->asize), 1 / w.sigma, a, w.scale, b, w.e) > 0)
            cf->marks[p] |= FN_CAREFUL;
    }
}

fn_careful fn_switchable_careful(const fn_coefs *cf, int64_t plane, int backward) {
    const int64_t n = plane / cf->plan->c, c = plane % cf->plan->c;
    mixture mix = mix_weights(cf);
    mix_plane(cf, &mix, n, c);
    if (backward)
        return careful_of(cf, &mix, n, c, cf->mean[plane]);
    const double bias = cf->params->bias ? fn_get(cf->plan, cf->params->bias, c) : 0;
    return (fn_careful){
        .mean = mix.mean, .sigma = mix.sigma, .scale = weight_of(cf, c), .shift = bias};
}

void fn_switchable_logits(const fn_coefs *cf, const fn_grads *grads) {
    const own o = own_of(cf);
    for (int k = 0; k < 6; k++) {
        void *to = k < 3 ? grads->mean_logits : grads->var_logits;
        double sum = 0;
        for (int64_t n = 0; n < cf->plan->n; n++)
            sum += o.dlogits[6 * n + k];
        if (to)
            fn_put(cf->plan, to, k % 3, sum);
    }
}
