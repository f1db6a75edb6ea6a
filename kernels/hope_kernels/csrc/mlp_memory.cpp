// MLP memories M(z) = z + gelu(z W1) W2 per head; rates have one output and no residual path (NL eq. 89).
//
// Shapes: n vector memories, m rate memories, K key size, F hidden units. Tensors of a head: first [n, K, F], second
// [n, F, K], rate_first [m, K, F], rate_second [m, F, 1]. Memories that share keys are written as one: for writes, the
// first layers lie side by side in one tall matrix [K, (n + m) F].
#include "activation.h"
#include "layer.h"

using namespace hope;

namespace {

enum Part { FIRST = 0, SECOND = 1, RATE_FIRST = 2, RATE_SECOND = 3 };

struct MlpMemories {
  const Call& call;
  Scratch& scratch;
  const int K, F, ldk, ldf, num_vectors, num_rates, num_all, tall;
  // Both layers, padded, and their momenta; and where a chunk is written, which changes places with them when it is
  // accepted.
  struct State {
    float *first, *second, *first_surprise, *second_surprise;
  } now, next;
  float *before, *hidden, *slope, *inner, *errors, *found, *middle, *target, *turned, *rated;
  int64_t first_size, second_size, state_size;
  // Norms of the four tensors in the order of Part, where they are known.
  double sizes[4], next_sizes[4];
  bool has_sizes = false;
  int64_t head;

  MlpMemories(const Call& c, Scratch& s)
      : call(c), scratch(s), K(int(c.key_size)), F(int(c.hidden_size)), ldk(padded(K)), ldf(padded(F)),
        num_vectors(int(c.num_vectors)), num_rates(int(c.num_rates)), num_all(num_vectors + num_rates),
        tall(num_all * ldf) {
    const int C = int(std::min(c.num_tokens, c.chunk_size));
    first_size = int64_t(K) * tall, second_size = int64_t(F) * (num_vectors * ldk + num_rates * LANES);
    const bool has_momentum = c.surprises[0] != nullptr;
    state_size = (first_size + second_size) * (has_momentum ? 2 : 1);
    const auto place = [&](bool is_needed) -> State {
      if (!is_needed) return {};
      float *first = s.take(state_size), *second = first + first_size;
      if (!has_momentum) return {first, second, nullptr, nullptr};
      return {first, second, second + second_size, second + second_size + first_size};
    };
    now = place(true), next = place(c.mode != ADDRESS);
    before = s.take(C * tall), hidden = s.take(C * tall), slope = s.take(C * tall), inner = s.take(C * tall);
    errors = s.take(C * num_all * ldk), found = s.take(C * num_all * ldk), middle = s.take(C * ldf), target = s.take(C * ldk), turned = s.take(std::max(ldk, LANES) * ldf);
    rated = s.take(C * num_all);
  }

  static size_t scratch_size(const Call& c, int C) {
    const size_t K = c.key_size, F = c.hidden_size, all = c.num_vectors + c.num_rates;
    const size_t ldk = padded(int(K)), ldf = padded(int(F)), tall = all * ldf;
    const size_t state = 2 * (K * tall + F * (c.num_vectors * ldk + c.num_rates * LANES));
    const size_t write = std::max(scratch_of_write(int(K), int(tall)), scratch_of_write(int(F), int(ldk)));
    return 2 * state + C * (4 * tall + (2 * all + 1) * ldk + ldf + 1 + all) + (ldk + LANES) * ldf + write;
  }

  bool is_rate(int memory) const { return memory >= num_vectors; }
  float* second_of(float* all, int memory) const {
    return all + (is_rate(memory) ? int64_t(num_vectors) * F * ldk + int64_t(memory - num_vectors) * F * LANES
                                  : int64_t(memory) * F * ldk);
  }
  int outputs(int memory) const { return is_rate(memory) ? 1 : K; }
  int output_width(int memory) const { return is_rate(memory) ? LANES : ldk; }

  // Visit every matrix of a set of tensors with its place in the padded state.
  template <class Visit>
  void each(Visit visit) const {
    for (int memory = 0; memory < num_all; memory++) {
      const int64_t place = is_rate(memory) ? memory - num_vectors : memory;
      const int64_t count = is_rate(memory) ? num_rates : num_vectors;
      const int part = is_rate(memory) ? RATE_FIRST : FIRST;
      visit(part, (head * count + place) * K * F, memory * ldf, int64_t(tall), K, F, ldf, true, memory);
      const int size = outputs(memory), width = output_width(memory);
      visit(part + 1, (head * count + place) * F * size, 0, int64_t(width), F, size, width, false, memory);
    }
  }

