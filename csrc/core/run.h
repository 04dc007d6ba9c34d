/* Forward and backward of a slice: the order of the steps. */
#ifndef FN_RUN_H
#define FN_RUN_H

#include "core/job.h"

void fn_run_forward(fn_job *job);
void fn_run_backward(fn_job *job);

#endif
