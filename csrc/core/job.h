/* A slice of a call in progress: its plan, its arrays and its memory, for all who walk over them.
 */
#ifndef FN_JOB_H
#define FN_JOB_H

#include "core/choice.h"
#include "norms/coefs.h"
#include "system/threads.h"

typedef struct fn_job fn_job;
typedef struct fn_piece fn_piece;

/* The arrays of fn_around, from the first element of the slice on; NULL: there is none.  x is what
 * the residual is added to. */
typedef struct {
    const char *shortcut, *gate, *x, *residual, *dsum;
    char *sum, *dshortcut, *dgate;
} fn_beside;

enum { FN_BY_CHUNKS = 1, FN_AHEAD = 2 };

struct fn_job {
    fn_plan plan;
    fn_params params; /* from its first channel on */
    fn_coefs cf;
    const char *x, *dy; /* dy NULL: forward */
    char *out;          /* y or dx */
    void *weight, *bias;
    double *mean, *m2; /* moments, or gradient sums, of each chunk */

    /* Sums over the samples so far, of each channel.  Where parameters belong to the elements:
     * dweight and dbias of elem_parts parts of the domains (elements.h). */
    double *dweight, *dbias, *dtau;
    int64_t elem_parts; /* 0: they do not, or their gradients are not wanted */
    int want_dbias;     /* of the elements; dweight, where there is a weight */

    /* What stands around (around.h).  after: what follows a piece of what is written, NULL:
     * nothing. before: the gradient of what the normalizer gave, where grads_before says that it is
     * not dy.
     */
    const fn_around *around;
    fn_beside beside;
    void (*after)(fn_job *job, const fn_piece *at, int stream);
    int grads_before; /* 0, FN_BY_CHUNKS or FN_AHEAD: see around.h */
    char *before;
    int in_kernel; /* the kernel that writes does what comes after, with a floor for each plane */
    void *floor;
    int64_t out_ld;       /* columns: from row to row of what is written */
    int64_t tiles, turns; /* where their memory begins in the scratch */
    int by_turns;         /* see turns.h; first_row: of the slice */
    int64_t first_row;

    int masking; /* what is written is dy above the floor; from then on that is dy */
    fn_team team;
    char *scratch; /* of this thread */
    fn_choice use;
};

/* A job that reads x (and dy), and writes out.  What needs memory is left to the caller:
 * workspace.h. */
void fn_job_start(fn_job *job, const fn_params *params, const void *x, const void *dy, void *out,
                  fn_choice use);

/* element i of coefficients or parameters */
static inline char *fn_at(const fn_job *job, void *p, int64_t i) {
    return fn_element(&job->plan, p, i);
}

/* task(job, i) for all i in [0, count), on the threads of the job's team, each with a copy of the
 * job */
void fn_for_all(fn_job *job, int64_t count, void (*task)(fn_job *, int64_t), int backwards);

#endif
