/* See tune.h.  For each kind of call: what each way cost, in time for each unit of work, recent
 * calls counting more.  The best way is taken.  A way beside it, which differs on one axis, is
 * tried now and then: in every second one of the first calls, until each has been tried twice; then
 * when the others have saved the time for it, and after a pause that doubles when the way loses. So
 * tries cost a 32nd of the time, however bad they are, and a way that becomes good again, as the
 * second of two threads does when another program ends, is found.
 *
 * A call may be interrupted, whatever its way: it counts twice what is known of the way at most.
 * Three in a row make another way the best one, one in a while does not.
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
#define FIRST 24  /* calls of which every second tries something */
#define TRIES 2   /* of each way in them */
#define LOOK 8    /* after them, every so many a way is looked for, */
#define PAUSE 4   /* which was not tried in so many, doubled up to so often, */
#define DOUBLED 7
#define SHARE 32 /* when the time for it has been saved, a 32nd of all */
#define CALM 16  /* calls after which the best way's pause is halved */
#define BETTER 0.95f
#define WORSE 1.2f
#define OUTLIER 2
#define RECENT 0.25f /* of the best way; of another, which is old: half */
#define NEW 0.5f

typedef struct fn_kind {
    _Atomic uint64_t key;
    atomic_uint calls;
    atomic_uchar best;
    _Atomic float saved; /* time that may be spent on tries */
    _Atomic float cost[FN_WAYS];
    atomic_uint when[FN_WAYS]; /* the call that tried it last */
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
    for (int w = 0; w < FN_WAYS; w++) {
        SET(k->cost[w], 0);
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
        if (cost > 0 && cost < least) {
            least = cost;
            best = w;
        }
    }
    if (best != before)
        lengthen_pause(k, before);
    SET(k->best, (unsigned char)best);
    return best;
}

/* a way beside the best one to be tried now, or the best one */
static int to_try(const kind *k, const fn_way *places, unsigned call, int best, int64_t work) {
    const int first = call < FIRST;
    const float least = GET(k->cost[best]), saved = GET(k->saved) / (float)work;
    unsigned oldest = UINT32_MAX;
    int found = best;
    for (int a = 0; a < FN_AXES; a++) {
        fn_way way = way_of(best);
        for (unsigned char p = 0; p < places->at[a]; p++) {
            way.at[a] = p;
            const int w = number_of(way);
            const unsigned when = GET(k->when[w]), age = call - when;
            const float cost = GET(k->cost[w]), more = cost > 0 ? cost - least : least;
            const int wanted = first ? GET(k->tries[w]) < TRIES
                                     : age >= (unsigned)PAUSE << GET(k->pause[w]) &&
                                           saved >= (more > least / 8 ? more : least / 8);
            if (w != best && wanted && when < oldest) {
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
    int w = GET(k->best);
    SET(k->calls, call + 1);
    if (call < FIRST ? call % 2 == 1 : call % LOOK == 0)
        w = to_try(k, places, call, choose_best(k), work);
    SET(k->when[w], call);
    return (fn_trial){k, way_of(w), work, ticks()};
}

void fn_tune_learn(const fn_trial *trial, double time) {
    kind *k = trial->kind;
    const float cost = (float)(time / (double)trial->work);
    const int w = number_of(trial->way), best = GET(k->best);
    const unsigned char tries = GET(k->tries[w]);
    const float old = GET(k->cost[w]), least = GET(k->cost[best]);
    /* the first calls may have had pages to make, and threads to start */
    float known = tries == 0 || cost < old ? cost : old;
    if (tries >= TRIES)
        known = old + (fminf(cost, OUTLIER * old) - old) * (w == best ? RECENT : NEW);
    else
        SET(k->tries[w], tries + 1);
    SET(k->cost[w], known);
    if (w == best) {
        SET(k->saved, GET(k->saved) + (float)(time / SHARE));
        if (GET(k->calls) % CALM == 0 && GET(k->pause[w]))
            SET(k->pause[w], GET(k->pause[w]) - 1);
        if (known > WORSE * old)
            choose_best(k);
        return;
    }
    const double more = time - least * (double)trial->work;
    SET(k->saved, GET(k->saved) - (float)fmax(more, 0));
    if (known < BETTER * least)
        choose_best(k);
    else
        lengthen_pause(k, w);
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
