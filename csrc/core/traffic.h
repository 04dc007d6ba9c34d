/* From unit to unit: what is fetched while another is written.  The bits of the result do not
 * depend on it. */
#ifndef FN_TRAFFIC_H
#define FN_TRAFFIC_H

#include "core/choice.h"

int64_t fn_l2_bytes(void);

/* whether units can fetch one another: plan->prefetch and prefetch_out, where a walk reads so many
 * arrays */
void fn_plan_traffic(fn_plan *plan, int arrays);
/* how unit u is written, while the next one of the same shape is fetched */
fn_hints fn_unit_hints(const fn_plan *plan, fn_choice use, int64_t u);
/* domains of a unit that a thread reads, then writes, before it goes on; 0: all of them */
int64_t fn_turn_domains(const fn_plan *plan, fn_choice use);
/* domains of so many bytes, whole lines of them if there are so many; 0: not one */
int64_t fn_domains_of(const fn_plan *plan, int64_t bytes);

/* how many runs of so many bytes, behind one another, are whole cache lines */
static inline int64_t fn_whole_lines(int64_t bytes) {
    const int64_t power = bytes & -bytes;
    return power < FN_LINE ? FN_LINE / power : 1;
}

#endif
