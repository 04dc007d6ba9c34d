#include "kernels/built.h"
#if FN_HAS_avx512 && FN_HAS_bf16
#include "avx512.h"
#define FN_DTYPE bf16
#include "kernels/targets/unit.inc"
#include "end.h"
#endif
