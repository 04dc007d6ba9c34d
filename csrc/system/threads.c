/* Threads: how many, sharing out, and what a fork needs.  The only file with OpenMP. */
#include "system/threads.h"

#include "fastnorm.h"
#include "system/float_mode.h"
#include "system/quota.h"

#include <ctype.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#ifdef _OPENMP
#include <omp.h>
#endif

/* Work below this many bytes for each thread stays on the calling thread.  Sleeping threads take
 * some 25 microseconds to wake, spinning ones one or two. */
#define BYTES_PER_SLEEPER (1 << 20)
#define BYTES_PER_SPINNER (64 << 10)
static int64_t bytes_per_thread = BYTES_PER_SLEEPER;

#define MOST_THREADS 1024     /* what set_num_threads takes */
static atomic_int wanted = 0; /* 0: the default */

void fn_set_num_threads(int num_threads) {
    atomic_store_explicit(&wanted, num_threads < 0 ? 0 : num_threads, memory_order_relaxed);
}

#ifdef _OPENMP

/* What the environment says; else OpenMP's number, in a container with a quota at most that. */
static int default_threads(void) {
    static atomic_int from_environment = -1, quota = MOST_THREADS;
    int n = atomic_load_explicit(&from_environment, memory_order_relaxed);
    if (n < 0) {
        const char *text = getenv("FASTNORM_NUM_THREADS");
        n = text ? atoi(text) : 0;
        n = n < 0 ? 0 : n;
        const int allowed = getenv("OMP_NUM_THREADS") ? 0 : fn_cpu_quota("");
        atomic_store_explicit(&quota, allowed ? allowed : MOST_THREADS, memory_order_relaxed);
        atomic_store_explicit(&from_environment, n, memory_order_relaxed);
    }
    return n ? n
             : (int)fn_min(omp_get_max_threads(),
                           atomic_load_explicit(&quota, memory_order_relaxed));
}

int fn_get_num_threads(void) {
    int n = atomic_load_explicit(&wanted, memory_order_relaxed);
    return n ? n : default_threads();
}

int fn_has_openmp(void) { return 1; }

/* GNU's OpenMP hangs in the child when a process forks after a parallel region: its threads are
 * gone, its pool still counts on them.  So the pool is given up before each fork; the next region
 * makes a new one. */
static atomic_int pools_given_up = 0;
static void before_fork(void) {
    if (!omp_in_parallel()) {
        omp_pause_resource_all(omp_pause_soft);
        atomic_fetch_add(&pools_given_up, 1);
    }
}

/* OpenMP's size of a stack, as "512" (kilobytes), "16 M" or "20000B"; 0: the system's. */
static size_t stack_bytes = 0;
static size_t read_stack_bytes(const char *text) {
    static const char units[] = "BKMG";
    char *end;
    const unsigned long long size = text ? strtoull(text, &end, 10) : 0;
    if (size == 0)
        return 0;
    while (*end == ' ')
        end++;
    const char *unit = *end ? strchr(units, toupper((unsigned char)*end)) : units + 1;
    return unit ? (size_t)size << 10 * (unit - units) : 0;
}

__attribute__((constructor)) static void on_load(void) {
    const char *stack = getenv("OMP_STACKSIZE");
    pthread_atfork(before_fork, NULL, NULL);
    stack_bytes = read_stack_bytes(stack ? stack : getenv("GOMP_STACKSIZE"));
    const char *policy = getenv("OMP_WAIT_POLICY"), *spins = getenv("GOMP_SPINCOUNT");
    if ((policy && strcasecmp(policy, "active") == 0) || (spins && atoi(spins) > 0))
        bytes_per_thread = BYTES_PER_SPINNER;
}

#else

int fn_get_num_threads(void) { return 1; }
int fn_has_openmp(void) { return 0; }

#endif

static int threads_of(int64_t bytes, int64_t each) {
    return bytes < 2 * each ? 1
                            : (int)fn_min(fn_min(fn_get_num_threads(), MOST_THREADS), bytes / each);
}
int fn_threads_for(int64_t bytes) { return threads_of(bytes, bytes_per_thread); }
int fn_most_threads_for(int64_t bytes) { return threads_of(bytes, BYTES_PER_SPINNER); }

/* Stores past the cache are weakly ordered: a full fence before another thread may read them.  One
 * for each thread, at the end: in the kernels it would wait for memory after every few rows. */
static void after_streaming(const fn_team *team) {
    if (team->fence)
        atomic_thread_fence(memory_order_seq_cst);
}

/* How far a thread's range is taken, in a cache line of its own. */
typedef struct {
    _Alignas(FN_LINE) atomic_llong next;
} taken;

