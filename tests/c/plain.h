/* What test_kernels.c compares with: an array as kernels see it, its dtypes, and a plain loop in
 * double for each operation. */
#ifndef FN_PLAIN_H
#define FN_PLAIN_H

#include "kernels/list.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ELEMENTS = 40000, ROOM = 1 << 18, LARGEST = 8, AROUND = 64 };

/* ---- a problem: the array as kernels see it, and what they take and give --------------------*/

/* what the element in row r and column c shares its coefficients with */
typedef enum {
    ROW,    /* its row */
    COLUMN, /* its column, in all rows */
    BLOCK,  /* each `period`-th column of its row */
    TILE    /* `period` columns side by side */
} sharing;

typedef struct {
    int64_t nseg, seg_stride, rows, ld, cols, period;
    sharing by;
    int weighted, biased; /* NULL or not */
} shape;

typedef struct {
    shape s;
    int fetch;
    fn_hints hints;
    const void *x, *dy;
    void *y, *scratch;
    /* of the compute type, or double (OF_DOUBLES) */
    const void *center, *scale, *shift, *slope, *extra, *weight, *bias;
    void *sum1, *sum2;
} problem;

static int64_t shared_by(const shape *s, int64_t r, int64_t c) {
    return s->by == ROW      ? r
           : s->by == COLUMN ? c
           : s->by == BLOCK  ? r * s->period + c % s->period
                             : c / s->period;
}
static int64_t shares(const shape *s) { return shared_by(s, s->rows - 1, s->cols - 1) + 1; }
/* weight and bias go along the other axis */
static int64_t other(const shape *s, int64_t r, int64_t c) { return s->by == ROW ? c : r; }
static int64_t others(const shape *s) { return s->by == ROW ? s->cols : s->rows; }
static int64_t span(const shape *s) {
    return (s->nseg - 1) * s->seg_stride + (s->rows - 1) * s->ld + s->cols;
}

#define EACH(s)                                                                                    \
    for (int64_t g = 0; g < (s)->nseg; g++)                                                        \
        for (int64_t r = 0; r < (s)->rows; r++)                                                    \
            for (int64_t c = 0, at = g * (s)->seg_stride + r * (s)->ld; c < (s)->cols; c++, at++)

/* ---- dtypes ---------------------------------------------------------------------------------*/

static const struct {
    const char *name;
    size_t size, compute;
    double element, sum; /* relative errors of a result, and of a sum */
    double least;        /* errors that count as none: half the least number */
} dtypes[] = {{"f32", 4, 4, 1e-6, 3e-6, 0},
              {"f64", 8, 8, 2e-15, 1e-13, 0},
              {"f16", 2, 4, 1e-3, 3e-6, 0x1p-25},
              {"bf16", 2, 4, 8e-3, 3e-6, 0}};

static double read_half(uint16_t bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    double v = exponent == 31 ? (mantissa ? NAN : INFINITY)
               : exponent     ? ldexp(1024 + mantissa, exponent - 25)
                              : ldexp(mantissa, -24);
    return bits >> 15 ? -v : v;
}

