/* Kernels for AVX2. */
#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define FN_VEC_BYTES 32
#include "instances.inc"

const fn_kernels fn_kernels_avx2[FN_DTYPE_COUNT] = FN_DTYPE_KERNELS;

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
