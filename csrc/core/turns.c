/* See turns.h. */
#include "core/turns.h"

#include "core/elements.h"

#include <string.h>

enum { X, DY, OUT, ARRAYS };

int64_t fn_turn_bytes(const fn_around *a) {
    return a && (a->residual || a->x_rows || a->dy_rows || a->out_rows) ? ARRAYS * FN_STEP_BYTES
                                                                        : 0;
}

int fn_goes_by_turns(const fn_plan *plan, const fn_around *a, int backward) {
    const fn_row *row = plan->row;
    if (plan->cols != 1 || plan->nseg != 1 || row->sample_statistics || row->channel_statistics ||
        plan->count * (int64_t)plan->esize > FN_TURN_ROW || !fn_needs_moments(plan))
        return 0;
    return (a->residual && !backward) || a->x_rows || a->dy_rows || a->out_rows;
}

/* in elements */
static int64_t start_of(const fn_rows *rows, int64_t row) {
    int64_t start = 0;
    for (int i = rows->levels - 1; i >= 0; i--) {
        start += row % rows->count[i] * rows->stride[i];
        row /= rows->count[i];
    }
    return start;
}

static char *memory(const fn_job *job, int array) {
    return job->scratch + job->turns + array * FN_STEP_BYTES;
}
/* as if it were an array of all rows, of which row p lies at `first` */
static char *from_row(const fn_job *job, const char *first, int64_t p) {
    return (char *)((uintptr_t)first - (uintptr_t)(p * job->plan.s * (int64_t)job->plan.esize));
}

static char *gather(const fn_job *job, const char *array, const fn_rows *rows, int64_t p,
                    int64_t p1, int which) {
    const int64_t size = (int64_t)job->plan.esize, len = job->plan.s * size;
    char *to = memory(job, which);
    for (int64_t r = p; r < p1; r++, to += len)
        memcpy(to, array + start_of(rows, job->first_row + r) * size, (size_t)len);
    return memory(job, which);
}

/* s = x + residual goes to the caller's rows, and is read there while the caches have it.  Where it
 * is written past the caches, the turn's rows have it too.  Returns where it is read.  The next
 * residual is fetched meanwhile. */
static const char *add_residual(fn_job *job, const char *x, int64_t p, int64_t p1) {
    const fn_kernels *k = job->plan.k;
    const fn_beside *b = &job->beside;
    const int64_t n = (p1 - p) * job->plan.s, at = p * job->plan.s * (int64_t)job->plan.esize;
    const char *next = job->use.fetch ? b->residual + at + n * (int64_t)job->plan.esize : NULL;
    if (!job->use.stream) {
        k->activate(FN_IDENTITY, 0, x, b->residual + at, b->sum + at, n, 0, next);
        return b->sum + at;
    }
    k->add_to_both(x, b->residual + at, memory(job, X), b->sum + at, n, next);
    return memory(job, X);
}

fn_arrays fn_turn_in(fn_job *job, int64_t p, int64_t p1) {
    fn_arrays were = {job->x, job->dy, job->out, 0};
    const fn_around *a = job->around;
    const fn_beside *b = &job->beside;
    const char *x = NULL;
    if (a->x_rows)
        x = gather(job, b->x, a->x_rows, p, p1, X);
    if (b->residual) {
        const int64_t size = job->plan.s * (int64_t)job->plan.esize;
        const char *from = b->x + p * size;
        const int apart = x != NULL;
        x = add_residual(job, x ? x : from, p, p1);
        if (job->use.fetch && !apart)
            were.ahead = from + (p1 - p) * size - x;
    }
    if (x)
        job->x = from_row(job, x, p);
    if (job->dy && a->dy_rows)
        job->dy = from_row(job, gather(job, job->dy, a->dy_rows, p, p1, DY), p);
    if (a->out_rows)
        job->out = from_row(job, memory(job, OUT), p);
    return were;
}

void fn_turn_out(fn_job *job, int64_t p, int64_t p1, fn_arrays were) {
    const int64_t size = (int64_t)job->plan.esize, len = job->plan.s * size;
    const fn_rows *rows = job->around->out_rows;
    const char *from = memory(job, OUT);
    job->x = were.x;
    job->dy = were.dy;
    job->out = were.out;
    for (int64_t r = p; r < p1 && rows; r++, from += len)
        memcpy(job->out + start_of(rows, job->first_row + r) * size, from, (size_t)len);
}
