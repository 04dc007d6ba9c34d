/* Kernels for what every processor of the architecture has: SSE2 on x86-64, NEON on aarch64. */
#define FN_VEC_BYTES 16
#include "instances.inc"

const fn_kernels fn_kernels_base[FN_DTYPE_COUNT] = FN_DTYPE_KERNELS;
