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

/* Rows that lie behind one another and are small are taken a few kilobytes at a time, a turn, where
 * they come from memory:
 *   - while a turn is written, the next one is fetched: processors stop to fetch by themselves;
 *   - writes to memory overlap with the reads of what comes next only while they fit the
 *     processor's store queue.  Several threads fill each other's pauses.
 * By whole lines: one of which a part is written has to be read.  0: no turns. */
#define TURN_BYTES (16 * 1024)
#define STREAM_BYTES 8192
int64_t fn_turn_domains(const fn_plan *plan, fn_choice use) {
    const int64_t bytes = plan->count * (int64_t)plan->esize;
    const int alone = use.stream && use.threads == 1;
    const int64_t most = use.fetch ? TURN_BYTES : alone ? STREAM_BYTES : 0;
    if (plan->cols != 1 || plan->nseg != 1 || bytes == 0 || bytes > most / 2 ||
        plan->row->sample_statistics)
        return 0;
    return fn_domains_of(plan, most);
}
int64_t fn_domains_of(const fn_plan *plan, int64_t bytes) {
    const int64_t each = plan->count * (int64_t)plan->esize;
    const int64_t some = bytes / each, whole = fn_whole_lines(each);
    return some < whole ? some : some / whole * whole;
}

fn_hints fn_unit_hints(const fn_plan *plan, fn_choice use, int64_t u) {
    const int64_t turn = fn_turn_domains(plan, use);
    if (turn && use.fetch)
        return (fn_hints){turn * plan->count * (int64_t)plan->esize, 0, use.stream};
    const int64_t next = plan->unit_domains * plan->s * (int64_t)plan->esize;
    const int fetch = use.fetch && plan->prefetch && u + 1 < plan->units;
    const int fetch_out = fetch && plan->prefetch_out && !use.stream;
    return (fn_hints){fetch ? next : 0, fetch_out ? next : 0, use.stream};
}
