// The chunk-parallel write of one linear memory, in tiles: README of dgd_memory, "The chunk form", equations (1)-(4).
#pragma once

#include <algorithm>
#include <cstdlib>
#include <new>

#include "simd.h"

namespace hope {

// Tokens of a tile. Residuals are those of the chunk's start, so tiles are exact; longer ones cost more in the triangle.
constexpr int TILE = 64, MOMENTUM_TILE = 32, TRIANGLE = 16;

// Rates of a chunk's tokens. momentum is null where there is none.
struct Gates {
  const float *lr, *retention, *momentum;
};

static inline int tile_size(bool has_momentum) { return has_momentum ? MOMENTUM_TILE : TILE; }

// Reads of the memory as it is after each token (NL eq. 93 at W_t): queries [tokens, ldq], out [tokens, ldo] of the
// columns from `column` on, in whole vectors.
struct Reads {
  const float* queries;
  int64_t ldq;
  float* out;
  int64_t ldo;
  int column, columns;
};

// Memory for the intermediate results of a thread, given out front to back and taken back all at once. It is kept for
// the thread's next call: fresh memory would be fetched page by page, every time.
class Scratch {
  // Buffers of whole pages would begin at equal places of theirs, where a processor takes a store to one for a store
  // to the other.
  static constexpr size_t GAP = 80, MOST_BUFFERS = 48;

 public:
  ~Scratch() { std::free(data_); }
  void reserve(size_t floats) {
    floats += MOST_BUFFERS * (GAP + 16);
    if (floats > size_) {
      std::free(data_);
      size_ = 0;
      data_ = static_cast<float*>(std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64));
      if (!data_) throw std::bad_alloc();
      size_ = floats;
    }
    next_ = data_;
  }
  float* take(size_t floats) {
    float* out = next_;
    next_ += (floats + 15) / 16 * 16 + GAP;
    return out;
  }
  float* mark() const { return next_; }
  void reset(float* to) { next_ = to; }

 private:
  float *data_ = nullptr, *next_ = nullptr;
  size_t size_ = 0;
};

// What write_linear takes from its scratch, in floats.
static inline size_t scratch_of_write(int key_size, int ldw) {
  return size_t(TILE) * (2 * key_size + ldw + 7 * TILE) + 64;
}

// Rows of a lower triangle [n, n] that decay from token to token: row t is factor_t times the row before, 1 at t.
static inline void decay_row(float* row, const float* before, float factor, int t, int ld) {
  for (int j = 0; j < ld; j += LANES) store(row + j, t ? factor * load(before + j) : Vec{});
  row[t] = 1;
}

// Solve (I - coupling) x = x in place: coupling [n, ld] strictly lower, x [n, ldw].
static inline void substitute(const float* coupling, int ld, float* x, int64_t ldw, int columns, int n) {
  for (int start = 0; start < n; start += TRIANGLE) {
    const int rows = std::min(TRIANGLE, n - start);
    if (start) product({coupling + start * ld, ld, 1}, x, ldw, x + start * ldw, ldw, rows, columns, start, 1);
    for (int t = start + 1; t < start + rows; t++)
      product({coupling + t * ld + start, ld, 1}, x + start * ldw, ldw, x + t * ldw, ldw, 1, columns, t - start, 1);
  }
}

// A memory before and after a chunk, [key_size, ldw] each: what is written is not what was read, so that a chunk can be
// taken back. The same place twice writes in place. Surprises are null where there is no momentum.
struct Written {
  const float *weights, *surprise;
  float *weights_out, *surprise_out;
};

