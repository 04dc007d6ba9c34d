/* Which way to memory a call takes: written past the cache or through it, fetched ahead or not. The
 * bits of the result do not depend on it. */
#ifndef FN_TRAFFIC_H
#define FN_TRAFFIC_H

#include <stdint.h>

/* calls whose arrays have at least as many bytes write past the cache */
int64_t fn_stream_bytes(void);
/* whether so many bytes are read from memory rather than from the caches */
int fn_from_memory(int64_t bytes);
/* what kernels have to fetch of so many bytes that they read: nothing (0), from a quarter of the L3
 * on some (1), from half of it on all, which is far (FN_FAR) */
int fn_fetch(int64_t bytes);

#endif
