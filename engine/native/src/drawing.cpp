// The next token of a row of logits, and its log-probability, as engine/sampler.py has them. Compiled once for each level, and
// without contraction: each product and each sum is rounded, as torch rounds them.
//
// What is left to draw from is the same to the last bit. The noise is that of engine/sampling.py up to the last bits of its
// logarithms: where these could decide, the row is left to engine/sampler.py, so that a token drawn is always the same.
#include "drawing.h"

#include <algorithm>
#include <functional>

#include "vectors.h"

namespace {

constexpr float LARGEST_LOGIT = 1e10f, BELOW_ONE = 1 - 0x1p-24f, NEVER = -INFINITY;
constexpr float LOG2_E = 1.4426950216293335f, LEAST_EXPONENT = -42;
constexpr float EXP2[] = {1.0f, 0.6931470036506653f, 0.2402298003435135f, 0.05548352375626564f,
                          0.009678472764790058f, 0.0012443081941455603f, 0.00021690608991775662f};
constexpr int32_t IN_PROMPT = 1, ONE_DRAWN = 2;  // of a mark

// Half as many lanes as F has, in a register of the same size.
typedef uint64_t Wide __attribute__((vector_size(4 * LANES)));

Wide low(Wide x) { return x & 0xffffffffu; }

int whole(int count) { return count / LANES * LANES; }

// The last lanes of `count` numbers, and NEVER where none are left.
F load_last(const float *values, int count) {
    F v = all(NEVER);
    for (int i = whole(count); i < count; i++) v[i - whole(count)] = values[i];
    return v;
}

float most_of(const float *values, int count) {
    F most = load_last(values, count);
    for (int i = 0; i < whole(count); i += LANES) most = larger(load(values + i), most);
    return largest(most);
}

// Whether a token can be drawn: no logit is NaN or too large, one is finite.
bool is_finite(const float *logits, int size) {
    I fine = load_last(logits, size) <= all(LARGEST_LOGIT);
    F most = load_last(logits, size);
    for (int i = 0; i < whole(size); i += LANES) {
        const F v = load(logits + i);
        fine &= v <= all(LARGEST_LOGIT);
        most = larger(v, most);
    }
    return !any(~fine) && largest(most) >= -LARGEST_LOGIT;
}

int first_of(const float *values, int count, float value) {
    int i = 0;
    while (i < whole(count) && !any(load(values + i) == all(value))) i += LANES;
    while (values[i] != value) i++;
    return i;
}

// --- Who may be drawn.

// `engine.sampling.penalise`: every token once, by its marks.
void penalise(const TbSampling &how, const int32_t *ids, int64_t drawn, float *values, int32_t *marks) {
    const bool repeats = how.repetition != 1, counts = how.presence != 0 || how.frequency != 0;
    const int32_t *first = repeats ? ids : ids + how.prompt, *end = ids + how.prompt + drawn;
    if (!repeats && !counts) first = end;
    for (const int32_t *id = first; id < end; id++) marks[*id] = id < ids + how.prompt ? IN_PROMPT : marks[*id] + ONE_DRAWN;
    for (const int32_t *id = first; id < end; id++) {
        const int32_t mark = marks[*id];
        if (!mark) continue;
        marks[*id] = 0;
        float &value = values[*id];
        if (repeats) value = value > 0 ? value / how.repetition : value * how.repetition;
        // A count times a float32 is exact in float64.
        if (counts && mark >= ONE_DRAWN) value += float(-(double(how.presence) + (mark / ONE_DRAWN) * double(how.frequency)));
    }
    for (int i = 0; i < how.num_biased; i++) values[how.biased[i]] += how.bias[i];
}

// Bans what would end a request before `min_tokens`, unless its grammar leaves nothing else. `before` (num_banned).
void ban_early(const TbSampling &how, bool has_grammar, float *values, int vocabulary, float *before) {
    for (int i = 0; i < how.num_banned; i++) before[i] = values[how.banned[i]], values[how.banned[i]] = NEVER;
    if (has_grammar && most_of(values, vocabulary) == NEVER)
        for (int i = 0; i < how.num_banned; i++) values[how.banned[i]] = before[i];
}

bool is_adjusted(const TbSampling &how, int64_t drawn, const uint8_t *forbidden) {
    return how.repetition != 1 || how.presence != 0 || how.frequency != 0 || how.num_biased || drawn < how.min_tokens || forbidden;
}

// --- top-k, top-p and min-p, as `engine.sampling.restrict` defines them.

// Copies the values that are not below `least`; how many they are.
int gather(const float *values, int count, float least, float *out) {
    int n = 0;
    for (int i = 0; i < count; i += LANES) {
        const int end = std::min(i + LANES, count);
        if (end == i + LANES && !any(load(values + i) >= all(least))) continue;
        for (int j = i; j < end; j++) out[n] = values[j], n += values[j] >= least;
    }
    return n;
}

// `engine.sampling.weigh`, added up in pairs: 2^x as a polynomial, in bits whose exponent is 0 or 1, shifted to a whole number.
Wide weigh(F scaled, F likeliest) {
    F x = scaled - likeliest;
    x = larger(x, all(LEAST_EXPONENT)) * all(LOG2_E);
    F below = __builtin_convertvector(__builtin_convertvector(x, I), F);
    below = below > x ? below - all(1.0f) : below;
    x = x - below;
    F power = all(EXP2[6]);
    for (int i = 5; i >= 0; i--) power = power * x + all(EXP2[i]);
    const U bits = (U)power;
    const Wide mantissa = (Wide)((bits & 0x7fffffu) | 0x800000u), left = (Wide)((bits >> 23) - 127u + 17u);  // 2^40 · 2^-23
    const Wide right = (Wide) __builtin_convertvector(-below, I);
    return (low(mantissa) << low(left) >> low(right)) + (mantissa >> 32 << (left >> 32) >> (right >> 32));
}

int64_t weight_of(const float *values, int count, float likeliest) {
    Wide total = weigh(load_last(values, count), all(likeliest));
    for (int i = 0; i < whole(count); i += LANES) total += weigh(load(values + i), all(likeliest));
    uint64_t sum = 0;
    for (int i = 0; i < LANES / 2; i++) sum += total[i];
    return int64_t(sum);
}

// The k-th highest value.
float highest(const float *values, int count, float most, int k, float *some) {
    for (float width = 2; width < 100; width *= 2) {
        const int n = gather(values, count, most - width, some);
        if (n < k) continue;
        std::nth_element(some, some + k - 1, some + n, std::greater<float>());
        return some[k - 1];
    }
    std::copy(values, values + count, some);
    std::nth_element(some, some + k - 1, some + count, std::greater<float>());
    return some[k - 1];
}

// Of `count` values, in any order, the highest for which the weights of all that are no lower reach `limit`, as all do.
float reaching(float *values, int count, float most, int64_t limit) {
    while (count > 1) {
        const int half = count / 2;
        std::nth_element(values, values + half, values + count, std::greater<float>());
        const int64_t upper = weight_of(values, half, most);
        if (upper >= limit)
            count = half;
        else
            limit -= upper, values += half, count -= half;
    }
    return *values;
}

float nucleus(const float *values, int count, float most, float least, float top_p, float *some) {
    int n = count;
    const float *from = values;
    if (least > NEVER) n = gather(values, count, least, some), from = some;
    const double reach = std::ceil(double(top_p) * double(weight_of(from, n, most)));
    const int64_t limit = std::max<int64_t>(1, int64_t(reach));
    for (float width = 1; width <= 32; width *= 2) {
        n = gather(values, count, std::max(least, most - width), some);
        if (width == 32 || weight_of(some, n, most) >= limit) break;  // what is further below weighs nothing
    }
    return reaching(some, n, most, limit);
}

float lowest_left(const TbSampling &how, const float *values, int count, float most, float *some) {
    float least = NEVER;
    if (how.top_k > 0 && how.top_k < count) least = highest(values, count, most, how.top_k, some);
    if (how.top_p < 1) least = nucleus(values, count, most, least, how.top_p, some);
    return std::max(least, most + how.log_min_p);
}

// --- The noise.

template <class T> T mix(T x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

// Those of engine/sampling.py for LANES tokens from `token` on: the even ones and the odd ones.
struct Hashes {
    Wide even, odd;

    Hashes(uint64_t row, int token) {
        for (int i = 0; i < LANES / 2; i++) even[i] = 2 * i;
        even += row + token;
        odd = even + 1;
        even = mix(even), odd = mix(odd);
    }
    uint64_t operator[](int i) const { return i % 2 ? odd[i / 2] : even[i / 2]; }
    U upper() const { return (U)(even >> 32 | (odd & ~uint64_t(0xffffffff))); }  // lanes in the tokens' order
};

float gumbel(uint64_t hash) {
    const float u = std::min((std::fabs(float(int64_t(hash) >> 11)) + 0.5f) * 0x1p-52f, BELOW_ONE);
    const float y = 1 - u, lost = 1 - y;  // log1p(-u) = log(y) · u / (1 - y), with no digits lost (Kahan)
    const float inner = lost > 0 ? -logarithm(all(y))[0] * u / lost : u;
    return -logarithm(all(inner))[0];
}

// Not above the u of `gumbel`.
F least_u(U upper) {
    const F high = (F)((U) __builtin_convertvector((I)upper, F) & 0x7fffffffu);
    return (high * all(1 - 0x1p-22f) - all(2.0f)) * all(0x1p-31f);
}

// Not below e^x, by up to 7%, for x between -80 and 3, and not below the one of these that is nearer.
F most_exponential(F x) {
    x = larger(smaller(x, all(3.0f)), all(-80.0f)) * all(1.44269504f) + all(127.001f);
    return (F) __builtin_convertvector(x * all(8388608.0f), I);
}

float error(float value) { return 3e-5f + 4 * 0x1p-23f * std::fabs(value); }

// The token of the largest value + noise among those that are not below `least`; TB_UNDECIDED where another is too close.
// The values are followed by NEVER up to a whole vector.
int32_t noisiest(const float *values, int count, float most, float least, uint64_t row) {
    const float known = most + gumbel(mix(row + first_of(values, count, most)));
    float best = NEVER, second = NEVER;
    int at = 0;
    // -log(-log1p(-u)) of a token can only reach the best if u is below e^(value - best).
    auto reach = [&] { return std::max(best, known) - 2 * error(std::max(best, known)) - 1e-4f; };
    F goal = all(reach());
    for (int i = 0; i < count; i += LANES) {
        const F value = load(values + i);
        const I left = value >= all(least);
        if (!any(left)) continue;
        const Hashes hashes(row, i);
        const I near = left & (least_u(hashes.upper()) < most_exponential(value - goal));
        if (!any(near)) continue;
        for (int j = 0; j < LANES; j++) {
            if (!near[j]) continue;
            const float noisy = value[j] + gumbel(hashes[j]);
            if (noisy > best)
                second = best, best = noisy, at = i + j;
            else if (noisy > second)
                second = noisy;
        }
        goal = all(reach());
    }
    return best - second > 2 * error(best) ? at : TB_UNDECIDED;
}

int32_t choose(const TbDraws &draws, const TbSampling &how, int l, const float *logits, DrawMemory memory) {
    const int count = draws.vocabulary;
    const int64_t drawn = draws.position[l];
    const uint8_t *forbidden = draws.forbidden ? draws.forbidden[l] : nullptr;
    const bool adjusted = is_adjusted(how, drawn, forbidden);
    float *values = memory.values;
    if (how.temperature == 0 && !adjusted) return first_of(logits, count, most_of(logits, count));
    std::copy(logits, logits + count, values);
    std::fill(values + count, values + count + DrawMemory::SPARE, NEVER);
    if (adjusted) {
        penalise(how, draws.ids + draws.lanes[l] * draws.stride, drawn, values, memory.marks);
        if (forbidden)
            for (int i = 0; i < count; i++) values[i] = forbidden[i] ? NEVER : values[i];
        if (drawn < how.min_tokens) ban_early(how, forbidden, values, count, memory.some);
    }
    if (how.temperature > 0)
        for (int i = 0; i < count; i += LANES) store(values + i, load(values + i) / all(how.temperature));
    const float most = most_of(values, count);
    if (most == NEVER) return TB_UNDECIDED;
    if (how.temperature == 0) return first_of(values, count, most);
    const float least = lowest_left(how, values, count, most, memory.some);
    return noisiest(values, count, most, least, mix(mix(uint64_t(how.seed)) + uint64_t(drawn)));
}

// --- Log-probabilities, normalised over all logits.

double log_of_sum(const float *logits, int size) {
    constexpr int PART = 16 * LANES;
    const float most = most_of(logits, size);
    double total = sum(exponential(load_last(logits, size) - all(most)));
    for (int part = 0; part < whole(size); part += PART) {
        F some{};
        for (int i = part; i < std::min(part + PART, whole(size)); i += LANES) some += exponential(load(logits + i) - all(most));
        total += sum(some);
    }
    return double(most) + std::log(total);
}

// The `top` likeliest of `count` tokens, the lowest first of equal ones.
void rank(const float *logits, int count, int top, int32_t *ids) {
    int n = 0;
    F least = all(NEVER);
    for (int i = 0; i < count; i += LANES) {
        const int end = std::min(i + LANES, count);
        if (n == top && end == i + LANES && !any(load(logits + i) > least)) continue;
        for (int token = i; token < end; token++) {
            if (n == top && !(logits[token] > least[0])) continue;
            int place = n < top ? n++ : top - 1;
            for (; place > 0 && logits[ids[place - 1]] < logits[token]; place--) ids[place] = ids[place - 1];
            ids[place] = token;
            if (n == top) least = all(logits[ids[top - 1]]);
        }
    }
}

void report(const float *logits, int size, int vocabulary, int token, int top, float *logprobs, int32_t *ids) {
    const double total = log_of_sum(logits, size);
    top = std::min(top, vocabulary);
    if (top) rank(logits, vocabulary, top, ids);
    logprobs[0] = float(logits[token] - total);
    for (int i = 0; i < top; i++) logprobs[1 + i] = float(logits[ids[i]] - total);
}

}  // namespace

void DRAW(const TbDraws &draws, int l, int size, DrawMemory memory) {
    const float *logits = draws.logits + size_t(l) * size;
    const TbSampling &how = draws.sampling[draws.lanes[l]];
    int32_t &token = draws.drawn[l];
    token = is_finite(logits, size) ? 0 : TB_BROKEN;
    if (token == TB_BROKEN || draws.position[l] < 0) return;
    token = choose(draws, how, l, logits, memory);
    if (token >= 0 && how.logprobs >= 0)
        report(logits, size, draws.vocabulary, token, how.logprobs, draws.logprobs + size_t(l) * (1 + TB_MOST_LOGPROBS),
               draws.likeliest + size_t(l) * TB_MOST_LOGPROBS);
}
