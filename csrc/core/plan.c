/* Shapes to domains, and how domains are cut for caches and threads. */
#include "core/plan.h"

#include "core/traffic.h"

/* Elements of a chunk in row form; a multiple of every block, so that a chunk ends with one. */
#define CHUNK_ELEMS 32768
/* Column form: about so many rows, or so many that the moments of all chunks stay small. */
#define CHUNK_ROWS 256
#define CHUNK_TABLE_BYTES (512 * 1024)
/* Small domains side by side: in a unit that fits the L2 with ease, so that memory is read and
 * written in long runs, and of which there are some for each thread. */
#define LEAST_UNIT_BYTES (16 * 1024)
#define UNITS 16
/* Domains of several segments: as many as make runs of this. */
#define UNIT_RUN_BYTES 4096

/* Bytes of an array that no address space holds: what is computed from smaller sizes does not
 * overflow. */
#define MOST_BYTES (INT64_C(1) << 56)
/* elements of x; -1 where they are too many */
static int64_t count_elements(const fn_problem *p) {
    int64_t count = 1;
    const int64_t sizes[] = {p->n, p->layout == FN_BLOCKED ? p->block : 1,
                             p->layout == FN_BLOCKED ? fn_ceil_div(p->c, p->block) : p->c, p->s,
                             (int64_t)sizeof(double)};
    for (int i = 0; i < 5; i++)
        if (sizes[i] == 0)
            return 0;
    for (int i = 0; i < 5; i++) {
        if (sizes[i] > MOST_BYTES / count)
            return -1;
        count *= sizes[i];
    }
    return count > PTRDIFF_MAX ? -1 : p->n * p->c * p->s;
}

/* backward finds the running statistics that were used among what forward saved */
static int valid(const fn_problem *p, const fn_params *q, int backward) {
    const int running = backward || (q->running_mean && q->running_var);
    const fn_row *row = fn_row_of(p->norm);
    if (!row || (unsigned)p->dtype >= FN_DTYPE_COUNT || (unsigned)p->layout > FN_BLOCKED ||
        p->n < 0 || p->c < 0 || p->s < 0)
        return 0;
    if (p->layout == FN_BLOCKED &&
        ((p->block != 8 && p->block != 16) || (row->facts & FN_NO_BLOCKS)))
        return 0;
    if (!(p->eps >= 0) || !(p->sigma_min >= 0) || (p->ddof != 0 && p->ddof != 1))
        return 0;
    if ((row->facts & FN_RUNNING_SERVES) && !p->training && !running)
        return 0;
    return !row->valid || row->valid(p, q, running);
}

static fn_chunks row_chunks(int64_t nseg, int64_t len) {
    fn_chunks ch = {1, CHUNK_ELEMS, 0};
    if (len > CHUNK_ELEMS) {
        ch.per_segment = fn_ceil_div(len, CHUNK_ELEMS);
        ch.count = nseg * ch.per_segment;
    } else {
        ch.size = fn_max(1, CHUNK_ELEMS / fn_max(len, 1));
        ch.count = fn_ceil_div(nseg, ch.size);
    }
    return ch;
}

static fn_chunks col_chunks(int64_t rows, int64_t cols) {
    int64_t most = CHUNK_TABLE_BYTES / (16 * fn_max(cols, 1));
    most = most < 16 ? 16 : most > 64 ? 64 : most;
    const int64_t some = fn_max(1, fn_min(most, fn_ceil_div(rows, CHUNK_ROWS)));
    /* of equal size, and an even number of them, for two threads */
    fn_chunks ch = {0, fn_max(1, fn_ceil_div(rows, some + (some > 1 && some % 2))), 0};
    ch.per_segment = fn_ceil_div(rows, ch.size);
    ch.count = ch.per_segment;
    return ch;
}

/* Domains that are neighbours in memory and together fit the L2 with room for the output. */
static int64_t unit_domains(const fn_plan *plan, int arrays) {
    const int64_t bytes = fn_max(1, plan->count * (int64_t)plan->esize * arrays);
    const int64_t l2 = fn_l2_bytes();
    if (plan->block && plan->per_domain > 1) /* groups cross blocks */
        return plan->sample_domains;
    if (plan->col) {
        const int64_t in_sample = plan->sample_domains;
        const int64_t whole = bytes * in_sample;
        /* a tile of columns whose rows fall on few sets of the cache would push itself out */
        const int64_t line = plan->c * (int64_t)plan->esize / 64;
        if (whole <= l2 / 2 || line % 8 == 0 || plan->c < FN_NARROW)
            return in_sample;
        /* a tile of whole cache lines, wide enough to read memory in runs */
        const int64_t run = (int64_t)plan->esize * plan->per_domain, lines = fn_whole_lines(run);
        const int64_t least = fn_ceil_div(fn_ceil_div(64 * 4, run), lines) * lines;
        const int64_t fit = l2 / 2 / bytes / least * least;
        return fit >= least ? fn_min(fit, in_sample) : in_sample;
    }
    if (plan->nseg > 1 || plan->block) {
        const int64_t run = fn_max(1, plan->s * plan->cols * (int64_t)plan->esize);
        const int64_t fit = l2 / 4 / (bytes * plan->cols), whole = fn_whole_lines(run);
        int64_t wanted = fn_ceil_div(UNIT_RUN_BYTES, run);
        if (whole <= wanted)
            wanted = fn_ceil_div(wanted, whole) * whole;
        return plan->cols * fn_max(1, fn_min(wanted, fit));
    }
    const int64_t even = bytes * plan->domains / UNITS;
    return fn_min(l2 / 4, fn_max(LEAST_UNIT_BYTES, even)) / bytes;
}