static int64_t lines(int64_t bytes) { return fn_ceil_div(bytes, FN_LINE) * FN_LINE; }

int64_t fn_team_bytes(const fn_team *team) {
    return team->threads * ((int64_t)sizeof(taken) + lines(team->scratch_bytes));
}

char *fn_team_scratch(const fn_team *team) {
    return team->memory ? team->memory + team->threads * (int64_t)sizeof(taken) : NULL;
}

/* Each thread takes its range, then what is left of the others': cores are not all as fast, and
 * other programs run on them. */
struct fn_share {
    taken *ranges; /* NULL: there is one, of this thread alone, */
    int64_t at;    /* whose next index this is */
    int64_t count;
    int ranges_count, first, seen; /* this thread's own range, and how many it has gone through */
    int backwards;
};

int64_t fn_next(fn_share *s) {
    if (!s->ranges) {
        if (s->at == s->count)
            return -1;
        const int64_t i = s->at++;
        return s->backwards ? s->count - 1 - i : i;
    }
    for (const int T = s->ranges_count; s->seen < T; s->seen++) {
        const int64_t t = (s->first + s->seen) % T;
        const int64_t lo = s->count * t / T, hi = s->count * (t + 1) / T;
        atomic_llong *next = &s->ranges[t].next;
        if (atomic_load_explicit(next, memory_order_relaxed) >= hi)
            continue;
        const int64_t i = atomic_fetch_add_explicit(next, 1, memory_order_relaxed);
        if (i < hi)
            return s->backwards ? hi - 1 - (i - lo) : i;
    }
    return -1;
}

#ifdef _OPENMP
/* GNU's OpenMP ends the process where it cannot make a thread: with few processes allowed, or
 * little address space.  So before it has to make some, as many are made and ended here. */
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t done;
    int is_done;
} gate;

static void *wait_at(void *of) {
    gate *g = of;
    pthread_mutex_lock(&g->lock);
    while (!g->is_done)
        pthread_cond_wait(&g->done, &g->lock);
    pthread_mutex_unlock(&g->lock);
    return NULL;
}

/* how many of `count` more threads there can be at once, MOST_THREADS at most */
static int try_threads(int count) {
    gate g = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
    pthread_t made[MOST_THREADS];
    pthread_attr_t attr;
    int n = 0;
    if (pthread_attr_init(&attr) != 0)
        return 0;
    if (stack_bytes)
        pthread_attr_setstacksize(&attr, stack_bytes);
    while (n < count && pthread_create(&made[n], &attr, wait_at, &g) == 0)
        n++;
    pthread_attr_destroy(&attr);
    pthread_mutex_lock(&g.lock);
    g.is_done = 1;
    pthread_cond_broadcast(&g.done);
    pthread_mutex_unlock(&g.lock);
    for (int i = 0; i < n; i++)
        pthread_join(made[i], NULL);
    return n;
}

/* The size of a team that there can be, `size_wanted` or less.  A calling thread's team stays for
 * its next one; after a refusal it is not asked again for some calls. */
#define CALLS_WITHOUT 1000
static int team_size(int size_wanted) {
    static _Thread_local int size = 1, pool = 0, without = 0;
    const int now = atomic_load_explicit(&pools_given_up, memory_order_relaxed);
    if (pool != now) {
        pool = now;
        size = 1;
    }
    without -= without > 0;
    if (size < size_wanted && !without) {
        size += try_threads(size_wanted - size);
        without = size < size_wanted ? CALLS_WITHOUT : 0;
    }
    if (size_wanted < size)
        size = size_wanted; /* OpenMP ends those that a smaller team leaves */
    return size;
}

#endif

void fn_parallel(const fn_team *team, int64_t count, int backwards,
                 void (*body)(void *, fn_share *, char *), void *context) {
#ifdef _OPENMP
    if (team->memory && team->threads > 1 && count > 1) {
        const int T = team->threads; /* in all steps, so that the team stays */
        const int size = team_size(T);
        taken *ranges = (taken *)team->memory;
        for (int t = 0; t < T; t++)
            atomic_init(&ranges[t].next, count * t / T);
#pragma omp parallel num_threads(size)
        {
            const fn_float_mode mode = fn_enter_float_mode();
            const int64_t own = omp_get_thread_num();
            fn_share share = {.ranges = ranges,
                              .count = count,
                              .ranges_count = T,
                              .first = (int)own,
                              .backwards = backwards};
            body(context, &share, fn_team_scratch(team) + own * lines(team->scratch_bytes));
            after_streaming(team);
            fn_leave_float_mode(mode);
        }
        return;
    }
#endif
    fn_share share = {.count = count, .backwards = backwards};
    body(context, &share, fn_team_scratch(team));
    after_streaming(team);
}
