/* See tune.h.  For each kind of call: what each way cost, in time for each unit of work.  The best
 * way is taken.  A way beside it, which differs on one axis, is tried when there is time saved for
 * it: three calls' worth once the usual way is known, so that the ways beside it are known after
 * some 20 calls; then a 12th of the time of the first calls, a 32nd later, however bad the tries
 * are.  A way that loses waits twice as long for its next try.  So a way that becomes good again,
 * as the second of two threads does when another program ends, is found.
 *
 * A try is two calls, of which the second counts: where the first one leaves its arrays, past the
 * cache or in it, is part of a way.  A first one that is bad enough ends the try.  A way must win
 * twice to become the best: a try that wins is repeated at once.
 *
 * Calls are interrupted, and the first one after a pause finds its data in no cache.  So the best
 * way's cost is about the median of its calls: each moves it by a tenth at most.  Where two calls
 * behind one another take more than four times that, as with a thread that has to wait for a
 * processor, the second moves it by four tenths.  A way that was better than that when it was tried
 * last is tried at once.
 *
 * Nothing is locked.  Threads that meet here may lose a measurement, which costs time and never
 * bits. */
#define _DEFAULT_SOURCE /* clock_gettime */
#include "system/tune.h"

#include "fastnorm.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define KINDS 256 /* a power of two */
#define PROBES 4  /* places of the table in which a kind may be */
/* The first calls are all measured, look for a way to try, and save a 12th of their time for it;
 * later one in MEASURED calls is measured, one in LOOK looks for a way, and a 32nd is saved. */
#define FIRST 128
#define FIRST_SHARE 12
#define SHARE 32
#define LOOK 8
#define MEASURED 2
/* A way is known after two calls: the best one by the faster, as the first may have had pages to
 * make, another by the slower. */
#define TRIES 2
#define GIFT 3.0f /* so many calls' worth of time is saved at once when the usual way is known */
#define HOPELESS 1.3f /* a first call of a try that takes so many times the best ends it */
#define BETTER 0.95f  /* a way that wins takes less than so much of the best */
#define PAUSE 4       /* calls until a way is tried again, */
#define DOUBLED 7     /* doubled so often at most; the best way's is halved every CALM calls */
#define CALM 16
#define STEP 0.1f
#define FAR_STEP 0.4f
#define IS_FAR 4
/* A call counts so many times the best way's cost at most: a program may be stopped for an hour in
 * it, and what that seems to cost would be saved, or owed. */
#define MOST_TIMES 64

typedef struct fn_kind {
    _Atomic uint64_t key;
    atomic_uint calls;
    atomic_uchar best;
    atomic_uchar next;            /* 1 + the way that the next call goes on with trying; 0: none */
    _Atomic float saved;          /* time that may be spent on tries */
    _Atomic float cost[FN_WAYS];  /* what is known */
    _Atomic float price[FN_WAYS]; /* what a try is expected to cost; 0: none was made */
    _Atomic float last[FN_WAYS];  /* of its last call that counts */
    atomic_uint when[FN_WAYS];    /* the call that tried it last */
    atomic_uchar tries[FN_WAYS];
    atomic_uchar pause[FN_WAYS]; /* doubled so often */
} kind;
static kind kinds[KINDS];

#define GET(field) atomic_load_explicit(&(field), memory_order_relaxed)
#define SET(field, value) atomic_store_explicit(&(field), value, memory_order_relaxed)

int fn_tunes(void) {
    static atomic_int known = -1;
    int on = GET(known);
    if (on < 0) {
        const char *text = getenv("FASTNORM_TUNE");
        on = !text || strcmp(text, "0") != 0;
        SET(known, on);
    }
    return on;
}

/* Ticks of a clock.  The processor's own takes 20 ns to read where the system's takes 40. */
#if defined(__x86_64__)
static uint64_t ticks(void) { return __builtin_ia32_rdtsc(); }
#else
static uint64_t ticks(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}
#endif

double fn_tick_seconds(void) {
    struct timespec a, b, pause = {0, 2000000};
    const uint64_t first = ticks();
    clock_gettime(CLOCK_MONOTONIC, &a);
    nanosleep(&pause, NULL);
    const double passed = (double)(ticks() - first);
    clock_gettime(CLOCK_MONOTONIC, &b);
    return ((double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec)) / passed;
}

static void clear(kind *k, int best) {
    SET(k->calls, 0);
    SET(k->saved, 0);
    SET(k->best, (unsigned char)best);
    SET(k->next, 0);
    for (int w = 0; w < FN_WAYS; w++) {
        SET(k->cost[w], 0);
        SET(k->price[w], 0);
        SET(k->last[w], 0);
        SET(k->when[w], 0);
        SET(k->tries[w], 0);
        SET(k->pause[w], 0);
    }
}

/* The kind with this key; where it is new, and its places are taken, it displaces another. */
static kind *find(uint64_t key, int best) {
    const uint64_t h = (key * UINT64_C(0x9e3779b97f4a7c15)) >> 32;
    for (unsigned i = 0; i < PROBES; i++) {
        kind *k = &kinds[(h + i) % KINDS];
        const uint64_t found = GET(k->key);
        if (found == key)
            return k;
        if (!found) {
            clear(k, best);
            SET(k->key, key);
            return k;
        }
    }
    kind *k = &kinds[h % KINDS];
    clear(k, best);
    SET(k->key, key);
    return k;
}

