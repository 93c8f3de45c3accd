// Products of a few rows with weights that are laid out once (docs/CPU.md, "What it computes").
//
// A panel holds LANES outputs: for each pair of inputs (k, k+1) the weights of all its outputs. Weights that bfloat16
// holds exactly are kept so, two to a word, the even input in the low half: an order that AMX, too, reads as it is.
// Others are kept in float32. Either way products and sums are those of float32.
//
// Where int8 is asked for, each output has whole numbers up to 127 and a scale. A row of inputs is rounded to whole
// numbers too, of as many bits as a sum of 32 has room for (15, from 516 inputs on fewer): what is lost is lost by the
// weights. Sums are exact.
#pragma once
#include <algorithm>

#include "memory.h"
#include "threads.h"
#include "vectors.h"
#if defined(__AMX_BF16__)
#include <immintrin.h>
#endif

namespace {

enum class Stored { whole, half, eight };  // float32, bfloat16, int8

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

    void pack(const float *weight, const float *bias, int outputs, int inputs, bool eight = false) {
        outputs_ = outputs;
        inputs_ = inputs;
        panels_ = (outputs + LANES - 1) / LANES;
        stored_ = eight ? Stored::eight : bfloat16_holds(weight, size_t(outputs) * inputs) ? Stored::half : Stored::whole;
        bias_.reserve(size_t(panels_) * LANES);
        for (int i = 0; i < panels_ * LANES; i++) bias_[i] = bias && i < outputs ? bias[i] : 0;
        uint32_t *to = weights_.reserve(size_t(panels_) * panel_words());
        if (eight) return pack_eight(weight, reinterpret_cast<int8_t *>(to));
        const bool half = stored_ == Stored::half;
        for (int panel = 0; panel < panels_; panel++)
            for (int k = 0; k < inputs; k += 2)
                for (int lane = 0; lane < LANES; lane++) {
                    const int output = panel * LANES + lane;
                    const uint32_t even = word(weight, output, k), odd = word(weight, output, k + 1);
                    uint32_t *at = to + panel * panel_words() + size_t(k) * LANES / (half ? 2 : 1) + lane;
                    if (half)
                        *at = even >> 16 | odd;  // their low halves are 0
                    else
                        at[0] = even, at[LANES] = odd;
                }
    }

    int outputs() const { return outputs_; }
    size_t bytes() const { return size_t(panels_) * panel_words() * 4; }

    // x (rows,inputs), rows `stride` apart.
    void multiply(Pool &pool, Buffer<uint32_t> &scratch, const float *x, int64_t stride, int rows, const Sink &sink) const {
#if defined(__AMX_BF16__)
        if (stored_ == Stored::half && rows >= FEWEST_AMX_ROWS && inputs_ % 32 == 0)
            return multiply_tiles(pool, scratch, x, stride, rows, sink);
#endif
        if (stored_ == Stored::eight) {
            const Rounded rounded = round_rows(pool, scratch, x, stride, rows);
            return multiply_panels<Stored::eight>(pool, rounded.pairs, inputs_ / 2, rounded.scales, rows, sink);
        }
        if (stored_ == Stored::half) return multiply_panels<Stored::half>(pool, x, stride, nullptr, rows, sink);
        multiply_panels<Stored::whole>(pool, x, stride, nullptr, rows, sink);
    }

  private:
    static constexpr int panels_at_once(int rows) {
        return LANES == 16 ? (rows <= 3 ? 8 : rows <= 6 ? 4 : 2) : (rows == 1 ? 8 : rows == 2 ? 4 : 2);
    }

    // Words of a panel; of int8 four weights to a word, the pair of the next output beside that of an output.
    size_t panel_words() const {
        return size_t(inputs_) * LANES / (stored_ == Stored::whole ? 1 : stored_ == Stored::half ? 2 : 4);
    }

