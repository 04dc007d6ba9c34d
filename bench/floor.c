/* What is left of a pass when nothing is computed: the times of reading a domain, then of reading
 * it again and writing it, against the limit, which reads and writes once.  Of each the best way
 * counts: written past the cache or not, what is read fetched ahead or not.
 * `make floor`, or build/floor THREADS MEGABYTES [ISA]. */
#include "kernels/list.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#define ROUNDS 15
#define TIMED                                                                                      \
    (100LL << 20)     /* bytes of an array that are taken for one time, small ones repeatedly */
#define FITS_L1 2048  /* floats of a domain that fits the L1 */
#define FITS_L2 65536 /* the L2 */

/* what else is read: nothing; a shortcut, in the second reading alone; dy */
enum { FORWARD, SHORTCUT, BACKWARD, KINDS };

typedef struct {
    const fn_kernels *k;
    float *x, *other, *y;
    int64_t len, domain; /* domain: elements that are read before they are written; 0: the limit */
    int kind, stream, fetch;
} pass;

static void domain_pass(const pass *p, int64_t at, int64_t len) {
    double squares;
    const fn_view view = {1, 0, len, len, 1, p->fetch, 0, 0};
    const float *other = p->kind == FORWARD ? NULL : p->other + at;
    if (p->domain)
        p->k->squares(p->x + at, &view, NULL, &squares);
    if (p->domain && p->kind == BACKWARD)
        p->k->squares(other, &view, NULL, &squares);
    p->k->limit(p->x + at, other, p->y + at, len, p->stream);
}

/* of one pass; each thread has its own part of the arrays */
static double seconds(const pass *p, int threads) {
    const int64_t repeats = fn_max(1, TIMED / (p->len * (int64_t)sizeof *p->x));
    const double start = omp_get_wtime();
#pragma omp parallel num_threads(threads)
    for (int64_t i = 0; i < repeats; i++) {
        const int64_t t = omp_get_thread_num(), lo = p->len * t / threads,
                      hi = p->len * (t + 1) / threads;
        const int64_t step = p->domain ? fn_min(p->domain, hi - lo) : hi - lo;
        for (int64_t at = lo; at < hi; at += step)
            domain_pass(p, at, fn_min(step, hi - at));
    }
    return (omp_get_wtime() - start) / (double)repeats;
}

/* the least time of four ways: through the cache or past it, with fetches or without */
static double best_way(pass p, int threads) {
    double best = 0;
    for (int way = 0; way < 4; way++) {
        p.stream = way & 1;
        p.fetch = way >> 1;
        const double found = seconds(&p, threads);
        best = way && best < found ? best : found;
    }
    return best;
}

static int ascending(const void *a, const void *b) {
    const double d = *(const double *)a - *(const double *)b;
    return (d > 0) - (d < 0);
}

int main(int argc, char **argv) {
    const int threads = argc > 1 ? atoi(argv[1]) : 1;
    const double mb = argc > 2 ? atof(argv[2]) : 100;
    if (threads < 1 || !(mb >= 0.1) || (argc > 3 && fn_set_isa(argv[3]) != 0)) {
        fprintf(stderr, "usage: floor THREADS MEGABYTES [%s]\n", fn_isas_built());
        return 2;
    }
    const int64_t len = (int64_t)(mb * 250000) / 1024 * 1024;
    const fn_kernels *k = fn_active_kernels(FN_F32);
    float *arrays[3];
    for (int i = 0; i < 3; i++) {
        arrays[i] = aligned_alloc(4096, (size_t)len * sizeof(float));
        for (int64_t j = 0; arrays[i] && j < len; j++)
            arrays[i][j] = (float)(j % 1000) * 1e-3f;
        if (!arrays[i])
            return 1;
    }
    const char *what[] = {"limit", "a domain fits the L1", "a domain fits the L2",
                          "no domain fits"};
    printf("%s, %d threads, arrays of %g MB: times the limit\n", fn_get_isa(), threads, mb);
    const char *kinds[] = {"forward", "with a shortcut", "backward"};
    for (int kind = 0; kind < KINDS; kind++) {
        const int64_t domains[] = {0, FITS_L1, FITS_L2 / (1 + (kind == BACKWARD)), len};
        const int cases = len / threads > FITS_L2 ? 4 : 3; /* all of a small array fits the L2 */
        double all[4][ROUNDS];
        for (int round = 0; round < ROUNDS; round++)
            for (int i = 0; i < cases; i++) {
                const pass p = {k, arrays[0], arrays[1], arrays[2], len, domains[i], kind, 0, 0};
                all[i][round] = best_way(p, threads);
            }
        for (int i = 0; i < cases; i++)
            qsort(all[i], ROUNDS, sizeof all[i][0], ascending);
        for (int i = 1; i < cases; i++)
            printf("  %-15s %-22s %5.2f\n", kinds[kind], what[i],
                   all[i][ROUNDS / 2] / all[0][ROUNDS / 2]);
    }
    return 0;
}
