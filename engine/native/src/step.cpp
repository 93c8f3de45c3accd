// One step of the engine: new tokens of some requests, from their ids to the logits that follow. Compiled once for each
// instruction level, with LEVEL its name; engine/portable/forward.py is the same in torch, and the reference.
//
// Letters: R requests, T new tokens, S streams, D model width, N heads, H head width, V vocabulary, G segments.
#include "attention.h"
#include "drawing.h"
#include "interface.h"
#include "level.h"
#include "products.h"
#include "selection.h"

namespace {

constexpr float EPSILON = 1e-5f;

struct Norm {
    std::vector<float> weight, bias;

    void read(const float *w, const float *b, int width) {
        weight.assign(w, w + width);
        bias.assign(width, 0);
        if (b) bias.assign(b, b + width);
    }

    void apply(const float *x, float *y) const {
        const int width = int(weight.size()), whole = width / LANES * LANES;
        F total{};
        float mean = 0, variance = 0;
        for (int i = 0; i < whole; i += LANES) total += load(x + i);
        for (int i = whole; i < width; i++) mean += x[i];
        mean = (mean + sum(total)) / float(width);
        total = F{};
        for (int i = 0; i < whole; i += LANES) {
            const F off = load(x + i) - all(mean);
            total += off * off;
        }
        for (int i = whole; i < width; i++) variance += (x[i] - mean) * (x[i] - mean);
        const float scale = 1 / std::sqrt((variance + sum(total)) / float(width) + EPSILON);
        for (int i = 0; i < whole; i += LANES)
            store(y + i, (load(x + i) - all(mean)) * all(scale) * load(&weight[i]) + load(&bias[i]));
        for (int i = whole; i < width; i++) y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
    }
};

struct Layer {
    Norm before_attention, before_hidden, before_fork;
    Linear heads, attended, hidden, activated;
    std::vector<float> fork_weight, fork_embedding;
};

// A request's place in this step.
struct Request {
    int64_t first;              // tokens that were cached
    int64_t kappa;
    int token, tokens;          // its new tokens among all
    int stream, streams;        // their streams in the present segment, among all
    int held;                   // streams that were cached in the present segment
    int64_t slot;               // where its slots begin in the list of all slots
};

// A token after which one is drawn: where its streams end, how many they are, and where those begin that are of it or of
// its request's tokens since the one read before.
struct Read {
    int since, end, count;
};

float log_sigmoid(float x) { return std::fmin(0.0f, x) - std::log1p(std::exp(-std::fabs(x))); }

class Forward : public Step {
  public:
    explicit Forward(const TbModel &model)
        : m_(model), width_(model.n_embd), head_(model.n_embd / model.n_head), layers_(model.n_layer),
          segments_(model.segment, model.segment + model.segments),
          frequencies_(model.frequencies, model.frequencies + model.n_embd / model.n_head / 2) {
        const int D = width_;
        const bool eight = m_.eight;
        for (int i = 0; i < m_.n_layer; i++) {
            const TbLayer &from = model.layers[i];
            Layer &to = layers_[i];
            to.before_attention.read(from.norm_1_weight, from.norm_1_bias, D);
            to.before_hidden.read(from.norm_2_weight, from.norm_2_bias, D);
            to.heads.pack(from.heads_weight, from.heads_bias, 3 * D, D, eight);
            to.attended.pack(from.attended_weight, from.attended_bias, D, D, eight);
            to.hidden.pack(from.hidden_weight, from.hidden_bias, 4 * D, D, eight);
            to.activated.pack(from.activated_weight, from.activated_bias, D, 4 * D, eight);
            if (from.fork_weight) {
                to.before_fork.read(from.fork_norm_weight, from.fork_norm_bias, D);
                to.fork_weight.assign(from.fork_weight, from.fork_weight + 2 * D);
                to.fork_embedding.assign(from.fork_embedding, from.fork_embedding + D);
            }
        }
        norm_.read(model.norm_weight, model.norm_bias, D);
        readout_.pack(model.embedding, nullptr, m_.vocab_size, D);
    }

    size_t bytes() const override {
        size_t total = readout_.bytes();
        for (const Layer &layer : layers_)
            total += layer.heads.bytes() + layer.attended.bytes() + layer.hidden.bytes() + layer.activated.bytes();
        return total;
    }

