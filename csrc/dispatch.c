/* Which instruction sets were built, which the processor has, and which is in use. */
#include "internal.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>

/* CPUID leaf 7, subleaf 0, EBX */
#define CPUID7_AVX2 (1u << 5)
#define CPUID7_AVX512 ((1u << 16) | (1u << 17) | (1u << 30) | (1u << 31)) /* F, DQ, BW, VL */
/* CPUID leaf 1, ECX */
#define CPUID1_FMA (1u << 12)
#define CPUID1_OSXSAVE (1u << 27)
#define CPUID1_F16C (1u << 29)
/* XCR0: what the operating system saves: SSE and AVX; and opmask and ZMM */
#define XCR0_AVX 0x06u
#define XCR0_AVX512 0xe6u

/* __builtin_cpu_supports would do, but does not link with every compiler driver. */
static unsigned xcr0(void) {
    unsigned eax, edx;
    __asm__("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    return eax;
}

static int cpu_has(unsigned xcr0_bits, unsigned cpuid7_bits) {
    unsigned eax, ebx, ecx, edx;
    const unsigned wanted = CPUID1_FMA | CPUID1_OSXSAVE | CPUID1_F16C;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & wanted) != wanted)
        return 0;
    if ((xcr0() & xcr0_bits) != xcr0_bits)
        return 0;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx & cpuid7_bits) == cpuid7_bits;
}

static int has_base(void) { return 1; }
static int has_avx2(void) { return cpu_has(XCR0_AVX, CPUID7_AVX2); }
static int has_avx512(void) { return cpu_has(XCR0_AVX512, CPUID7_AVX2 | CPUID7_AVX512); }

/* Worst first.  A new instruction set is a line here, a file isa_<name>.c and, where it has wider
 * registers, a branch of vec.h. */
#define FN_ISAS(X)                                                                                 \
    X("sse2", base)                                                                                \
    X("avx2", avx2)                                                                                \
    X("avx512", avx512)
#else
static int has_base(void) { return 1; }
#if defined(__aarch64__)
#define FN_ISAS(X) X("neon", base)
#else
#define FN_ISAS(X) X("generic", base)
#endif
#endif

#define FN_ISA_ENTRY(name, id) {name, fn_kernels_##id, has_##id},
static const struct {
    const char *name;
    const fn_kernels *kernels;
    int (*has)(void);
} isas[] = {FN_ISAS(FN_ISA_ENTRY)};

#define FN_ISA_NAME(name, id) " " name
const char *fn_isas_built(void) { return &(FN_ISAS(FN_ISA_NAME))[1]; }

static atomic_int active = -1; /* index into isas; -1 before first use */

int fn_isa_count(void) {
    int n = 1; /* they are nested: the first that is missing ends the list */
    while (n < (int)(sizeof isas / sizeof *isas) && isas[n].has())
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

const char *fn_get_isa(void) { return isas[active_isa()].name; }

const fn_kernels *fn_active_kernels(fn_dtype dtype) { return &isas[active_isa()].kernels[dtype]; }

#define FN_STRING_(x) #x
#define FN_STRING(x) FN_STRING_(x)
const char *fn_compiler(void) {
#if defined(__clang__)
    return "clang " FN_STRING(__clang_major__) "." FN_STRING(__clang_minor__);
#else
    return "gcc " FN_STRING(__GNUC__) "." FN_STRING(__GNUC_MINOR__);
#endif
}

/* Linux keeps the sizes in sysfs; sysconf knows them on some C libraries only. */
static int64_t read_cache_bytes(int level) {
    for (int i = 0; i < 8; i++) {
        char path[80], type[16] = "", unit = 0;
        int found = 0;
        long size = 0;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/level", i);
        FILE *f = fopen(path, "r");
        if (!f)
            break;
        int ok = fscanf(f, "%d", &found) == 1;
        fclose(f);
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/type", i);
        if (!ok || found != level || !(f = fopen(path, "r")))
            continue;
        ok = fscanf(f, "%15s", type) == 1;
        fclose(f);
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", i);
        if (!ok || strcmp(type, "Instruction") == 0 || !(f = fopen(path, "r")))
            continue;
        ok = fscanf(f, "%ld%c", &size, &unit) >= 1;
        fclose(f);
        if (ok)
            return (int64_t)size * (unit == 'K' ? 1024 : unit == 'M' ? 1024 * 1024 : 1);
    }
    return 0;
}

int64_t fn_cache_bytes(int level) {
    static _Atomic int64_t known[4] = {-1, -1, -1, -1};
    if (level < 1 || level > 3)
        return 0;
    int64_t bytes = atomic_load_explicit(&known[level], memory_order_relaxed);
    if (bytes < 0) {
        bytes = read_cache_bytes(level);
        atomic_store_explicit(&known[level], bytes, memory_order_relaxed);
    }
    return bytes;
}

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
