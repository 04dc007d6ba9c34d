/* The only place that knows the register width.
 *
 * Arithmetic on vectors is written with the C operators of GCC/clang vector types at the native
 * width (wider ones are lowered through memory).  What differs between instruction sets and has no
 * operator is here: partial loads and stores, and stores that bypass the cache.
 *
 * A file that includes this has defined FN_VEC_BYTES (16, 32 or 64) and, above 16, switched the
 * compiler to the instruction set.
 */
#ifndef FN_VEC_H
#define FN_VEC_H

#include "system/basics.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* for what is long and not in a loop whose speed matters: compiled once and called, not inlined */
#define FN_CALLED static __attribute__((noinline, unused))

/* Vectors of a wide tile, each with three registers (reference and two sums): 8 where there are 32
 * registers, 4 where there are 16. */
#if FN_VEC_BYTES == 64 || defined(__aarch64__)
#define FN_WIDE 8
#else
#define FN_WIDE 4
#endif

typedef float fn_vec_f32 __attribute__((vector_size(FN_VEC_BYTES)));
typedef double fn_vec_f64 __attribute__((vector_size(FN_VEC_BYTES)));
typedef float fn_vec_f32_any __attribute__((vector_size(FN_VEC_BYTES), aligned(1), may_alias));
typedef double fn_vec_f64_any __attribute__((vector_size(FN_VEC_BYTES), aligned(1), may_alias));

FN_INLINE fn_vec_f32 fn_load_f32(const float *p) { return *(const fn_vec_f32_any *)p; }
FN_INLINE fn_vec_f64 fn_load_f64(const double *p) { return *(const fn_vec_f64_any *)p; }
FN_INLINE void fn_store_f32(float *p, fn_vec_f32 v) { *(fn_vec_f32_any *)p = v; }
FN_INLINE void fn_store_f64(double *p, fn_vec_f64 v) { *(fn_vec_f64_any *)p = v; }

/* a - b as a * 1 - b, in one instruction: the product by 1 is exact, so the bits are those of a -
 * b. Why: many processors have adders and multipliers side by side, and this is done by a
 * multiplier. `d = x - r; s += d; q += d * d` is three additions and a product; so it is two and
 * two. */
#if FN_VEC_BYTES == 64
FN_INLINE fn_vec_f32 fn_minus_f32(fn_vec_f32 a, fn_vec_f32 b) {
    return (fn_vec_f32)_mm512_fmsub_ps((__m512)a, _mm512_set1_ps(1), (__m512)b);
}
FN_INLINE fn_vec_f64 fn_minus_f64(fn_vec_f64 a, fn_vec_f64 b) {
    return (fn_vec_f64)_mm512_fmsub_pd((__m512d)a, _mm512_set1_pd(1), (__m512d)b);
}
#elif FN_VEC_BYTES == 32
FN_INLINE fn_vec_f32 fn_minus_f32(fn_vec_f32 a, fn_vec_f32 b) {
    return (fn_vec_f32)_mm256_fmsub_ps((__m256)a, _mm256_set1_ps(1), (__m256)b);
}
FN_INLINE fn_vec_f64 fn_minus_f64(fn_vec_f64 a, fn_vec_f64 b) {
    return (fn_vec_f64)_mm256_fmsub_pd((__m256d)a, _mm256_set1_pd(1), (__m256d)b);
}
#else
FN_INLINE fn_vec_f32 fn_minus_f32(fn_vec_f32 a, fn_vec_f32 b) { return a - b; }
FN_INLINE fn_vec_f64 fn_minus_f64(fn_vec_f64 a, fn_vec_f64 b) { return a - b; }
#endif

/* the next numbers of the compute type, as many as a vector of doubles has, as doubles */
FN_INLINE fn_vec_f64 fn_widen_f64(const double *p) { return fn_load_f64(p); }
#if FN_VEC_BYTES == 64
FN_INLINE fn_vec_f64 fn_widen_f32(const float *p) {
    return (fn_vec_f64)_mm512_cvtps_pd(_mm256_loadu_ps(p));
}
#elif FN_VEC_BYTES == 32
FN_INLINE fn_vec_f64 fn_widen_f32(const float *p) {
    return (fn_vec_f64)_mm256_cvtps_pd(_mm_loadu_ps(p));
}
#else
FN_INLINE fn_vec_f64 fn_widen_f32(const float *p) { return (fn_vec_f64){p[0], p[1]}; }
#endif

