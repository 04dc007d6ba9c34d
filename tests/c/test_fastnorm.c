/* The C library without Python: forward and backward of batch, layer and weight norm against plain
 * loops in double, running statistics, error codes, that nothing is written on an error, and
 * choices by measurement.
 */
#define _DEFAULT_SOURCE /* mkdtemp */
#include "fastnorm.h"
#include "system/quota.h"
#include "system/tune.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int failures;

static void check(int ok, const char *what) {
    if (!ok) {
        printf("failed: %s\n", what);
        failures++;
    }
}

static void check_close(const float *got, const double *want, int count, double tolerance,
                        const char *what) {
    double error = 0, top = 1e-30;
    for (int i = 0; i < count; i++) {
        error = fmax(error, fabs(got[i] - want[i]));
        top = fmax(top, fabs(want[i]));
    }
    if (!(error <= tolerance * top)) {
        printf("failed: %s: error %g of %g\n", what, error, top);
        failures++;
    }
}

enum { N = 5, C = 6, S = 147, SIZE = N * C * S };

static float x[SIZE], dy[SIZE], y[SIZE], dx[SIZE], weight[S], bias[S], dweight[S], dbias[S];
static double want_y[SIZE], want_dx[SIZE], want_dweight[S], want_dbias[S];

static void fill(float *to, int count, double offset) {
    static unsigned state = 1;
    for (int i = 0; i < count; i++) {
        state = state * 1664525u + 1013904223u;
        to[i] = (float)(offset + state / 4294967296.0);
    }
}

/* y = w * (x - mean) / sigma + b over `domains` domains of `count` elements; element j of domain d
 * is at(d, j), its weight has the index param(d, j) */
static void reference(int domains, int count, int params, int (*at)(int, int),
                      int (*param)(int, int)) {
    memset(want_dweight, 0, sizeof want_dweight);
    memset(want_dbias, 0, sizeof want_dbias);
    check(params <= S, "room for the parameters");
    for (int d = 0; d < domains; d++) {
        double mean = 0, var = 0, s1 = 0, s2 = 0;
        for (int j = 0; j < count; j++)
            mean += x[at(d, j)] / (double)count;
        for (int j = 0; j < count; j++)
            var += pow(x[at(d, j)] - mean, 2) / count;
        double sigma = sqrt(var + 1e-5);
        for (int j = 0; j < count; j++) {
            double z = (x[at(d, j)] - mean) / sigma, g = dy[at(d, j)] * weight[param(d, j)];
            want_y[at(d, j)] = z * weight[param(d, j)] + bias[param(d, j)];
            want_dweight[param(d, j)] += dy[at(d, j)] * z;
            want_dbias[param(d, j)] += dy[at(d, j)];
            s1 += g / count;
            s2 += g * z / count;
        }
        for (int j = 0; j < count; j++) {
            double z = (x[at(d, j)] - mean) / sigma, g = dy[at(d, j)] * weight[param(d, j)];
            want_dx[at(d, j)] = (g - s1 - z * s2) / sigma;
        }
    }
}

static int channel_first(int c, int j) { return (j / S * C + c) * S + j % S; }
static int channel_last(int c, int j) { return j * C + c; }
static int domain_of(int d, int j) { return (void)j, d; }
static int row_at(int d, int j) { return d * S + j; }
static int element_of(int d, int j) { return (void)d, j; }

static void compare(const fn_problem *problem, int params, const char *what) {
    fn_params q = {.weight = weight, .bias = bias};
    fn_grads grads = {.x = dx, .weight = dweight, .bias = dbias};
    double *saved = malloc((size_t)fn_saved_size(problem) * sizeof *saved);
    check(fn_forward(problem, &q, x, y, saved) == FN_OK, what);
    check_close(y, want_y, SIZE, 2e-6, what);
    check(fn_backward(problem, &q, saved, x, dy, &grads) == FN_OK, what);
    check_close(dx, want_dx, SIZE, 1e-5, what);
    check_close(dweight, want_dweight, params, 1e-5, what);
    check_close(dbias, want_dbias, params, 1e-5, what);
    free(saved);
}