    void run(TbStep &step) override {
        pool_.resize(step.threads);
        attending_.resize(pool_.size());
        begin(step);
        for (int g = 0; g < m_.segments; g++) {
            if (g) fork(step, g);
            enter(step, g);
            for (int i = segments_[g].first_layer; i < segments_[g].last_layer; i++)
                m_.half_cache ? block<Half>(layers_[i], g, i) : block<float>(layers_[i], g, i);
        }
        step.streams = streams();
        step.x = x_.data();
        step.score = score_.data();
        read_out(step);
    }

    void draw(const TbDraws &draws) override {
        pool_.resize(draws.threads);
        const size_t size = m_.vocab_size + DrawMemory::SPARE;
        while (int(drawing_.size()) < 2 * pool_.size()) drawing_.emplace_back(size);
        marks_.resize(std::max(marks_.size(), size * pool_.size()));
        pool_.run(draws.rows, [&](int l, int thread) {
            const DrawMemory memory{drawing_[2 * thread].data(), drawing_[2 * thread + 1].data(), &marks_[size * thread]};
            DRAW(draws, l, m_.vocab_size, memory);
        });
    }

  private:
    int streams() const { return int(score_.size()); }

    // One stream a token, or as many as there are copies.
    void begin(const TbStep &step) {
        requests_.resize(step.requests);
        int token = 0;
        for (int r = 0; r < step.requests; r++) {
            const int row = step.rows[r];
            requests_[r] = Request{m_.ledger_tokens[row], m_.ledger_kappa[row], token, step.counts[r], 0, 0, 0, 0};
            token += step.counts[r];
        }
        counts_.assign(step.tokens, m_.copies);
        score_.assign(size_t(step.tokens) * m_.copies, 0.0f);
        float *x = x_.reserve(size_t(streams()) * width_);
        for (int s = 0; s < streams(); s++)
            std::memcpy(x + size_t(s) * width_, m_.embedding + size_t(step.ids[s / m_.copies]) * width_, width_ * 4);
    }

    // Where the streams lie in a segment's pages, how they are turned, and how many they are now.
    void enter(const TbStep &step, int g) {
        const TbSegment &segment = segments_[g];
        slots_.clear();
        slot_.resize(streams());
        p_.resize(streams());
        cosine_.reserve(size_t(streams()) * (head_ / 2));
        sine_.reserve(size_t(streams()) * (head_ / 2));
        int stream = 0, most = 0;
        for (int r = 0; r < step.requests; r++) {
            Request &request = requests_[r];
            request.held = int(m_.ledger_streams[int64_t(step.rows[r]) * m_.segments + g]);
            request.stream = stream;
            for (int t = 0; t < request.tokens; t++) {
                const int count = counts_[request.token + t];
                for (int j = 0; j < count; j++) turn(stream++, float(request.first + t) + float(double(j + 1) / count));
                step.ends[int64_t(g) * step.tokens + request.token + t] = request.held + stream - request.stream;
            }
            request.streams = stream - request.stream;
            request.slot = int64_t(slots_.size());
            list_slots(m_.ledger_table + step.rows[r] * m_.table_stride + segment.table_begin, request.held + request.streams);
            std::copy_n(slots_.begin() + request.slot + request.held, request.streams, slot_.begin() + request.stream);
            most = std::max(most, request.held + request.streams);
        }
        for (auto &room : attending_) room.reserve(4 * (size_t(most) + 2 * LANES));  // here, for threads must not throw
        for (int s = 0; s < streams(); s++) p_[s] = std::exp(score_[s]);
        update_.assign(streams(), 1.0f);
        if (m_.residual_attenuation) update_ = p_;
    }

    // Appends the slots of so many streams that lie in these pages.
    void list_slots(const int32_t *pages, int streams) {
        const size_t before = slots_.size();
        slots_.resize(before + streams);
        int32_t *slot = slots_.data() + before;
        for (int at = 0; at < streams; at += m_.page_size) {
            const int first = pages[at / m_.page_size] * m_.page_size, here = std::min(m_.page_size, streams - at);
            for (int i = 0; i < here; i++) slot[at + i] = first + i;
        }
    }

    void turn(int stream, float position) {
        const int half = head_ / 2;
        for (int i = 0; i < half; i++) {
            const float angle = position * frequencies_[i];
            cosine_[size_t(stream) * half + i] = std::cos(angle);
            sine_[size_t(stream) * half + i] = std::sin(angle);
        }
    }

