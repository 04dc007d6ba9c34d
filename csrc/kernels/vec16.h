/* Elements of 16 bits: float16 and bfloat16 in memory, float in registers.
 *
 * Conversions round to nearest even and keep NaN a quiet NaN, with the same bits on every
 * instruction set; so bfloat16 does without the instructions that flush denormals. */
#ifndef FN_VEC16_H
#define FN_VEC16_H

#include "kernels/vec.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

typedef struct {
    uint16_t bits;
} fn_f16;
typedef struct {
    uint16_t bits;
} fn_bf16;

/* as many elements as a vector of floats */
typedef uint16_t fn_vec_u16 __attribute__((vector_size(FN_VEC_BYTES / 2)));
typedef uint16_t fn_vec_u16_any
    __attribute__((vector_size(FN_VEC_BYTES / 2), aligned(1), may_alias));
typedef uint32_t fn_vec_u32 __attribute__((vector_size(FN_VEC_BYTES)));

/* ---- to and from memory: as in vec.h -------------------------------------------------------*/

FN_INLINE fn_vec_u16 fn_load_bits(const void *p) { return *(const fn_vec_u16_any *)p; }
FN_INLINE void fn_store_bits(void *p, fn_vec_u16 v) { *(fn_vec_u16_any *)p = v; }

#if FN_VEC_BYTES == 64
FN_INLINE fn_vec_u16 fn_load_bits_part(const void *p, int n) {
    return (fn_vec_u16)_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
}
FN_INLINE void fn_store_bits_part(void *p, fn_vec_u16 v, int n) {
    _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), (__m256i)v);
}
#else
FN_CALLED fn_vec_u16 fn_load_bits_part(const void *p, int n) {
    fn_vec_u16 v = {0};
    for (int i = 0; i < n; i++)
        v[i] = ((const fn_f16 *)p)[i].bits;
    return v;
}
FN_CALLED void fn_store_bits_part(void *p, fn_vec_u16 v, int n) {
    for (int i = 0; i < n; i++)
        ((fn_f16 *)p)[i].bits = v[i];
}
#endif

FN_INLINE void fn_stream_bits(void *p, fn_vec_u16 v) {
#if FN_VEC_BYTES == 64
    _mm256_stream_si256(p, (__m256i)v);
#elif FN_VEC_BYTES == 32
    _mm_stream_si128(p, (__m128i)v);
#elif defined(__x86_64__)
    _mm_stream_si64(p, (long long)v);
#else
    fn_store_bits(p, v);
#endif
}

/* ---- conversions ---------------------------------------------------------------------------*/

/* bfloat16 is the upper half of a float.  A NaN is cut off, not rounded, which might carry into its
 * sign; arithmetic has made it quiet, so it stays one. */
#if FN_VEC_BYTES == 64
FN_INLINE fn_vec_f32 fn_from_bf16(fn_vec_u16 v) {
    return (fn_vec_f32)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)v), 16);
}
FN_INLINE fn_vec_u16 fn_to_bf16(fn_vec_f32 v) {
    const __m512i u = (__m512i)v, one = _mm512_set1_epi32(1), half = _mm512_set1_epi32(0x7fff);
    const __m512i up = _mm512_add_epi32(_mm512_and_si512(_mm512_srli_epi32(u, 16), one), half);
    const __mmask16 number = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_ORD_Q);
    const __m512i odd = _mm512_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 31, 29, 27,
                                         25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    const __m512i rounded = _mm512_mask_add_epi32(u, number, u, up);
    return (fn_vec_u16)_mm512_castsi512_si256(_mm512_permutexvar_epi16(odd, rounded));
}
#else
#if FN_VEC_BYTES == 32
FN_INLINE fn_vec_f32 fn_from_bf16(fn_vec_u16 v) {
    return (fn_vec_f32)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)v), 16);
}
#else
FN_INLINE fn_vec_f32 fn_from_bf16(fn_vec_u16 v) {
    return (fn_vec_f32)(__builtin_convertvector(v, fn_vec_u32) << 16);
}
#endif
FN_INLINE fn_vec_u16 fn_to_bf16(fn_vec_f32 v) {
    const fn_vec_u32 u = (fn_vec_u32)v, number = (fn_vec_u32)(v == v);
    return __builtin_convertvector((u + ((0x7fff + ((u >> 16) & 1)) & number)) >> 16, fn_vec_u16);
}
#endif

