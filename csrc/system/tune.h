/* Choosing by measurement among ways to do the same thing, which differ in time alone.  Knows
 * nothing of what is done. */
#ifndef FN_TUNE_H
#define FN_TUNE_H

#include "system/basics.h"

/* A way is a place on each of so many axes: how many threads, say, and whether to stream.  Two bits
 * of it for each axis: at most 4 places, on the last one 2.  The last axis is tried first. */
#define FN_AXES 3
#define FN_WAYS 32
static inline int fn_place(int way, int axis) { return way >> 2 * axis & 3; }
static inline int fn_placed(int way, int axis, int place) {
    return (way & ~(3 << 2 * axis)) | place << 2 * axis;
}

/* a call that is being measured; kind NULL: it is not */
typedef struct {
    struct fn_kind *kind;
    int way;
    int64_t work;
    uint64_t start;
    int settles; /* the first of two that try a way: its time does not count */
} fn_trial;

/* The way that a call takes: the best one known for its kind, or one beside it that has to be tried
 * again.  key tells calls of one kind, and is not 0; there are places[i] on axis i; `usual` is what
 * is taken before anything is known; work is what the time of a call is in proportion to. */
void fn_tune_begin(fn_trial *trial, uint64_t key, const int *places, int usual, int64_t work);
/* the call is over; or, in a test, took so long */
void fn_tune_end(const fn_trial *trial);
void fn_tune_learn(const fn_trial *trial, double time);

/* 0 with FASTNORM_TUNE=0: every call takes the usual way */
int fn_tunes(void);

/* What was learned of the i-th kind, 0 <= i < fn_tune_most(): its key (0: there is none), calls,
 * best way and time for each unit of work, in ticks of so many seconds (fn_tick_seconds). */
typedef struct {
    uint64_t key;
    int64_t calls;
    int best;
    double cost;
} fn_learned;
int fn_tune_most(void);
fn_learned fn_tune_learned(int i);
void fn_tune_forget(void);

#endif
