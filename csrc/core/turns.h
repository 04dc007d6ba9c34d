/* Rows that lie apart in memory, as one head of many does, and sums with a residual: a few rows at
 * a time, a turn, go through memory of the thread, where they lie behind one another and stay in
 * the caches.  So what lies apart is read and written where it is, once, and no kernel knows of it.
 */
#ifndef FN_TURNS_H
#define FN_TURNS_H

#include "core/job.h"

/* rows above this are not taken by turns */
#define FN_TURN_ROW (32 * 1024)

/* Bytes of x in a turn.  A turn of a sum is small where it comes from memory: it stays in the L1
 * together with the next x and residual, which are fetched meanwhile.  In the caches it is large,
 * as what is done for each turn counts. */
static inline int64_t fn_turn_most(const fn_job *job) {
    const int from_memory = job->use.fetch || job->use.stream;
    return job->beside.residual ? FN_TURN_ROW / (from_memory ? 4 : 1) : FN_TURN_ROW / 2;
}

int64_t fn_turn_bytes(const fn_around *around);
int fn_goes_by_turns(const fn_plan *plan, const fn_around *around, int backward);

/* what a job's arrays are otherwise */
typedef struct {
    const char *x, *dy;
    char *out;
    int64_t ahead; /* bytes from what this turn reads to what the next one reads; 0: nothing is
                    * fetched */
} fn_arrays;
/* rows [p, p1) are brought in; and brought out, with the job's arrays as they were */
fn_arrays fn_turn_in(fn_job *job, int64_t p, int64_t p1);
void fn_turn_out(fn_job *job, int64_t p, int64_t p1, fn_arrays were);

#endif
