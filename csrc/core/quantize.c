/* Numbers of 8 bits.  Loops are over pieces of a constant length, of which the compiler makes
 * vectors. */
#include "fastnorm.h"
#include "system/basics.h"
#include "system/float_mode.h"

#include <string.h>

#define PIECE 64
#define INF_BITS 0x7f800000

static inline uint32_t bits_of(float v) {
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    return u;
}

static inline float float_of(uint32_t u) {
    float v;
    memcpy(&v, &u, sizeof v);
    return v;
}

/* Magnitudes are compared as integers, of which the compiler makes vectors where it would fear the
 * traps of a comparison of floats. */
static inline int32_t magnitude(float v) { return (int32_t)(bits_of(v) & 0x7fffffff); }

/* The largest of them; NaN is above all. */
static float largest(const float *y, int64_t n) {
    int32_t most[PIECE] = {0}, all = 0;
    int64_t j = 0;
    for (; j + PIECE <= n; j += PIECE)
        for (int i = 0; i < PIECE; i++) {
            const int32_t m = magnitude(y[j + i]);
            most[i] = m > most[i] ? m : most[i];
        }
    for (; j < n; j++) {
        const int32_t m = magnitude(y[j]);
        most[0] = m > most[0] ? m : most[0];
    }
    for (int i = 0; i < PIECE; i++)
        all = most[i] > all ? most[i] : all;
    return float_of((uint32_t)all);
}

/* The last 8 bits of v + 1.5 * 2**23 are those of v rounded: the sum itself rounds. */
static inline uint8_t to_int8(float v) {
    const uint32_t sign = bits_of(v) & 0x80000000;
    const int32_t m = magnitude(v), limit = sign ? 0x43000000 : 0x42fe0000; /* 128 and 127 */
    const int32_t within = m > INF_BITS ? 0 : m > limit ? limit : m;
    return (uint8_t)bits_of(float_of((uint32_t)within | sign) + 0x1.8p23f);
}

/* A float of `digits` bits behind the point, whose exponent has this bias.  Below its normal
 * numbers it is a multiple of the least, and the sum with 2**23 of these rounds. */
static inline uint8_t to_float8(float v, int digits, int bias, int32_t most) {
    const int shift = 23 - digits;
    const int32_t normal = (128 - bias) << 23, unit = (128 - bias - digits + 23) << 23;
    const uint32_t sign = bits_of(v) >> 24 & 0x80;
    const int32_t m = magnitude(v), a = m > most ? most : m;
    const int32_t large =
        ((a + (1 << (shift - 1)) - 1 + (a >> shift & 1)) >> shift) - ((127 - bias) << digits);
    const int32_t small = magnitude(float_of((uint32_t)a) + float_of((uint32_t)unit)) - unit;
    const int32_t low = -(a < normal), nan = m > INF_BITS ? 0x7f : 0; /* no branches */
    return (uint8_t)(sign | (uint32_t)((small & low) | (large & ~low) | nan));
}

static inline uint8_t rounded(fn_small kind, float v) {
    switch (kind) {
    case FN_INT8: return to_int8(v);
    case FN_E4M3FN: return to_float8(v, 3, 7, 0x43e00000); /* 448 */
    default: return to_float8(v, 2, 15, 0x47600000);       /* 57344 */
    }
}

/* The kind is a constant where this is called, so that there is no switch in the loop. */
static inline void quantize_row(fn_small kind, int64_t n, const float *y, float scale, uint8_t *q) {
    int64_t j = 0;
    for (; j + PIECE <= n; j += PIECE)
        for (int i = 0; i < PIECE; i++)
            q[j + i] = rounded(kind, y[j + i] / scale);
    for (; j < n; j++)
        q[j] = rounded(kind, y[j] / scale);
}

static void row_of_int8(int64_t n, const float *y, float scale, uint8_t *q) {
    quantize_row(FN_INT8, n, y, scale, q);
}
static void row_of_e4m3fn(int64_t n, const float *y, float scale, uint8_t *q) {
    quantize_row(FN_E4M3FN, n, y, scale, q);
}
static void row_of_e5m2(int64_t n, const float *y, float scale, uint8_t *q) {
    quantize_row(FN_E5M2, n, y, scale, q);
}

void fn_quantize(fn_small kind, int64_t rows, int64_t cols, int find, const float *y, float *scale,
                 void *q) {
    static const float most[] = {127, 448, 57344};
    static void (*const row[])(int64_t, const float *, float,
                               uint8_t *) = {row_of_int8, row_of_e4m3fn, row_of_e5m2};
    const fn_float_mode mode = fn_enter_float_mode();
    for (int64_t r = 0; r < rows; r++) {
        if (find) {
            scale[r] = largest(y + r * cols, cols) / most[kind];
            scale[r] = scale[r] == 0 ? 1 : scale[r];
        }
        row[kind](cols, y + r * cols, scale[r], (uint8_t *)q + r * cols);
    }
    fn_leave_float_mode(mode);
}