/* doubles to a vector of the compute type */
FN_INLINE fn_vec_f64 fn_narrow_f64(const fn_vec_f64 *v) { return v[0]; }
#if FN_VEC_BYTES == 64
FN_INLINE fn_vec_f32 fn_narrow_f32(const fn_vec_f64 *v) {
    const __m512d low = _mm512_castps_pd(_mm512_castps256_ps512(_mm512_cvtpd_ps((__m512d)v[0])));
    const __m256d high = _mm256_castps_pd(_mm512_cvtpd_ps((__m512d)v[1]));
    return (fn_vec_f32)_mm512_insertf64x4(low, high, 1);
}
#elif FN_VEC_BYTES == 32
FN_INLINE fn_vec_f32 fn_narrow_f32(const fn_vec_f64 *v) {
    return (fn_vec_f32)_mm256_set_m128(_mm256_cvtpd_ps((__m256d)v[1]),
                                       _mm256_cvtpd_ps((__m256d)v[0]));
}
#else
FN_INLINE fn_vec_f32 fn_narrow_f32(const fn_vec_f64 *v) {
    return (fn_vec_f32){(float)v[0][0], (float)v[0][1], (float)v[1][0], (float)v[1][1]};
}
#endif

/* The sum of a cache line of lanes, in double: 16 floats to 8 doubles, these as a tree, of halves,
 * then quarters, then neighbours. */
#if FN_VEC_BYTES == 64
FN_INLINE double fn_fold_f64(const fn_vec_f64 *v) {
    const __m256d half = _mm256_add_pd(_mm512_castpd512_pd256((__m512d)v[0]),
                                       _mm512_extractf64x4_pd((__m512d)v[0], 1));
    const __m128d quarter =
        _mm_add_pd(_mm256_castpd256_pd128(half), _mm256_extractf128_pd(half, 1));
    return quarter[0] + quarter[1];
}
FN_INLINE double fn_fold_f32(const fn_vec_f32 *v) {
    const __m256 low = _mm512_castps512_ps256((__m512)v[0]);
    const __m256d high = _mm512_extractf64x4_pd((__m512d)v[0], 1);
    const fn_vec_f64 sum =
        (fn_vec_f64)_mm512_cvtps_pd(low) + (fn_vec_f64)_mm512_cvtps_pd(_mm256_castpd_ps(high));
    return fn_fold_f64(&sum);
}
#elif FN_VEC_BYTES == 32
FN_INLINE double fn_fold_f64(const fn_vec_f64 *v) {
    const __m256d half = (__m256d)(v[0] + v[1]);
    const __m128d quarter =
        _mm_add_pd(_mm256_castpd256_pd128(half), _mm256_extractf128_pd(half, 1));
    return quarter[0] + quarter[1];
}
FN_INLINE double fn_fold_f32(const fn_vec_f32 *v) {
    const __m256 a = (__m256)v[0], b = (__m256)v[1];
    const fn_vec_f64 sum[2] = {
        (fn_vec_f64)_mm256_cvtps_pd(_mm256_castps256_ps128(a)) +
            (fn_vec_f64)_mm256_cvtps_pd(_mm256_castps256_ps128(b)),
        (fn_vec_f64)_mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)) +
            (fn_vec_f64)_mm256_cvtps_pd(_mm256_extractf128_ps(b, 1)),
    };
    return fn_fold_f64(sum);
}
#else
FN_INLINE double fn_fold_f64(const fn_vec_f64 *v) {
    const fn_vec_f64 quarter = (v[0] + v[2]) + (v[1] + v[3]);
    return quarter[0] + quarter[1];
}
FN_INLINE double fn_fold_f32(const fn_vec_f32 *v) {
    fn_vec_f64 sum[4];
    for (int j = 0; j < 4; j++) {
        const fn_vec_f32 a = v[j / 2], b = v[2 + j / 2];
        const int i = j % 2 * 2;
        sum[j] = (fn_vec_f64){a[i], a[i + 1]} + (fn_vec_f64){b[i], b[i + 1]};
    }
    return fn_fold_f64(sum);
}
#endif

