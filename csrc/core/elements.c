/* Backward of layer and RMS norm with a weight or bias for each element of a domain: dweight and
 * dbias are sums across domains, while dx needs sums along them.
 *
 * The domains are cut, by the shape alone, into parts.  A part sums dweight and dbias of its
 * domains in order; the parts are added in order.  So the bits do not depend on the threads. */
#include "core/elements.h"

#include "core/place.h"
#include "core/steps.h"
#include "core/turns.h"
#include "core/workspace.h"

#include <string.h>

/* Row form: rows up to this long are taken through sums and apply while they are in the cache;
 * longer ones are cut into pieces, for more threads and smaller sums. */
#define WHOLE_ROW 16384
#define ROW_PIECE 2048
/* rows with the same weights whose dweight is summed in the compute type before it goes to double
 */
#define FLUSH_ROWS 32
/* memory for the sums of all parts */
#define PART_BYTES (1 << 20)
#define MAX_PARTS 32
/* rows that are worth a part of their own, so many with the same weights, and rows that are worth
 * two parts */
#define PART_ROWS 64
#define LEAST_SAMPLES 8
#define TWO_PARTS_ROWS 32

/* Column form: columns of a unit, and what is too tall to keep a sum for each row and part */
#define UNIT_COLS 256
#define TALL_ROWS 8192
#define COL_PARTS 16

typedef struct {
    int64_t parts, pieces, piece; /* row form: parts of the rows x pieces of a row */
    int64_t units, sample_units;  /* column form: all units, and those of a sample */
    int tall;                     /* column form: rows are shared out, not units */
} elem_grid;

static elem_grid grid_of(const fn_plan *pl) {
    elem_grid g = {1, 1, pl->s, 0, 0, 0};
    if (pl->col) {
        g.sample_units = fn_ceil_div(pl->c, UNIT_COLS);
        g.units = pl->n * g.sample_units;
        g.tall = pl->s > TALL_ROWS || (g.units < COL_PARTS && pl->s >= 1024);
        g.parts = g.tall ? 1 : fn_min(COL_PARTS, g.units);
    } else if (pl->s > WHOLE_ROW) {
        g.piece = ROW_PIECE;
        g.pieces = fn_ceil_div(pl->s, ROW_PIECE);
    } else {
        const int64_t each = 2 * fn_elem_count(pl) * (int64_t)(sizeof(double) + pl->asize);
        int64_t most = MAX_PARTS;
        while (most > 4 && most * each > PART_BYTES)
            most /= 2;
        const int64_t rows = fn_max(PART_ROWS, LEAST_SAMPLES * pl->weight_rows);
        g.parts = fn_max(fn_ceil_div(pl->planes, rows), 1 + (pl->planes > TWO_PARTS_ROWS));
        g.parts = fn_min(most, g.parts);
    }
    return g;
}

/* dweight of a task in the compute type: of a piece of a row, or of all rows of weights */
static int64_t block_len(const fn_plan *pl, const elem_grid *g) {
    return pl->weight_rows * g->piece;
}
/* sums in double, dweight and dbias of each part; behind them, for each task, those of
 * some rows in the compute type */
static double *part_sums(const fn_job *job, int64_t part) {
    return job->dweight + part * 2 * fn_elem_count(&job->plan);
}
static char *block_sums(const fn_job *job, const elem_grid *g, int64_t task) {
    char *end = (char *)part_sums(job, job->elem_parts);
    return fn_line(end) + task * 2 * block_len(&job->plan, g) * (int64_t)job->plan.asize;
}

int64_t fn_elem_parts(const fn_plan *pl) { return grid_of(pl).parts; }
int64_t fn_elem_bytes(const fn_plan *pl) {
    const elem_grid g = grid_of(pl);
    const int64_t blocks = pl->col ? 0 : g.parts * g.pieces * 2 * block_len(pl, &g);
    return g.parts * 2 * fn_elem_count(pl) * (int64_t)sizeof(double) + FN_LINE +
           blocks * (int64_t)pl->asize;
}

/* ---- row form ------------------------------------------------------------------------------*/

#define ADD_BLOCK(type)                                                                            \
    for (int64_t i = 0; i < len; i++)                                                              \
    to[i] += ((const type *)from)[i]

