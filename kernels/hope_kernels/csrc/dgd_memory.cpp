// Matrix memories M(z) = z + z W, side by side in one tall matrix [K, M] per head: vectors first, one column a rate.
#include "layer.h"

using namespace hope;

namespace {

struct MatrixMemories {
  const Call& call;
  Scratch& scratch;
  const int K, M, width, ldk, columns;
  // The memory, and where a chunk is written: they change places when it is accepted. Surprises likewise.
  float *weights, *surprise, *weights_next, *surprise_next, *steps, *factors, *rate_part;
  // Most vectors that one pass over a matrix sums at once.
  static constexpr int MOST = 32;
  // Numbers that one pass asks for ahead of its own.
  static constexpr int AHEAD = 4096;
  // Where reads look: the padded copy, or the caller's tensor where its rows are whole vectors.
  const float* view;
  int64_t ld;
  // Norms of both, where they are known; else negative.
  double size = -1, next_size = -1;

  MatrixMemories(const Call& c, Scratch& s)
      : call(c), scratch(s), K(int(c.key_size)), M(int(c.num_vectors * c.key_size + c.num_rates)), width(padded(M)),
        ldk(padded(K)), columns(int(c.num_vectors) * K) {
    const int C = int(std::min(c.num_tokens, c.chunk_size));
    const bool writes = c.mode != ADDRESS;
    // A read of a memory's columns in whole vectors may run past the last one.
    weights = s.take(K * width + 64);
    weights_next = writes ? s.take(K * width + 64) : nullptr;
    surprise = writes && c.surprises[0] ? s.take(K * width + 64) : nullptr;
    surprise_next = surprise ? s.take(K * width + 64) : nullptr;
    steps = writes ? s.take(C * width + 64) : nullptr, factors = writes ? s.take(C * ldk) : nullptr;
    rate_part = s.take(C * LANES);
  }

  static size_t scratch_size(const Call& c, int C) {
    const size_t K = c.key_size, width = padded(int(c.num_vectors * K + c.num_rates));
    return 4 * (K * width + 64) + C * (width + padded(int(K)) + LANES) + scratch_of_write(int(K), int(width));
  }

  void load(int64_t head) {
    const float* from = call.memories[0] + head * K * M;
    if (call.mode == ADDRESS && K % LANES == 0) {
      view = from, ld = M;
      return;
    }
    copy_padded(from, M, weights, width, K, M);
    // Whole vectors of a memory's columns are read, past the last one too.
    for (float* all : {weights, weights_next})
      if (all) std::memset(all + K * width, 0, sizeof(float) * 64);
    look();
    size = -1;
    if (surprise) copy_padded(call.surprises[0] + head * K * M, M, surprise, width, K, M);
  }

  void save(int64_t head) const {
    copy_rows(weights, width, call.memories_out[0] + head * K * M, M, K, M);
    if (surprise) copy_rows(surprise, width, call.surprises_out[0] + head * K * M, M, K, M);
  }

  void retrieve(int place, const float* inputs, int64_t ldi, int n, float* out, int64_t ldo) const {
    const bool is_residual = call.options.is_residual || place != call.place_main;
    product({inputs, ldi, 1}, view + place * K, ld, out, ldo, n, ldk, K, Start{inputs, ldi, is_residual ? 1.0f : 0.0f});
    if (ldk > K)
      for (int t = 0; t < n; t++) std::memset(out + t * ldo + K, 0, sizeof(float) * (ldk - K));
  }

  void retrieve_rate(int place, const float* inputs, int64_t ldi, int n, float* out) const {
    // The caller's tensor ends with the rates: a whole vector of them would reach beyond it. Some tokens at once, none
    // of which waits for another's sum.
    constexpr int GROUP = 8;
    const float* rate = view + columns + place;
    int t = 0;
    for (; t + GROUP <= n; t += GROUP) {
      float sums[GROUP] = {};
      for (int i = 0; i < K; i++)
        for (int g = 0; g < GROUP; g++) sums[g] = multiply_add(inputs[(t + g) * ldi + i], rate[i * ld], sums[g]);
      std::memcpy(out + t, sums, sizeof(sums));
    }
    for (; t < n; t++) {
      float sum = 0;
      for (int i = 0; i < K; i++) sum = multiply_add(inputs[t * ldi + i], rate[i * ld], sum);
      out[t] = sum;
    }
  }

  // Whether the caller's tensor is read where it lies and its vectors fit the registers and a little of the stack.
  bool reads_at_once() const { return view != weights && int(call.num_vectors) * K / LANES <= MOST; }

  // One token's reads of all memories in one pass over the tall matrix, in the order of memory: what decoding waits
  // for. key and value become what their memories make of them, out what the query finds; every sum in the order of
  // `product`.
  void read_at_once(float* key, float* value, const float* query, float* out, float* lr, float* retention) const {
    Vec sums[MOST];
    const int each = K / LANES, count = int(call.num_vectors);
    const float* inputs[3];
    float* outputs[3];
    for (int place = 0; place < count; place++) {
      const bool is_main = place == call.place_main;
      inputs[place] = is_main ? query : place == call.place_k ? key : value;
      outputs[place] = is_main ? out : place == call.place_k ? key : value;
      for (int j = 0; j < each; j++)
        sums[place * each + j] =
            is_main && !call.options.is_residual ? Vec{} : hope::load(inputs[place] + j * LANES);
    }
    float rates[2] = {0, 0};
    switch (count * 100 + each) {
      case 304: pass<3, 4>(inputs, key, sums, rates); break;
      case 308: pass<3, 8>(inputs, key, sums, rates); break;
      case 302: pass<3, 2>(inputs, key, sums, rates); break;
      case 104: pass<1, 4>(inputs, key, sums, rates); break;
      case 108: pass<1, 8>(inputs, key, sums, rates); break;
      default: pass<0, 0>(inputs, key, sums, rates); break;
    }
    for (int place = 0; place < count; place++)
      for (int j = 0; j < each; j++) store(outputs[place] + j * LANES, sums[place * each + j]);
    *lr = call.place_lr >= 0 ? rates[call.place_lr] : 0;
    *retention = call.place_retention >= 0 ? rates[call.place_retention] : 0;
  }