/* fn_load_part: the first n elements (0 < n < width), the rest are zero.  fn_store_part: only the
 * first n elements are written.  fn_seam: the first n elements (0 <= n <= width) of a, the rest of
 * b.  fn_stream: p is aligned to FN_VEC_BYTES; the line is not brought into the cache.  fn_least,
 * fn_most: a < b ? a : b, a > b ? a : b; b where one of them is NaN. */
#if FN_VEC_BYTES == 64

FN_INLINE fn_vec_f32 fn_load_part_f32(const float *p, int n) {
    return (fn_vec_f32)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
FN_INLINE fn_vec_f64 fn_load_part_f64(const double *p, int n) {
    return (fn_vec_f64)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
}
FN_INLINE void fn_store_part_f32(float *p, fn_vec_f32 v, int n) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
}
FN_INLINE void fn_store_part_f64(double *p, fn_vec_f64 v, int n) {
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
}
FN_INLINE fn_vec_f32 fn_seam_f32(fn_vec_f32 a, fn_vec_f32 b, int n) {
    return (fn_vec_f32)_mm512_mask_mov_ps((__m512)a, (__mmask16)(~0u << n), (__m512)b);
}
FN_INLINE fn_vec_f64 fn_seam_f64(fn_vec_f64 a, fn_vec_f64 b, int n) {
    return (fn_vec_f64)_mm512_mask_mov_pd((__m512d)a, (__mmask8)(~0u << n), (__m512d)b);
}
FN_INLINE void fn_stream_f32(float *p, fn_vec_f32 v) { _mm512_stream_ps(p, (__m512)v); }
FN_INLINE void fn_stream_f64(double *p, fn_vec_f64 v) { _mm512_stream_pd(p, (__m512d)v); }
FN_INLINE fn_vec_f32 fn_least_f32(fn_vec_f32 a, fn_vec_f32 b) {
    return (fn_vec_f32)_mm512_min_ps((__m512)a, (__m512)b);
}
FN_INLINE fn_vec_f32 fn_most_f32(fn_vec_f32 a, fn_vec_f32 b) {
    return (fn_vec_f32)_mm512_max_ps((__m512)a, (__m512)b);
}
FN_INLINE fn_vec_f64 fn_least_f64(fn_vec_f64 a, fn_vec_f64 b) {
    return (fn_vec_f64)_mm512_min_pd((__m512d)a, (__m512d)b);
}
FN_INLINE fn_vec_f64 fn_most_f64(fn_vec_f64 a, fn_vec_f64 b) {
    return (fn_vec_f64)_mm512_max_pd((__m512d)a, (__m512d)b);
}

#elif FN_VEC_BYTES == 32

