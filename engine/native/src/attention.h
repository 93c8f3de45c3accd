// Attention of new streams over pages, read where they lie (docs/SPEC.md, "Attenuated block").
//
// Causal in stream order: the i-th new stream of a request sees the streams that were cached, and the new ones up to
// itself. What a row gives does not depend on the rows beside it.
#pragma once
#include <algorithm>

#include "memory.h"
#include "vectors.h"

namespace {

// The streams of one request in one head of one layer.
template <class T> struct Head {
    const T *keys, *values;  // (slots,H)
    const int32_t *slots;    // (K) where each stream lies
    int width;               // H
};

template <class T, int ROWS, int VECTORS>
void attend_rows(const Head<T> &head, const float *q, float *out, int64_t stride, int visible, float *scores, int64_t room) {
    const int most = visible + ROWS - 1, width = VECTORS * LANES;
    const F scale = all(1.0f / std::sqrt(float(width)));
    F queries[ROWS][VECTORS];
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < VECTORS; i++) queries[r][i] = load(q + r * stride + i * LANES) * scale;
    for (int k = 0; k < most; k += LANES) {
        F products[ROWS][LANES];
        const int here = std::min(LANES, most - k);
        for (int j = 0; j < here; j++) {
            const T *key = head.keys + int64_t(head.slots[k + j]) * width;
            F channels[VECTORS];
            for (int i = 0; i < VECTORS; i++) channels[i] = load(key + i * LANES);
            for (int r = 0; r < ROWS; r++) {
                F sum = queries[r][0] * channels[0];
                for (int i = 1; i < VECTORS; i++) sum += queries[r][i] * channels[i];
                products[r][j] = sum;
            }
        }
        for (int j = here; j < LANES; j++)
            for (int r = 0; r < ROWS; r++) products[r][j] = F{};
        for (int r = 0; r < ROWS; r++) {
            sums_of_pairs<LANES>(products[r]);
            store(scores + r * room + k, products[r][0]);
        }
    }
    F total[ROWS];
    for (int r = 0; r < ROWS; r++) {
        float *row = scores + r * room;
        const int seen = visible + r;
        for (int k = seen; k < most + LANES; k++) row[k] = -INFINITY;  // up to a whole vector past what is read
        F most_of = load(row);
        for (int k = LANES; k < seen; k += LANES) most_of = larger(load(row + k), most_of);
        const F shift = all(largest(most_of));
        total[r] = F{};
        for (int k = 0; k < most; k += LANES) {
            const F p = exponential(load(row + k) - shift);
            total[r] += p;
            store(row + k, p);
        }
    }
    F sums[ROWS][VECTORS] = {};
    for (int k = 0; k < most; k++) {
        const T *value = head.values + int64_t(head.slots[k]) * width;
        for (int i = 0; i < VECTORS; i++) {
            const F channels = load(value + i * LANES);
            for (int r = 0; r < ROWS; r++) sums[r][i] += all(scores[r * room + k]) * channels;
        }
    }
    for (int r = 0; r < ROWS; r++) {
        const F over = all(1.0f / sum(total[r]));
        for (int i = 0; i < VECTORS; i++) store(out + r * stride + i * LANES, sums[r][i] * over);
    }
}

// Any head width, one row at a time.
template <class T> void attend_row(const Head<T> &head, const float *q, float *out, int visible, float *scores) {
    const float scale = 1.0f / std::sqrt(float(head.width));
    float most = -INFINITY, total = 0;
    for (int k = 0; k < visible; k++) {
        const T *key = head.keys + int64_t(head.slots[k]) * head.width;
        float product = 0;
        for (int i = 0; i < head.width; i++) product += q[i] * get(key[i]);
        scores[k] = product * scale;
        most = std::fmax(most, scores[k]);
    }
    for (int i = 0; i < head.width; i++) out[i] = 0;
    for (int k = 0; k < visible; k++) {
        const T *value = head.values + int64_t(head.slots[k]) * head.width;
        const float p = std::exp(scores[k] - most);
        total += p;
        for (int i = 0; i < head.width; i++) out[i] += p * get(value[i]);
    }
    for (int i = 0; i < head.width; i++) out[i] /= total;
}

template <class T, int VECTORS>
void attend_vectors(const Head<T> &head, const float *q, float *out, int64_t stride, int held, int rows, float *scores) {
    const int64_t size = held + rows + 2 * LANES;
    int r = 0;
    for (; r + 4 <= rows; r += 4)
        attend_rows<T, 4, VECTORS>(head, q + r * stride, out + r * stride, stride, held + r + 1, scores, size);
    if (r + 2 <= rows) {
        attend_rows<T, 2, VECTORS>(head, q + r * stride, out + r * stride, stride, held + r + 1, scores, size);
        r += 2;
    }
    if (r < rows) attend_rows<T, 1, VECTORS>(head, q + r * stride, out + r * stride, stride, held + r + 1, scores, size);
}

// `rows` new streams, `stride` apart in q and out, of a request that has `held` earlier ones; `scores` has room for
// 4 · (held + rows + 2 · LANES).
template <class T>
void attend(const Head<T> &head, const float *q, float *out, int64_t stride, int held, int rows, float *scores) {
    switch (head.width % LANES ? 0 : head.width / LANES) {
#define VECTORS(N) \
    case N: \
        return attend_vectors<T, N>(head, q, out, stride, held, rows, scores);
        VECTORS(1) VECTORS(2) VECTORS(4) VECTORS(8)
#if LANES < 16
        VECTORS(16)
#endif
#undef VECTORS
    }
    for (int r = 0; r < rows; r++) attend_row(head, q + r * stride, out + r * stride, held + r + 1, scores);
}

}  // namespace
