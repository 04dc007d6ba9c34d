/* Threads: how many, sharing out, and what a fork needs.  The only file with OpenMP. */
#include "run.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <strings.h>

#ifdef _OPENMP
#include <omp.h>
#endif

/* Work below this many bytes for each thread stays on the calling thread.  Sleeping threads take
 * some 25 microseconds to wake, spinning ones one or two. */
#define BYTES_PER_SLEEPER (1 << 20)
#define BYTES_PER_SPINNER (64 << 10)
static int64_t bytes_per_thread = BYTES_PER_SLEEPER;

#define MOST_THREADS 1024     /* what set_num_threads takes; each has a line on the stack */
static atomic_int wanted = 0; /* 0: the default */

void fn_set_num_threads(int num_threads) {
    atomic_store_explicit(&wanted, num_threads < 0 ? 0 : num_threads, memory_order_relaxed);
}

#ifdef _OPENMP

static int default_threads(void) {
    static atomic_int from_environment = -1;
    int n = atomic_load_explicit(&from_environment, memory_order_relaxed);
    if (n < 0) {
        const char *text = getenv("FASTNORM_NUM_THREADS");
        n = text ? atoi(text) : 0;
        n = n < 0 ? 0 : n;
        atomic_store_explicit(&from_environment, n, memory_order_relaxed);
    }
    return n ? n : omp_get_max_threads();
}

int fn_get_num_threads(void) {
    int n = atomic_load_explicit(&wanted, memory_order_relaxed);
    return n ? n : default_threads();
}

int fn_has_openmp(void) { return 1; }

/* GNU's OpenMP hangs in the child when a process forks after a parallel region: its threads are
 * gone, its pool still counts on them.  So the pool is given up before each fork; the next region
 * makes a new one. */
static void before_fork(void) {
    if (!omp_in_parallel())
        omp_pause_resource_all(omp_pause_soft);
}

__attribute__((constructor)) static void on_load(void) {
    pthread_atfork(before_fork, NULL, NULL);
    const char *policy = getenv("OMP_WAIT_POLICY"), *spins = getenv("GOMP_SPINCOUNT");
    if ((policy && strcasecmp(policy, "active") == 0) || (spins && atoi(spins) > 0))
        bytes_per_thread = BYTES_PER_SPINNER;
}

#else

int fn_get_num_threads(void) { return 1; }
int fn_has_openmp(void) { return 0; }

#endif

int fn_threads_for(int64_t bytes) {
    if (bytes < 2 * bytes_per_thread)
        return 1;
    return (int)fn_min(fn_min(fn_get_num_threads(), MOST_THREADS), bytes / bytes_per_thread);
}

/* Stores past the cache are weakly ordered: a full fence before another thread may read them.  One
 * for each thread, at the end: in the kernels it would wait for memory after every few rows. */
static void after_streaming(const fn_job *job) {
    if (job->stream)
        atomic_thread_fence(memory_order_seq_cst);
}

#ifdef _OPENMP
/* How far a thread's range is taken, in a cache line of its own. */
typedef struct {
    _Alignas(FN_LINE_BYTES) atomic_llong next;
} taken;

/* Each thread takes its range, then what is left of the others': cores are not all as fast, and
 * other programs run on them. */
static void take_ranges(fn_job *job, int64_t count, void (*task)(fn_job *, int64_t), int backwards,
                        taken *ranges, int T) {
    const int first = omp_get_thread_num();
    for (int k = 0; k < T; k++) {
        const int64_t t = (first + k) % T, lo = count * t / T, hi = count * (t + 1) / T;
        atomic_llong *next = &ranges[t].next;
        while (atomic_load_explicit(next, memory_order_relaxed) < hi) {
            const int64_t i = atomic_fetch_add_explicit(next, 1, memory_order_relaxed);
            if (i < hi)
                task(job, backwards ? hi - 1 - (i - lo) : i);
        }
    }
    after_streaming(job);
}
#endif

/* task(job, i) for all i in [0, count): each thread a contiguous range first, taken backwards when
 * the step before went forwards over the same data (the last read is still in the cache). */
void fn_parallel(fn_job *job, int64_t count, void (*task)(fn_job *, int64_t), int backwards) {
#ifdef _OPENMP
    if (job->threads > 1 && count > 1) {
        const int T = job->threads; /* in all steps: OpenMP ends those that a smaller team leaves */
        taken ranges[T];
        for (int t = 0; t < T; t++)
            atomic_init(&ranges[t].next, count * t / T);
#pragma omp parallel num_threads(T)
        take_ranges(job, count, task, backwards, ranges, T);
        return;
    }
#endif
    for (int64_t i = 0; i < count; i++)
        task(job, backwards ? count - 1 - i : i);
    after_streaming(job);
}
