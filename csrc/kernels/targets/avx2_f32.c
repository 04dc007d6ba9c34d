#include "kernels/built.h"
#if FN_HAS_avx2 && FN_HAS_f32
#include "avx2.h"
#define FN_DTYPE f32
#include "kernels/targets/unit.inc"
#include "end.h"
#endif
