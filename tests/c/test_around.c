/* What stands around a normalizer (fn_around) without Python: one call gives the bits of calls one
 * by one, whatever is streamed or fetched, and rows that lie apart are read and written where they
 * lie. */
#include "fastnorm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures;

static void check(int ok, const char *what) {
    if (!ok) {
        printf("failed: %s\n", what);
        failures++;
    }
}

/* rows of 3 KB: a turn has two of them, or five; images of 24 x 32 */
enum { N = 6, C = 8, S = 768, SIZE = N * C * S, ROOM = 3 * SIZE };

static float x[SIZE], dy[SIZE], ds[SIZE], other[SIZE], gate[SIZE], weight[S], bias[S];
static float y[SIZE], sum[SIZE], dx[SIZE], dother[SIZE], dgate[SIZE];                 /* by one */
static float want_y[SIZE], want_sum[SIZE], want_dx[SIZE], want_dother[SIZE], u[SIZE]; /* by many */
static float apart[ROOM], apart_y[ROOM];
static double saved[4 * N * C];

static void fill(float *to, int count) {
    static unsigned state = 1;
    for (int i = 0; i < count; i++) {
        state = state * 1664525u + 1013904223u;
        to[i] = (float)(state / 4294967296.0 * 4 - 2);
    }
}
static int same(const float *got, const float *want) { return memcmp(got, want, sizeof x) == 0; }
static void added(const float *a, const float *b, float *to) {
    for (int i = 0; i < SIZE; i++)
        to[i] = a[i] + b[i];
}

static const fn_problem LAYER = {.norm = FN_LAYER, .n = N * C, .c = 1, .s = S, .eps = 1e-5};
static const fn_problem RMS = {.norm = FN_RMS, .n = N * C, .c = 1, .s = S, .eps = 1e-5};
static const fn_problem BATCH = {.norm = FN_BATCH, .n = N, .c = C, .s = S, .training = 1};
static const fn_problem LAST = {
    .norm = FN_BATCH, .layout = FN_CHANNELS_LAST, .n = N, .c = C, .s = S, .training = 1};
static const fn_problem GROUP = {.norm = FN_GROUP, .n = N, .c = C, .s = S, .groups = 4};

/* y = norm(x + residual), and the gradient of both */
static void test_residual(const fn_problem *p, const char *what) {
    fn_around around = {.residual = other, .sum = sum};
    fn_params q = {.weight = weight, .bias = p->norm == FN_RMS ? NULL : bias};
    const fn_grads grads = {.x = dx}, want = {.x = want_dx};
    added(x, other, want_sum);
    check(fn_forward(p, &q, want_sum, want_y, saved) == FN_OK, what);
    check(fn_backward(p, &q, saved, want_sum, dy, &want) == FN_OK, what);
    added(want_dx, ds, want_dx);
    q.around = &around;
    check(fn_forward(p, &q, x, y, saved) == FN_OK, what);
    check(same(y, want_y) && same(sum, want_sum), what);
    around = (fn_around){.dsum = ds};
    check(fn_backward(p, &q, saved, sum, dy, &grads) == FN_OK, what);
    check(same(dx, want_dx), what);
    memcpy(sum, other, sizeof sum); /* in the place of the residual */
    around = (fn_around){.residual = sum, .sum = sum};
    check(fn_forward(p, &q, x, y, saved) == FN_OK, what);
    check(same(y, want_y) && same(sum, want_sum), what);
}

/* heads of 3 rows each in memory, of which one is normalized, in place or to another */
static void test_rows(const fn_problem *p, const char *what) {
    const fn_rows heads = {.levels = 2, .count = {N, C}, .stride = {3 * C * S, 3 * S}};
    fn_around around = {.x_rows = &heads, .out_rows = &heads};
    fn_params q = {.weight = weight};
    check(fn_forward(p, &q, x, want_y, saved) == FN_OK, what);
    fill(apart, ROOM);
    for (int r = 0; r < N * C; r++)
        memcpy(apart + 3 * S * r, x + S * r, S * sizeof *x);
    memcpy(apart_y, apart, sizeof apart);
    q.around = &around;
    check(fn_forward(p, &q, apart, apart_y, saved) == FN_OK, what);
    for (int r = 0; r < N * C; r++) {
        check(memcmp(apart_y + 3 * S * r, want_y + S * r, S * sizeof *y) == 0, what);
        check(memcmp(apart_y + 3 * S * r + S, apart + 3 * S * r + S, 2 * S * sizeof *y) == 0,
              "what lies between the rows");
    }
    around.out_rows = NULL;
    check(fn_forward(p, &q, apart, y, saved) == FN_OK, what);
    check(same(y, want_y), what);
}

/* y = act(norm(x) + shortcut) * silu(gate) */
static void test_after(const fn_problem *p, fn_activation act, int gated, const char *what) {
    const fn_around around = {.activation = act,
                              .gate_activation = FN_SILU,
                              .shortcut = other,
                              .gate = gated ? gate : NULL};
    fn_params q = {.weight = weight, .bias = bias};
    const fn_grads grads = {.x = dx, .shortcut = dother, .gate = gated ? dgate : NULL};
    const fn_grads want = {.x = want_dx};
    check(fn_forward(p, &q, x, u, saved) == FN_OK, what);
    added(u, other, u);
    check(fn_activate(FN_F32, act, 0, SIZE, u, want_y) == FN_OK, what);
    memcpy(want_sum, dy, sizeof dy); /* the gradient of act(u + shortcut) */
    if (gated) {
        check(fn_activate(FN_F32, FN_SILU, 0, SIZE, gate, sum) == FN_OK, what);
        for (int i = 0; i < SIZE; i++) {
            want_y[i] *= sum[i];
            want_sum[i] *= sum[i];
        }
    }
    check(fn_activate_grad(FN_F32, act, 0, SIZE, u, want_sum, want_dother) == FN_OK, what);
    check(fn_backward(p, &q, saved, x, want_dother, &want) == FN_OK, what);
    q.around = &around;
    check(fn_forward(p, &q, x, y, saved) == FN_OK, what);
    check(same(y, want_y), what);
    check(fn_backward(p, &q, saved, x, dy, &grads) == FN_OK, what);
    check(same(dx, want_dx) && same(dother, want_dother), what);
}

int main(void) {
    float *const inputs[] = {x, dy, ds, other, gate};
    for (int i = 0; i < 5; i++)
        fill(inputs[i], SIZE);
    fill(weight, S);
    fill(bias, S);
    for (int way = 0; way < 8; way++) {
        fn_force_choice(1 + way / 4, way % 2, way / 2 % 2);
        test_residual(&LAYER, "layer norm of a sum");
        test_residual(&RMS, "RMS norm of a sum");
        test_residual(&BATCH, "batch norm of a sum");
        test_rows(&LAYER, "layer norm of rows apart");
        test_rows(&RMS, "RMS norm of rows apart");
        for (int gated = 0; gated < 2; gated++) {
            test_after(&BATCH, FN_RELU, gated, "batch norm, a shortcut and relu");
            test_after(&LAST, FN_RELU, gated, "batch norm, channels last");
            test_after(&GROUP, FN_SILU, gated, "group norm, a shortcut and silu");
            test_after(&LAYER, FN_GELU, gated, "layer norm, a shortcut and gelu");
        }
    }
    printf("%s\n", failures ? "FAILED" : "passed");
    return failures != 0;
}
