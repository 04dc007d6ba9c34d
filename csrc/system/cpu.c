/* What the processor has: instruction sets, and caches. */
#include "system/cpu.h"

#include "fastnorm.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

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

int fn_cpu_has_avx2(void) { return cpu_has(XCR0_AVX, CPUID7_AVX2); }
int fn_cpu_has_avx512(void) { return cpu_has(XCR0_AVX512, CPUID7_AVX2 | CPUID7_AVX512); }
#endif

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
