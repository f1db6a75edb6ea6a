// What both kinds of memories have in common: how a head's tokens are addressed, read, written and guarded.
//
// Shapes: B rows, H heads, T tokens, C tokens of a chunk, K key size, n rates.
#pragma once

#include <utility>

#include "activation.h"
#include "linear_write.h"

namespace hope {

// A tensor [B, H, T, n], by its strides.
struct Tokens {
  const float* data;
  int64_t row, head, token, last;
  const float* at(int64_t b, int64_t h, int64_t t) const { return data + b * row + h * head + t * token; }
};

// Options of a layer, as hope_kernels/native.py fills them in.
struct Options {
  int32_t has_retention, has_momentum, squared, self_targets, is_residual, num_sums, is_guarded, reads_current;
  float max_lr, lr_share, min_log_retention, max_growth, delta, hidden_delta;
};

// advance: whole chunks from raw inputs; address: what the memories make of raw inputs; write: one chunk of final ones;
// read: what queries find after each token of a chunk of final ones, which is not written.
enum Mode : int64_t { ADVANCE = 0, ADDRESS = 1, WRITE = 2, READ = 3 };

struct Call {
  // The tensors of the memories, [B, H, ...] contiguous, before and after; null where there are none.
  const float* memories[4];
  const float* surprises[4];
  float* memories_out[4];
  float* surprises_out[4];
  // found, keys, values [B, H, T, K], in `found` of an address the queries where reads are current; and rates [B, H, T, 3]: lr, log retention, momentum.
  float *found, *keys_out, *values_out, *rates_out;
  Tokens query, key, value, rates;
  int64_t mode, num_rows, num_heads, num_tokens, chunk_size, key_size, hidden_size;
  int64_t num_vectors, num_rates, place_k, place_v, place_q, place_main, place_lr, place_retention;
  Options options;
};

// One head's work. Memories is MatrixMemories or MlpMemories.
template <class Memories>
struct Layer {
  const Call& call;
  Scratch& scratch;
  const int K, ldk, C;
  float *query, *key, *value, *inputs, *lr, *log_retention, *retention, *momentum, *added;
  Memories memories;

  static int buffer_tokens(const Call& c) { return int(std::min(c.num_tokens, c.chunk_size)); }

  Layer(const Call& c, Scratch& s)
      : call(c), scratch(s), K(int(c.key_size)), ldk(padded(K)), C(buffer_tokens(c)), memories(c, s) {
    query = s.take(C * ldk), key = s.take(C * ldk), value = s.take(C * ldk), inputs = s.take(C * ldk);
    // Rates are computed in whole vectors.
    const int room = padded(C);
    lr = s.take(room), log_retention = s.take(room), retention = s.take(room), momentum = s.take(room);
    added = s.take(2 * C);
  }

  static size_t scratch_size(const Call& c) {
    const size_t C = buffer_tokens(c), ldk = padded(int(c.key_size));
    return C * (4 * ldk + 6) + 4 * LANES + Memories::scratch_size(c, int(C));
  }

  // What a memory makes of each token, scaled to length 1; without the memory, the projection itself.
  void own(float*& tokens, int64_t place, int n) {
    if (place < 0) return;
    memories.retrieve(int(place), tokens, ldk, n, inputs, ldk);
    std::swap(tokens, inputs);
    for (int t = 0; t < n; t++) normalize(tokens + t * ldk, ldk);
  }

  // NL eq. 80-81: raw rates and what memories add to them.
  void make_rates(int64_t b, int64_t h, int64_t start, int n, bool is_sum) {
    std::memset(added, 0, sizeof(float) * 2 * C);
    if (!is_sum) {
      if (call.place_lr >= 0) memories.retrieve_rate(int(call.place_lr), key, ldk, n, added);
      if (call.place_retention >= 0) memories.retrieve_rate(int(call.place_retention), key, ldk, n, added + C);
    }
    finish_rates(b, h, start, n);
  }

  // Raw rates, with what memories added in `added`, all tokens of a vector at once.
  void finish_rates(int64_t b, int64_t h, int64_t start, int n) {
    const Options& o = call.options;
    const int64_t next = call.rates.last;
    for (int t = 0; t < n; t++) {
      const float* raw = call.rates.at(b, h, start + t);
      lr[t] = raw[0] + added[t];
      if (o.has_retention) log_retention[t] = raw[next] + added[C + t];
      if (o.has_momentum) momentum[t] = raw[next * (1 + o.has_retention)];
    }
    for (int t = 0; t < n; t += LANES) {
      Vec step = o.max_lr * sigmoid(load(lr + t)), kept = spread(1);
      if (o.has_retention) {
        const Vec forgetting = softplus(load(log_retention + t)), most = spread(-o.min_log_retention);
        const Vec log_kept = -(forgetting > most ? most : forgetting);
        store(log_retention + t, log_kept);
        kept = exp_negative(log_kept);
        step *= kept;
      } else {
        store(log_retention + t, Vec{});
      }
      store(retention + t, kept);
      store(lr + t, step * o.lr_share);
      if (o.has_momentum) store(momentum + t, sigmoid(load(momentum + t)));
    }
    if (!o.has_momentum) std::memset(momentum, 0, sizeof(float) * n);
  }

