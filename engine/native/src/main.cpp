// What the library exports: the levels that this processor has, and models that compute at one of them.
#include <cstring>
#include <exception>

#include "level.h"
#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Level {
    const char *name;
    std::unique_ptr<Step> (*make)(const TbModel &);
    bool (*present)();
};

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

#if !defined(TB_WITHOUT_AMX)
// Linux gives a process the tiles when it asks.
bool has_amx() {
#if defined(__linux__)
    constexpr unsigned BF16 = 1u << 22, TILES = 1u << 24;
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    unsigned a, b, c, d = 0;
    if (!has_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (BF16 | TILES)) != (BF16 | TILES)) return false;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return false;
#endif
}
#endif
#endif

bool always() { return true; }

const Level LEVELS[] = {
#if defined(__x86_64__)
#if !defined(TB_WITHOUT_AMX)
    {"amx", make_amx, has_amx},
#endif
    {"avx512", make_avx512, has_avx512},
    {"avx2", make_avx2, has_avx2},
    {"sse2", make_plain, always},
#elif defined(__aarch64__)
    {"neon", make_plain, always},
#else
    {"plain", make_plain, always},
#endif
};

}  // namespace

EXPORT int32_t tb_abi_version() { return TB_ABI_VERSION; }

// The name of the i-th level, best first; null after the last. `present` is whether this processor has it.
EXPORT const char *tb_level(int32_t i, int32_t *present) {
    if (i < 0 || size_t(i) >= sizeof LEVELS / sizeof *LEVELS) return nullptr;
    *present = LEVELS[i].present();
    return LEVELS[i].name;
}

// A model at a level that is present; null if memory is short or there is none of the name.
EXPORT void *tb_create(const TbModel *model, const char *level) {
    for (const Level &each : LEVELS)
        if (!std::strcmp(each.name, level) && each.present()) {
            try {
                return each.make(*model).release();
            } catch (const std::exception &) {
                return nullptr;
            }
        }
    return nullptr;
}

EXPORT void tb_destroy(void *model) { delete static_cast<Step *>(model); }

EXPORT int64_t tb_bytes(void *model) { return int64_t(static_cast<Step *>(model)->bytes()); }

// 0, or 1 where memory is short: the cache's pages are then as before, but for what no token has yet.
EXPORT int32_t tb_run(void *model, TbStep *step) {
    try {
        static_cast<Step *>(model)->run(*step);
        return 0;
    } catch (const std::exception &) {
        return 1;
    }
}

// 0, or 1 where memory is short.
EXPORT int32_t tb_draw(void *model, const TbDraws *draws) {
    try {
        static_cast<Step *>(model)->draw(*draws);
        return 0;
    } catch (const std::exception &) {
        return 1;
    }
}