FN_INLINE __m256i fn_mask32(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
FN_INLINE __m256i fn_mask64(int n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
FN_INLINE fn_vec_f32 fn_load_part_f32(const float *p, int n) {
    return (fn_vec_f32)_mm256_maskload_ps(p, fn_mask32(n));
}
FN_INLINE fn_vec_f64 fn_load_part_f64(const double *p, int n) {
    return (fn_vec_f64)_mm256_maskload_pd(p, fn_mask64(n));
}
FN_INLINE void fn_store_part_f32(float *p, fn_vec_f32 v, int n) {
    _mm256_maskstore_ps(p, fn_mask32(n), (__m256)v);
}
FN_INLINE void fn_store_part_f64(double *p, fn_vec_f64 v, int n) {
    _mm256_maskstore_pd(p, fn_mask64(n), (__m256d)v);
}
FN_INLINE fn_vec_f32 fn_seam_f32(fn_vec_f32 a, fn_vec_f32 b, int n) {
    return (fn_vec_f32)_mm256_blendv_ps((__m256)b, (__m256)a, _mm256_castsi256_ps(fn_mask32(n)));
}
FN_INLINE fn_vec_f64 fn_seam_f64(fn_vec_f64 a, fn_vec_f64 b, int n) {
    return (fn_vec_f64)_mm256_blendv_pd((__m256d)b, (__m256d)a, _mm256_castsi256_pd(fn_mask64(n)));
}
FN_INLINE void fn_stream_f32(float *p, fn_vec_f32 v) { _mm256_stream_ps(p, (__m256)v); }
FN_INLINE void fn_stream_f64(double *p, fn_vec_f64 v) { _mm256_stream_pd(p, (__m256d)v); }
FN_INLINE fn_vec_f32 fn_least_f32(fn_vec_f32 a, fn_vec_f32 b) {
    return (fn_vec_f32)_mm256_min_ps((__m256)a, (__m256)b);
}
FN_INLINE fn_vec_f32 fn_most_f32(fn_vec_f32 a, fn_vec_f32 b) {
    return (fn_vec_f32)_mm256_max_ps((__m256)a, (__m256)b);
}
FN_INLINE fn_vec_f64 fn_least_f64(fn_vec_f64 a, fn_vec_f64 b) {
    return (fn_vec_f64)_mm256_min_pd((__m256d)a, (__m256d)b);
}
FN_INLINE fn_vec_f64 fn_most_f64(fn_vec_f64 a, fn_vec_f64 b) {
    return (fn_vec_f64)_mm256_max_pd((__m256d)a, (__m256d)b);
}

#else /* 16 bytes: SSE2, NEON, or whatever the compiler makes of it */

FN_CALLED fn_vec_f32 fn_load_part_f32(const float *p, int n) {
    fn_vec_f32 v = {0};
    for (int i = 0; i < n; i++)
        v[i] = p[i];
    return v;
}
FN_CALLED fn_vec_f64 fn_load_part_f64(const double *p, int n) {
    fn_vec_f64 v = {0};
    for (int i = 0; i < n; i++)
        v[i] = p[i];
    return v;
}
FN_CALLED void fn_store_part_f32(float *p, fn_vec_f32 v, int n) {
    for (int i = 0; i < n; i++)
        p[i] = v[i];
}
FN_CALLED void fn_store_part_f64(double *p, fn_vec_f64 v, int n) {
    for (int i = 0; i < n; i++)
        p[i] = v[i];
}
FN_INLINE fn_vec_f32 fn_seam_f32(fn_vec_f32 a, fn_vec_f32 b, int n) {
    for (; n < 4; n++)
        a[n] = b[n];
    return a;
}
FN_INLINE fn_vec_f64 fn_seam_f64(fn_vec_f64 a, fn_vec_f64 b, int n) {
    for (; n < 2; n++)
        a[n] = b[n];
    return a;
}
#define FN_PICK(name, op, t)                                                                       \
    FN_INLINE fn_vec_##t fn_##name##_##t(fn_vec_##t a, fn_vec_##t b) {                             \
        for (int i = 0; i < (int)(sizeof a / sizeof a[0]); i++)                                    \
            b[i] = a[i] op b[i] ? a[i] : b[i];                                                     \
        return b;                                                                                  \
    }
FN_PICK(least, <, f32)
FN_PICK(least, <, f64)
FN_PICK(most, >, f32)
FN_PICK(most, >, f64)
#if defined(__x86_64__)
FN_INLINE void fn_stream_f32(float *p, fn_vec_f32 v) { _mm_stream_ps(p, (__m128)v); }
FN_INLINE void fn_stream_f64(double *p, fn_vec_f64 v) { _mm_stream_pd(p, (__m128d)v); }
#else
FN_INLINE void fn_stream_f32(float *p, fn_vec_f32 v) { fn_store_f32(p, v); }
FN_INLINE void fn_stream_f64(double *p, fn_vec_f64 v) { fn_store_f64(p, v); }
#endif

#endif

#endif
