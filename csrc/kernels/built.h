/* Which kernels are built.  All of them, or those that are named:
 *     cc -DFASTNORM_ISAS=sse2,avx2 -DFASTNORM_DTYPES=f32 ...
 * FN_HAS_<ISA> and FN_HAS_<dtype> are 1 or 0.  The first instruction set, `base`, is what every
 * processor of the architecture has: sse2 on x86-64, neon on aarch64, else generic.
 *
 * How it works: in a condition of the preprocessor a name that is no macro is 0.  So the names are
 * macros for a moment, each with a bit of its own, and a list of them is the sum of its bits.  A
 * name that is not known is 0, and an error. */
#ifndef FN_BUILT_H
#define FN_BUILT_H

#define FN_BITS_(a, b, c, d, ...) ((a) | (b) | (c) | (d))
#define FN_BITS(...) FN_BITS_(__VA_ARGS__, 0, 0, 0, 0)
#define FN_ALL_KNOWN_(a, b, c, d, ...) ((a) && (b) && (c) && (d))
#define FN_ALL_KNOWN(...) FN_ALL_KNOWN_(__VA_ARGS__, 1, 1, 1, 1)

#if defined(__x86_64__)
#define sse2 1
#define avx2 2
#define avx512 4
#elif defined(__aarch64__)
#define neon 1
#else
#define generic 1
#endif
#define f32 1
#define f64 2
#define f16 4
#define bf16 8

#if !defined(FASTNORM_ISAS) || (FN_BITS(FASTNORM_ISAS) & 1)
#define FN_HAS_base 1
#else
#define FN_HAS_base 0
#endif
#if defined(__x86_64__) && (!defined(FASTNORM_ISAS) || (FN_BITS(FASTNORM_ISAS) & 2))
#define FN_HAS_avx2 1
#else
#define FN_HAS_avx2 0
#endif
#if defined(__x86_64__) && (!defined(FASTNORM_ISAS) || (FN_BITS(FASTNORM_ISAS) & 4))
#define FN_HAS_avx512 1
#else
#define FN_HAS_avx512 0
#endif
#if defined(FASTNORM_ISAS) && !FN_ALL_KNOWN(FASTNORM_ISAS)
#error "FASTNORM_ISAS: expected some of sse2, avx2, avx512 on x86-64, neon on aarch64, else generic"
#endif

#if !defined(FASTNORM_DTYPES) || (FN_BITS(FASTNORM_DTYPES) & 1)
#define FN_HAS_f32 1
#else
#define FN_HAS_f32 0
#endif
#if !defined(FASTNORM_DTYPES) || (FN_BITS(FASTNORM_DTYPES) & 2)
#define FN_HAS_f64 1
#else
#define FN_HAS_f64 0
#endif
#if !defined(FASTNORM_DTYPES) || (FN_BITS(FASTNORM_DTYPES) & 4)
#define FN_HAS_f16 1
#else
#define FN_HAS_f16 0
#endif
#if !defined(FASTNORM_DTYPES) || (FN_BITS(FASTNORM_DTYPES) & 8)
#define FN_HAS_bf16 1
#else
#define FN_HAS_bf16 0
#endif
#if defined(FASTNORM_DTYPES) && !FN_ALL_KNOWN(FASTNORM_DTYPES)
#error "FASTNORM_DTYPES: expected some of f32, f64, f16, bf16"
#endif

#undef sse2
#undef neon
#undef generic
#undef avx2
#undef avx512
#undef f32
#undef f64
#undef f16
#undef bf16

#endif
