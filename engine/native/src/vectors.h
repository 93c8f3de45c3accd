// Vectors of as many float32 as one register holds, by the compiler's own vector types: one source for every level.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

typedef float F __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));
typedef uint32_t U __attribute__((vector_size(4 * LANES)));

inline F load(const float *p) {
    F v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline U load_words(const void *p) {
    U v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
// LANES pairs of int8, each pair as two int16 in a word.
inline I load_pairs(const void *p) {
    typedef int8_t B __attribute__((vector_size(2 * LANES)));
    typedef int16_t S __attribute__((vector_size(4 * LANES)));
    B bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return (I)__builtin_convertvector(bytes, S);
}
// Of words that are two int16 each, the sum of the two products.
inline I products_of_pairs(I a, I b) {
#if LANES == 16
    return (I)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif LANES == 8
    return (I)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (I)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}
inline void store(float *p, F v) { std::memcpy(p, &v, sizeof v); }
inline F all(float x) { return x - F{}; }  // not x + 0, which is another number where x is -0: a broadcast and no sum
inline I all(int32_t x) { return x - I{}; }
inline F smaller(F a, F b) { return a < b ? a : b; }
inline F larger(F a, F b) { return a > b ? a : b; }

inline float sum(F v) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}
inline float largest(F v) {
    float most = v[0];
    for (int i = 1; i < LANES; i++) most = v[i] > most ? v[i] : most;
    return most;
}

// Whether a lane of a comparison is true.
inline bool any(I mask) {
#if LANES == 16
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif LANES == 8
    return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#elif defined(__SSE2__)
    return _mm_movemask_epi8((__m128i)mask) != 0;
#else
    int32_t some = 0;
    for (int i = 0; i < LANES; i++) some |= mask[i];
    return some != 0;
#endif
}

// exp, within 2 ulp; 0 below -87. NaN stays NaN, for which the comparisons have x on their right.
inline F exponential(F x) {
    const F low = all(-87.0f), high = all(88.0f);
    F clamped = smaller(high, larger(low, x));
    const F magic = all(12582912.0f);  // 1.5 · 2^23: adding it rounds to a whole number
    F shifted = clamped * all(1.44269504f) + magic;
    F n = shifted - magic;
    F r = clamped - n * all(0.693359375f);
    r = r - n * all(-2.12194440e-4f);
    F p = all(1.9875691500e-4f);
    p = p * r + all(1.3981999507e-3f);
    p = p * r + all(8.3334519073e-3f);
    p = p * r + all(4.1665795894e-2f);
    p = p * r + all(1.6666665459e-1f);
    p = p * r + all(5.0000001201e-1f);
    p = p * r * r + r + all(1.0f);
    I power = ((I)shifted - (I)magic + 127) << 23;
    F y = p * (F)power;
    return x < low ? F{} : y;
}

// Natural logarithm of positive normal numbers, within 2 ulp.
inline F logarithm(F x) {
    I bits = (I)x;
    I exponent = ((bits >> 23) & 255) - 126;
    F m = (F)((bits & 0x007fffff) | 0x3f000000);  // 0.5 … 1
    I below = m < all(0.707106781f);
    exponent += below;  // -1 where true
    m = (below ? m + m : m) - all(1.0f);
    F e = __builtin_convertvector(exponent, F);
    F z = m * m;
    F p = all(7.0376836292e-2f);
    p = p * m + all(-1.1514610310e-1f);
    p = p * m + all(1.1676998740e-1f);
    p = p * m + all(-1.2420140846e-1f);
    p = p * m + all(1.4249322787e-1f);
    p = p * m + all(-1.6668057665e-1f);
    p = p * m + all(2.0000714765e-1f);
    p = p * m + all(-2.4999993993e-1f);
    p = p * m + all(3.3333331174e-1f);
    p = p * m * z;
    p = p + e * all(-2.12194440e-4f);
    p = p - z * all(0.5f);
    return (m + p) + e * all(0.693359375f);
}

// The error function, within 4e-7.
inline F error_function(F x) {
    x = smaller(larger(x, all(-4.0f)), all(4.0f));
    F z = x * x;
    F p = all(-2.72614225801306e-10f);
    p = p * z + all(2.77068142495902e-08f);
    p = p * z + all(-2.10102402082508e-06f);
    p = p * z + all(-5.69250639462346e-05f);
    p = p * z + all(-7.34990630326855e-04f);
    p = p * z + all(-2.95459980854025e-03f);
    p = p * z + all(-1.60960333262415e-02f);
    F q = all(-1.45660718464996e-05f);
    q = q * z + all(-2.13374055278905e-04f);
    q = q * z + all(-1.68282697438203e-03f);
    q = q * z + all(-7.37332916720468e-03f);
    q = q * z + all(-1.42647390514189e-02f);
    return x * p / q;
}

inline F gelu(F x) { return all(0.5f) * x * (all(1.0f) + error_function(x * all(0.70710678118654752f))); }

inline F gelu_tanh(F x) {
    F inner = all(0.79788456080286536f) * (x + all(0.044715f) * x * x * x);
    F e = exponential(all(-2.0f) * inner);  // tanh(a) = 2 / (1 + exp(-2a)) - 1
    return x / (all(1.0f) + e);
}

// The sums of LANES vectors, one a lane.
template <int N> __attribute__((always_inline)) inline void sums_of_pairs(F *v) {
    if constexpr (N > 1) {
        I even, odd;
        for (int i = 0; i < LANES; i++) {
            even[i] = 2 * i;
            odd[i] = 2 * i + 1;
        }
#if defined(__clang__)
        for (int j = 0; j < N / 2; j++) {
            F a, b;
            for (int i = 0; i < LANES; i++) {
                a[i] = 2 * i < LANES ? v[2 * j][2 * i] : v[2 * j + 1][2 * i - LANES];
                b[i] = 2 * i < LANES ? v[2 * j][2 * i + 1] : v[2 * j + 1][2 * i + 1 - LANES];
            }
            v[j] = a + b;
        }
#else
        for (int j = 0; j < N / 2; j++)
            v[j] = __builtin_shuffle(v[2 * j], v[2 * j + 1], even) + __builtin_shuffle(v[2 * j], v[2 * j + 1], odd);
#endif
        sums_of_pairs<N / 2>(v);
    }
}

// float16, as the cache may have it.
struct Half {
    uint16_t bits;
};

inline float widen(Half h) {
    uint32_t sign = uint32_t(h.bits & 0x8000) << 16, magnitude = h.bits & 0x7fff, bits;
    if (magnitude >= 0x7c00)
        bits = 0x7f800000 | (magnitude & 0x3ff) << 13;
    else if (magnitude >= 0x0400)
        bits = (magnitude << 13) + (112u << 23);
    else {
        float small = float(magnitude) * 5.9604644775390625e-8f;  // 2^-24
        std::memcpy(&bits, &small, 4);
    }
    bits |= sign;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline Half narrow(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return Half{uint16_t(sign | 0x7e00)};
    if (magnitude >= 0x477ff000) return Half{uint16_t(sign | 0x7c00)};
    if (magnitude < 0x38800000) {
        float small = std::fabs(f) * 16777216.0f;  // 2^24
        return Half{uint16_t(sign | uint32_t(std::nearbyint(small)))};
    }
    uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return Half{uint16_t(sign | ((rounded - (112u << 23)) >> 13))};
}

inline F load(const Half *p) {
#if LANES == 16
    return (F)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
#elif LANES == 8 && defined(__F16C__)
    return (F)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
#else
    F v;
    for (int i = 0; i < LANES; i++) v[i] = widen(p[i]);
    return v;
#endif
}
inline void put(Half *p, float f) { *p = narrow(f); }
inline void put(float *p, float f) { *p = f; }
inline float get(Half h) { return widen(h); }
inline float get(float f) { return f; }

}  // namespace