static void test_norms(void) {
    fn_problem p = {.norm = FN_BATCH, .n = N, .c = C, .s = S, .training = 1, .eps = 1e-5};
    reference(C, N * S, C, channel_first, domain_of);
    compare(&p, C, "batch norm, channels first");
    p.layout = FN_CHANNELS_LAST;
    reference(C, N * S, C, channel_last, domain_of);
    compare(&p, C, "batch norm, channels last");
    fn_problem rows = {.norm = FN_LAYER, .n = N * C, .c = 1, .s = S, .eps = 1e-5};
    reference(N * C, S, S, row_at, element_of);
    compare(&rows, S, "layer norm");
}

/* gradients that are wanted without the parameter, or without dx */
static void test_wanted_gradients(void) {
    fn_problem p = {.norm = FN_LAYER, .n = N * C, .c = 1, .s = S, .eps = 1e-5};
    float one[S], zero[S] = {0};
    double saved[2 * N * C];
    for (int j = 0; j < S; j++)
        one[j] = 1;
    const fn_params none = {0}, plain = {.weight = one, .bias = zero};
    const fn_grads params = {.weight = dweight, .bias = dbias};
    const fn_grads all = {.x = dx, .weight = dweight, .bias = dbias};
    float want[2][S], *const got[2] = {dweight, dbias};
    check(fn_forward(&p, &none, x, y, saved) == FN_OK, "layer norm without parameters");
    check(fn_backward(&p, &plain, saved, x, dy, &all) == FN_OK, "gradients of both");
    memcpy(want[0], dweight, sizeof dweight);
    memcpy(want[1], dbias, sizeof dbias);
    for (int i = 0; i < 2; i++) {
        memset(dweight, 0x7f, sizeof dweight);
        memset(dbias, 0x7f, sizeof dbias);
        check(fn_backward(&p, &none, saved, x, dy, i ? &all : &params) == FN_OK,
              "without a weight");
        for (int k = 0; k < 2; k++)
            check(memcmp(got[k], want[k], sizeof want[k]) == 0, "gradient without its parameter");
    }
}

/* y = w * u with u = x / |x| in each channel; dx = w / |x| * (dy - u * sum (dy * u)) */
static void test_weight_norm(fn_layout layout, int (*at)(int, int), const char *what) {
    fn_problem p = {.norm = FN_WEIGHT, .layout = layout, .n = N, .c = C, .s = S};
    fn_params q = {.weight = weight};
    fn_grads grads = {.x = dx, .weight = dweight};
    for (int c = 0; c < C; c++) {
        double squares = 0;
        for (int j = 0; j < N * S; j++)
            squares += pow(x[at(c, j)], 2);
        want_dweight[c] = 0;
        for (int j = 0; j < N * S; j++)
            want_dweight[c] += dy[at(c, j)] * x[at(c, j)] / sqrt(squares);
        for (int j = 0; j < N * S; j++) {
            double u = x[at(c, j)] / sqrt(squares);
            want_y[at(c, j)] = weight[c] * u;
            want_dx[at(c, j)] = weight[c] * (dy[at(c, j)] - u * want_dweight[c]) / sqrt(squares);
        }
    }
    double saved[2 * C];
    check(fn_saved_size(&p) <= 2 * C, what);
    check(fn_forward(&p, &q, x, y, saved) == FN_OK, what);
    check_close(y, want_y, SIZE, 2e-6, what);
    check(fn_backward(&p, &q, saved, x, dy, &grads) == FN_OK, what);
    check_close(dx, want_dx, SIZE, 1e-5, what);
    check_close(dweight, want_dweight, C, 1e-5, what);
}