#if FN_VEC_BYTES == 64
FN_INLINE fn_vec_f32 fn_from_f16(fn_vec_u16 v) { return (fn_vec_f32)_mm512_cvtph_ps((__m256i)v); }
FN_INLINE fn_vec_u16 fn_to_f16(fn_vec_f32 v) {
    return (fn_vec_u16)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
}
#elif FN_VEC_BYTES == 32
FN_INLINE fn_vec_f32 fn_from_f16(fn_vec_u16 v) { return (fn_vec_f32)_mm256_cvtph_ps((__m128i)v); }
FN_INLINE fn_vec_u16 fn_to_f16(fn_vec_f32 v) {
    return (fn_vec_u16)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__aarch64__)
FN_INLINE fn_vec_f32 fn_from_f16(fn_vec_u16 v) { return (fn_vec_f32)vcvt_f32_f16((float16x4_t)v); }
FN_INLINE fn_vec_u16 fn_to_f16(fn_vec_f32 v) { return (fn_vec_u16)vcvt_f16_f32((float32x4_t)v); }
#else
/* The exponent is moved to its other bias by an integer addition; denormals by a float one, which
 * aligns (and rounds) their bits. */
typedef int32_t fn_vec_i32 __attribute__((vector_size(FN_VEC_BYTES)));
FN_INLINE fn_vec_i32 fn_select(fn_vec_i32 mask, fn_vec_i32 a, fn_vec_i32 b) {
    return (a & mask) | (b & ~mask);
}
FN_CALLED fn_vec_f32 fn_from_f16(fn_vec_u16 v) {
    const fn_vec_i32 h = __builtin_convertvector(v, fn_vec_i32), sign = (h & 0x8000) << 16;
    const fn_vec_i32 bits = (h & 0x7fff) << 13, exponent = h & 0x7c00;
    const fn_vec_i32 normal = bits + (112 << 23);
    const fn_vec_f32 tiny =
        (fn_vec_f32)(normal + (1 << 23)) - (fn_vec_f32)((fn_vec_i32){0} + (113 << 23));
    const fn_vec_i32 nan = (h & 0x7fff) > 0x7c00;
    const fn_vec_i32 special = (normal + (112 << 23)) | (nan & (1 << 22));
    const fn_vec_i32 finite = fn_select(exponent == 0, (fn_vec_i32)tiny, normal);
    return (fn_vec_f32)(fn_select(exponent == 0x7c00, special, finite) | sign);
}
FN_CALLED fn_vec_u16 fn_to_f16(fn_vec_f32 v) {
    const fn_vec_i32 all = (fn_vec_i32)v, u = all & 0x7fffffff;
    const fn_vec_i32 magic = (fn_vec_i32){0} + (126 << 23);
    const fn_vec_i32 tiny = (fn_vec_i32)((fn_vec_f32)u + (fn_vec_f32)magic) - magic;
    const fn_vec_i32 normal = (u - (112 << 23) + 0xfff + ((u >> 13) & 1)) >> 13;
    const fn_vec_i32 nan = u > (255 << 23);
    const fn_vec_i32 special = 0x7c00 | (nan & (0x200 | ((u >> 13) & 0x3ff)));
    const fn_vec_i32 finite = fn_select(u < (113 << 23), tiny, normal);
    const fn_vec_i32 magnitude = fn_select(u >= (143 << 23), special, finite);
    return __builtin_convertvector(magnitude | ((all >> 16) & 0x8000), fn_vec_u16);
}
#endif

/* ---- the functions of vec.h for each type --------------------------------------------------*/

#define FN_ELEMENT16(type)                                                                         \
    FN_INLINE fn_vec_f32 fn_load_##type(const fn_##type *p) {                                      \
        return fn_from_##type(fn_load_bits(p));                                                    \
    }                                                                                              \
    FN_INLINE fn_vec_f32 fn_load_part_##type(const fn_##type *p, int n) {                          \
        return fn_from_##type(fn_load_bits_part(p, n));                                            \
    }                                                                                              \
    FN_INLINE void fn_store_##type(fn_##type *p, fn_vec_f32 v) {                                   \
        fn_store_bits(p, fn_to_##type(v));                                                         \
    }                                                                                              \
    FN_INLINE void fn_store_part_##type(fn_##type *p, fn_vec_f32 v, int n) {                       \
        fn_store_bits_part(p, fn_to_##type(v), n);                                                 \
    }                                                                                              \
    FN_INLINE void fn_stream_##type(fn_##type *p, fn_vec_f32 v) {                                  \
        fn_stream_bits(p, fn_to_##type(v));                                                        \
    }
FN_ELEMENT16(f16)
FN_ELEMENT16(bf16)

#endif
