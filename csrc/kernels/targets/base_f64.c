#include "kernels/built.h"
#if FN_HAS_base && FN_HAS_f64
#define FN_ISA base
#define FN_DTYPE f64
#include "kernels/targets/unit.inc"
#endif