static void test_running_statistics(void) {
    float mean[C] = {0}, var[C] = {0};
    fn_problem p = {.norm = FN_BATCH,
                    .n = N,
                    .c = C,
                    .s = S,
                    .training = 1,
                    .momentum = 1,
                    .ddof = 1,
                    .eps = 1e-5};
    fn_params q = {.running_mean = mean, .running_var = var};
    check(fn_forward(&p, &q, x, y, NULL) == FN_OK, "forward with running statistics");
    double want_mean[C], want_var[C];
    for (int c = 0; c < C; c++) {
        want_mean[c] = want_var[c] = 0;
        for (int j = 0; j < N * S; j++)
            want_mean[c] += x[channel_first(c, j)] / (double)(N * S);
        for (int j = 0; j < N * S; j++)
            want_var[c] += pow(x[channel_first(c, j)] - want_mean[c], 2) / (N * S - 1);
    }
    check_close(mean, want_mean, C, 1e-6, "running_mean");
    check_close(var, want_var, C, 1e-6, "running_var");
    mean[0] = var[0] = 7;
    p.norm = FN_WEIGHT;
    check(fn_forward(&p, &q, x, y, NULL) == FN_OK, "weight norm");
    check(mean[0] == 7 && var[0] == 7, "weight norm has no running statistics");
}

static void test_numbers_of_8_bits(void) {
    static const float v[] = {0.5f, 1.5f, -2.5f, 126.5f, 300, -INFINITY, NAN, -0.0f};
    static const signed char whole[] = {0, 2, -2, 126, 127, -128, 0, 0};
    static const unsigned char e4m3fn[] = {0x30, 0x3c, 0xc2, 0x70, 0x79, 0xfe, 0x7f, 0x80};
    static const unsigned char e5m2[] = {0x38, 0x3e, 0xc1, 0x58, 0x5d, 0xfb, 0x7f, 0x80};
    enum { COUNT = sizeof v / sizeof *v, LONG = 12 * COUNT }; /* with and without vectors */
    float many[LONG], scales[2] = {1, 1};
    unsigned char q[LONG];
    for (int i = 0; i < LONG; i++)
        many[i] = v[i % COUNT];
    for (int kind = FN_INT8; kind <= FN_E5M2; kind++) {
        const void *wants[] = {whole, e4m3fn, e5m2};
        fn_quantize((fn_small)kind, 1, LONG, 0, many, scales, q);
        for (int i = 0; i < LONG; i += COUNT)
            check(memcmp(q + i, wants[kind], COUNT) == 0, "fn_quantize");
    }
    for (int i = 0; i < LONG; i++)
        many[i] = i < LONG / 2 ? 0 : (float)-i;
    fn_quantize(FN_INT8, 2, LONG / 2, 1, many, scales, q);
    check(scales[0] == 1 && scales[1] == (LONG - 1) / 127.0f, "scales that fn_quantize finds");
    check(q[0] == 0 && (signed char)q[LONG - 1] == -127, "fn_quantize with scales that it finds");
}

