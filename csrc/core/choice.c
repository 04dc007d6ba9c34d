/* See choice.h. */
#include "core/choice.h"

#include "fastnorm.h"
#include "system/threads.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* ---- by size -------------------------------------------------------------------------------*/

/* Arrays of at least so many bytes do not fit the last cache together, of which others use a part:
 * they gain nothing from an output that is kept there.  The size that the system tells is a hint:
 * a virtual machine of 2 cores may show the 300 MB of a whole processor, and uses a small part.
 * FASTNORM_STREAM_BYTES is for measurements and tests. */
#define MOST_L3 (INT64_C(32) << 20)
static int64_t stream_bytes(void) {
    static _Atomic int64_t known = -1;
    int64_t bytes = atomic_load_explicit(&known, memory_order_relaxed);
    if (bytes < 0) {
        const char *text = getenv("FASTNORM_STREAM_BYTES");
        const int64_t l3 = fn_min(fn_cache_bytes(3), MOST_L3);
        const int is_number = text && *text && text[strspn(text, "0123456789")] == 0;
        bytes = is_number ? atoll(text) : l3 > 0 ? l3 / 4 * 3 : 8 << 20;
        atomic_store_explicit(&known, bytes, memory_order_relaxed);
    }
    return bytes;
}

int fn_past_cache(int64_t bytes) { return bytes >= stream_bytes(); }

/* What backward writes has to share the cache with two arrays: it goes past it a bit earlier, and
 * earlier still in rows, whose sums over the rows need the caches too. */
static int past_cache(const fn_plan *plan, int64_t bytes, int backward) {
    return fn_past_cache((!backward ? 2 : plan->elem ? 6 : 4) * bytes);
}

/* more than a quarter of the L3, of which arrays that are written past the cache fill three */
static int from_memory(int64_t bytes) { return bytes > stream_bytes() / 3; }

fn_choice fn_usual_choice(const fn_plan *plan, int64_t bytes, int backward) {
    const int64_t read = (backward ? 2 : 1) * bytes;
    return (fn_choice){fn_threads_for(bytes), past_cache(plan, bytes, backward),
                       from_memory(read / 2) ? FN_FAR : from_memory(read)};
}

/* ---- by measurement ------------------------------------------------------------------------*/

/* Below this, calls are over before a choice matters: what they read is in the L2. */
#define LEAST_BYTES (256 << 10)

/* The axes of tune.h. */
enum { THREADS, FETCH, STREAM };

/* The places on the axis of threads: all, half of them, a quarter, and one. */
static int threads_at(int most, int place, int places) {
    return place == places - 1 ? 1 : (most + (1 << place) - 1) >> place;
}
static int places_of(int most) { return most > 4 ? 4 : most > 2 ? 3 : most; }

/* Sizes in half powers of two: 4, 6, 8, 12, 16... */
static unsigned size_class(int64_t size) {
    const unsigned power = size < 4 ? 0 : 62 - (unsigned)__builtin_clzll((uint64_t)size);
    return 2 * power + (unsigned)(size >> power & 1);
}
static int64_t size_of(unsigned class) { return (int64_t)(2 + class % 2) << class / 2; }

/* Calls of one kind: the same operation, on arrays and domains of about the same size.  Numbers of
 * so many bits, one behind the other. */
enum { NORM, DTYPE, BACKWARD, TRAINING, AROUND, FORM, MOST, BYTES, COUNT, RUN, FIELDS };
static const int bits[FIELDS] = {4, 2, 1, 1, 1, 2, 11, 7, 7, 7};
static uint64_t key_of(const fn_plan *plan, int64_t bytes, int backward, int around, int most) {
    const unsigned fields[FIELDS] = {
        (unsigned)plan->p.norm,  (unsigned)plan->p.dtype,
        (unsigned)backward,      (unsigned)fn_needs_moments(plan),
        (unsigned)around,        plan->block ? 2 : (unsigned)plan->col,
        (unsigned)most,          size_class(bytes),
        size_class(plan->count), size_class(plan->col ? plan->cols : plan->s)};
    uint64_t key = 0;
#pragma GCC unroll 16
    for (int i = 0; i < FIELDS; i++)
        key = key << bits[i] | fields[i];
    return key; /* not 0, as there is a thread */
}
static void fields_of(uint64_t key, unsigned *fields) {
    for (int i = FIELDS; i-- > 0; key >>= bits[i])
        fields[i] = (unsigned)(key & ((1u << bits[i]) - 1));
}

static fn_choice forced = {-1, -1, -1};
void fn_force_choice(int threads, int stream, int fetch) {
    forced = (fn_choice){threads, stream, fetch};
}

fn_choice fn_choose(fn_trial *trial, const fn_plan *plan, int64_t bytes, int backward, int around) {
    fn_choice use = fn_usual_choice(plan, bytes, backward);
    trial->kind = NULL;
    if (forced.threads >= 0 || forced.stream >= 0 || forced.fetch >= 0) {
        use.threads = forced.threads < 0 ? use.threads : forced.threads;
        use.stream = forced.stream < 0 ? use.stream : forced.stream;
        use.fetch = forced.fetch < 0 ? use.fetch : forced.fetch;
        return use;
    }
    if (bytes < LEAST_BYTES || !fn_tunes())
        return use;
    const int most = fn_most_threads_for(bytes), places = places_of(most);
    const int all[FN_AXES] = {places, 3, 2};
    int place = use.threads == 1 ? places - 1 : 0;
    while (place + 1 < places && threads_at(most, place, places) > use.threads)
        place++;
    const int usual =
        fn_placed(fn_placed(fn_placed(0, THREADS, place), FETCH, use.fetch), STREAM, use.stream);
    fn_tune_begin(trial, key_of(plan, bytes, backward, around, most), all, usual, bytes);
    use.threads = threads_at(most, fn_place(trial->way, THREADS), places);
    use.fetch = fn_place(trial->way, FETCH);
    use.stream = fn_place(trial->way, STREAM);
    return use;
}

void fn_chosen(const fn_trial *trial) { fn_tune_end(trial); }

int fn_choice_count(void) { return fn_tune_most(); }
void fn_forget_choices(void) { fn_tune_forget(); }

int fn_choice_at(int i, fn_learned_choice *choice) {
    const fn_learned of = fn_tune_learned(i);
    unsigned f[FIELDS];
    if (!of.key || of.calls == 0)
        return 0;
    fields_of(of.key, f);
    const int most = (int)f[MOST], bytes = (int)f[BYTES];
    *choice = (fn_learned_choice){.norm = (fn_norm)f[NORM],
                                  .dtype = (fn_dtype)f[DTYPE],
                                  .backward = (int)f[BACKWARD],
                                  .training = (int)f[TRAINING],
                                  .bytes = size_of((unsigned)bytes),
                                  .calls = of.calls,
                                  .threads =
                                      threads_at(most, fn_place(of.best, THREADS), places_of(most)),
                                  .stream = fn_place(of.best, STREAM),
                                  .fetch = fn_place(of.best, FETCH)};
    choice->ticks = of.cost * (double)choice->bytes;
    return 1;
}
