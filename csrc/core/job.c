/* See job.h and workspace.h. */
#include "core/job.h"

#include "core/around.h"
#include "core/workspace.h"

#include <stdlib.h>

void *fn_allocate(int64_t bytes) {
    if (bytes < 0 || bytes > PTRDIFF_MAX - FN_LINE)
        return NULL;
    return malloc((size_t)bytes + FN_LINE);
}

void fn_job_start(fn_job *job, const fn_params *params, const void *x, const void *dy, void *out,
                  fn_choice use) {
    job->params = *params;
    job->cf = (fn_coefs){.plan = &job->plan, .params = &job->params};
    job->cf.count = (double)job->plan.count;
    job->x = x;
    job->dy = dy;
    job->out = out;
    job->weight = (void *)params->weight;
    job->bias = dy ? NULL : (void *)params->bias;
    job->mean = job->m2 = job->dweight = job->dbias = job->dtau = NULL;
    job->elem_parts = job->want_dbias = job->masking = 0;
    job->around = NULL;
    job->beside = (fn_beside){.x = NULL};
    job->after = NULL;
    job->grads_before = 0;
    job->before = NULL;
    job->in_kernel = 0;
    job->floor = NULL;
    job->out_ld = job->plan.ld;
    job->tiles = job->turns = job->by_turns = 0;
    job->first_row = 0;
    job->scratch = NULL;
    job->use = use;
    job->use.stream = out && use.stream;
    job->team = (fn_team){.threads = use.threads,
                          .scratch_bytes = fn_plan_scratch(&job->plan) + FN_LINE +
                                           fn_around_bytes(&job->plan, params->around)};
}

typedef struct {
    fn_job *job;
    void (*task)(fn_job *, int64_t);
} work;

static void take_share(void *context, fn_share *share, char *scratch) {
    const work *of = context;
    fn_job job = *of->job;
    job.scratch = scratch;
    for (int64_t i; (i = fn_next(share)) >= 0;)
        of->task(&job, i);
}

void fn_for_all(fn_job *job, int64_t count, void (*task)(fn_job *, int64_t), int backwards) {
    work of = {job, task};
    job->team.fence = job->use.stream;
    fn_parallel(&job->team, count, backwards, take_share, &of);
}
