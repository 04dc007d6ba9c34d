#include "kernels/built.h"
#if FN_HAS_avx512 && FN_HAS_f32
#include "avx512.h"
#define FN_DTYPE f32
#include "kernels/targets/unit.inc"
#include "end.h"
#endif
