// Products of a few rows with weights that are laid out once (engine/native/README.md, "Products").
//
// A panel holds LANES outputs: for each pair of inputs (k, k+1) the weights of all its outputs. Weights that bfloat16
// holds exactly are kept so, two to a word, the even input in the low half: an order that AMX, too, reads as it is.
// Others are kept in float32. Either way products and sums are those of float32.
#pragma once
#include <algorithm>

#include "memory.h"
#include "threads.h"
#include "vectors.h"
#if defined(__AMX_BF16__)
#include <immintrin.h>
#endif

namespace {

enum class Finish { store, gelu, gelu_tanh, add };

// Where a product goes: y (rows,outputs) = finish(x · weightᵀ + bias), or y += weight · (x · weightᵀ + bias).
struct Sink {
    float *y;
    int64_t stride;
    Finish finish;
    const float *weight;  // (rows), for `add`
};

class Linear {
  public:
    Linear() = default;

    void pack(const float *weight, const float *bias, int outputs, int inputs) {
        outputs_ = outputs;
        inputs_ = inputs;
        panels_ = (outputs + LANES - 1) / LANES;
        half_ = bfloat16_holds(weight, size_t(outputs) * inputs);
        const size_t words = size_t(panels_) * inputs * LANES / (half_ ? 2 : 1);
        uint32_t *to = weights_.reserve(words);
        for (int panel = 0; panel < panels_; panel++)
            for (int k = 0; k < inputs; k += 2)
                for (int lane = 0; lane < LANES; lane++) {
                    const int output = panel * LANES + lane;
                    const uint32_t even = word(weight, output, k), odd = word(weight, output, k + 1);
                    uint32_t *at = to + (size_t(panel) * inputs + k) * LANES / (half_ ? 2 : 1) + lane;
                    if (half_)
                        *at = even >> 16 | odd;  // their low halves are 0
                    else
                        at[0] = even, at[LANES] = odd;
                }
        bias_.reserve(size_t(panels_) * LANES);
        for (int i = 0; i < panels_ * LANES; i++) bias_[i] = bias && i < outputs ? bias[i] : 0;
    }

    int outputs() const { return outputs_; }
    size_t bytes() const { return size_t(panels_) * inputs_ * LANES * (half_ ? 2 : 4); }

    // x (rows,inputs), rows `stride` apart.
    void multiply(Pool &pool, Buffer<uint32_t> &scratch, const float *x, int64_t stride, int rows, const Sink &sink) const {
#if defined(__AMX_BF16__)
        if (half_ && rows >= FEWEST_AMX_ROWS && inputs_ % 32 == 0) return multiply_tiles(pool, scratch, x, stride, rows, sink);
#endif
        (void)scratch;
        const int group = pool.size() == 1 ? 8 : 4, parts = (panels_ + group - 1) / group;
        pool.run(parts, [&](int part, int) {
            const int first = part * group, last = std::min(first + group, panels_);
            for (int row = 0; row < rows;)
                row += half_ ? some<true>(x + row * stride, stride, row, rows - row, first, last, sink)
                             : some<false>(x + row * stride, stride, row, rows - row, first, last, sink);
        });
    }

  private:
    static constexpr int panels_at_once(int rows) {
        return LANES == 16 ? (rows <= 3 ? 8 : rows <= 6 ? 4 : 2) : (rows == 1 ? 8 : rows == 2 ? 4 : 2);
    }

    static bool bfloat16_holds(const float *weight, size_t count) {
        uint32_t any = 0;
        for (size_t i = 0; i < count; i++) {
            uint32_t bits;
            std::memcpy(&bits, weight + i, 4);
            any |= bits & 0xffff;
        }
        return any == 0;
    }

    uint32_t word(const float *weight, int output, int k) const {
        uint32_t bits = 0;
        if (output < outputs_) std::memcpy(&bits, weight + size_t(output) * inputs_ + k, 4);
        return bits;
    }

    // As many of the rows as are multiplied at once; returns how many. Each number is code of its own.
    template <bool HALF>
    int some(const float *x, int64_t stride, int row, int rows, int first, int last, const Sink &sink) const {
#define ROWS(R) \
    if (rows >= R) return panels<R, HALF>(x, stride, row, first, last, sink), R;
#if LANES == 16
        if (rows != 16) ROWS(12)
        ROWS(8)
        ROWS(6)
#endif
        ROWS(4)
        ROWS(3)
        ROWS(2)
        ROWS(1)
#undef ROWS
        return rows;
    }

