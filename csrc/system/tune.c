/* See tune.h.  For each kind of call: what each way cost, in time for each unit of work.  The best
 * way is taken.  A way beside it, which differs on one axis, is tried when the calls so far have
 * saved the time for it, and after a pause that doubles when the way loses.  So tries cost a 12th
 * of the time at first, a 32nd later, however bad they are, and a way that becomes good again, as
 * the second of two threads does when another program ends, is found.
 *
 * Calls are interrupted, and the first one after a pause finds its data in no cache.  So the best
 * way's cost is about the median of its calls: each moves it by a tenth at most; only a call of
 * more than four times the cost, as of a thread that had to wait for a processor, moves it by four
 * tenths.  Another way must be better twice to become the best.
 *
 * Each try is two calls, of which the second counts: where the first one leaves its arrays, past
 * the cache or in it, is part of a way.
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
/* In the first calls each looks for a way to try, and a 12th of their time is saved for that; later
 * one in LOOK calls, and a 32nd. */
#define FIRST 128
#define FIRST_SHARE 12
#define LOOK 8
#define SHARE 32
/* A way is known after two calls: the best one by the faster, as the first may have had pages to
 * make, another by the slower. */
#define TRIES 2
#define PAUSE 4   /* calls until a way is tried again, */
#define DOUBLED 7 /* doubled so often at most; the best way's is halved every CALM calls */
#define CALM 16
#define BETTER 0.95f
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
    atomic_uchar second;          /* 1 + the way that the next call tries once more; 0: none */
    _Atomic float saved;          /* time that may be spent on tries */
    _Atomic float cost[FN_WAYS];  /* what is known */
    _Atomic float price[FN_WAYS]; /* what a try is expected to cost; 0: none was made */
    _Atomic float last[FN_WAYS];  /* of the last try; of the best way what is known */
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

static const int most_places[FN_AXES] = FN_PLACES;
static int number_of(fn_way way) {
    int n = 0;
    for (int a = FN_AXES; a-- > 0;)
        n = n * most_places[a] + way.at[a];
    return n;
}
static fn_way way_of(int n) {
    fn_way way;
    for (int a = 0; a < FN_AXES; n /= most_places[a++])
        way.at[a] = (unsigned char)(n % most_places[a]);
    return way;
}

static void clear(kind *k, int best) {
    SET(k->calls, 0);
    SET(k->saved, 0);
    SET(k->best, (unsigned char)best);
    SET(k->second, 0);
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

static int choose_best(kind *k) {
    const int before = GET(k->best);
    int best = GET(k->best);
    float least = BETTER * GET(k->cost[best]);
    for (int w = 0; w < FN_WAYS; w++) {
        const float cost = GET(k->cost[w]);
        if (GET(k->tries[w]) >= TRIES && cost < least) {
            least = cost;
            best = w;
        }
    }
    if (best != before)
        lengthen_pause(k, before);
    SET(k->best, (unsigned char)best);
    return best;
}

/* A way beside the best one to be tried now, or the best one.  What is not known yet is expected to
 * cost half as much again. */
static int to_try(const kind *k, const fn_way *places, unsigned call, int best, int64_t work) {
    const float least = GET(k->cost[best]), saved = GET(k->saved) / (float)work;
    unsigned oldest = UINT32_MAX;
    int found = best;
    for (int a = FN_AXES; a-- > 0;) {
        fn_way way = way_of(best);
        for (unsigned char p = 0; p < places->at[a]; p++) {
            way.at[a] = p;
            const int w = number_of(way);
            const unsigned when = GET(k->when[w]);
            const float price = GET(k->price[w]), more = fmaxf(price - least, least / 8);
            const int rested = price == 0 || call - when >= (unsigned)PAUSE << GET(k->pause[w]);
            if (w != best && rested && saved >= (price > 0 ? more : least / 2) && when < oldest) {
                oldest = when;
                found = w;
            }
        }
    }
    return found;
}

fn_trial fn_tune_begin(uint64_t key, const fn_way *places, fn_way usual, int64_t work) {
    kind *k = find(key, number_of(usual));
    const unsigned call = GET(k->calls);
    const int second = GET(k->second);
    int w = GET(k->best), settles = 0;
    SET(k->calls, call + 1);
    if (second) {
        SET(k->second, 0);
        w = second - 1;
    } else if (GET(k->saved) > 0 && (call < FIRST || call % LOOK == 0)) {
        const int best = choose_best(k);
        w = to_try(k, places, call, best, work);
        settles = w != best;
        SET(k->second, settles ? (unsigned char)(w + 1) : 0);
    }
    SET(k->when[w], call);
    return (fn_trial){k, way_of(w), work, ticks(), settles};
}

/* what is known of the best way, after one more call */
static float stepped(float known, float cost) {
    if (cost > IS_FAR * known)
        return known * (1 + FAR_STEP);
    return fmaxf(fminf(cost, known * (1 + STEP)), known * (1 - STEP));
}

void fn_tune_learn(const fn_trial *trial, double time) {
    kind *k = trial->kind;
    const int w = number_of(trial->way), best = GET(k->best);
    const unsigned char tries = GET(k->tries[w]);
    const float known = GET(k->cost[w]), last = GET(k->last[w]), least = GET(k->cost[best]);
    const float took = (float)(time / (double)trial->work);
    const float cost = least > 0 ? fminf(took, MOST_TIMES * least) : took;
    if (w != best)
        SET(k->saved, GET(k->saved) - fmaxf(cost - least, 0) * (float)trial->work);
    if (trial->settles)
        return;
    if (tries < TRIES)
        SET(k->tries[w], tries + 1);
    if (w == best) {
        const float faster = tries == 0 || cost < known ? cost : known;
        const float now = tries < TRIES ? faster : stepped(known, cost);
        SET(k->cost[w], now);
        SET(k->price[w], now);
        SET(k->last[w], now);
        const float share = GET(k->calls) < FIRST ? FIRST_SHARE : SHARE;
        SET(k->saved, GET(k->saved) + cost * (float)trial->work / share);
        if (GET(k->calls) % CALM == 0 && GET(k->pause[w]))
            SET(k->pause[w], GET(k->pause[w]) - 1);
        if (cost > known)
            choose_best(k);
        return;
    }
    /* one of the two may have been interrupted: it is not known as good, nor given up as bad */
    SET(k->cost[w], fmaxf(cost, last));
    SET(k->price[w], last > 0 ? fminf(cost, last) : cost);
    SET(k->last[w], cost);
    if (cost >= BETTER * least)
        lengthen_pause(k, w);
    else if (last >= BETTER * least || choose_best(k) != w)
        SET(k->pause[w], 0); /* again, soon */
}

void fn_tune_end(const fn_trial *trial) {
    if (trial->kind)
        fn_tune_learn(trial, (double)(ticks() - trial->start));
}

int fn_tune_most(void) { return KINDS; }

fn_learned fn_tune_learned(int i) {
    const kind *k = &kinds[i];
    const int best = GET(k->best);
    return (fn_learned){GET(k->key), GET(k->calls), way_of(best), GET(k->cost[best])};
}

void fn_tune_forget(void) {
    for (int i = 0; i < KINDS; i++)
        SET(kinds[i].key, 0);
}
