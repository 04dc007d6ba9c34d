/* What goes back to the parameters of the channels, in double: gradients of weight and bias, and
 * the running statistics. */
#include "norms/coefs.h"

/* ---- gradients -----------------------------------------------------------------------------*/

/* dweight = sum dy * xhat, dbias = sum dy, and with a floor dtau = sum dy that is at it, of
 * channels [c0, c1), over the samples, in order: added to them */
void fn_param_grads(const fn_coefs *cf, double *dweight, double *dbias, double *dtau, int64_t c0,
                    int64_t c1) {
    const fn_plan *plan = cf->plan;
    for (int64_t p = 0; p < plan->planes; p += plan->c)
        for (int64_t c = c0; c < c1; c++) {
            dweight[c] += cf->sum_dy_xc[p + c];
            dbias[c] += cf->sum_dy[p + c];
        }
    for (int64_t p = 0; p < plan->planes && cf->floor; p += plan->c)
        for (int64_t c = c0; c < c1; c++)
            dtau[c] += cf->sum_all[p + c] - cf->sum_dy[p + c];
}

/* ---- running statistics --------------------------------------------------------------------*/

/* What the running statistics take of channels [c0, c1): batch moments, by fn_merge for planes of
 * equal size; for instance norm the means over the samples, as in torch. */
static void running_moments(const fn_coefs *cf, int64_t c0, int64_t c1, double *mean, double *var) {
    const fn_plan *plan = cf->plan;
    const double ddof = plan->p.ddof, count = (double)(plan->s * plan->nseg);
    const double N = (double)plan->n;
    const int means = !!(plan->row->facts & FN_RUNNING_MEANS);
    memcpy(mean, cf->mean + c0, (size_t)(c1 - c0) * sizeof *mean);
    for (int64_t c = c0; c < c1; c++)
        var[c - c0] = cf->std[c] * cf->std[c];
    for (int64_t n = 1, p = c0 + plan->c; n < plan->n; n++, p += plan->c) {
        const double part = 1 / (double)(n + 1), cross = means ? 0 : (double)n * part;
        for (int64_t c = 0; c < c1 - c0; c++) {
            const double delta = cf->mean[p + c] - mean[c];
            mean[c] += delta * part;
            var[c] += cf->std[p + c] * cf->std[p + c] + delta * delta * cross;
        }
    }
    const double each = means ? count / (count - ddof) / N : count / (count * N - ddof);
    for (int64_t c = 0; c < c1 - c0; c++)
        var[c] *= each;
}

void fn_update_running(const fn_coefs *cf, int64_t c0, int64_t c1) {
    const fn_plan *plan = cf->plan;
    const fn_params *q = cf->params;
    if (!(plan->row->facts & FN_RUNNING) || !plan->p.training || !q->running_mean ||
        !q->running_var)
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
