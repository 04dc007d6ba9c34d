/* fastnorm: normalizers for the CPU, forward and backward.  The C library; no Python in it.
 *
 * Every normalizer is  y = weight * (x - mean) / sqrt(var + eps) + bias.  They differ in which
 * elements share a mean and a variance (the statistic domain) and in how the moments of a domain
 * become coefficients.  See docs/design.md.
 *
 * Buffers are dense.  x, y, dy, dx hold n*c*s elements:
 *     FN_CHANNELS_FIRST   x[n][c][s]
 *     FN_CHANNELS_LAST    x[n][s][c]
 *     FN_BLOCKED          x[n][ceil(c / block)][s][block], where what is behind the last channel
 *                         is 0 in y and dx, and any finite number in x and dy (not for layer and
 *                         RMS norm, nor for weight norm)
 * Batch, instance, group norm and their relatives: n samples, c channels, s spatial elements.
 * Weight norm: the weight (their g) is of c elements too; x is what they call v, and
 * eps is added to the sum of squares.
 * Layer and RMS norm: statistics over s for each (n, c), weight and bias of s elements.  So rows
 * of length s are (n = rows, c = 1, s) channels first, and the channel axis of an image NCHW is
 * (n = N, c = H*W, s = C) channels last.
 *
 * Parameters (weight, bias, running statistics, logits and their gradients) are float, and double
 * for FN_F64.
 *
 * Same input, same bits: for any number of threads, any instruction set and any alignment.
 */
#ifndef FASTNORM_H
#define FASTNORM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* FN_F16 and FN_BF16: computed in float; two bytes an element of x, y, dy and dx only */
typedef enum { FN_F32, FN_F64, FN_F16, FN_BF16, FN_DTYPE_COUNT } fn_dtype;
typedef enum { FN_CHANNELS_FIRST, FN_CHANNELS_LAST, FN_BLOCKED } fn_layout;

typedef enum {
    FN_BATCH,           /* domain: channel over (n, s) */
    FN_BATCH_RENORM,    /* as FN_BATCH, corrected by r and d from the running statistics */
    FN_LAYER,           /* domain: (n, c) over s; weight and bias per element of s */
    FN_RMS,             /* as FN_LAYER with the mean fixed at 0 */
    FN_INSTANCE,        /* domain: (n, c) over s */
    FN_GROUP,           /* domain: (n, group) over (c / groups, s) */
    FN_SWITCHABLE,      /* instance, layer and batch moments mixed by two softmaxes */
    FN_INSTANCE_RENORM, /* instance statistics corrected toward the running statistics */
    FN_WEIGHT,          /* domain: channel over (n, s), divided by its Euclidean norm */
    FN_L2,              /* domain: (n, c) over s, divided by its Euclidean norm; no parameters */
    FN_FILTER_RESPONSE, /* domain: (n, c) over s, divided by its root mean square; y is tau at least
                         */
    FN_GLOBAL_RESPONSE, /* domain: (n, c) over s: y = x * (1 + weight * N) + bias, where
                           N = G / (mean of G over c + eps), G the Euclidean norm */
    FN_NORM_COUNT
} fn_norm;

typedef enum {
    FN_OK = 0,
    FN_NO_MEMORY = 1,  /* nothing was written */
    FN_BAD_PROBLEM = 2 /* a field of fn_problem or a missing parameter; nothing was written */
} fn_status;

/* What to compute. */
typedef struct {
    fn_norm norm;
    fn_dtype dtype;
    fn_layout layout;
    int64_t n, c, s;
    int64_t block;    /* FN_BLOCKED: 8 or 16 */
    int64_t groups;   /* FN_GROUP: divides c */
    int training;     /* statistics of the batch (1) or the running ones (0); FN_INSTANCE: whether
                         the input's statistics are used; FN_INSTANCE_RENORM: whether the running
                         statistics are updated */
    double eps;       /* added to the variance, to the mean square, or to the sum of squares */
    double sigma_min; /* what is divided by is at least this, a constant where it is not more */
    double momentum;  /* running = (1 - momentum) * running + momentum * batch */
    int ddof;         /* of the variance that running_var takes: 1 unbiased, 0 biased */
    double r_max, d_max; /* renorm: r in [1/r_max, r_max], d in [-d_max, d_max] */
    double blend;        /* FN_INSTANCE_RENORM: 0 plain instance norm, 1 full correction */
} fn_problem;

typedef enum {
    FN_IDENTITY,
    FN_RELU,
    FN_LEAKY_RELU, /* slope * x below 0 */
    FN_RELU6,
    FN_HARDSWISH,
    FN_SIGMOID,
    FN_TANH,
    FN_SILU,
    FN_GELU, /* by erf */
    FN_GELU_TANH,
    FN_ACTIVATION_COUNT
} fn_activation;

