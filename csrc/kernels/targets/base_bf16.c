#include "kernels/built.h"
#if FN_HAS_base && FN_HAS_bf16
#define FN_ISA base
#define FN_DTYPE bf16
#include "kernels/targets/unit.inc"
#endif
