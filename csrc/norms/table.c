/* See table.h.  A row that is missing here is a normalizer that a problem cannot ask for. */
#include "norms/table.h"

#include "norms/formulas.h"

static int valid_groups(const fn_problem *p, const fn_params *q, int running) {
    (void)q;
    (void)running;
    return p->groups > 0 && p->c % p->groups == 0;
}
static int valid_renorm(const fn_problem *p, const fn_params *q, int running) {
    (void)q;
    return running && p->r_max >= 1 && p->d_max >= 0;
}

/* y = weight * (x - mean) / sigma + bias, with the statistics of each domain */
#define PLAIN                                                                                      \
    .coefficients = fn_plain_coefficients, .grad_coefficients = fn_plain_grad_coefficients,        \
    .careful = fn_plain_careful

static const fn_row rows[FN_NORM_COUNT] = {
    [FN_BATCH] = {FN_OVER_SAMPLES | FN_RUNNING | FN_RUNNING_SERVES | FN_STEPS, PLAIN},
    [FN_BATCH_RENORM] = {FN_OVER_SAMPLES | FN_RUNNING | FN_RUNNING_SERVES | FN_CORRECTED, PLAIN,
                         .valid = valid_renorm, .statistics = fn_renorm_statistics},
    [FN_LAYER] = {FN_OF_ELEMENTS | FN_NO_BLOCKS | FN_STEPS, PLAIN},
    [FN_RMS] = {FN_OF_ELEMENTS | FN_NO_BLOCKS | FN_SQUARES | FN_UNCENTERED, PLAIN},
    [FN_INSTANCE] = {FN_RUNNING | FN_RUNNING_SERVES | FN_RUNNING_MEANS, PLAIN},
    [FN_GROUP] = {FN_OVER_CHANNELS, PLAIN, .valid = valid_groups},
    [FN_SWITCHABLE] = {FN_RUNNING, .valid = fn_switchable_valid, .saved_more = fn_switchable_saved,
                       .own_doubles = fn_switchable_own, .sample_statistics = fn_switchable_sample,
                       .channel_statistics = fn_switchable_channels,
                       .sample_grads = fn_switchable_sample_grads,
                       .channel_grads = fn_switchable_channel_grads,
                       .coefficients = fn_switchable_coefficients,
                       .grad_coefficients = fn_switchable_grad_coefficients,
                       .careful = fn_switchable_careful, .other_grads = fn_switchable_logits},
    [FN_INSTANCE_RENORM] = {FN_RUNNING | FN_CORRECTED, PLAIN, .valid = valid_renorm,
                            .statistics = fn_renorm_statistics},
    [FN_WEIGHT] = {FN_OVER_SAMPLES | FN_UNCENTERED | FN_LENGTH | FN_NO_BLOCKS, PLAIN},
    [FN_FILTER_RESPONSE] = {FN_SQUARES | FN_UNCENTERED | FN_FLOOR, PLAIN},
    [FN_GLOBAL_RESPONSE] = {FN_SQUARES | FN_UNCENTERED | FN_LENGTH, .own_doubles = fn_global_own,
                            .sample_statistics = fn_global_sample,
                            .sample_grads = fn_global_sample_grads,
                            .coefficients = fn_global_coefficients,
                            .grad_coefficients = fn_global_grad_coefficients,
                            .careful = fn_global_careful},
    [FN_L2] = {FN_OF_ELEMENTS | FN_NO_BLOCKS | FN_SQUARES | FN_UNCENTERED | FN_LENGTH, PLAIN},
};

const fn_row *fn_row_of(fn_norm norm) {
    const int known = (unsigned)norm < FN_NORM_COUNT && rows[norm].coefficients;
    return known ? &rows[norm] : NULL;
}