static void test_errors(void) {
    fn_problem p = {.norm = FN_GROUP, .n = N, .c = C, .s = S, .groups = 4, .eps = 1e-5};
    fn_params q = {0};
    memset(y, 0, sizeof y);
    check(fn_forward(&p, &q, x, y, NULL) == FN_BAD_PROBLEM, "groups that do not divide c");
    p = (fn_problem){.norm = FN_BATCH, .n = N, .c = C, .s = S, .eps = 1e-5};
    check(fn_forward(&p, &q, x, y, NULL) == FN_BAD_PROBLEM, "inference without statistics");
    p = (fn_problem){.norm = FN_LAYER, .n = N, .c = 1, .s = S, .eps = -1};
    check(fn_forward(&p, &q, x, y, NULL) == FN_BAD_PROBLEM, "negative eps");
    p.norm = FN_NORM_COUNT;
    check(fn_saved_size(&p) == 0, "unknown norm");
    /* sizes whose product, or that of bytes, no integer holds */
    const int64_t large[][3] = {{INT64_MAX, 2, 2}, {2, INT64_MAX, 2},
                                {2, 2, INT64_MAX}, {1LL << 32, 1LL << 32, 1},
                                {1, 1, 1LL << 60}, {1LL << 21, 1LL << 21, 1LL << 21}};
    for (int i = 0; i < (int)(sizeof large / sizeof *large); i++)
        for (int norm = 0; norm < FN_NORM_COUNT; norm++)
            for (int layout = FN_CHANNELS_FIRST; layout <= FN_BLOCKED; layout++) {
                p = (fn_problem){.norm = (fn_norm)norm,
                                 .layout = (fn_layout)layout,
                                 .n = large[i][0],
                                 .c = large[i][1],
                                 .s = large[i][2],
                                 .block = 16,
                                 .groups = 1,
                                 .training = 1,
                                 .eps = 1e-5,
                                 .r_max = 1};
                check(fn_forward(&p, &q, x, y, NULL) == FN_BAD_PROBLEM, "sizes that overflow");
                check(fn_saved_size(&p) == 0, "saved size of sizes that overflow");
            }
    p = (fn_problem){.norm = FN_BATCH, .n = 0, .c = 1LL << 60, .s = 7, .training = 1, .eps = 1e-5};
    check(fn_forward(&p, &q, x, y, NULL) == FN_OK, "an empty batch of many channels");
    for (int i = 0; i < SIZE; i++)
        check(y[i] == 0, "nothing is written on an error");
    check(fn_set_isa("none") == -1, "unknown instruction set");
}

/* ---- choices by measurement ----------------------------------------------------------------*/

/* the ways of these tests: 3 places on two axes, 2 on the last */
static const int places[FN_AXES] = {3, 3, 2};
static const int usual = 0;

/* what a call takes: 1 by the way (1, 2, 1), and each place that it is off on an axis adds to it;
 * axes[3] is added where a thread has to be waited for, which is at place 1 of the first axis */
static double time_of(int way, const double *axes) {
    static const int best[FN_AXES] = {1, 2, 1};
    double time = 1 + axes[3] * (fn_place(way, 0) == 1);
    for (int i = 0; i < FN_AXES; i++)
        time += axes[i] * (fn_place(way, i) != best[i]);
    return time;
}

/* `calls` calls, each with up to 3% of noise, every 16th with an interruption; how many took the
 * best way among the last `last` */
static int learn(uint64_t key, int calls, int last, const double *axes, double *time) {
    static unsigned state = 7;
    int best = 0;
    for (int i = 0; i < calls; i++) {
        fn_trial trial;
        fn_tune_begin(&trial, key, places, usual, 1000);
        state = state * 1664525u + 1013904223u;
        const double noise = state / 4294967296.0 * 0.03;
        const double took = 1e6 * time_of(trial.way, axes) * (1 + noise) * (i % 16 == 9 ? 3 : 1);
        if (trial.kind)
            fn_tune_learn(&trial, took);
        best += i >= calls - last && time_of(trial.way, axes) < 1.1;
        *time += took / (i % 16 == 9 ? 3 : 1);
    }
    return best;
}