static double read_element(fn_dtype t, const void *from, int64_t i) {
    if (t == FN_F64)
        return ((const double *)from)[i];
    if (t == FN_F32)
        return ((const float *)from)[i];
    const uint16_t half = ((const uint16_t *)from)[i];
    if (t == FN_F16)
        return read_half(half);
    const uint32_t bits = (uint32_t)half << 16;
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* v is a value of the dtype */
static void write_element(fn_dtype t, void *to, int64_t i, double v) {
    if (t == FN_F64) {
        ((double *)to)[i] = v;
        return;
    }
    const float single = (float)v;
    if (t == FN_F32) {
        ((float *)to)[i] = single;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &single, sizeof bits);
    uint16_t half = (uint16_t)(bits >> 16);
    if (t == FN_F16) {
        const int exponent = (int)(bits >> 23 & 255) - 112;
        const unsigned sign = bits >> 31 << 15;
        half = v == 0 ? (uint16_t)sign
               : isnan(v) || isinf(v)
                   ? (uint16_t)(sign | 31u << 10 | (isnan(v) ? 512u : 0u))
                   : (uint16_t)(sign | (unsigned)exponent << 10 | (bits >> 13 & 1023u));
    }
    ((uint16_t *)to)[i] = half;
}

static void write_compute(fn_dtype t, void *to, int64_t i, double v) {
    write_element(t == FN_F64 ? FN_F64 : FN_F32, to, i, v);
}
static double read_compute(fn_dtype t, const void *from, int64_t i) {
    return read_element(t == FN_F64 ? FN_F64 : FN_F32, from, i);
}

/* ---- operations: the plain loops ------------------------------------------------------------*/

typedef enum {
    MOMENTS,
    SQUARES,
    EXTREMES,
    GRADIENT_SUMS,
    APPLY,
    FLOORED,
    ABOVE,
    GRADIENT,
    GRADIENT_AND_SUMS,
    WIDEN,
    ADD_SUMS,
    NARROW,
    LIMIT,
    ADDED,
    ABOVE_ADDED,
    SILU,
    GELU,
    RELU6,
    SILU_GRAD,
    RELU6_GRAD,
    SUM,
    GATED,
    GATE_GRAD
} operation;
static int writes_elements(operation o) {
    return o == APPLY || o == FLOORED || o == ABOVE || o == GRADIENT || o == GRADIENT_AND_SUMS ||
           o == NARROW || o >= LIMIT;
}

/* a value and the size of what it was added up of: rounding is relative to that */
typedef struct {
    double value, size;
} sum;
static void add(sum *to, double v) {
    to->value += v;
    to->size += fabs(v);
}

static sum want_y[ROOM], want1[ROOM], want2[ROOM];
static double x_value[ROOM], dy_value[ROOM];
static double center[ROOM], scale[ROOM], shift[ROOM], slope[ROOM], extra[ROOM];
static double weight[ROOM], bias[ROOM];
static double before1[ROOM], before2[ROOM];

static void plain_moments(const shape *s) {
    const double n = (double)(s->nseg * s->rows * s->cols) / (double)shares(s);
    EACH(s) add(want1 + shared_by(s, r, c), x_value[at] / n);
    EACH(s) {
        const int64_t k = shared_by(s, r, c);
        add(want2 + k, pow(x_value[at] - want1[k].value, 2));
    }
    for (int64_t k = 0; k < shares(s); k++) /* the last bits of the mean */
        want2[k].size += n * 1e-7 * want1[k].size * want1[k].size;
}

static void plain_extremes(const shape *s) {
    for (int64_t k = 0; k < shares(s); k++) {
        want1[k] = (sum){INFINITY, 0};
        want2[k] = (sum){-INFINITY, 0};
    }
    EACH(s) {
        const int64_t k = shared_by(s, r, c);
        want1[k].value = fmin(want1[k].value, x_value[at]);
        want2[k].value = fmax(want2[k].value, x_value[at]);
    }
}

static double plain_silu(double v) { return v / (1 + exp(-v)); }
static double plain_silu_slope(double v) {
    const double s = 1 / (1 + exp(-v));
    return s * (1 + v * (1 - s));
}

/* of activations; size: what rounding to x's dtype on the way is a part of */
static sum plain_activation(operation o, double x, double dy, double v) {
    const double size = 4 * (1 + fabs(x) + fabs(dy)) * (1 + fabs(dy));
    switch (o) {
    case SILU: return (sum){plain_silu(v), size};
    case GELU: return (sum){v * erfc(-v / sqrt(2)) / 2, size};
    case RELU6: return (sum){fmin(fmax(v, 0), 6), size};
    case SILU_GRAD: return (sum){dy * plain_silu_slope(x), size};
    case RELU6_GRAD: return (sum){x > 0 && x < 6 ? dy : 0, size};
    case SUM: return (sum){x + dy, size};
    case GATED: return (sum){x * plain_silu(dy), size};
    default: return (sum){x * x * plain_silu_slope(dy), size * (1 + fabs(x))};
    }
}

static void plain_element(operation o, const shape *s, int64_t r, int64_t c, int64_t at) {
    const int64_t k = shared_by(s, r, c), j = other(s, r, c);
    const double x = x_value[at], dy = dy_value[at], xc = x - center[k];
    const double w = s->weighted ? weight[j] : 1;
    sum *y = want_y + at;
    switch (o) {
    case SQUARES: add(want2 + k, x * x); break;
    case GRADIENT_SUMS:
        add(want1 + k, dy * w);
        add(want2 + k, dy * w * xc);
        break;
    case APPLY:
        add(y, (fabs(x) + fabs(center[k])) * fabs(scale[k] * w)); /* the size alone */
        y->value = xc * scale[k] * w;
        add(y, shift[k] * w);
        add(y, s->biased ? bias[j] : 0);
        break;
    case FLOORED:
    case ABOVE:
        add(y, (fabs(x) + fabs(center[k])) * fabs(scale[k]) + fabs(shift[k]));
        y->value = xc * scale[k] + shift[k];
        if (o == FLOORED)
            *y = (sum){fmax(y->value, extra[k]), y->size + fabs(extra[k])};
        else if (fabs(y->value - extra[k]) < 1e-5 * y->size)
            y->size = INFINITY; /* rounding decides */
        else
            *y = y->value > extra[k] ? (sum){dy, fabs(dy)} : (sum){0, 0};
        break;
    case GRADIENT_AND_SUMS:
        add(want1 + j, dy * (xc * scale[k] + shift[k]));
        add(want2 + j, dy); /* fall through */
    case GRADIENT:
        add(y, dy * w * scale[k]);
        add(y, xc * slope[k]);
        add(y, extra[k]);
        break;
    case ADD_SUMS:
        add(want1 + k, xc);
        add(want2 + k, xc * xc);
        break;
    case WIDEN:
        want1[r * s->cols + c] =
            (sum){x * (s->weighted ? scale[k] : 1) - center[k], fabs(x) + fabs(center[k])};
        break;
    case NARROW: *y = (sum){scale[at], fabs(scale[at])}; break;
    case ADDED:
    case ABOVE_ADDED:
        add(y, (fabs(x) + fabs(center[k])) * fabs(scale[k]) + fabs(shift[k]) + fabs(dy));
        y->value = xc * scale[k] + shift[k] + dy;
        if (o == ADDED)
            *y = (sum){fmax(y->value, extra[k]), y->size + fabs(extra[k])};
        else if (fabs(y->value - extra[k]) < 1e-5 * y->size)
            y->size = INFINITY;
        else
            *y = y->value > extra[k] ? (sum){dy, fabs(dy)} : (sum){0, 0};
        break;
    case LIMIT:
        add(y, x);
        add(y, s->weighted ? dy : 0);
        break;
    default: *y = plain_activation(o, x, dy, x + (s->weighted ? dy : 0));
    }
}

static void plain(operation o, const shape *s) {
    for (int64_t i = 0; i < ROOM; i++)
        want_y[i] = want1[i] = want2[i] = (sum){0, 0};
    for (int64_t i = 0; i < ROOM && (o == GRADIENT_AND_SUMS || o == ADD_SUMS); i++) {
        add(want1 + i, before1[i]);
        add(want2 + i, before2[i]);
    }
    if (o == MOMENTS)
        plain_moments(s);
    else if (o == EXTREMES)
        plain_extremes(s);
    else
        EACH(s) plain_element(o, s, r, c, at);
}

#endif