    void pack_eight(const float *weight, int8_t *to) {
        scales_.reserve(size_t(panels_) * LANES);
        for (int output = 0; output < panels_ * LANES; output++) {
            const float *row = weight + size_t(output) * inputs_;
            float most = 0, broken = 0;
            for (int k = 0; output < outputs_ && k < inputs_; k++) {
                most = std::fmax(most, std::fabs(row[k]));
                broken += row[k] - row[k];  // NaN where a weight is NaN or infinite
            }
            if (broken != 0) most = 0;
            scales_[output] = most / 127 + broken;
            int8_t *at = to + size_t(output / LANES) * inputs_ * LANES + output % LANES * 2;
            for (int k = 0; k < inputs_; k++)
                at[k / 2 * 2 * LANES + k % 2] = most > 0 ? int8_t(std::nearbyint(row[k] * (127 / most))) : 0;
        }
    }

    // Rows of inputs as whole numbers: two 16-bit ones to a word, the even input in the low half.
    struct Rounded {
        const int32_t *pairs;  // (rows,inputs/2)
        const float *scales;   // (rows) NaN where an input is NaN or infinite
    };

    Rounded round_rows(Pool &pool, Buffer<uint32_t> &scratch, const float *x, int64_t stride, int rows) const {
        const size_t words = size_t(inputs_) / 2;
        int32_t *pairs = reinterpret_cast<int32_t *>(scratch.reserve(rows * (words + 1)));
        float *scales = reinterpret_cast<float *>(pairs + rows * words);
        const float range = std::fmin(32767, 2147483647 / (127.0f * inputs_) - 1);
        const int parts = rows < 8 ? 1 : (rows + 7) / 8, each = rows < 8 ? rows : 8;
        pool.run(parts, [&](int part, int) {
            for (int r = part * each; r < std::min((part + 1) * each, rows); r++)
                scales[r] = round_row(x + r * stride, reinterpret_cast<int16_t *>(pairs + r * words), range);
        });
        return {pairs, scales};
    }

    float round_row(const float *x, int16_t *to, float range) const {
        const int whole = inputs_ / LANES * LANES;
        F highest{}, odd{};
        for (int k = 0; k < whole; k += LANES) {
            const F v = load(x + k);
            highest = larger(larger(v, -v), highest);
            odd += v - v;  // NaN where v is NaN or infinite
        }
        float most = largest(highest), broken = sum(odd);
        for (int k = whole; k < inputs_; k++) {
            most = std::fmax(most, std::fabs(x[k]));
            broken += x[k] - x[k];
        }
        if (!(most > LEAST && broken == 0)) {
            std::memset(to, 0, size_t(inputs_) * 2);
            return broken;
        }
        const float by = range / most, magic = 12582912.0f;  // 1.5 · 2^23: adding it rounds to a whole number
        for (int k = 0; k < inputs_; k++) to[k] = int16_t((x[k] * by + magic) - magic);
        return most / range;
    }

    static constexpr float LEAST = 1e-30f;  // a row that is no larger counts as 0

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

    // x (rows) is float32, or of int8 pairs of inputs, with their rows' scales.
    template <Stored W, class X>
    void multiply_panels(Pool &pool, const X *x, int64_t stride, const float *scales, int rows, const Sink &sink) const {
        const int group = pool.size() == 1 ? 8 : 4, parts = (panels_ + group - 1) / group;
        pool.run(parts, [&](int part, int) {
            const int first = part * group, last = std::min(first + group, panels_);
            for (int row = 0; row < rows;)
                row += some<W>(x + row * stride, stride, scales, row, rows - row, first, last, sink);
        });
    }