  // The loop of `read_at_once`, with its lengths known where they are the common ones. Rates are read by the key as it
  // came, which is written over only afterwards.
  template <int COUNT, int EACH>
  void pass(const float* const* inputs, const float* key, Vec* sums, float* rates) const {
    const int count = COUNT ? COUNT : int(call.num_vectors), each = COUNT ? EACH : K / LANES;
    Vec kept[COUNT ? COUNT * EACH : MOST];
    std::memcpy(kept, sums, sizeof(Vec) * count * each);
    for (int i = 0; i < K; i++) {
      const float* row = view + i * ld;
      // The next heads' rows are on their way while this one's numbers are made: 0.8 instead of 0.7 of what a plain
      // pass over memory reaches.
      for (int64_t line = 0; line < ld; line += 16)
        __builtin_prefetch(row + line + AHEAD, 0, 2);
      for (int place = 0; place < count; place++)
        for (int j = 0; j < each; j++)
          kept[place * each + j] += inputs[place][i] * hope::load(row + place * K + j * LANES);
      for (int rate = 0; rate < int(call.num_rates); rate++)
        rates[rate] = multiply_add(key[i], row[columns + rate], rates[rate]);
    }
    std::memcpy(sums, kept, sizeof(Vec) * count * each);
  }

  // -lr times the residual of every token at the chunk's start; with the delta rule's prediction where it is one tile.
  bool make_steps(const float* key, const float* value, int n, Gates gates) {
    const Options& o = call.options;
    const bool is_predicted = o.delta != 0 && !gates.momentum && n <= TILE;
    const float squared = o.squared ? 1.0f : 0.0f;
    float kept = 1;
    for (int t = 0; t < n; t++) {
      const float along = squared + (is_predicted ? o.delta * kept : 0.0f);
      kept *= gates.retention[t];
      for (int i = 0; i < ldk; i += LANES) {
        Vec factor = along * hope::load(key + t * ldk + i);
        if (o.self_targets) factor -= hope::load(value + t * ldk + i);
        store(factors + t * ldk + i, -gates.lr[t] * factor);
      }
    }
    product({factors, ldk, 1}, weights, width, steps, width, n, width, K);
    if (!o.self_targets && call.num_rates) {
      // A rate has no value to aim at: its target is always what it makes of the value.
      for (int t = 0; t < n; t++)
        for (int i = 0; i < ldk; i += LANES)
          store(factors + t * ldk + i, hope::load(factors + t * ldk + i) + gates.lr[t] * hope::load(value + t * ldk + i));
      product({factors, ldk, 1}, weights + columns, width, rate_part, LANES, n, LANES, K);
      for (int t = 0; t < n; t++)
        for (int i = 0; i < call.num_rates; i++) steps[t * width + columns + i] = rate_part[t * LANES + i];
    }
    // What the residual paths add.
    for (int place = 0; place < call.num_vectors; place++) {
      const bool is_residual = o.is_residual || place != call.place_main;
      const float key_share = is_residual ? squared : 0.0f;
      const float value_share = is_residual || !o.self_targets ? 1.0f : 0.0f;
      for (int t = 0; t < n; t++)
        for (int i = 0; i < K; i++)
          steps[t * width + place * K + i] -=
              gates.lr[t] * (key_share * key[t * ldk + i] - value_share * value[t * ldk + i]);
    }
    return is_predicted;
  }

  // found [n, ldk]: what queries find after each token; nothing is read where there are no queries.
  void write(const float* key, const float* value, int64_t, int n, Gates gates, const float* queries, float* found) {
    const bool is_predicted = make_steps(key, value, n, gates);
    const Reads reads{queries, ldk, found, ldk, int(call.place_main) * K, ldk};
    write_linear({weights, surprise, weights_next, surprise_next}, width, width, key, ldk, K, n, steps, gates, call.options.delta, is_predicted,
                 nullptr, 0, queries ? &reads : nullptr, scratch);
    if (!queries) return;
    for (int t = 0; t < n; t++) {
      for (int i = 0; i < K; i++) found[t * ldk + i] += call.options.is_residual ? queries[t * ldk + i] : 0;
      std::memset(found + t * ldk + K, 0, sizeof(float) * (ldk - K));
    }
  }

  // Whether what was written has grown beyond all measure: a multiple of what was there, or of the norm of memories
  // that map K orthogonal keys to unit values.
  bool has_exploded() {
    if (size < 0) size = norm(weights);
    next_size = norm(weights_next);
    // A comparison that NaN fails.
    return !(next_size <= call.options.max_growth * std::fmax(size, std::sqrt(double(M))));
  }

  void accept() {
    std::swap(weights, weights_next), std::swap(surprise, surprise_next);
    size = next_size, next_size = -1;
    look();
  }

  double norm(const float* all) const { return std::sqrt(squared_norm(all, width, K, width)); }

  void look() { view = weights, ld = width; }
};

}  // namespace

extern "C" void hope_dgd_run(const Call* call, int num_threads) { run_heads<MatrixMemories>(*call, num_threads); }
