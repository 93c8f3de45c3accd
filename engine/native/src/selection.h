// Who survives a fork: `causal`, on from what is cached (docs/SPEC.md, "Selection rules").
#pragma once
#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

constexpr int32_t NO_CANDIDATE = INT_MIN;
constexpr float GRID = 65536, LOWEST_SCORE = -32000, LOWEST_LOG_P = -20;

inline int32_t on_grid(float score) { return int32_t(std::nearbyint(std::fmax(score, LOWEST_SCORE) * GRID)); }

inline int64_t budget(int64_t tokens, int64_t kappa, int64_t block) { return (tokens * kappa + block - 1) / block; }

inline int count_not_lower(const int32_t *grid, int64_t count, int32_t than) {
    int n = 0;
    for (int64_t i = 0; i < count; i++) n += grid[i] >= than;
    return n;
}

// Walks one request's new tokens from left to right.
class Selection {
  public:
    // `grid` starts with the `prior` scores of all earlier candidates; `alive` of the free ones have survived.
    Selection(std::vector<int32_t> &grid, int64_t alive) : grid_(grid), alive_(alive) {}

    // Decides about the candidates of the next token, `size` of them, the last of which is forced. All of a token's
    // scores are appended to those before. keep (size).
    void token(const int32_t *scores, int size, int64_t slots, bool *keep) {
        const int64_t before = int64_t(grid_.size());
        int passing = 0;
        ranks_.assign(size, 0);
        for (int i = 0; i < size - 1; i++) {
            for (int j = 0; j < size - 1; j++)
                ranks_[i] += j != i && (scores[j] > scores[i] || (j < i && scores[j] == scores[i]));
            passing += ranks_[i] < slots && ranks_[i] + count_not_lower(grid_.data(), before, scores[i]) < slots;  // rule (a)
        }
        const int64_t gained = std::min<int64_t>(passing, slots - alive_);  // rule (b)
        for (int i = 0; i < size - 1; i++) keep[i] = ranks_[i] < gained;
        keep[size - 1] = true;
        alive_ += gained;
        grid_.insert(grid_.end(), scores, scores + size - 1);
    }

  private:
    std::vector<int32_t> &grid_;
    std::vector<int> ranks_;
    int64_t alive_;
};

}  // namespace