    template <class T> void block(const Layer &layer, int g, int index) {
        const int S = streams(), D = width_;
        float *x = x_.data(), *normed = normed_.reserve(size_t(S) * D), *heads = heads_.reserve(size_t(S) * 3 * D);
        norm(layer.before_attention, x, normed);
        layer.heads.multiply(pool_, splits_, normed, D, S, Sink{heads, 3 * D, Finish::store, nullptr});
        attention<T>(g, index - segments_[g].first_layer, heads, normed);
        layer.attended.multiply(pool_, splits_, normed, D, S, Sink{x, D, Finish::add, update_.data()});
        norm(layer.before_hidden, x, normed);
        const Finish activation = m_.activation == TB_GELU ? Finish::gelu : Finish::gelu_tanh;
        for (int row = 0; row < S; row += ROWS_AT_ONCE) {
            const int rows = std::min(ROWS_AT_ONCE, S - row);
            float *hidden = hidden_.reserve(size_t(rows) * 4 * D);
            layer.hidden.multiply(pool_, splits_, normed + size_t(row) * D, D, rows, Sink{hidden, 4 * D, activation, nullptr});
            layer.activated.multiply(pool_, splits_, hidden, 4 * D, rows,
                                     Sink{x + size_t(row) * D, D, Finish::add, update_.data() + row});
        }
    }

    // The rows of x, normalised; x and y may have any stride of D.
    void norm(const Norm &norm, const float *x, float *y) {
        const int parts = streams() < 8 * pool_.size() ? 1 : pool_.size();
        pool_.run(parts, [&](int part, int) {
            for (int s = part * streams() / parts; s < (part + 1) * streams() / parts; s++)
                norm.apply(x + size_t(s) * width_, y + size_t(s) * width_);
        });
    }

    // From heads (S,3,N,H) to what they attend to (S,D); the new keys and values are in the cache then.
    template <class T> void attention(int g, int layer, float *heads, float *out) {
        const TbSegment &segment = segments_[g];
        const int64_t layers = segment.last_layer - segment.first_layer, size = int64_t(segment.slots) * head_;
        T *keys = static_cast<T *>(segment.stored) + layer * m_.n_head * size, *values = keys + layers * m_.n_head * size;
        pool_.run(int(requests_.size()) * m_.n_head, [&](int part, int thread) {
            const Request &request = requests_[part / m_.n_head];
            const int head = part % m_.n_head;
            T *own_keys = keys + head * size, *own_values = values + head * size;
            for (int s = request.stream; s < request.stream + request.streams; s++) {
                float *q = heads + size_t(s) * 3 * width_ + head * head_, *k = q + width_, *v = k + width_;
                rotate(q, s);
                rotate(k, s);
                if (m_.score_bias) q[head_ - 1] = 1, k[head_ - 1] = score_[s];
                const float weight = m_.value_attenuation ? p_[s] : 1.0f;
                T *key = own_keys + int64_t(slot_[s]) * head_, *value = own_values + int64_t(slot_[s]) * head_;
                for (int i = 0; i < head_; i++) put(key + i, k[i]);
                for (int i = 0; i < head_; i++) put(value + i, v[i] * weight);
            }
            // The queries stand 3D apart, and so does what is attended, in their place.
            float *q = heads + size_t(request.stream) * 3 * width_ + head * head_;
            attend(Head<T>{own_keys, own_values, slots_.data() + request.slot, head_}, q, q, 3 * width_, request.held,
                   request.streams, attending_[thread].data());
            for (int s = 0; s < request.streams; s++)
                std::memcpy(out + size_t(request.stream + s) * width_ + head * head_, q + size_t(s) * 3 * width_, head_ * 4);
        });
    }

    void rotate(float *channels, int stream) const {
        const int half = head_ / 2;
        const float *cosine = &cosine_[size_t(stream) * half], *sine = &sine_[size_t(stream) * half];
        int i = 0;
        for (; i + LANES <= half; i += LANES) {
            const F first = load(channels + i), second = load(channels + i + half);
            store(channels + i, first * load(cosine + i) - second * load(sine + i));
            store(channels + i + half, second * load(cosine + i) + first * load(sine + i));
        }
        for (; i < half; i++) {
            const float first = channels[i], second = channels[i + half];
            channels[i] = first * cosine[i] - second * sine[i];
            channels[i + half] = second * cosine[i] + first * sine[i];
        }
    }

