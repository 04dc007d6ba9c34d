/* Activations of whole arrays, without a normalizer: the entry points of fastnorm.h. */
#include "core/choice.h"
#include "core/workspace.h"
#include "system/float_mode.h"
#include "system/threads.h"

#include <stdlib.h>

/* elements of a task: a few arrays of so many stay in the L2 */
#define PIECE 16384
/* An activation by exp takes as long as moving so many times its bytes: 88000 floats are worth two
 * threads, as 524288 are that are only moved. */
#define OF_EXP 6

typedef struct {
    const fn_kernels *k;
    int64_t size, n; /* bytes of an element, and elements */
    fn_activation kind;
    double slope;
    const char *x, *dy; /* dy NULL: forward */
    char *to;
    int stream;
} activation;

static void take_pieces(void *context, fn_share *share, char *scratch) {
    const activation *of = context;
    (void)scratch;
    for (int64_t i; (i = fn_next(share)) >= 0;) {
        const int64_t at = i * PIECE * of->size, n = fn_min(PIECE, of->n - i * PIECE);
        if (of->dy)
            of->k->activate_grad(of->kind, of->slope, of->x + at, NULL, of->dy + at, of->to + at, n,
                                 of->stream, NULL);
        else
            of->k->activate(of->kind, of->slope, of->x + at, NULL, of->to + at, n, of->stream,
                            NULL);
    }
}

static fn_status run(activation of, fn_dtype dtype) {
    of.k = (unsigned)dtype < FN_DTYPE_COUNT ? fn_active_kernels(dtype) : NULL;
    if (!of.k || of.n < 0 || (unsigned)of.kind >= FN_ACTIVATION_COUNT)
        return FN_BAD_PROBLEM;
    of.size = dtype == FN_F64 ? 8 : dtype == FN_F32 ? 4 : 2;
    const int64_t bytes = of.n * of.size;
    const int64_t work = of.kind >= FN_SIGMOID ? OF_EXP * bytes : bytes;
    of.stream = fn_past_cache((of.dy ? 3 : 2) * bytes);
    fn_team team = {.threads = fn_threads_for(work), .fence = of.stream};
    char *memory = fn_allocate(fn_team_bytes(&team));
    if (!memory)
        return FN_NO_MEMORY;
    const fn_float_mode mode = fn_enter_float_mode();
    team.memory = fn_line(memory);
    fn_parallel(&team, fn_ceil_div(of.n, PIECE), 0, take_pieces, &of);
    fn_leave_float_mode(mode);
    free(memory);
    return FN_OK;
}

fn_status fn_activate(fn_dtype dtype, fn_activation kind, double slope, int64_t n, const void *x,
                      void *y) {
    return run((activation){.n = n, .kind = kind, .slope = slope, .x = x, .to = y}, dtype);
}

fn_status fn_activate_grad(fn_dtype dtype, fn_activation kind, double slope, int64_t n,
                           const void *x, const void *dy, void *dx) {
    return run((activation){.n = n, .kind = kind, .slope = slope, .x = x, .dy = dy, .to = dx},
               dtype);
}
