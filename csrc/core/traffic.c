/* See traffic.h. */
#include "core/traffic.h"

#include <stdatomic.h>
#include <stdlib.h>

int64_t fn_l2_bytes(void) { return fn_cache_bytes(2) > 0 ? fn_cache_bytes(2) : 1 << 20; }

/* ---- the whole call ------------------------------------------------------------------------*/

/* Arrays of at least so many bytes do not fit the last cache together, of which others use a part:
 * they gain nothing from an output that is kept there.
 * FASTNORM_STREAM_BYTES is for measurements and tests: the bits are the same. */
static int64_t stream_bytes(void) {
    static _Atomic int64_t known = -1;
    int64_t bytes = atomic_load_explicit(&known, memory_order_relaxed);
    if (bytes < 0) {
        const char *text = getenv("FASTNORM_STREAM_BYTES");
        const int64_t l3 = fn_cache_bytes(3);
        bytes = text ? atoll(text) : l3 > 0 ? l3 / 4 * 3 : 8 << 20;
        atomic_store_explicit(&known, bytes, memory_order_relaxed);
    }
    return bytes;
}

/* What backward writes has to share the cache with two arrays: it goes past it a bit earlier, and
 * earlier still in rows, whose sums over the rows need the caches too. */
int fn_past_cache(const fn_plan *plan, int64_t bytes, int backward) {
    return (!backward ? 2 : plan->elem ? 6 : 4) * bytes >= stream_bytes();
}

/* more than a quarter of the L3, of which arrays that are written past the cache fill three */
static int from_memory(int64_t bytes) { return bytes > stream_bytes() / 3; }

int fn_fetch(int64_t bytes) { return from_memory(bytes / 2) ? FN_FAR : from_memory(bytes); }

/* ---- from unit to unit ---------------------------------------------------------------------*/

void fn_plan_traffic(fn_plan *plan, int arrays) {
    /* where the next unit lies behind this one, processors fetch it by themselves, and better */
    const int64_t domain = plan->count * (int64_t)plan->esize * arrays;
    const int64_t unit = plan->unit_domains * domain, l2 = fn_l2_bytes();
    plan->prefetch = plan->nseg > 1 && unit <= l2 / 2 && from_memory(plan->domains * domain);
    plan->prefetch_out = plan->prefetch && plan->block && unit <= l2 / 4;
}

fn_hints fn_unit_hints(const fn_plan *plan, int stream, int64_t u) {
    const int64_t next = plan->unit_domains * plan->s * (int64_t)plan->esize;
    const int fetch = plan->prefetch && u + 1 < plan->units;
    const int fetch_out = fetch && plan->prefetch_out && !stream;
    return (fn_hints){fetch ? next : 0, fetch_out ? next : 0, stream};
}

/* Writes to memory overlap with the reads of what comes next only while they fit the processor's
 * store queue: of arrays larger than the cache, one thread takes small domains a few kilobytes at a
 * time, and by whole lines: one of which a part is written has to be read.  Several threads fill
 * each other's pauses. */
#define TURN_BYTES 8192
int64_t fn_domains_at_once(const fn_plan *plan, int stream, int threads, int64_t domains) {
    const int64_t bytes = plan->count * (int64_t)plan->esize;
    const int small = plan->cols == 1 && plan->nseg == 1 && 0 < bytes && bytes <= TURN_BYTES / 2;
    if (!stream || threads > 1 || !small || plan->row->sample_statistics)
        return domains;
    const int64_t some = TURN_BYTES / bytes, whole = fn_whole_lines(bytes);
    return some < whole ? some : some / whole * whole;
}
