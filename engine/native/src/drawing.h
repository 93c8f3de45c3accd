// The next token by seed and temperature, as engine/sampling.py draws it.
//
// The noise is that of sampling.py up to the last bits of its logarithms. Where these could decide, the draw is left
// to sampling.py, so that a token drawn is always the same.
#pragma once
#include "interface.h"
#include "vectors.h"

namespace {

constexpr float LARGEST_LOGIT = 1e10f, BELOW_ONE = 1 - 0x1p-24f;

inline uint64_t mix(uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

inline F gumbel(uint64_t row, uint64_t token) {
    UL x;
    for (int i = 0; i < LANES; i++) x[i] = row + token + i;
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    x ^= x >> 31;
    const L bits = (L)x >> 11;
    F u = __builtin_convertvector(bits, F);
    u = smaller(((F)((U)u & 0x7fffffffu) + all(0.5f)) * all(0x1p-52f), all(BELOW_ONE));
    const F y = all(1.0f) - u;  // log1p(-u) = log(y) · u / (1 - y), with no digits lost (Kahan)
    const F lost = all(1.0f) - y;
    const F inner = lost > all(0.0f) ? -logarithm(y) * u / (lost > all(0.0f) ? lost : all(1.0f)) : u;
    return -logarithm(inner);
}

// A token below `vocabulary`, TB_BROKEN if one of all `size` logits is NaN or too large, TB_UNDECIDED where not sure.
inline int32_t draw(const float *logits, int size, int vocabulary, float temperature, int64_t seed, int64_t position) {
    float most = 0;
    bool broken = false;
    for (int i = 0; i < size; i++) {
        broken |= !(logits[i] <= LARGEST_LOGIT);
        most = i ? std::fmax(most, logits[i]) : logits[i];
    }
    if (broken || !(most >= -LARGEST_LOGIT)) return TB_BROKEN;
    if (temperature < 0) return TB_UNDECIDED;
    if (temperature == 0) {
        int best = 0;
        for (int i = 1; i < vocabulary; i++)
            if (logits[i] > logits[best]) best = i;
        return best;
    }
    const uint64_t row = mix(mix(uint64_t(seed)) + uint64_t(position));
    float best = -INFINITY, second = -INFINITY;
    int at = 0;
    for (int i = 0; i < vocabulary; i += LANES) {
        F noisy;
        if (i + LANES <= vocabulary)
            noisy = load(logits + i);
        else
            for (int j = 0; j < LANES; j++) noisy[j] = i + j < vocabulary ? logits[i + j] : -INFINITY;
        noisy = noisy / all(temperature) + gumbel(row, i);
        if (largest(noisy) <= second) continue;
        for (int j = 0; j < LANES; j++) {
            if (noisy[j] > best)
                second = best, best = noisy[j], at = i + j;
            else if (noisy[j] > second)
                second = noisy[j];
        }
    }
    const float error = 3e-5f + 4 * 0x1p-23f * std::fabs(best);
    return best - second > 2 * error ? at : TB_UNDECIDED;
}

}  // namespace
