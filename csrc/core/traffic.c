/* See traffic.h. */
#include "core/traffic.h"

#include "fastnorm.h"

int64_t fn_l2_bytes(void) { return fn_cache_bytes(2) > 0 ? fn_cache_bytes(2) : 1 << 20; }

/* ---- from unit to unit ---------------------------------------------------------------------*/

void fn_plan_traffic(fn_plan *plan, int arrays) {
    /* where the next unit lies behind this one, processors fetch it by themselves, and better */
    const int64_t domain = plan->count * (int64_t)plan->esize * arrays;
    const int64_t unit = plan->unit_domains * domain, l2 = fn_l2_bytes();
    plan->prefetch = plan->nseg > 1 && unit <= l2 / 2;
    plan->prefetch_out = plan->prefetch && plan->block && unit <= l2 / 4;
}

fn_hints fn_unit_hints(const fn_plan *plan, fn_choice use, int64_t u) {
    const int64_t next = plan->unit_domains * plan->s * (int64_t)plan->esize;
    const int fetch = use.fetch && plan->prefetch && u + 1 < plan->units;
    const int fetch_out = fetch && plan->prefetch_out && !use.stream;
    return (fn_hints){fetch ? next : 0, fetch_out ? next : 0, use.stream};
}

/* Writes to memory overlap with the reads of what comes next only while they fit the processor's
 * store queue: of arrays larger than the cache, one thread takes small domains a few kilobytes at a
 * time, and by whole lines: one of which a part is written has to be read.  Several threads fill
 * each other's pauses. */
#define TURN_BYTES 8192
int64_t fn_domains_at_once(const fn_plan *plan, fn_choice use, int64_t domains) {
    const int64_t bytes = plan->count * (int64_t)plan->esize;
    const int small = plan->cols == 1 && plan->nseg == 1 && 0 < bytes && bytes <= TURN_BYTES / 2;
    if (!use.stream || use.threads > 1 || !small || plan->row->sample_statistics)
        return domains;
    const int64_t some = TURN_BYTES / bytes, whole = fn_whole_lines(bytes);
    return some < whole ? some : some / whole * whole;
}