/* Where the rows of an array lie that are not behind one another, in elements: of levels 2 with
 * counts 4096, 8 and strides 3072, 128, row i begins at i / 8 * 3072 + i % 8 * 128. */
enum { FN_LEVELS = 8 };
typedef struct {
    int levels;
    int64_t count[FN_LEVELS], stride[FN_LEVELS];
} fn_rows;

/* What stands around a normalizer in the same pass, in arrays shaped as x, of its dtype; NULL: it
 * does not.  Each stage rounds to x's dtype, so that the bits are those of calls one by one:
 *     sum = x + residual,   y = activation(norm(sum) + shortcut) * gate_activation(gate)
 * fn_forward writes `sum`, which may be x or residual; fn_backward takes it for x, and the gradient
 * of it for `dsum`, which is added to dx.
 * x_rows, dy_rows, out_rows (y, dx): where the rows of layer, RMS and L2 norm lie, each of at most
 * 32 KiB; NULL: behind one another, as those of all other arrays. */
typedef struct {
    fn_activation activation, gate_activation;
    double slope;
    const void *shortcut, *gate, *residual;
    void *sum;
    const void *dsum;
    const fn_rows *x_rows, *dy_rows, *out_rows;
} fn_around;

/* Parameters, of the compute type (float; FN_F64: double).  NULL: weight 1, bias 0, no running
 * statistics. */
typedef struct {
    const void *weight, *bias;            /* c elements; FN_LAYER, FN_RMS: s */
    void *running_mean, *running_var;     /* c elements, updated when training */
    const void *mean_logits, *var_logits; /* FN_SWITCHABLE: 3 each (instance, layer, batch) */
    const void *tau;                      /* FN_FILTER_RESPONSE: c elements; NULL: -inf */
    const fn_around *around;              /* NULL: nothing */
} fn_params;

/* Where fn_backward writes; NULL: not wanted. */
typedef struct {
    void *x;                        /* shaped as x */
    void *weight, *bias;            /* shaped as the parameters */
    void *mean_logits, *var_logits; /* 3 each */
    void *tau;                      /* shaped as the parameter */
    void *shortcut, *gate;          /* shaped as x, apart from all others */
} fn_grads;

/* Doubles that fn_forward saves for fn_backward. */
int64_t fn_saved_size(const fn_problem *problem);

/* y = normalized x.  y may be x, no other overlap.  saved: fn_saved_size doubles, or NULL.
 * Running statistics are updated only when FN_OK is returned. */
fn_status fn_forward(const fn_problem *problem, const fn_params *params, const void *x, void *y,
                     double *saved);

/* Gradients of sum(dy * y).  x, params (but the running statistics) and saved are those of the
 * forward call.  grads->x may be dy or x, no other overlap. */
fn_status fn_backward(const fn_problem *problem, const fn_params *params, const double *saved,
                      const void *x, const void *dy, const fn_grads *grads);

/* y = act(x), and dx = dy * act'(x), of n elements; y may be x, dx may be x or dy.  At most 2 ulp
 * of float, 1 of 16 bits, with the same bits everywhere.  The derivative is 0 at the bounds of relu
 * and relu6, and slope at 0 of leaky relu; of NaN relu's is 0. */
fn_status fn_activate(fn_dtype dtype, fn_activation activation, double slope, int64_t n,
                      const void *x, void *y);
fn_status fn_activate_grad(fn_dtype dtype, fn_activation activation, double slope, int64_t n,
                           const void *x, const void *dy, void *dx);

/* The steps one by one, for statistics that come from more than one array: over processes, or over
 * blocks of a file.  FN_BATCH with training, and FN_LAYER without weight and bias; D domains
 * (FN_BATCH: c, or those of all blocks; FN_LAYER: n * c), fn_saved_size is 2 * D.
 *
 * fn_measure: exact moments, whatever the dtype.  statistics: D counts; D means; D times what the
 * means lost to rounding; D times m2 and D exponents, sum (x - mean)^2 = m2 * 4^exponent.  With
 * skip_nan NaN does not count.  weight: NULL, or how often each of the s rows counts (FN_LAYER).
 * Nothing is written where x is empty. */
fn_status fn_measure(const fn_problem *problem, const void *x, int skip_nan, const double *weight,
                     double *statistics);
/* y = normalized x, with the mean and the (biased) standard deviation of each domain in `saved` */
fn_status fn_apply(const fn_problem *problem, const fn_params *params, const double *saved,
                   const void *x, void *y);
/* sums[d] = sum dy, sums[D + d] = sum dy * (x - mean) */
fn_status fn_measure_grad(const fn_problem *problem, const fn_params *params, const double *saved,
                          const void *x, const void *dy, double *sums);