  void take_rates(int64_t b, int64_t h, int n) {
    for (int t = 0; t < n; t++) {
      const float* final = call.rates.at(b, h, t);
      lr[t] = final[0], log_retention[t] = final[call.rates.last], momentum[t] = final[2 * call.rates.last];
    }
    for (int t = 0; t < n; t += LANES) store(retention + t, exp_negative(load(log_retention + t)));
  }

  void give(float* to, const float* from, int64_t head, int64_t start, int n) const {
    if (to) copy_rows(from, ldk, to + (head * call.num_tokens + start) * K, K, n, K);
  }

  void address(int64_t b, int64_t h, int64_t start, int n) {
    const int64_t head = b * call.num_heads + h;
    const auto fetch = [&](const Tokens& from, float* to) {
      copy_padded(from.at(b, h, start), from.token, to, ldk, n, K);
    };
    fetch(call.key, key), fetch(call.value, value);
    if (call.mode == READ) fetch(call.query, query);
    if (call.mode == WRITE || call.mode == READ) return take_rates(b, h, n);
    const bool is_sum = h < call.options.num_sums;
    if (call.found) fetch(call.query, query);
    const bool is_read = call.found && !call.options.reads_current;
    if (n == 1 && call.mode == ADDRESS && is_read && !is_sum && call.place_q < 0 && memories.reads_at_once()) {
      memories.read_at_once(key, value, query, inputs, added, added + C);
      finish_rates(b, h, start, n);
      if (call.place_k >= 0) normalize(key, ldk);
      if (call.place_v >= 0) normalize(value, ldk);
      give(call.found, inputs, head, start, n);
    } else {
      make_rates(b, h, start, n, is_sum);
      if (!is_sum) own(key, call.place_k, n), own(value, call.place_v, n);
      if (call.found && !is_sum) own(query, call.place_q, n);
      if (is_read) memories.retrieve(int(call.place_main), query, ldk, n, inputs, ldk);
      if (is_read || call.mode == ADDRESS) give(call.found, is_read ? inputs : query, head, start, n);
    }
    give(call.keys_out, key, head, start, n), give(call.values_out, value, head, start, n);
    if (!call.rates_out) return;
    float* rates = call.rates_out + (head * call.num_tokens + start) * 3;
    for (int t = 0; t < n; t++) rates[3 * t] = lr[t], rates[3 * t + 1] = log_retention[t], rates[3 * t + 2] = momentum[t];
  }

  // Write the chunk; where a memory would explode, at half the step size, then not at all. Current reads are of the
  // first attempt.
  void write(int64_t head, int64_t start, int n) {
    const Gates gates{lr, retention, call.options.has_momentum ? momentum : nullptr};
    const bool is_read = call.found && call.options.reads_current;
    for (int attempt = 0; attempt < 2; attempt++) {
      memories.write(key, value, ldk, n, gates, is_read && !attempt ? query : nullptr, inputs);
      if (is_read && !attempt) give(call.found, inputs, head, start, n);
      if (call.mode == READ) return;
      if (!call.options.is_guarded || !memories.has_exploded()) return memories.accept();
      for (int t = 0; t < n; t++) lr[t] *= 0.5f;
    }
  }

  void run(int64_t b, int64_t h) {
    const int64_t head = b * call.num_heads + h;
    memories.load(head);
    for (int64_t start = 0; start < call.num_tokens; start += C) {
      const int n = int(std::min<int64_t>(C, call.num_tokens - start));
      address(b, h, start, n);
      if (call.mode != ADDRESS) write(head, start, n);
    }
    if (call.mode == ADVANCE || call.mode == WRITE) memories.save(head);
  }
};

template <class Memories>
static void run_heads(const Call& call, int num_threads) {
  const int64_t heads = call.num_rows * call.num_heads;
#pragma omp parallel num_threads(num_threads) if (num_threads > 1 && heads > 1)
  {
    static thread_local Scratch scratch;
    scratch.reserve(Layer<Memories>::scratch_size(call));
    Layer<Memories> layer(call, scratch);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < heads; i++) layer.run(i / call.num_heads, i % call.num_heads);
  }
}

}  // namespace hope