/* Group norm of vectors, a group being contiguous, is walked as layer norm of its groups: of
 * (128, 1280) in 32 groups as 4096 rows of 40 elements, each with the weights of its group.  As
 * planes of one element each would need coefficients of its own.  Rows of fewer elements than
 * LEAST_GROUP cost more than such planes. */
#define LEAST_GROUP 4
#define MOST_GROUP 4096
static void take_groups_as_rows(fn_plan *plan) {
    fn_problem *p = &plan->p;
    const int64_t each = p->s == 1 && (plan->row->facts & FN_OVER_CHANNELS) ? p->c / p->groups : 0;
    if (each < LEAST_GROUP || each > MOST_GROUP || (p->layout == FN_BLOCKED && p->c % p->block))
        return;
    p->s = plan->s = each;
    p->c = plan->c = plan->weight_rows = p->groups;
    p->layout = FN_CHANNELS_FIRST;
    plan->elem = 1;
}

/* in which form the array is walked */
static void choose_form(fn_plan *plan) {
    const fn_problem *p = &plan->p;
    const int blocked = p->layout == FN_BLOCKED;
    if (blocked)
        plan->c = fn_ceil_div(p->c, p->block) * p->block;
    if (p->s == 1 && plan->c > 1 && !plan->elem) /* one element: all layouts are the same columns */
        plan->col = 1;
    else if (blocked)
        plan->block = p->block;
    else /* one channel: both layouts are the same rows */
        plan->col = p->layout == FN_CHANNELS_LAST && p->c != 1;
    plan->cols = plan->block ? plan->block : plan->col ? plan->c : 1;
    plan->ld = plan->cols;
}

static void find_domains(fn_plan *plan) {
    const fn_problem *p = &plan->p;
    const int groups = !!(plan->row->facts & FN_OVER_CHANNELS);
    /* running statistics are constants for each channel, whatever the domain */
    const int over_n = !!(plan->row->facts & FN_OVER_SAMPLES) || !fn_needs_moments(plan);
    plan->nseg = 1;
    if (over_n && plan->n != 1) {
        if (plan->cols == plan->c) { /* samples lie behind one another: one long plane */
            plan->s = p->n * p->s;
        } else {
            plan->nseg = p->n;
            plan->seg_stride = plan->c * p->s;
        }
        plan->n = 1;
    }
    plan->planes = plan->n * plan->c;
    plan->per_domain = groups ? fn_max(1, p->c / p->groups) : 1;
    plan->sample_domains = groups ? p->groups : plan->c;
    plan->domains = plan->n * plan->sample_domains;
    plan->count = plan->per_domain * plan->s * plan->nseg;
    const fn_view plane = {.rows = plan->nseg, .run = plan->s, .outputs = plan->cols};
    plan->flat = !plan->col && fn_is_flat(&plane);
}

static void cut_chunks(fn_plan *plan) {
    if (plan->col) {
        plan->mchunks = plan->gchunks = col_chunks(plan->s, plan->cols);
    } else if (plan->block) {
        plan->mchunks = plan->gchunks = row_chunks(plan->nseg, plan->s * plan->block);
    } else {
        plan->mchunks = row_chunks(plan->nseg, plan->per_domain * plan->s);
        plan->gchunks = row_chunks(plan->nseg, plan->s);
    }
}

static void cut_units(fn_plan *plan, int arrays) {
    const int64_t sample = plan->sample_domains;
    plan->unit_domains = fn_max(1, unit_domains(plan, arrays));
    if (plan->row->sample_statistics) /* the planes of a sample depend on one another */
        plan->unit_domains = fn_max(1, plan->unit_domains / sample) * sample;
    fn_plan_traffic(plan, arrays);
    if (plan->row->channel_statistics) { /* all planes depend on one another: no units */
        plan->units = 1;
        plan->unit_domains = plan->domains;
    } else if (plan->cols > 1) {
        plan->units = plan->n * fn_ceil_div(sample, plan->unit_domains);
    } else {
        plan->units = fn_ceil_div(plan->domains, plan->unit_domains);
    }
}

fn_status fn_plan_make(fn_plan *plan, const fn_problem *problem, const fn_params *params,
                       int backward, int64_t *elements) {
    const fn_problem *p = problem;
    *elements = 0;
    if (!valid(p, params, backward) || (*elements = count_elements(p)) < 0)
        return FN_BAD_PROBLEM;
    if (*elements == 0)
        return FN_OK;
    *plan = (fn_plan){.p = *p, .n = p->n, .c = p->c, .s = p->s, .weight_rows = 1};
    plan->k = fn_active_kernels(p->dtype);
    if (!plan->k) /* not built */
        return FN_BAD_PROBLEM;
    plan->esize = p->dtype == FN_F64 ? 8 : p->dtype == FN_F32 ? 4 : 2;
    plan->asize = p->dtype == FN_F64 ? 8 : 4;
    plan->row = fn_row_of(p->norm);
    plan->squares = !!(plan->row->facts & FN_SQUARES);
    plan->elem = !!(plan->row->facts & FN_OF_ELEMENTS);
    take_groups_as_rows(plan);
    choose_form(plan);
    find_domains(plan);
    cut_chunks(plan);
    cut_units(plan, backward ? 2 : 1);
    return FN_OK;
}

int64_t fn_plan_scratch(const fn_plan *pl) {
    const int64_t cols = pl->flat ? FN_STRIP : pl->cols;
    if (cols == 1) /* rows: extremes alone */
        return 2 * fn_table(1) * (int64_t)pl->asize;
    return (int64_t)fn_scratch_bytes(pl->esize, pl->asize, cols);
}
