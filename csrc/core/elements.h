/* Backward where weight and bias belong to the elements of a domain: layer and RMS norm. */
#ifndef FN_ELEMENTS_H
#define FN_ELEMENTS_H

#include "core/job.h"

/* Where dweight lies it needs so many bytes, set to 0 before the first slice: sums of so many
 * parts; then the parts are added to the first. */
int64_t fn_elem_parts(const fn_plan *pl);
int64_t fn_elem_bytes(const fn_plan *pl);
/* about so many bytes of rows go through sums and apply at a time */
#define FN_STEP_BYTES (1 << 17)
void fn_backward_elem(fn_job *job);
void fn_add_elem_parts(double *sums, int64_t parts, int64_t s);

#endif
