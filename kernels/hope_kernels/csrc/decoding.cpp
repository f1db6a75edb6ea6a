// What stands between the products of a decoding step, one token a row: attention through a ring of keys and values,
// the norm behind a residual sum, and the gate of an MLP.
//
// Shapes: R rows, H heads, U key-value heads, G = H / U, K head size, N ring places, n of them in use, D width.
#include <cstdlib>
#include <vector>

#include "activation.h"

using namespace hope;

namespace {

struct Attend {
  // projected [R, (H + 2 U) K]: queries, keys, values; cos, sin [R, K]; far_cos, far_sin: the same for the first
  // num_sinks keys, or null; mask [R, n], added to the scores; out [R, H K].
  const float *projected, *cos, *sin, *far_cos, *far_sin, *mask;
  float* out;
  // Addresses [R] of each row's keys and values [U, N, K]; places [R]: where the token's own are written.
  const int64_t *keys, *values, *places;
  // offset: bytes from those addresses to this block's; is_rounded: keys and values are kept to bfloat16's precision.
  int64_t offset, num_rows, num_heads, num_shared, head_dim, capacity, num_places, num_sinks, is_rounded;
};

struct AddNorm {
  // hidden [R, D], to which added is added in place; added: element (r, i) at r * row + i * column, or null.
  float* hidden;
  const float *added, *weight;
  float* out;
  int64_t num_rows, width, row, column;
  float eps;
};

// As torch rounds: to the nearest, ties to even.
float rounded(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7fffffff) > 0x7f800000) return value;
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
  std::memcpy(&value, &bits, sizeof(bits));
  return value;
}

// Both halves of a head turn together: rotary embedding.
void rotate(const float* x, const float* cos, const float* sin, float scale, float* out, int64_t size) {
  const int64_t half = size / 2;
  for (int64_t i = 0; i < half; i++) {
    out[i] = scale * (x[i] * cos[i] - x[half + i] * sin[i]);
    out[half + i] = scale * (x[half + i] * cos[half + i] + x[i] * sin[half + i]);
  }
}

float sum(Vec values) {
#if defined(__AVX512F__)
  typedef float Half __attribute__((vector_size(32)));
  typedef float Quarter __attribute__((vector_size(16)));
  Half halves[2];
  std::memcpy(halves, &values, sizeof(values));
  const Half half = halves[0] + halves[1];
  Quarter quarters[2];
  std::memcpy(quarters, &half, sizeof(half));
  const Quarter q = quarters[0] + quarters[1];
  return (q[0] + q[2]) + (q[1] + q[3]);
#else
  return total(values);
#endif
}

// scores[g * ld] = queries[g] key, for G heads that share the key.
template <int G>
void score(const float* queries, const float* key, int64_t size, float* scores, int64_t ld) {
  Vec sums[G] = {};
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) {
    const Vec right = load(key + i);
    for (int g = 0; g < G; g++) sums[g] += load(queries + g * size + i) * right;
  }
  for (int g = 0; g < G; g++) {
    float out = sum(sums[g]);
    for (int64_t j = i; j < size; j++) out += queries[g * size + j] * key[j];
    scores[g * ld] = out;
  }
}

// out[g] = sum over places of weights[g * ld + p] values[p], for G heads that share the values.
template <int G>
void mix(const float* weights, int64_t ld, const float* values, int64_t places, int64_t size, float* out) {
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) {
    Vec sums[G] = {};
    for (int64_t p = 0; p < places; p++) {
      const Vec right = load(values + p * size + i);
      for (int g = 0; g < G; g++) sums[g] += weights[g * ld + p] * right;
    }
    for (int g = 0; g < G; g++) store(out + g * size + i, sums[g]);
  }
  for (; i < size; i++)
    for (int g = 0; g < G; g++) {
      float total = 0;
      for (int64_t p = 0; p < places; p++) total += weights[g * ld + p] * values[p * size + i];
      out[g * size + i] = total;
    }
}

// Scores to weights that add up to 1.
void softmax(float* scores, int64_t count, int64_t whole) {
  float most = scores[0];
  for (int64_t i = 1; i < count; i++) most = scores[i] > most ? scores[i] : most;
  for (int64_t i = count; i < whole; i++) scores[i] = most - 87.0f;
  for (int64_t i = 0; i < whole; i += LANES) store(scores + i, exp_negative(load(scores + i) - most));
  float all = 0;
  for (int64_t i = 0; i < count; i++) all += scores[i];
  const float scale = 1.0f / all;
  for (int64_t i = 0; i < whole; i += LANES) store(scores + i, scale * load(scores + i));
}

// What the heads of a group see, at most four at a time.
template <int G>
void see(const float* near, const float* far, const float* keys, const float* values, const float* mask, int64_t places,
         int64_t sinks, int64_t size, int64_t whole, float* scores, float* out) {
  for (int64_t p = 0; p < places; p++) {
    if (std::isinf(mask[p])) {
      for (int g = 0; g < G; g++) scores[g * whole + p] = mask[p];
      continue;
    }
    score<G>(p < sinks ? far : near, keys + p * size, size, scores + p, whole);
    for (int g = 0; g < G; g++) scores[g * whole + p] += mask[p];
  }
  for (int g = 0; g < G; g++) softmax(scores + g * whole, places, whole);
  mix<G>(scores, whole, values, places, size, out);
}