// Write a chunk of tokens into a memory, and into its surprise where there is momentum.
//
// keys [tokens, ldk]; steps [tokens, ldw]: -lr times the residual at the chunk's start, overwritten; columns: those of
// the memory, in whole vectors, at most ldw. is_predicted: steps hold the delta rule's prediction already (one tile,
// no momentum). found: what the keys read at the chunk's start [tokens, ldf], where the caller knows it, else null. reads:
// null where nothing is read.
static void write_linear(Written memory, int64_t ldw, int columns, const float* keys, int64_t ldk, int key_size,
                         int tokens, float* steps, Gates gates, float delta, bool is_predicted, const float* found,
                         int64_t ldf, const Reads* reads, Scratch& scratch) {
  const bool has_momentum = gates.momentum != nullptr;
  const int tile = tile_size(has_momentum), ld = TILE;
  float* mark = scratch.mark();
  float *scaled = scratch.take(tile * key_size), *turned = scratch.take(key_size * ld);
  float *gram = scratch.take(tile * ld), *kept = scratch.take(tile * ld), *coupling = scratch.take(tile * ld);
  float *carried = scratch.take(tile * ld), *rolled = scratch.take(tile * ld), *onto = scratch.take(tile * ld);
  float *scores = scratch.take(tile * ld), *pulls = has_momentum ? scratch.take(tile * ldw + 64) : nullptr;
  const auto scale_keys = [&](const float* x, int n, const auto& factor) {
    for (int t = 0; t < n; t++) {
      const float f = factor(t);
      for (int i = 0; i < key_size; i++) scaled[t * key_size + i] = f * x[t * ldk + i];
    }
  };
  for (int first = 0; first < tokens; first += tile) {
    const int n = std::min(tile, tokens - first), width = padded(n);
    // Tiles after the first go on from what it has written.
    const float* weights = first ? memory.weights_out : memory.weights;
    const float* surprise = first ? memory.surprise_out : memory.surprise;
    float *weights_out = memory.weights_out, *surprise_out = memory.surprise_out;
    const float* x = keys + first * ldk;
    float* u = steps + first * ldw;
    const float *lr = gates.lr + first, *retention = gates.retention + first;
    const float* momentum = has_momentum ? gates.momentum + first : nullptr;

    // kept_before[t], carried_before[t]: what is left, before token t, of the memory and of the surprise at the start.
    float kept_before[TILE + 1], carried_before[TILE + 1], rolled_all = 1, carried_all = 0, kept_all = 1;
    for (int t = 0; t < n; t++) {
      kept_before[t] = kept_all;
      carried_before[t] = carried_all;
      kept_all *= retention[t];
      decay_row(kept + t * ld, kept + (t - 1) * ld, retention[t], t, width);
      if (!has_momentum) continue;
      rolled_all *= momentum[t];
      carried_all = retention[t] * carried_all + rolled_all;
      decay_row(rolled + t * ld, rolled + (t - 1) * ld, momentum[t], t, width);
      for (int j = 0; j < width; j += LANES) {
        const Vec past = t ? retention[t] * load(carried + (t - 1) * ld + j) : Vec{};
        store(carried + t * ld + j, past + load(rolled + t * ld + j));
      }
    }
    kept_before[n] = kept_all;
    carried_before[n] = carried_all;
    if (delta != 0 || reads) {
      for (int t = 0; t < n; t++)
        for (int i = 0; i < key_size; i++) turned[i * ld + t] = x[t * ldk + i];
      for (int t = n; t < width; t++)
        for (int i = 0; i < key_size; i++) turned[i * ld + t] = 0;
    }
    if (delta != 0) {
      for (int start = 0; start < n; start += TRIANGLE) {
        const int rows = std::min(TRIANGLE, n - start);
        product({x + start * ldk, ldk, 1}, turned, ld, gram + start * ld, ld, rows, std::min(width, padded(start + rows)),
                key_size);
      }
      // Shares before token t are those after token t - 1.
      for (int t = 0; t < n; t++) {
        const float rate = -delta * lr[t];
        for (int j = 0; j < padded(t / TRIANGLE * TRIANGLE + TRIANGLE); j += LANES) {
          const Vec alike = rate * load(gram + t * ld + j);
          store(coupling + t * ld + j, t ? alike * load(kept + (t - 1) * ld + j) : Vec{});
          if (has_momentum) store(onto + t * ld + j, t ? alike * load(carried + (t - 1) * ld + j) : Vec{});
        }
      }
      float* solved = has_momentum ? pulls : u;
      if (found && first == 0) {
        // The first tile predicts from the memory at the chunk's start.
        for (int t = 0; t < n; t++) {
          const float rate = -delta * lr[t] * kept_before[t];
          for (int j = 0; j < columns; j += LANES) {
            const Vec before = has_momentum ? Vec{} : load(solved + t * ldw + j);
            store(solved + t * ldw + j, before + rate * load(found + t * ldf + j));
          }
        }
      } else if (!is_predicted) {
        scale_keys(x, n, [&](int t) { return -delta * lr[t] * kept_before[t]; });
        product({scaled, key_size, 1}, weights, ldw, solved, ldw, n, columns, key_size, has_momentum ? 0 : 1);
      }
      if (has_momentum) {
        scale_keys(x, n, [&](int t) { return -delta * lr[t] * carried_before[t]; });
        product({scaled, key_size, 1}, surprise, ldw, solved, ldw, n, columns, key_size, 1);
        for (int start = 0; start < n; start += TRIANGLE) {
          const int rows = std::min(TRIANGLE, n - start);
          product({onto + start * ld, ld, 1}, u, ldw, solved + start * ldw, ldw, rows, columns, start + rows, 1);
        }
      }
      substitute(coupling, ld, solved, ldw, columns, n);
    }
    if (reads) {
      const float* q = reads->queries + first * reads->ldq;
      float* out = reads->out + first * reads->ldo;
      const auto gather = [&](const float* shares, const float* written) {
        for (int t = 0; t < n; t++)
          for (int j = 0; j < width; j += LANES)
            store(coupling + t * ld + j, load(shares + t * ld + j) * load(scores + t * ld + j));
        product({coupling, ld, 1}, written + reads->column, ldw, out, reads->ldo, n, reads->columns, n, 1);
      };
      product({q, reads->ldq, 1}, turned, ld, scores, ld, n, width, key_size);
      const auto from_start = [&](const float* shares, const float* memory, float keep) {
        for (int t = 0; t < n; t++)
          for (int i = 0; i < key_size; i++) scaled[t * key_size + i] = shares[t + 1] * q[t * reads->ldq + i];
        product({scaled, key_size, 1}, memory + reads->column, ldw, out, reads->ldo, n, reads->columns, key_size, keep);
      };
      from_start(kept_before, weights, 0);
      if (has_momentum) from_start(carried_before, surprise, 1);
      gather(has_momentum ? carried : kept, u);
      if (has_momentum && delta != 0) gather(kept, pulls);
    }
    const int last = (n - 1) * ld;
    const float* share = has_momentum ? carried : kept;
    scale_keys(x, n, [&](int t) { return share[last + t]; });
    product({scaled, 1, key_size}, u, ldw, weights_out, ldw, key_size, columns, n, Start{weights, ldw, kept_all});
    if (!has_momentum) continue;
    for (int i = 0; i < key_size; i++)
      for (int j = 0; j < columns; j += LANES)
        store(weights_out + i * ldw + j, load(weights_out + i * ldw + j) + carried_all * load(surprise + i * ldw + j));
    if (delta != 0) {
      scale_keys(x, n, [&](int t) { return kept[last + t]; });
      product({scaled, 1, key_size}, pulls, ldw, weights_out, ldw, key_size, columns, n, 1);
    }
    scale_keys(x, n, [&](int t) { return rolled[last + t]; });
    product({scaled, 1, key_size}, u, ldw, surprise_out, ldw, key_size, columns, n, Start{surprise, ldw, rolled_all});
  }
  scratch.reset(mark);
}

}  // namespace hope