    // The streams of segment g, from those of the one before.
    void fork(const TbStep &step, int g) {
        const Layer &layer = layers_[segments_[g].first_layer];
        const int S = streams();
        weigh(layer);
        int32_t *stored = segments_[g - 1].scores;
        keep_.reserve(2 * size_t(S));
        for (int r = 0, token = 0, stream = 0; r < step.requests; r++) {
            const Request &request = requests_[r];
            prior_.reserve(2 * size_t(request.held + request.streams));
            prior_.resize(2 * size_t(request.held));
            for (int k = 0; k < request.held; k++)
                std::memcpy(&prior_[2 * size_t(k)], stored + 2 * int64_t(slots_[request.slot + k]), 8);
            const int64_t alive = m_.ledger_streams[int64_t(step.rows[r]) * m_.segments + g] - request.first;
            Selection selection(prior_, alive);
            for (int t = 0; t < request.tokens; t++, token++) {
                const int64_t length = request.first + t + 1;
                const int64_t slots = budget(length, request.kappa, m_.block_size) - length;
                selection.token(&grid_[2 * size_t(stream)], 2 * counts_[token], slots, keep_.data() + 2 * size_t(stream));
                stream += counts_[token];
            }
        }
        for (int s = 0; s < S; s++) std::memcpy(stored + 2 * int64_t(slot_[s]), &grid_[2 * size_t(s)], 8);
        survive(layer, step.tally + 2 * (g - 1));
    }

    // The candidates' scores, and on the grid.
    void weigh(const Layer &layer) {
        const int S = streams(), D = width_;
        candidate_.resize(2 * size_t(S));
        grid_.resize(2 * size_t(S));
        float *normed = normed_.reserve(size_t(S) * D);
        norm(layer.before_fork, x_.data(), normed);
        for (int s = 0; s < S; s++)
            for (int j = 0; j < 2; j++) {
                const float *row = normed + size_t(s) * D, *weight = &layer.fork_weight[size_t(j) * D];
                F total{};
                float logit = 0;
                int i = 0;
                for (; i + LANES <= D; i += LANES) total += load(row + i) * load(weight + i);
                for (; i < D; i++) logit += row[i] * weight[i];
                const float log_p = log_sigmoid(logit + sum(total));
                candidate_[2 * s + j] = score_[s] + (log_p < LOWEST_LOG_P ? LOWEST_LOG_P : log_p);  // NaN stays NaN
                grid_[2 * s + j] = on_grid(candidate_[2 * s + j]);
            }
        for (int t = 0, last = -1; t < int(counts_.size()); t++) {
            last += counts_[t];
            grid_[2 * size_t(last) + 1] = NO_CANDIDATE;
        }
    }

    void survive(const Layer &layer, int64_t *tally) {
        const int S = streams(), D = width_;
        int survivors = 0;
        for (int i = 0; i < 2 * S; i++) survivors += keep_[i];
        float *x = other_.reserve(size_t(survivors) * D);
        const float *parents = x_.data();
        std::vector<float> &score = next_score_;
        score.clear();
        for (int t = 0, stream = 0; t < int(counts_.size()); t++) {
            const int before = int(score.size());
            for (int end = stream + counts_[t]; stream < end; stream++) {
                const float *parent = parents + size_t(stream) * D;
                if (keep_[2 * stream]) {
                    for (int i = 0; i < D; i++) x[i] = parent[i] + layer.fork_embedding[i];
                    x += D;
                    score.push_back(candidate_[2 * stream]);
                    tally[0]++;
                }
                if (keep_[2 * stream + 1]) {
                    std::memcpy(x, parent, D * 4);
                    x += D;
                    score.push_back(candidate_[2 * stream + 1]);
                } else
                    tally[1]++;
            }
            counts_[t] = int(score.size()) - before;
        }
        std::swap(score_, next_score_);
        std::swap(x_, other_);
    }

    // Logits of what follows the last tokens of each request.
    void read_out(TbStep &step) {
        const int D = width_, V = m_.vocab_size;
        list_read(step);
        const int rows = m_.averaging == TB_LOGIT ? read_streams() : int(read_.size());
        float *read = normed_.reserve(size_t(rows) * D), *logits = step.logits;
        if (m_.averaging == TB_LOGIT) logits = heads_.reserve(size_t(rows) * V);
        std::vector<float> total(D);
        int row = 0;
        for (const Read &token : read_)
            if (m_.averaging == TB_LOGIT)
                for (int s = token.end - token.count; s < token.end; s++)
                    norm_.apply(x_.data() + size_t(s) * D, read + size_t(row++) * D);
            else
                average(token.end - token.count, token.end, total.data(), read + size_t(row++) * D);
        readout_.multiply(pool_, splits_, read, D, rows, Sink{logits, V, Finish::store, nullptr});
        if (m_.averaging == TB_LOGIT) mix_streams(step, logits);
        if (step.tokens == step.requests) return;
        for (int l = 0; l < int(read_.size()); l++)
            if (broken(read_[l])) std::fill_n(step.logits + size_t(l) * V, V, NAN);
    }