/* the sums of a block go to double, and begin anew */
static void flush(const fn_plan *pl, char *block, double *sums, int64_t len) {
    for (int half = 0; half < 2; half++) {
        const char *from = block + half * len * (int64_t)pl->asize;
        double *to = sums + half * fn_elem_count(pl);
        if (pl->asize == 4)
            ADD_BLOCK(float);
        else
            ADD_BLOCK(double);
    }
    memset(block, 0, (size_t)(2 * len) * pl->asize);
}

static void task_rows(fn_job *job, int64_t task) {
    const fn_plan *pl = &job->plan;
    const elem_grid g = grid_of(pl);
    const int64_t part = task / g.pieces, off = task % g.pieces * g.piece;
    const int64_t len = fn_min(g.piece, pl->s - off);
    const int64_t each = fn_ceil_div(fn_ceil_div(pl->planes, g.parts), 4) * 4;
    const int64_t r1 = fn_min((part + 1) * each, pl->planes);
    /* rows of a block stay in the L2 between their sums and their apply */
    int64_t step = FN_STEP_BYTES / (fn_max(len, 1) * (int64_t)pl->asize) / 4 * 4;
    step = step < 4 ? 4 : step > FLUSH_ROWS ? FLUSH_ROWS : step;
    const int64_t most = FLUSH_ROWS * pl->weight_rows;
    double *sums = part_sums(job, part);
    char *block = block_sums(job, &g, task);
    int64_t since_flush = 0;
    const int stream = job->use.stream && !(job->by_turns && job->around->out_rows);
    const fn_hints hints = {job->use.fetch && !job->by_turns ? step * len * (int64_t)pl->esize : 0,
                            0, stream};
    for (int64_t r = part * each; r < r1; r += step) {
        const int64_t rows = fn_min(step, r1 - r);
        const char *dy = job->dy;
        fn_arrays were;
        if (job->by_turns)
            were = fn_turn_in(job, r, r + rows);
        if (g.pieces == 1)
            fn_grad_coefficients_of(job, r, r + rows);
        fn_place_elem_rows(job, r, r + rows, off, len, hints, block, sums);
        if (job->by_turns)
            fn_turn_out(job, r, r + rows, were);
        job->dy = dy;
        since_flush += rows;
        if (since_flush + step > most || r + rows == r1) {
            flush(pl, block, sums + off, pl->weight_rows * len);
            since_flush = 0;
        }
    }
}

/* ---- column form ---------------------------------------------------------------------------*/

static void task_units(fn_job *job, int64_t part) {
    const fn_plan *pl = &job->plan;
    const elem_grid g = grid_of(pl);
    for (int64_t u = g.units * part / g.parts; u < g.units * (part + 1) / g.parts; u++) {
        const int64_t c = u % g.sample_units * UNIT_COLS, p = u / g.sample_units * pl->c + c;
        const int64_t p1 = p + fn_min(UNIT_COLS, pl->c - c);
        const char *dy = job->dy;
        fn_grad_coefficients_of(job, p, p1);
        fn_place_elem_columns(job, p, p1, 0, pl->s, part_sums(job, part));
        job->dy = dy;
    }
}

static void task_tall(fn_job *job, int64_t i) {
    const fn_plan *pl = &job->plan;
    const int64_t r = i * pl->gchunks.size;
    for (int64_t n = 0; n < pl->n; n++)
        fn_place_elem_columns(job, n * pl->c, (n + 1) * pl->c, r,
                              fn_min(r + pl->gchunks.size, pl->s), part_sums(job, 0));
}

/* ---- both ----------------------------------------------------------------------------------*/

void fn_backward_elem(fn_job *job) {
    const fn_plan *pl = &job->plan;
    const elem_grid g = grid_of(pl);
    if (pl->col ? g.tall : g.pieces > 1) {
        fn_all_grad_sums(job);
        fn_all_grad_coefficients(job);
    }
    if (!pl->col)
        fn_for_all(job, g.parts * g.pieces, task_rows, 0);
    else if (g.tall)
        fn_for_all(job, pl->gchunks.count, task_tall, 1);
    else
        fn_for_all(job, g.parts, task_units, 0);
}

void fn_add_elem_parts(double *sums, int64_t parts, int64_t s) {
    for (int64_t part = 1; part < parts; part++)
        for (int64_t i = 0; i < 2 * s; i++)
            sums[i] += sums[part * 2 * s + i];
}
