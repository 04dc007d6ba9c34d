/* Nanoseconds that each kernel takes for a cache line of x, on rows that lie in the cache: what the
 * arithmetic costs where memory is no limit; and those that a call takes to choose its way.
 * `make kernels`, or build/kernels LEN ROWS [ISA]. */
#include "core/choice.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define LINE_FLOATS 16
#define CALLS 200
#define ROUNDS 40

static double now(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* aligned to a page, with a value in every element */
static float *array(int64_t len, float value) {
    float *a = aligned_alloc(4096, (size_t)(len / 1024 + 1) * 4096);
    for (int64_t i = 0; a && i < len; i++)
        a[i] = value + (float)(i * 7919 % 1000) * 1e-3f;
    return a;
}

#define TIME(what, call)                                                                           \
    do {                                                                                           \
        double best = 1;                                                                           \
        for (int round = 0; round < ROUNDS; round++) {                                             \
            const double start = now();                                                            \
            for (int i = 0; i < CALLS; i++)                                                        \
                call;                                                                              \
            const double each = (now() - start) / CALLS;                                           \
            best = each < best ? each : best;                                                      \
        }                                                                                          \
        printf("  %-24s %6.2f\n", what, best * 1e9 * LINE_FLOATS / (double)len / (double)rows);    \
    } while (0)

/* what core/choice.h costs a layer norm of 8 MB */
static void time_choosing(void) {
    const fn_problem problem = {.norm = FN_LAYER, .n = 2048, .c = 1, .s = 1024, .eps = 1e-5};
    const fn_params none = {.weight = NULL};
    int64_t elements;
    fn_plan plan;
    fn_plan_make(&plan, &problem, &none, 0, &elements);
    double best = 1;
    for (int round = 0; round < ROUNDS; round++) {
        const double start = now();
        for (int i = 0; i < 100 * CALLS; i++) {
            fn_trial trial;
            fn_choose(&trial, &plan, elements * 4, 0, 0);
            fn_chosen(&trial);
        }
        const double each = (now() - start) / (100 * CALLS);
        best = each < best ? each : best;
    }
    printf("ns a call\n  %-24s %6.1f\n", "choosing", best * 1e9);
}

int main(int argc, char **argv) {
    const int64_t len = argc > 1 ? atoll(argv[1]) : 768, rows = argc > 2 ? atoll(argv[2]) : 64;
    if (len < 1 || rows < 1 || (argc > 3 && fn_set_isa(argv[3]) != 0)) {
        fprintf(stderr, "usage: kernels LEN ROWS [%s]\n", fn_isas_built());
        return 2;
    }
    const fn_kernels *k = fn_active_kernels(FN_F32);
    const int64_t n = len * rows, most = len > rows ? len : rows;
    float *x = array(n, 0), *dy = array(n, 1), *y = array(n, 0), *w = array(len, 1);
    float *c = array(most, 0), *a = array(most, 1), *b = array(most, 0), *e = array(most, 0);
    float *dw = array(len, 0), *db = array(len, 0);
    char *scratch = malloc(fn_scratch_bytes(sizeof *x, sizeof *x, len));
    double *s1 = malloc((size_t)most * sizeof *s1), *s2 = malloc((size_t)most * sizeof *s2);
    const fn_view of_rows = {1, 0, n, len, 1, 0, 0, 0},
                  columns = {rows, len, len, len, len, 0, 0, 0};
    const fn_hints none = {0, 0, 0};
    if (!x || !dy || !y || !w || !c || !a || !b || !e || !dw || !db || !s1 || !s2 || !scratch)
        return 1;
    printf("%s, %lld rows of %lld floats: ns for 64 bytes of x\n", fn_get_isa(), (long long)rows,
           (long long)len);
    TIME("copy", k->limit(x, NULL, y, n, 0));
    TIME("sum of two", k->limit(x, dy, y, n, 0));
    const fn_view *views[] = {&of_rows, &columns};
    for (int i = 0; i < 2; i++) {
        const fn_view *v = views[i];
        printf(i ? "columns\n" : "rows\n");
        TIME("moments", k->moments(x, v, scratch, s1, s2));
        TIME("squares", k->squares(x, v, scratch, s2));
        TIME("gradients", k->gradients(x, dy, v, c, NULL, scratch, s1, s2));
        TIME("apply", k->apply(x, NULL, y, v, c, a, b, NULL, none, scratch));
        TIME("grad_apply", k->grad_apply(x, dy, y, v, c, a, b, e, none, scratch));
    }
    TIME("extremes", k->extremes(x, &columns, scratch, s1, s2));
    TIME("apply_elem", k->apply_elem(x, y, rows, len, len, len, 1, c, a, b, w, w, none));
    TIME("grad_apply_elem",
         k->grad_apply_elem(x, dy, y, rows, len, len, 1, c, a, b, e, e, w, dw, db, none));
    time_choosing();
    return 0;
}
