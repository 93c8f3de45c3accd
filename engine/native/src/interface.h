// What crosses the border to Python: plain C structs, read by engine/native/library.py. Change ABI_VERSION with them.
#pragma once
#include <cstdint>

#define TB_ABI_VERSION 4

enum TbAveraging { TB_RESIDUAL = 0, TB_LOGIT = 1, TB_RIGHTMOST = 2 };
enum TbActivation { TB_GELU = 0, TB_GELU_TANH = 1 };

// The float32 tensors of one layer, each contiguous; a null pointer where the model has none.
struct TbLayer {
    const float *norm_1_weight, *norm_1_bias;
    const float *heads_weight, *heads_bias;          // (3D,D)
    const float *attended_weight, *attended_bias;    // (D,D)
    const float *norm_2_weight, *norm_2_bias;
    const float *hidden_weight, *hidden_bias;        // (4D,D)
    const float *activated_weight, *activated_bias;  // (D,4D)
    const float *fork_norm_weight, *fork_norm_bias;
    const float *fork_weight;                        // (2,D)
    const float *fork_embedding;                     // (D)
};

// The pages of one segment, as engine/cache/pages.py lays them out.
struct TbSegment {
    int32_t first_layer, last_layer;  // layers from first_layer up to, not including, last_layer
    int32_t slots;
    int32_t table_begin;              // where the segment's pages begin in a row of the ledger's table
    void *stored;                     // (2,layers,N,slots,H): keys, then values
    int32_t *scores;                  // (slots,2)
};

struct TbModel {
    int32_t vocab_size, n_layer, n_head, n_embd, block_size, copies;
    int32_t segments;
    int32_t averaging, norm_before_averaging, activation;
    int32_t score_bias, value_attenuation, residual_attenuation;
    int32_t page_size, half_cache;    // half_cache: keys and values are float16
    int32_t eight;                    // the layers' weights are kept in int8
    const TbLayer *layers;
    const float *embedding;           // (V,D): stays with the caller for as long as the model lives
    const float *norm_weight, *norm_bias;
    const float *frequencies;         // (H/2)
    const TbSegment *segment;
    // Columns of the ledger (engine/cache/ledger.py), which stay where they are.
    const int64_t *ledger_kappa, *ledger_tokens, *ledger_streams;
    const int32_t *ledger_table;
    int64_t table_stride;
};

// One step: R requests, T new tokens of all of them laid end to end, S streams of them after the last fork; a token may be
// drawn after L of the T tokens, the last ones of each request.
struct TbStep {
    int32_t requests, tokens;
    int32_t threads;             // that compute it, if the system gives as many
    const int32_t *rows;         // (R) each request's row of the ledger
    const int32_t *counts;       // (R) its new tokens
    const int32_t *draws;        // (R) after how many of its new tokens one may be drawn, at least 1; L together
    const int32_t *ids;          // (T)
    int32_t *ends;               // out (G,T): streams of the request up to and including each token
    int64_t *tally;              // out, added to (G-1,2): fork copies that survived, streams that were deleted
    float *logits;               // out (L,V), NaN where a stream is NaN or infinite
    int32_t streams;             // out: S
    const float *x;              // out (S,D): until the next step
    const float *score;          // out (S)
};

// How a request draws its tokens (engine/sampling_params.py).
struct TbSampling {
    int64_t seed;
    float temperature;           // 0 is greedy
    float top_p;                 // 1 is off
    float log_min_p;             // -inf is off
    float repetition, presence, frequency;
    int32_t top_k;               // 0 is off
    int32_t min_tokens;          // before so many are drawn, those of `banned` may not be
    int32_t logprobs;            // how many of the likeliest tokens to report; -1 reports nothing
    int32_t prompt;              // its tokens
    int32_t num_biased, num_banned;
    const int32_t *biased;       // ids, each once, and what is added to their logits
    const float *bias;
    const int32_t *banned;       // ids, each once
};

// Draws from L rows of logits.
struct TbDraws {
    int32_t rows;                          // L
    int32_t threads;
    int32_t vocabulary;                    // tokens that may be drawn are below
    const float *logits;                   // (L,V)
    const TbSampling *sampling;            // by row of the ledger
    const int32_t *ids;                    // by row of the ledger, `stride` apart: prompt and output
    int64_t stride;
    const int32_t *lanes;                  // (L) the row of the ledger
    const int64_t *position;               // (L) tokens drawn before; below 0 draws nothing
    const uint8_t *const *forbidden;       // (L) null, or whether each token may not be drawn
    int32_t *drawn;                        // out (L): a token, any if none is drawn; or TB_BROKEN or TB_UNDECIDED
    float *logprobs;                       // out (L,1+TB_MOST_LOGPROBS): of the token, then of the likeliest
    int32_t *likeliest;                    // out (L,TB_MOST_LOGPROBS): their ids, of equal ones the lowest first
};

#define TB_MOST_LOGPROBS 20
#define TB_BROKEN (-1)     // a logit is NaN or infinite
#define TB_UNDECIDED (-2)  // two tokens are too close to tell apart in this arithmetic, or none is possible