void attend(const Attend& c, int64_t r, int64_t u, float* buffer) {
  const int64_t group = c.num_heads / c.num_shared, size = c.head_dim, whole = padded(int(c.num_places));
  const float* row = c.projected + r * (c.num_heads + 2 * c.num_shared) * size;
  const float *cos = c.cos + r * size, *sin = c.sin + r * size;
  const int64_t skipped = c.offset + u * c.capacity * size * int64_t(sizeof(float));
  float* keys = reinterpret_cast<float*>(c.keys[r] + skipped);
  float* values = reinterpret_cast<float*>(c.values[r] + skipped);
  float *key = keys + c.places[r] * size, *value = values + c.places[r] * size;
  rotate(row + (c.num_heads + u) * size, cos, sin, 1.0f, key, size);
  std::memcpy(value, row + (c.num_heads + c.num_shared + u) * size, sizeof(float) * size);
  if (c.is_rounded)
    for (int64_t i = 0; i < size; i++) key[i] = rounded(key[i]), value[i] = rounded(value[i]);
  float *near = buffer, *far = near + group * size, *scores = far + group * size;
  const float scale = 1.0f / std::sqrt(float(size));
  for (int64_t g = 0; g < group; g++) {
    const float* query = row + (u * group + g) * size;
    rotate(query, cos, sin, scale, near + g * size, size);
    if (c.far_cos) rotate(query, c.far_cos + r * size, c.far_sin + r * size, scale, far + g * size, size);
  }
  const float* mask = c.mask + r * c.num_places;
  const int64_t sinks = c.far_cos ? c.num_sinks : 0;
  for (int64_t g = 0; g < group; g += 4) {
    auto run = group - g >= 4 ? see<4> : group - g == 3 ? see<3> : group - g == 2 ? see<2> : see<1>;
    run(near + g * size, far + g * size, keys, values, mask, c.num_places, sinks, size, whole, scores,
        c.out + (r * c.num_heads + u * group + g) * size);
  }
}

}  // namespace

extern "C" void hope_attend_token(const Attend* call, int num_threads) {
  const Attend& c = *call;
  const int64_t group = c.num_heads / c.num_shared, items = c.num_rows * c.num_shared;
  const int64_t work = items * group * c.num_places * c.head_dim;
#pragma omp parallel num_threads(num_threads) if (num_threads > 1 && work > (1 << 18))
  {
    std::vector<float> buffer(2 * group * c.head_dim + 4 * padded(int(c.num_places)));
#pragma omp for schedule(static)
    for (int64_t item = 0; item < items; item++) attend(c, item / c.num_shared, item % c.num_shared, buffer.data());
  }
}

extern "C" void hope_add_norm(const AddNorm* call, int num_threads) {
  const AddNorm& c = *call;
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1 && c.num_rows * c.width > (1 << 15))
  for (int64_t r = 0; r < c.num_rows; r++) {
    float *hidden = c.hidden + r * c.width, *out = c.out + r * c.width;
    if (c.added && c.column == 1)
      for (int64_t i = 0; i < c.width; i++) hidden[i] += c.added[r * c.row + i];
    else if (c.added)
      for (int64_t i = 0; i < c.width; i++) hidden[i] += c.added[r * c.row + i * c.column];
    Vec sums{};
    int64_t i = 0;
    for (; i + LANES <= c.width; i += LANES) sums += load(hidden + i) * load(hidden + i);
    float squares = sum(sums);
    for (; i < c.width; i++) squares += hidden[i] * hidden[i];
    const float scale = 1.0f / std::sqrt(squares / float(c.width) + c.eps);
    for (i = 0; i < c.width; i++) out[i] = hidden[i] * scale * c.weight[i];
  }
}

// out = silu(gate) * up, `blocks` times `size` numbers that lie together, `step` apart.
extern "C" void hope_gate(const float* gate, const float* up, float* out, int64_t blocks, int64_t size, int64_t step,
                          int num_threads) {
  const int64_t pieces = (size + 1023) / 1024;
#pragma omp parallel for collapse(2) num_threads(num_threads) if (num_threads > 1 && blocks * size > (1 << 15))
  for (int64_t b = 0; b < blocks; b++)
    for (int64_t piece = 0; piece < pieces; piece++) {
      const int64_t end = size < (piece + 1) * 1024 ? size : (piece + 1) * 1024;
      const float *g = gate + b * step, *u = up + b * step;
      float* to = out + b * size;
      int64_t i = piece * 1024;
      for (; i + LANES <= end; i += LANES) {
        const Vec x = load(g + i);
        store(to + i, x * sigmoid(x) * load(u + i));
      }
      for (; i < end; i++) to[i] = g[i] / (1.0f + std::exp(-g[i])) * u[i];
    }
}