  void load(int64_t number) {
    head = number;
    each([&](int part, int64_t from, int64_t offset, int64_t ld, int rows, int size, int width, bool is_first, int memory) {
      const auto fill = [&](const float* source, float* firsts, float* seconds) {
        float* to = is_first ? firsts + offset : second_of(seconds, memory);
        for (int i = 0; i < rows; i++) copy_padded(source + from + i * size, size, to + i * ld, width, 1, size);
      };
      fill(call.memories[part], now.first, now.second);
      if (now.first_surprise) fill(call.surprises[part], now.first_surprise, now.second_surprise);
    });
    has_sizes = false;
  }

  void save(int64_t number) {
    head = number;
    each([&](int part, int64_t to, int64_t offset, int64_t ld, int rows, int size, int, bool is_first, int memory) {
      const auto empty = [&](float* target_tensor, float* firsts, float* seconds) {
        copy_rows(is_first ? firsts + offset : second_of(seconds, memory), ld, target_tensor + to, size, rows, size);
      };
      empty(call.memories_out[part], now.first, now.second);
      if (now.first_surprise) empty(call.surprises_out[part], now.first_surprise, now.second_surprise);
    });
  }

  // gelu of [n, width], and its slope where it is wanted.
  static void activate(const float* from, float* to, float* slopes, int64_t ld, int n, int width) {
    for (int t = 0; t < n; t++)
      for (int j = 0; j < width; j += LANES) {
        Vec value, rise;
        gelu(hope::load(from + t * ld + j), &value, slopes ? &rise : nullptr);
        store(to + t * ld + j, value);
        if (slopes) store(slopes + t * ld + j, rise);
      }
  }

  // out = M(inputs) for one memory, whole vectors of its outputs.
  void predict(int memory, const float* inputs, int64_t ldi, int n, float* out, int64_t ldo) {
    float* mark = scratch.mark();
    float* middle = scratch.take(size_t(n) * ldf);
    product({inputs, ldi, 1}, now.first + memory * ldf, tall, middle, ldf, n, ldf, K);
    activate(middle, middle, nullptr, ldf, n, ldf);
    const Start start{inputs, ldi, is_rate(memory) ? 0.0f : 1.0f};
    product({middle, ldf, 1}, second_of(now.second, memory), output_width(memory), out, ldo, n, output_width(memory), F,
            start);
    scratch.reset(mark);
  }

  bool reads_at_once() const { return false; }
  void read_at_once(float*, float*, const float*, float*, float*, float*) const {}

  void retrieve(int place, const float* inputs, int64_t ldi, int n, float* out, int64_t ldo) {
    predict(place, inputs, ldi, n, out, ldo);
  }

  void retrieve_rate(int place, const float* inputs, int64_t ldi, int n, float* out) {
    predict(num_vectors + place, inputs, ldi, n, target, LANES);
    for (int t = 0; t < n; t++) out[t] = target[t * LANES];
  }

  // read [n, ldk]: what queries find after each token; nothing is read where there are no queries.
  void write(const float* key, const float* value, int64_t ldi, int n, Gates gates, const float* queries, float* read) {
    const Options& o = call.options;
    product({key, ldi, 1}, now.first, tall, before, tall, n, tall, K);
    activate(before, hidden, slope, tall, n, tall);
    for (int memory = 0; memory < num_all; memory++) make_steps(memory, key, value, ldi, n, gates);
    const int main = int(call.place_main);
    const Reads first_reads{queries, ldi, middle, ldf, main * ldf, ldf};
    const Written firsts{now.first, now.first_surprise, next.first, next.first_surprise};
    write_linear(firsts, tall, tall, key, ldi, K, n, inner, gates, o.delta, false, before, tall,
                 queries ? &first_reads : nullptr, scratch);
    if (queries) activate(middle, middle, nullptr, ldf, n, ldf);
    const Reads second_reads{middle, ldf, read, ldk, 0, ldk};
    for (int memory = 0; memory < num_all; memory++) {
      const int width = output_width(memory);
      const auto own_of = [&](float* all) { return all ? second_of(all, memory) : nullptr; };
      const Written seconds{own_of(now.second), own_of(now.second_surprise), own_of(next.second),
                            own_of(next.second_surprise)};
      const Gates own{rated + memory * n, gates.retention, gates.momentum};
      write_linear(seconds, width, width, hidden + memory * ldf, tall, F, n,
                   errors + size_t(memory) * n * ldk, own, o.hidden_delta, false, found + size_t(memory) * n * ldk, width,
                   queries && memory == main ? &second_reads : nullptr, scratch);
    }
    if (!queries) return;
    for (int t = 0; t < n; t++)
      for (int i = 0; i < ldk; i += LANES)
        store(read + t * ldk + i, hope::load(read + t * ldk + i) + hope::load(queries + t * ldi + i));
  }