    template <int R, bool HALF>
    void panels(const float *x, int64_t stride, int row, int first, int last, const Sink &sink) const {
        constexpr int MOST = panels_at_once(R);
        for (; first + MOST <= last; first += MOST) tile<R, MOST, HALF>(x, stride, row, first, sink);
        if (MOST > 4 && first + 4 <= last) tile<R, 4, HALF>(x, stride, row, first, sink), first += 4;
        for (; first < last; first++) tile<R, 1, HALF>(x, stride, row, first, sink);
    }

    // One input of R rows times P panels. Of rows and panels the fewer stay in registers, beside the sums: with all of
    // both the compiler would keep sums in memory.
    template <int R, int P, bool HALF, bool ODD>
    __attribute__((always_inline)) static void multiply_input(F (&sums)[R][P], const float *x, int64_t stride,
                                                              const uint32_t *w, size_t size) {
        if constexpr (R <= P) {
            F inputs[R];
#pragma GCC unroll 12
            for (int r = 0; r < R; r++) inputs[r] = all(x[r * stride]);
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) {
                const F weights = widened<HALF, ODD>(w + p * size);
#pragma GCC unroll 12
                for (int r = 0; r < R; r++) sums[r][p] += inputs[r] * weights;
            }
        } else {
            F weights[P];
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) weights[p] = widened<HALF, ODD>(w + p * size);
#pragma GCC unroll 12
            for (int r = 0; r < R; r++) {
                const F input = all(x[r * stride]);
#pragma GCC unroll 8
                for (int p = 0; p < P; p++) sums[r][p] += input * weights[p];
            }
        }
    }

    // A panel's weights of the even or the odd one of two inputs.
    template <bool HALF, bool ODD> static F widened(const uint32_t *w) {
        if constexpr (!HALF)
            return (F)load_words(w + (ODD ? LANES : 0));
        else if constexpr (ODD)
            return (F)(load_words(w) & 0xffff0000u);
        else
            return (F)(load_words(w) << 16);
    }

    template <int R, int P, bool HALF>
    void tile(const float *x, int64_t stride, int row, int panel, const Sink &sink) const {
        F sums[R][P] = {};
        const size_t size = size_t(inputs_) * LANES / (HALF ? 2 : 1);
        const uint32_t *w = weights_.data() + panel * size;
        for (int k = 0; k < inputs_; k += 2, w += HALF ? LANES : 2 * LANES) {
            multiply_input<R, P, HALF, false>(sums, x + k, stride, w, size);
            multiply_input<R, P, HALF, true>(sums, x + k + 1, stride, w, size);
        }
        for (int r = 0; r < R; r++)
            for (int p = 0; p < P; p++) finish(row + r, panel + p, sums[r][p], sink);
    }

    void finish(int row, int panel, F v, const Sink &sink) const {
        v += load(bias_.data() + panel * LANES);
        float *y = sink.y + row * sink.stride + panel * LANES;
        const int present = std::min(LANES, outputs_ - panel * LANES);
        if (sink.finish == Finish::gelu) v = gelu(v);
        if (sink.finish == Finish::gelu_tanh) v = gelu_tanh(v);
        if (sink.finish == Finish::add) v *= all(sink.weight[row]);
        if (present == LANES) {
            store(y, sink.finish == Finish::add ? load(y) + v : v);
            return;
        }
        for (int i = 0; i < present; i++) y[i] = sink.finish == Finish::add ? y[i] + v[i] : v[i];
    }

