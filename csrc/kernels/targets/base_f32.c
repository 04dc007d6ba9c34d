#include "kernels/built.h"
#if FN_HAS_base && FN_HAS_f32
#define FN_ISA base
#define FN_DTYPE f32
#include "kernels/targets/unit.inc"
#endif