static void test_choices(void) {
    const double slow[4] = {0.5, 0.3, 0.2}, other[4] = {8, 0.3, 0.2}, none[4] = {0};
    const double waits[4] = {0.5, 0.3, 0.2, 9};
    double time = 0, later = 0;
    fn_tune_forget();
    learn(1, 300, 0, slow, &time);
    check(learn(1, 100, 100, slow, &later) >= 90, "the best way is found, and kept");
    /* one thing wrong with the usual way, as on a machine with other caches */
    for (int axis = 0; axis < 3; axis++) {
        double only[4] = {0.02, 0.02, 0.02};
        only[axis] = 0.5;
        learn(3 + (uint64_t)axis, 20, 0, only, &time);
        check(learn(3 + (uint64_t)axis, 20, 20, only, &time) >= 15, "found in 20 calls");
    }
    time = 0;
    learn(1, 30, 0, waits, &time);
    check(time < 1e6 * (10 * 10 + 20 * 1.5), "a way that comes to wait is soon left");
    /* another way becomes good: it is found again; while it is bad it costs little */
    time = 0;
    learn(2, 300, 0, other, &time);
    time = 0;
    learn(2, 2000, 0, other, &time);
    check(time < 2000 * 1e6 * 1.12, "what is bad is tried rarely");
    /* stopped for an hour in a call, whichever it was: tries stay as rare, and go on */
    for (int i = 0; i < 6; i++) {
        fn_trial trial;
        fn_tune_begin(&trial, 2, places, usual, 1000);
        if (trial.kind)
            fn_tune_learn(&trial, 1e13);
    }
    time = 0;
    learn(2, 300, 0, other, &time);
    time = 0;
    check(learn(2, 2000, 2000, other, &time) > 1700, "the best way is the best again");
    check(time < 2000 * 1e6 * 1.12, "what is bad is tried as rarely");
    fn_tune_forget();
    for (uint64_t key = 1; key < 2000; key++)
        learn(key, 1, 0, none, &time);
    int known = 0;
    for (int i = 0; i < fn_tune_most(); i++)
        known += fn_tune_learned(i).key != 0;
    check(known > fn_tune_most() / 2, "more kinds than there is room for");
    fn_tune_forget();
}

/* ---- the quota of a container --------------------------------------------------------------*/

static void put(const char *root, const char *path, const char *text) {
    char name[512];
    snprintf(name, sizeof name, "%s/%s", root, path);
    for (char *at = name + strlen(root) + 1; (at = strchr(at, '/')); *at++ = '/') {
        *at = 0;
        mkdir(name, 0700);
    }
    FILE *f = fopen(name, "w");
    check(f != NULL, name);
    if (f) {
        fputs(text, f);
        fclose(f);
    }
}

static void test_quota(void) {
    char root[] = "/tmp/fastnorm-quota-XXXXXX";
    check(mkdtemp(root) != NULL, "a folder");
    check(fn_cpu_quota(root) == 0, "no control groups");
    put(root, "proc/self/cgroup", "0::/a/b\n");
    check(fn_cpu_quota(root) == 0, "no quota");
    put(root, "sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    check(fn_cpu_quota(root) == 0, "a quota of all");
    put(root, "sys/fs/cgroup/a/b/cpu.max", "450000 100000\n");
    check(fn_cpu_quota(root) == 5, "a quota of 4.5");
    put(root, "sys/fs/cgroup/a/cpu.max", "200000 100000\n");
    check(fn_cpu_quota(root) == 2, "the least of the group and those above it");
    put(root, "sys/fs/cgroup/a/cpu.max", "nonsense\n");
    check(fn_cpu_quota(root) == 5, "what cannot be read is none");
    put(root, "proc/self/cgroup", "12:cpuset:/x\n4:cpu,cpuacct:/c\n0::/\n");
    put(root, "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_quota_us", "50000\n");
    put(root, "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_period_us", "100000\n");
    check(fn_cpu_quota(root) == 1, "version 1, half a processor");
    put(root, "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_quota_us", "-1\n");
    check(fn_cpu_quota(root) == 0, "version 1, none");
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", root);
    check(system(command) == 0, "the folder is removed");
}

int main(void) {
    fill(x, SIZE, 3);
    fill(dy, SIZE, -0.5);
    fill(weight, S, 0.5);
    fill(bias, S, -0.5);
    for (int i = 0; i < fn_isa_count(); i++) {
        check(fn_set_isa(fn_isa_name(i)) == 0, "fn_set_isa");
        test_norms();
        test_wanted_gradients();
        test_weight_norm(FN_CHANNELS_FIRST, channel_first, "weight norm, channels first");
        test_weight_norm(FN_CHANNELS_LAST, channel_last, "weight norm, channels last");
        test_running_statistics();
    }
    test_numbers_of_8_bits();
    test_errors();
    test_choices();
    test_quota();
    printf("%s, %s, OpenMP %d, %d threads: %s\n", fn_compiler(), fn_isas_built(), fn_has_openmp(),
           fn_get_num_threads(), failures ? "failed" : "passed");
    return failures != 0;
}
