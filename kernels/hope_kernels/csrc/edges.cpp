// What stands around a layer's memories: the convolution and unit vectors before them, norm and gate behind them.
//
// Shapes: B rows, T tokens, H heads, K head size, n raw rates, W window of the convolution, P = (3 K + n) H channels.
#include <vector>

#include "activation.h"

using namespace hope;

namespace {

struct Prepare {
  // tail [B, W - 1, P], qkv [B, T, 3 H K], raw [B, T, n H]; conv [P, W], bias [n H].
  const float *tail, *qkv, *raw, *conv, *bias;
  // inputs [B, W - 1 + T, P]: tail, then what was projected; vectors [B, T, 3, H, K]; rates [B, T, n, H].
  float *inputs, *vectors, *rates;
  int64_t num_rows, num_tokens, num_heads, head_dim, num_rates, window;
};

struct Finish {
  // found [B, H, T, K], gate [B, T, H K], weight [K]; out [B, T, H K].
  const float *found, *gate, *weight;
  float* out;
  int64_t num_rows, num_tokens, num_heads, head_dim;
  float eps;
};

// out = sum over places of the window of inputs * conv, channel by channel, the newest token last.
void convolve(const float* inputs, const float* conv, float* out, int64_t channels, int64_t window) {
  int64_t i = 0;
  for (; i + LANES <= channels; i += LANES) {
    Vec sum{};
    for (int64_t w = 0; w < window; w++) sum += load(inputs + w * channels + i) * load(conv + w * channels + i);
    store(out + i, sum);
  }
  for (; i < channels; i++) {
    float sum = 0;
    for (int64_t w = 0; w < window; w++) sum += inputs[w * channels + i] * conv[w * channels + i];
    out[i] = sum;
  }
}

float sum_of_squares(const float* data, int64_t size) {
  Vec sums{};
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) sums += load(data + i) * load(data + i);
  float out = total(sums);
  for (; i < size; i++) out += data[i] * data[i];
  return out;
}

}  // namespace

extern "C" void hope_prepare(const Prepare* call, int num_threads) {
  const Prepare& c = *call;
  const int64_t inner = 3 * c.num_heads * c.head_dim, rates = c.num_rates * c.num_heads, channels = inner + rates;
  const int64_t before = c.window - 1, length = before + c.num_tokens;
  // Channels side by side, for vectors.
  std::vector<float> conv(channels * c.window);
  for (int64_t i = 0; i < channels; i++)
    for (int64_t w = 0; w < c.window; w++) conv[w * channels + i] = c.conv[i * c.window + w];
#pragma omp parallel num_threads(num_threads) if (num_threads > 1 && c.num_rows * c.num_tokens > 16)
  {
    std::vector<float> mixed(channels);
#pragma omp for
    for (int64_t row = 0; row < c.num_rows * length; row++) {
      const int64_t b = row / length, t = row % length;
      float* to = c.inputs + row * channels;
      if (t < before) {
        std::memcpy(to, c.tail + (b * before + t) * channels, sizeof(float) * channels);
      } else {
        std::memcpy(to, c.qkv + (b * c.num_tokens + t - before) * inner, sizeof(float) * inner);
        std::memcpy(to + inner, c.raw + (b * c.num_tokens + t - before) * rates, sizeof(float) * rates);
      }
    }
#pragma omp for
    for (int64_t token = 0; token < c.num_rows * c.num_tokens; token++) {
      const int64_t b = token / c.num_tokens, t = token % c.num_tokens;
      convolve(c.inputs + (b * length + t) * channels, conv.data(), mixed.data(), channels, c.window);
      float* vectors = c.vectors + token * inner;
      for (int64_t head = 0; head < 3 * c.num_heads; head++) {
        const float* from = mixed.data() + head * c.head_dim;
        const float scale = 1.0f / std::fmax(std::sqrt(sum_of_squares(from, c.head_dim)), 1e-12f);
        for (int64_t i = 0; i < c.head_dim; i++) vectors[head * c.head_dim + i] = scale * from[i];
      }
      for (int64_t i = 0; i < rates; i++) c.rates[token * rates + i] = mixed[inner + i] + c.bias[i];
    }
  }
}

extern "C" void hope_finish(const Finish* call, int num_threads) {
  const Finish& c = *call;
  const int64_t width = c.num_heads * c.head_dim;
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1 && c.num_rows * c.num_tokens > 16)
  for (int64_t token = 0; token < c.num_rows * c.num_tokens; token++) {
    const int64_t b = token / c.num_tokens, t = token % c.num_tokens;
    for (int64_t h = 0; h < c.num_heads; h++) {
      const float* found = c.found + ((b * c.num_heads + h) * c.num_tokens + t) * c.head_dim;
      const float* gate = c.gate + token * width + h * c.head_dim;
      float* out = c.out + token * width + h * c.head_dim;
      const float scale = 1.0f / std::sqrt(sum_of_squares(found, c.head_dim) / float(c.head_dim) + c.eps);
      int64_t i = 0;
      for (; i + LANES <= c.head_dim; i += LANES) {
        const Vec x = load(gate + i);
        store(out + i, scale * load(found + i) * load(c.weight + i) * (x * sigmoid(x)));
      }
      for (; i < c.head_dim; i++) out[i] = scale * found[i] * c.weight[i] * gate[i] / (1.0f + std::exp(-gate[i]));
    }
  }
}
