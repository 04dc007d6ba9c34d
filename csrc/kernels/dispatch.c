/* Which instruction sets were built, which of them the processor has, and which is in use. */
#include "kernels/list.h"
#include "system/cpu.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* the tables of an instruction set in the order of fn_dtype; NULL: not built */
#if FN_HAS_f32
#define FN_F32_OF(isa) &fn_kernels_##isa##_f32
#else
#define FN_F32_OF(isa) NULL
#endif
#if FN_HAS_f64
#define FN_F64_OF(isa) &fn_kernels_##isa##_f64
#else
#define FN_F64_OF(isa) NULL
#endif
#if FN_HAS_f16
#define FN_F16_OF(isa) &fn_kernels_##isa##_f16
#else
#define FN_F16_OF(isa) NULL
#endif
#if FN_HAS_bf16
#define FN_BF16_OF(isa) &fn_kernels_##isa##_bf16
#else
#define FN_BF16_OF(isa) NULL
#endif
#define FN_DTYPES_OF(isa) {FN_F32_OF(isa), FN_F64_OF(isa), FN_F16_OF(isa), FN_BF16_OF(isa)}

#if defined(__x86_64__)
#define FN_BASE_NAME "sse2"
#elif defined(__aarch64__)
#define FN_BASE_NAME "neon"
#else
#define FN_BASE_NAME "generic"
#endif

/* Worst first; a processor that has one has those before it.  CONTRIBUTING.md lists what a new one
 * needs. */
static const struct {
    const char *name;
    const fn_kernels *kernels[FN_DTYPE_COUNT];
    int (*has)(void); /* NULL: every processor of the architecture has it */
} isas[] = {
#if FN_HAS_base
    {FN_BASE_NAME, FN_DTYPES_OF(base), NULL},
#endif
#if FN_HAS_avx2
    {"avx2", FN_DTYPES_OF(avx2), fn_cpu_has_avx2},
#endif
#if FN_HAS_avx512
    {"avx512", FN_DTYPES_OF(avx512), fn_cpu_has_avx512},
#endif
};
enum { BUILT = (int)(sizeof isas / sizeof *isas) };

const char *fn_isas_built(void) {
    static const char names[] = ""
#if FN_HAS_base
                                " " FN_BASE_NAME
#endif
#if FN_HAS_avx2
                                " avx2"
#endif
#if FN_HAS_avx512
                                " avx512"
#endif
        ;
    return names + 1;
}

static atomic_int active = -1; /* index into isas; -1 before first use */

int fn_isa_count(void) {
    int n = 0;
    while (n < BUILT && (!isas[n].has || isas[n].has()))
        n++;
    return n;
}

const char *fn_isa_name(int i) { return isas[i].name; }

static int find_isa(const char *name) {
    for (int i = 0, n = fn_isa_count(); i < n; i++)
        if (strcmp(isas[i].name, name) == 0)
            return i;
    return -1;
}

/* -1 where the processor has none of those that were built */
static int active_isa(void) {
    int i = atomic_load_explicit(&active, memory_order_relaxed);
    if (i >= 0)
        return i;
    const char *wanted = getenv("FASTNORM_ISA");
    i = wanted ? find_isa(wanted) : -1;
    if (i < 0)
        i = fn_isa_count() - 1;
    atomic_store_explicit(&active, i, memory_order_relaxed);
    return i;
}

int fn_set_isa(const char *name) {
    int i = find_isa(name);
    if (i < 0)
        return -1;
    atomic_store_explicit(&active, i, memory_order_relaxed);
    return 0;
}

const char *fn_get_isa(void) {
    const int i = active_isa();
    return i < 0 ? "" : isas[i].name;
}

const fn_kernels *fn_active_kernels(fn_dtype dtype) {
    const int i = active_isa();
    return i < 0 ? NULL : isas[i].kernels[dtype];
}

int fn_has_dtype(fn_dtype dtype) { return fn_active_kernels(dtype) != NULL; }

#define FN_STRING_(x) #x
#define FN_STRING(x) FN_STRING_(x)
const char *fn_compiler(void) {
#if defined(__clang__)
    return "clang " FN_STRING(__clang_major__) "." FN_STRING(__clang_minor__);
#else
    return "gcc " FN_STRING(__GNUC__) "." FN_STRING(__GNUC_MINOR__);
#endif
}