    // The tokens after which a token is drawn.
    void list_read(const TbStep &step) {
        read_.clear();
        int end = 0;
        for (int r = 0; r < step.requests; r++) {
            const int token = requests_[r].token, last = token + requests_[r].tokens, first = last - step.draws[r];
            int since = end;
            for (int t = token; t < last; t++) {
                end += counts_[t];
                if (t >= first) read_.push_back(Read{since, end, counts_[t]}), since = end;
            }
        }
    }

    int read_streams() const {
        int rows = 0;
        for (const Read &token : read_) rows += token.count;
        return rows;
    }

    // The streams of a token, from `first` to before `end`, as the head takes them.
    void average(int first, int end, float *total, float *out) {
        const int D = width_;
        if (m_.averaging == TB_RIGHTMOST) return norm_.apply(x_.data() + size_t(end - 1) * D, out);
        std::fill(total, total + D, 0.0f);
        for (int s = first; s < end; s++) {
            const float *x = x_.data() + size_t(s) * D;
            if (m_.norm_before_averaging) norm_.apply(x, out), x = out;
            for (int i = 0; i < D; i++) total[i] += p_[s] * x[i];
        }
        if (m_.norm_before_averaging)
            std::copy(total, total + D, out);
        else
            norm_.apply(total, out);
    }

    // The mixture of the streams' softmaxes (docs/SPEC.md, "Output averaging"): `logits` are each stream's.
    void mix_streams(const TbStep &step, float *logits) {
        const int V = m_.vocab_size;
        for (int l = 0, row = 0; l < int(read_.size()); l++) {
            const int end = read_[l].end, count = read_[l].count;
            float *own = logits + size_t(row) * V;
            std::vector<double> weight(count);
            double total = 0;
            for (int j = 0; j < count; j++) total += std::exp(double(score_[end - count + j]));
            for (int j = 0; j < count; j++) {
                const float *of = own + size_t(j) * V;
                float most = of[0];
                double sum = 0;
                for (int v = 1; v < V; v++) most = std::fmax(most, of[v]);
                for (int v = 0; v < V; v++) sum += std::exp(of[v] - most);
                weight[j] = score_[end - count + j] - std::log(total) - most - std::log(sum);  // what a logit lacks
            }
            for (int v = 0; v < V; v++) {
                double most = -INFINITY, sum = 0;
                for (int j = 0; j < count; j++) most = std::fmax(most, own[size_t(j) * V + v] + weight[j]);
                for (int j = 0; j < count; j++) sum += std::exp(own[size_t(j) * V + v] + weight[j] - most);
                step.logits[size_t(l) * V + v] = float(most + std::log(sum));
            }
            row += count;
        }
    }

    // Whether a stream is NaN or infinite of this token, or of those since the one read before: no logit need show it.
    bool broken(const Read &token) const {
        for (int s = token.since; s < token.end; s++) {
            float total = 0;
            for (int i = 0; i < width_; i++) total += x_[size_t(s) * width_ + i];
            if (!std::isfinite(total)) return true;
        }
        return false;
    }

    static constexpr int ROWS_AT_ONCE = 192;  // so that an MLP's hidden rows stay in the processor's cache

    TbModel m_;
    int width_, head_;
    Pool pool_;
    std::vector<Layer> layers_;
    std::vector<TbSegment> segments_;
    std::vector<float> frequencies_;
    Norm norm_;
    Linear readout_;

    std::vector<Request> requests_;
    std::vector<Read> read_;
    std::vector<int> counts_;                          // (T) streams of each token
    std::vector<float> score_, next_score_, p_, update_;  // (S) c, exp(c), and what updates are multiplied by
    std::vector<int32_t> slots_, slot_, grid_, prior_;
    std::vector<float> candidate_;
    Buffer<bool> keep_;
    Buffer<float> x_, other_, normed_, heads_, hidden_, cosine_, sine_;
    Buffer<uint32_t> splits_;
    std::vector<Buffer<float>> attending_;
    std::vector<Buffer<float>> drawing_;
    std::vector<int32_t> marks_;
};

}  // namespace

std::unique_ptr<Step> JOINED(make_, LEVEL)(const TbModel &model) { return std::make_unique<Forward>(model); }
