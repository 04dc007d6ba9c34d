/* Which way to memory a call takes: written past the cache or through it, fetched ahead or not. The
 * bits of the result do not depend on it. */
#ifndef FN_TRAFFIC_H
#define FN_TRAFFIC_H

#include "core/plan.h"

int64_t fn_l2_bytes(void);

/* whether y (backward: dx) is written past the cache; x has `bytes` */
int fn_past_cache(const fn_plan *plan, int64_t bytes, int backward);
/* what kernels have to fetch of so many bytes that they read: nothing (0), from a quarter of the L3
 * on some (1), from half of it on all, which is far (FN_FAR) */
int fn_fetch(int64_t bytes);

/* how units fetch one another: plan->prefetch and prefetch_out, where a walk reads so many arrays
 */
void fn_plan_traffic(fn_plan *plan, int arrays);
/* how unit u is written, while the next one of the same shape is fetched */
fn_hints fn_unit_hints(const fn_plan *plan, int stream, int64_t u);
/* domains of a unit of so many that one thread of `threads` reads and writes in turns */
int64_t fn_domains_at_once(const fn_plan *plan, int stream, int threads, int64_t domains);

/* how many runs of so many bytes, behind one another, are whole cache lines */
static inline int64_t fn_whole_lines(int64_t bytes) {
    const int64_t power = bytes & -bytes;
    return power < FN_LINE ? FN_LINE / power : 1;
}

#endif
