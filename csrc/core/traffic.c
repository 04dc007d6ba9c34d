/* See traffic.h. */
#include "core/traffic.h"

#include "kernels/list.h"

#include <stdatomic.h>
#include <stdlib.h>

/* Arrays that do not fit the last cache together, of which others use a part, gain nothing from an
 * output that is kept there.
 * FASTNORM_STREAM_BYTES is for measurements and tests: the bits are the same. */
int64_t fn_stream_bytes(void) {
    static _Atomic int64_t known = -1;
    int64_t bytes = atomic_load_explicit(&known, memory_order_relaxed);
    if (bytes < 0) {
        const char *text = getenv("FASTNORM_STREAM_BYTES");
        const int64_t l3 = fn_cache_bytes(3);
        bytes = text ? atoll(text) : l3 > 0 ? l3 / 4 * 3 : 8 << 20;
        atomic_store_explicit(&known, bytes, memory_order_relaxed);
    }
    return bytes;
}

/* more than a quarter of the L3, of which arrays that are written past the cache fill three */
int fn_from_memory(int64_t bytes) { return bytes > fn_stream_bytes() / 3; }

int fn_fetch(int64_t bytes) { return fn_from_memory(bytes / 2) ? FN_FAR : fn_from_memory(bytes); }