  // -rate times the gradient at the outputs of both layers, at the chunk's start, of one memory.
  void make_steps(int memory, const float* key, const float* value, int64_t ldi, int n, Gates gates) {
    const Options& o = call.options;
    const int width = output_width(memory), size = outputs(memory);
    const float *own_hidden = hidden + memory * ldf, *own_second = second_of(now.second, memory);
    float *error = errors + size_t(memory) * n * ldk, *own_found = found + size_t(memory) * n * ldk;
    float* rates = rated + memory * n;
    // What the memory should have found: what it makes of the value, or the value.
    if (is_rate(memory) || o.self_targets)
      predict(memory, value, ldi, n, target, width);
    else
      copy_rows(value, ldi, target, width, n, width);
    product({own_hidden, tall, 1}, own_second, width, own_found, width, n, width, F);
    for (int t = 0; t < n; t++)
      for (int j = 0; j < width; j += LANES) {
        Vec off = o.squared ? hope::load(own_found + t * width + j) : Vec{};
        if (o.squared && !is_rate(memory)) off += hope::load(key + t * ldi + j);
        store(error + t * width + j, off - hope::load(target + t * width + j));
      }
    // Back through the second layer: error times its transpose.
    for (int i = 0; i < size; i++) {
      for (int j = 0; j < F; j++) turned[i * ldf + j] = own_second[int64_t(j) * width + i];
      for (int j = F; j < ldf; j++) turned[i * ldf + j] = 0;
    }
    product({error, width, 1}, turned, ldf, inner + memory * ldf, tall, n, ldf, size);
    for (int t = 0; t < n; t++) {
      float* row = inner + t * tall + memory * ldf;
      for (int j = 0; j < ldf; j += LANES)
        store(row + j, -gates.lr[t] * hope::load(row + j) * hope::load(slope + t * tall + memory * ldf + j));
      // The second layer's own rate: its input is no unit vector.
      rates[t] = gates.lr[t] / (1 + dot(own_hidden + t * tall, own_hidden + t * tall, ldf));
      for (int j = 0; j < width; j += LANES) store(error + t * width + j, -rates[t] * hope::load(error + t * width + j));
    }
  }

  void norms(const State& of, double* out) const {
    double sums[4] = {0, 0, 0, 0};
    for (int memory = 0; memory < num_all; memory++) {
      const int part = is_rate(memory) ? RATE_FIRST : FIRST, width = output_width(memory);
      sums[part] += squared_norm(of.first + memory * ldf, tall, K, ldf);
      sums[part + 1] += squared_norm(second_of(of.second, memory), width, F, width);
    }
    for (int part = 0; part < 4; part++) out[part] = std::sqrt(sums[part]);
  }

  // Whether a tensor that was written has grown beyond all measure: a multiple of what was there, or of the norm of
  // memories that map K orthogonal keys to unit values.
  bool has_exploded() {
    if (!has_sizes) norms(now, sizes), has_sizes = true;
    norms(next, next_sizes);
    const double vectors = double(num_vectors) * F, rates = double(num_rates) * F;
    const double usual[4] = {vectors, vectors, rates, rates / K};
    for (int part = 0; part < (num_rates ? 4 : 2); part++)
      // A comparison that NaN fails.
      if (!(next_sizes[part] <= call.options.max_growth * std::fmax(sizes[part], std::sqrt(usual[part])))) return true;
    return false;
  }

  void accept() {
    std::swap(now, next);
    std::memcpy(sizes, next_sizes, sizeof(sizes));
    has_sizes = call.options.is_guarded;
  }
};

}  // namespace

extern "C" void hope_mlp_run(const Call* call, int num_threads) { run_heads<MlpMemories>(*call, num_threads); }
