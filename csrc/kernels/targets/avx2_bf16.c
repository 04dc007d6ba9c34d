#include "kernels/built.h"
#if FN_HAS_avx2 && FN_HAS_bf16
#include "avx2.h"
#define FN_DTYPE bf16
#include "kernels/targets/unit.inc"
#include "end.h"
#endif
