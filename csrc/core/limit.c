/* What a pass over memory costs that computes nothing: the entry point for benchmarks. */
#include "core/workspace.h"
#include "kernels/list.h"
#include "system/threads.h"

#include <stdlib.h>

#define LIMIT_PIECE 32768
typedef struct {
    const fn_kernels *k;
    const float *x, *dy;
    float *y;
    int64_t len;
    int stream;
} limit;

static void take_limit(void *context, fn_share *share, char *scratch) {
    const limit *of = context;
    (void)scratch;
    for (int64_t i; (i = fn_next(share)) >= 0;) {
        const int64_t at = i * LIMIT_PIECE, len = fn_min(LIMIT_PIECE, of->len - at);
        of->k->limit(of->x + at, of->dy ? of->dy + at : NULL, of->y + at, len, of->stream);
    }
}

void fn_memory_limit(const float *x, const float *dy, float *y, int64_t len, int stream) {
    limit of = {fn_active_kernels(FN_F32), x, dy, y, len, stream};
    fn_team team = {.threads = fn_threads_for(len * (int64_t)sizeof(float)), .fence = stream};
    if (!of.k) /* a build without float32 has no limit to measure */
        return;
    void *memory = fn_allocate(fn_team_bytes(&team));
    team.memory = memory ? fn_line(memory) : NULL;
    fn_parallel(&team, fn_ceil_div(len, LIMIT_PIECE), 0, take_limit, &of);
    free(memory);
}
