/* Memory for outputs: blocks that were freed are kept and handed out again, up to a bound.
 *
 * A fresh block of more than some megabytes comes from the operating system page by page, each
 * filled with zeros at its first touch: that costs as much as normalizing it. */
#define _DEFAULT_SOURCE /* madvise */
#include "fastnorm.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#define DEFAULT_BOUND ((size_t)256 << 20)
#define RAM_SHARE 16 /* or so much of the memory, where that is less */
#define HUGE_PAGE ((size_t)2 << 20)
#define ALIGN 64

/* in front of what the caller sees */
typedef struct block {
    size_t size; /* of the caller's part */
    struct block *next;
} block;
_Static_assert(sizeof(block) <= ALIGN, "the header must leave the data aligned");

/* blocks that are kept, the last one freed first */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static block *kept = NULL;
static size_t held = 0, bound = 0;
static int bound_is_set = 0;

/* a child of fork must not find the lock taken by a thread that it does not have */
static void take_lock(void) { pthread_mutex_lock(&lock); }
static void give_lock(void) { pthread_mutex_unlock(&lock); }
__attribute__((constructor)) static void on_load(void) {
    pthread_atfork(take_lock, give_lock, give_lock);
}

static block *block_of(void *p) { return (block *)((char *)p - ALIGN); }
static void *data_of(block *b) { return (char *)b + ALIGN; }

static size_t bound_now(void) {
    if (!bound_is_set) {
        const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
        const size_t share = pages > 0 && page > 0 ? (size_t)pages * (size_t)page / RAM_SHARE : 0;
        bound = share && share < DEFAULT_BOUND ? share : DEFAULT_BOUND;
        bound_is_set = 1;
    }
    return bound;
}

/* free the blocks that were freed longest ago until `most` bytes are held */
static void shrink(size_t most) {
    while (held > most) {
        block **last = &kept;
        while ((*last)->next)
            last = &(*last)->next;
        held -= (*last)->size;
        free(*last);
        *last = NULL;
    }
}

/* the smallest kept block of at least `size` bytes that wastes no more than a quarter, or NULL */
static block *take(size_t size) {
    block **best = NULL;
    for (block **b = &kept; *b; b = &(*b)->next)
        if ((*b)->size >= size && (*b)->size - size <= size / 4 &&
            (!best || (*b)->size < (*best)->size))
            best = b;
    if (!best)
        return NULL;
    block *found = *best;
    *best = found->next;
    held -= found->size;
    return found;
}

static void *fresh(size_t size) {
    const int huge = size >= 2 * HUGE_PAGE;
    void *p = NULL;
    if (posix_memalign(&p, huge ? HUGE_PAGE : ALIGN, size + ALIGN) != 0)
        return NULL;
#if defined(MADV_HUGEPAGE)
    if (huge)
        madvise(p, size + ALIGN, MADV_HUGEPAGE);
#endif
    return p;
}

void *fn_buffer_new(size_t size) {
    if (size > SIZE_MAX - HUGE_PAGE)
        return NULL;
    take_lock();
    block *b = take(size);
    give_lock();
    if (b)
        return data_of(b);
    b = fresh(size);
    if (!b) { /* what is kept may be what is missing */
        take_lock();
        shrink(0);
        give_lock();
        b = fresh(size);
    }
    if (!b)
        return NULL;
    b->size = size;
    return data_of(b);
}

void fn_buffer_free(void *p) {
    if (!p)
        return;
    block *b = block_of(p);
    take_lock();
    if (b->size <= bound_now()) {
        shrink(bound - b->size);
        b->next = kept;
        kept = b;
        held += b->size;
        b = NULL;
    }
    give_lock();
    free(b);
}

size_t fn_buffer_size(const void *p) { return block_of((void *)p)->size; }

void fn_set_buffer_cache(size_t bytes) {
    take_lock();
    bound = bytes;
    bound_is_set = 1;
    shrink(bytes);
    give_lock();
}

void fn_buffer_cache(size_t *most, size_t *now) {
    take_lock();
    *most = bound_now();
    *now = held;
    give_lock();
}
