/* Sharing work out among threads.  Knows nothing of what the work is. */
#ifndef FN_THREADS_H
#define FN_THREADS_H

#include "system/basics.h"

#include <stddef.h>

/* Threads that so many bytes of work are worth, as a rule; and the most that may be, which have
 * enough to do that waking them is less. */
int fn_threads_for(int64_t bytes);
int fn_most_threads_for(int64_t bytes);

typedef struct {
    int threads;           /* that are asked for; there may be fewer */
    int64_t scratch_bytes; /* memory of each */
    int fence;             /* stores past the cache are seen by the others when it is over */
    char *memory;          /* fn_team_bytes, from a cache line on; NULL: one thread, no scratch */
} fn_team;
int64_t fn_team_bytes(const fn_team *team);
/* the scratch of the calling thread; NULL where there is none */
char *fn_team_scratch(const fn_team *team);

/* What a thread takes of [0, count): its next index, or -1. */
typedef struct fn_share fn_share;
int64_t fn_next(fn_share *share);

/* body(context, share, scratch) on each thread, which takes indices from its share until none is
 * left.  Each thread takes a contiguous range first: backwards when the step before went forwards
 * over the same data (the last read is still in the cache). */
void fn_parallel(const fn_team *team, int64_t count, int backwards,
                 void (*body)(void *context, fn_share *share, char *scratch), void *context);

#endif