#if defined(__AMX_BF16__)
    // Each float32 is the sum of three bfloat16s, so three products of tiles are one in float32: what is lost is no more
    // than float32's own rounding.
    static constexpr int SPLITS = 3, TILE_ROWS = 16, TILE_INPUTS = 32, TILE_WORDS = 256, FEWEST_AMX_ROWS = 3;

    struct alignas(64) TileShapes {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t bytes[16] = {};
        uint8_t rows[16] = {};
    };

    // (blocks of 16 rows, inputs / 32, SPLITS, 16, 32) in bfloat16; rows that there are not stay unwritten and unread.
    static void split(const float *x, int64_t stride, int row, int rows, int inputs, uint32_t *to) {
        for (int r = row; r < std::min(row + TILE_ROWS, rows); r++)
            for (int k = 0; k < inputs; k += TILE_INPUTS) {
                const int64_t block = r / TILE_ROWS * int64_t(inputs / TILE_INPUTS) + k / TILE_INPUTS;
                uint32_t *at = to + block * SPLITS * TILE_WORDS + r % TILE_ROWS * LANES;
                __m512i low = _mm512_loadu_si512(x + r * stride + k), high = _mm512_loadu_si512(x + r * stride + k + 16);
                const __m512i top = _mm512_set1_epi32(int(0xffff0000));
                const __m512i order = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29,
                                                       27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
                for (int s = 0; s < SPLITS; s++) {
                    const __m512i a = _mm512_and_si512(low, top), b = _mm512_and_si512(high, top);
                    _mm512_storeu_si512(at + s * TILE_WORDS, _mm512_permutex2var_epi16(a, order, b));
                    low = _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(low), _mm512_castsi512_ps(a)));
                    high = _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(high), _mm512_castsi512_ps(b)));
                }
            }
    }

    void multiply_tiles(Pool &pool, Buffer<uint32_t> &scratch, const float *x, int64_t stride, int rows,
                        const Sink &sink) const {
        const int blocks = (rows + TILE_ROWS - 1) / TILE_ROWS, steps = inputs_ / TILE_INPUTS;
        uint32_t *a = scratch.reserve(size_t(blocks) * steps * SPLITS * TILE_WORDS);
        pool.run(blocks, [&](int block, int) { split(x, stride, block * TILE_ROWS, rows, inputs_, a); });
        const int group = panels_ <= 16 && pool.size() > 1 ? 2 : 8, parts = (panels_ + group - 1) / group;
        pool.run(parts, [&](int part, int) {
            const int first = part * group, last = std::min(first + group, panels_);
            int shaped = 0;
            for (int row = 0; row < rows; row += 2 * TILE_ROWS) {
                const int here = std::min(2 * TILE_ROWS, rows - row);
                if (here != shaped) shape(shaped = here);
                const uint32_t *from = a + int64_t(row / TILE_ROWS) * steps * SPLITS * TILE_WORDS;
                for (int panel = first; panel < last; panel += 2)
                    if (here > TILE_ROWS)
                        panel + 1 < last ? tiles<true, true>(from, steps, row, here, panel, sink)
                                         : tiles<true, false>(from, steps, row, here, panel, sink);
                    else
                        panel + 1 < last ? tiles<false, true>(from, steps, row, here, panel, sink)
                                         : tiles<false, false>(from, steps, row, here, panel, sink);
            }
            _tile_release();
        });
    }

    // Tiles 0 and 1 sum the first 16 rows, 2 and 3 the next; 4 and 5 are those rows, 6 and 7 two panels of weights.
    static void shape(int rows) {
        TileShapes shapes;
        for (int tile = 0; tile < 8; tile++) shapes.bytes[tile] = 64;
        const int first = std::min(rows, TILE_ROWS), second = std::max(1, rows - TILE_ROWS);
        shapes.rows[0] = shapes.rows[1] = shapes.rows[4] = uint8_t(first);
        shapes.rows[2] = shapes.rows[3] = shapes.rows[5] = uint8_t(second);
        shapes.rows[6] = shapes.rows[7] = 16;
        _tile_loadconfig(&shapes);
    }

    template <bool SECOND_ROWS, bool SECOND_PANEL>
    void tiles(const uint32_t *a, int steps, int row, int rows, int panel, const Sink &sink) const {
        const size_t size = size_t(inputs_) * LANES / 2;
        const uint32_t *w = weights_.data() + panel * size, *b = a + int64_t(steps) * SPLITS * TILE_WORDS;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int step = 0; step < steps; step++, w += TILE_WORDS) {
            _tile_loadd(6, w, 64);
            if (SECOND_PANEL) _tile_loadd(7, w + size, 64);
            for (int s = 0; s < SPLITS; s++, a += TILE_WORDS, b += TILE_WORDS) {
                _tile_loadd(4, a, 64);
                _tile_dpbf16ps(0, 4, 6);
                if (SECOND_PANEL) _tile_dpbf16ps(1, 4, 7);
                if (SECOND_ROWS) {
                    _tile_loadd(5, b, 64);
                    _tile_dpbf16ps(2, 5, 6);
                    if (SECOND_PANEL) _tile_dpbf16ps(3, 5, 7);
                }
            }
        }
        alignas(64) float sums[4][TILE_ROWS][LANES];
        _tile_stored(0, sums[0], 64);
        if (SECOND_PANEL) _tile_stored(1, sums[1], 64);
        if (SECOND_ROWS) _tile_stored(2, sums[2], 64);
        if (SECOND_ROWS && SECOND_PANEL) _tile_stored(3, sums[3], 64);
        for (int r = 0; r < rows; r++)
            for (int p = 0; p < 1 + SECOND_PANEL; p++)
                finish(row + r, panel + p, load(sums[r / TILE_ROWS * 2 + p][r % TILE_ROWS]), sink);
    }
#endif

    int outputs_ = 0, inputs_ = 0, panels_ = 0;
    bool half_ = false;
    Buffer<uint32_t> weights_;
    Buffer<float> bias_;
};

}  // namespace
