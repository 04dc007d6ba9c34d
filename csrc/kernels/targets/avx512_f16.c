#include "kernels/built.h"
#if FN_HAS_avx512 && FN_HAS_f16
#include "avx512.h"
#define FN_DTYPE f16
#include "kernels/targets/unit.inc"
#include "end.h"
#endif
