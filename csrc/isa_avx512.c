/* Kernels for AVX-512 (F, BW, VL, DQ). */
#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))),                   \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#endif

#define FN_VEC_BYTES 64
#include "instances.inc"

const fn_kernels fn_kernels_avx512[FN_DTYPE_COUNT] = FN_DTYPE_KERNELS;

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
