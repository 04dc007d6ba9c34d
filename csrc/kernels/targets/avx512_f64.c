#include "kernels/built.h"
#if FN_HAS_avx512 && FN_HAS_f64
#include "avx512.h"
#define FN_DTYPE f64
#include "kernels/targets/unit.inc"
#include "end.h"
#endif