/* dx, where the domains have `count` elements in all, whose sums are `sums`.  With `weighted` these
 * are of dy * weight: the caller multiplied them, as each part has a weight of its own. */
fn_status fn_apply_grad(const fn_problem *problem, const fn_params *params, const double *saved,
                        const double *sums, double count, int weighted, const void *x,
                        const void *dy, void *dx);

/* extremes[j] = min x, extremes[cols + j] = max x of column j of x[rows][cols], NaN passed over;
 * NaN where there is nothing else */
fn_status fn_extremes(fn_dtype dtype, int64_t rows, int64_t cols, const void *x, double *extremes);

/* numbers of 8 bits: the largest are 127, 448 and 57344 */
typedef enum { FN_INT8, FN_E4M3FN, FN_E5M2 } fn_small;

/* q[r][j] = y[r][j] / scale[r], rounded to nearest even, and where it is beyond the largest number,
 * that; an int8 goes down to -128, and is 0 for NaN.  With find, scale[r] = max |y[r]| / the
 * largest number comes first, and 1 where that is 0.  y, scale and q do not overlap. */
void fn_quantize(fn_small kind, int64_t rows, int64_t cols, int find, const float *y, float *scale,
                 void *q);

/* y = (x - center[j]) * factor[j] + shift[j] in column j of x[rows][cols], or with by_row in row j;
 * *infinite: whether x has infinities.  y may be x, no other overlap. */
fn_status fn_affine(fn_dtype dtype, int64_t rows, int64_t cols, int by_row, const void *x,
                    const double *center, const double *factor, const double *shift, void *y,
                    int *infinite);

/* Threads.  0 means the default: FASTNORM_NUM_THREADS, else what OpenMP would take (so
 * OMP_NUM_THREADS and threadpoolctl count).  Without OpenMP always 1. */
void fn_set_num_threads(int num_threads);
int fn_get_num_threads(void);

/* Instruction sets that were built and that this processor has, worst first: fn_isa_name(0) up
 * to fn_isa_count() - 1.  fn_set_isa returns 0, or -1 when there is none of that name.
 * The default is the last one, or FASTNORM_ISA where that names one of them. */
int fn_isa_count(void);
const char *fn_isa_name(int i);
int fn_set_isa(const char *name);
const char *fn_get_isa(void);

/* whether this build has kernels for the dtype (kernels/built.h); calls with another are
 * FN_BAD_PROBLEM */
int fn_has_dtype(fn_dtype dtype);

/* Memory for outputs, aligned to a cache line; NULL where there is none.  What is freed is kept for
 * the next one of about the size, up to a bound in bytes: 256 MiB, or a sixteenth of the memory
 * where that is less.  fn_buffer_cache tells the bound, and what is kept now.  Thread-safe. */
void *fn_buffer_new(size_t size);
void fn_buffer_free(void *p);
size_t fn_buffer_size(const void *p); /* at least what was asked for */
void fn_set_buffer_cache(size_t bytes);
void fn_buffer_cache(size_t *bound, size_t *held);

/* Facts about the build and the machine.  Cache sizes in bytes, 0 when unknown; level 1 to 3. */
const char *fn_compiler(void);
int fn_has_openmp(void);
int64_t fn_cache_bytes(int level);
const char *fn_isas_built(void);

/* What the library has learned of its choices, whose bits are the same (core/choice.h): calls of
 * one kind, on arrays and domains of about the same size, the best way, and what they take so.
 * Those of index i, 0 <= i < fn_choice_count(); 0 where there are none. */
typedef struct {
    fn_norm norm;
    fn_dtype dtype;
    int backward, training;
    int64_t bytes; /* of x, in half powers of two */
    int64_t calls;
    int threads, stream, fetch;
    double ticks;
} fn_learned_choice;
int fn_choice_count(void);
int fn_choice_at(int i, fn_learned_choice *choice);
double fn_tick_seconds(void);
void fn_forget_choices(void);
/* for tests: what every call takes from now on, where it is not -1 */
void fn_force_choice(int threads, int stream, int fetch);

/* The weights of switchable norm, of its logits: exp(logits) / sum exp(logits), with the same bits
 * on every processor. */
void fn_softmax3(const double logits[3], double w[3]);

/* For benchmarks: y = x (dy NULL: one read, one write) or y = x + dy (two reads, one write) of len
 * floats, with the threads and the instruction set of the library, through the cache or past it
 * (stream).  No forward or backward pass can be faster. */
void fn_memory_limit(const float *x, const float *dy, float *y, int64_t len, int stream);

#ifdef __cplusplus
}
#endif
#endif