static void lengthen_pause(kind *k, int w) {
    const unsigned char pause = GET(k->pause[w]);
    SET(k->pause[w], pause < DOUBLED ? pause + 1 : DOUBLED);
}

/* the way that was clearly better when it was tried last, or the best one */
static int promising(const kind *k, int best) {
    float least = BETTER * GET(k->cost[best]);
    int found = best;
    for (int w = 0; w < FN_WAYS; w++) {
        const float cost = GET(k->cost[w]);
        if (GET(k->tries[w]) >= TRIES && cost < least) {
            least = cost;
            found = w;
        }
    }
    return found;
}

/* A way beside the best one to be tried now, or the best one.  What is not known yet is expected to
 * cost half as much again. */
static int to_try(const kind *k, const int *places, unsigned call, int best, int64_t work) {
    const float least = GET(k->cost[best]), saved = GET(k->saved) / (float)work;
    unsigned oldest = UINT32_MAX;
    int found = best;
    for (int a = FN_AXES; a-- > 0;)
        for (int p = 0; p < places[a]; p++) {
            const int w = fn_placed(best, a, p);
            const unsigned when = GET(k->when[w]);
            const float price = GET(k->price[w]), more = fmaxf(price - least, least / 8);
            const int rested = price == 0 || call - when >= (unsigned)PAUSE << GET(k->pause[w]);
            if (w != best && rested && saved >= (price > 0 ? more : least / 2) && when < oldest) {
                oldest = when;
                found = w;
            }
        }
    return found;
}

void fn_tune_begin(fn_trial *trial, uint64_t key, const int *places, int usual, int64_t work) {
    kind *k = find(key, usual);
    const unsigned call = GET(k->calls);
    const int next = GET(k->next);
    int w = GET(k->best), settles = 0;
    SET(k->calls, call + 1);
    if (call >= FIRST && call % MEASURED && !next)
        return (void)(*trial = (fn_trial){.way = w});
    if (next) {
        SET(k->next, 0);
        w = next - 1;
    } else if (GET(k->saved) > 0 && (call < FIRST || call % LOOK == 0)) {
        const int best = w;
        w = to_try(k, places, call, best, work);
        settles = w != best;
    }
    SET(k->when[w], call);
    *trial = (fn_trial){k, w, work, ticks(), settles};
}

/* what is known of the best way, after one more call and the last one before */
static float stepped(float known, float cost, float last) {
    if (cost > IS_FAR * known && last > IS_FAR * known)
        return known * (1 + FAR_STEP);
    return fmaxf(fminf(cost, known * (1 + STEP)), known * (1 - STEP));
}

void fn_tune_learn(const fn_trial *trial, double time) {
    kind *k = trial->kind;
    const int w = trial->way, best = GET(k->best);
    const unsigned char tries = GET(k->tries[w]);
    const float known = GET(k->cost[w]), last = GET(k->last[w]), least = GET(k->cost[best]);
    const float took = (float)(time / (double)trial->work);
    const float cost = least > 0 ? fminf(took, MOST_TIMES * least) : took;
    if (w != best)
        SET(k->saved, GET(k->saved) - fmaxf(cost - least, 0) * (float)trial->work);
    if (trial->settles && cost < HOPELESS * least) {
        SET(k->next, (unsigned char)(w + 1));
        return;
    }
    if (tries < TRIES)
        SET(k->tries[w], tries + 1);
    if (w == best) {
        const float faster = tries == 0 || cost < known ? cost : known;
        const float now = tries < TRIES ? faster : stepped(known, cost, last);
        SET(k->cost[w], now);
        SET(k->price[w], now);
        SET(k->last[w], cost);
        const float share = GET(k->calls) < FIRST ? FIRST_SHARE : (float)SHARE / MEASURED;
        const float gift = tries == TRIES - 1 ? GIFT : 0;
        SET(k->saved, GET(k->saved) + (cost / share + gift * now) * (float)trial->work);
        if (GET(k->calls) % CALM == 0 && GET(k->pause[w]))
            SET(k->pause[w], GET(k->pause[w]) - 1);
        const int other = cost > known ? promising(k, best) : best;
        if (other != best)
            SET(k->next, (unsigned char)(other + 1));
        return;
    }
    /* one of the two may have been interrupted: it is not known as good, nor given up as bad */
    SET(k->cost[w], fmaxf(cost, last));
    SET(k->price[w], last > 0 ? fminf(cost, last) : cost);
    SET(k->last[w], cost);
    if (cost >= BETTER * least)
        lengthen_pause(k, w);
    else if (tries == 0 || last >= BETTER * least)
        SET(k->next, (unsigned char)(w + 1)); /* once more, now */
    else {
        lengthen_pause(k, best);
        SET(k->best, (unsigned char)w);
    }
}

void fn_tune_end(const fn_trial *trial) {
    if (trial->kind)
        fn_tune_learn(trial, (double)(ticks() - trial->start));
}

int fn_tune_most(void) { return KINDS; }

fn_learned fn_tune_learned(int i) {
    const kind *k = &kinds[i];
    const int best = GET(k->best);
    return (fn_learned){GET(k->key), GET(k->calls), best, GET(k->cost[best])};
}

void fn_tune_forget(void) {
    for (int i = 0; i < KINDS; i++)
        SET(kinds[i].key, 0);
}