    // As many of the rows as are multiplied at once; returns how many. Each number is code of its own.
    template <Stored W, class X>
    int some(const X *x, int64_t stride, const float *scales, int row, int rows, int first, int last, const Sink &sink) const {
#define ROWS(R) \
    if (rows >= R) return panels<R, W>(x, stride, scales, row, first, last, sink), R;
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

    template <int R, Stored W, class X>
    void panels(const X *x, int64_t stride, const float *scales, int row, int first, int last, const Sink &sink) const {
        constexpr int MOST = panels_at_once(R);
        for (; first + MOST <= last; first += MOST) tile<R, MOST, W>(x, stride, scales, row, first, sink);
        if (MOST > 4 && first + 4 <= last) tile<R, 4, W>(x, stride, scales, row, first, sink), first += 4;
        for (; first < last; first++) tile<R, 1, W>(x, stride, scales, row, first, sink);
    }

    // One input, or of int8 one pair of inputs, of R rows times P panels. Of rows and panels the fewer stay in registers,
    // beside the sums: with all of both the compiler would keep sums in memory.
    template <int R, int P, Stored W, bool ODD, class X, class V>
    __attribute__((always_inline)) static void multiply_input(V (&sums)[R][P], const X *x, int64_t stride, const uint32_t *w,
                                                              size_t size) {
        if constexpr (R <= P) {
            V inputs[R];
#pragma GCC unroll 12
            for (int r = 0; r < R; r++) inputs[r] = all(x[r * stride]);
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) {
                const V weights = widened<W, ODD>(w + p * size);
#pragma GCC unroll 12
                for (int r = 0; r < R; r++) add_product(sums[r][p], inputs[r], weights);
            }
        } else {
            V weights[P];
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) weights[p] = widened<W, ODD>(w + p * size);
#pragma GCC unroll 12
            for (int r = 0; r < R; r++) {
                const V input = all(x[r * stride]);
#pragma GCC unroll 8
                for (int p = 0; p < P; p++) add_product(sums[r][p], input, weights[p]);
            }
        }
    }

    static void add_product(F &sum, F a, F b) { sum += a * b; }
    static void add_product(I &sum, I a, I b) { sum += products_of_pairs(a, b); }

    // A panel's weights of the even or the odd one of two inputs, or of int8 of both.
    template <Stored W, bool ODD> static auto widened(const uint32_t *w) {
        if constexpr (W == Stored::eight)
            return load_pairs(w);
        else if constexpr (W == Stored::whole)
            return (F)load_words(w + (ODD ? LANES : 0));
        else if constexpr (ODD)
            return (F)(load_words(w) & 0xffff0000u);
        else
            return (F)(load_words(w) << 16);
    }

    template <int R, int P, Stored W>
    void tile(const float *x, int64_t stride, const float *, int row, int panel, const Sink &sink) const {
        F sums[R][P] = {};
        const size_t size = panel_words(), pair = W == Stored::half ? LANES : 2 * LANES;
        const uint32_t *w = weights_.data() + panel * size;
        for (int k = 0; k < inputs_; k += 2, w += pair) {
            multiply_input<R, P, W, false>(sums, x + k, stride, w, size);
            multiply_input<R, P, W, true>(sums, x + k + 1, stride, w, size);
        }
        for (int r = 0; r < R; r++)
            for (int p = 0; p < P; p++) finish(row + r, panel + p, sums[r][p], sink);
    }

    template <int R, int P, Stored W>
    void tile(const int32_t *x, int64_t stride, const float *scales, int row, int panel, const Sink &sink) const {
        I sums[R][P] = {};
        const size_t size = panel_words();
        const uint32_t *w = weights_.data() + panel * size;
        for (int k = 0; k < inputs_ / 2; k++, w += LANES / 2) multiply_input<R, P, W, false>(sums, x + k, stride, w, size);
        for (int r = 0; r < R; r++)
            for (int p = 0; p < P; p++) {
                const F scale = load(scales_.data() + (panel + p) * LANES) * all(scales[row + r]);
                finish(row + r, panel + p, __builtin_convertvector(sums[r][p], F) * scale, sink);
            }
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
    Stored stored_ = Stored::whole;
    Buffer<uint32_t> weights_;
    Buffer<float> bias_, scales_;  // scales_: of int8
};

}  // namespace
