/* Whether the processor, and the operating system, have an instruction set. */
#ifndef FN_CPU_H
#define FN_CPU_H

#if defined(__x86_64__)
int fn_cpu_has_avx2(void);   /* with FMA and F16C */
int fn_cpu_has_avx512(void); /* F, BW, VL, DQ, and what AVX2 needs */
#endif

#endif
