// Exponentials and what is made of them, on vectors: sigmoid, softplus, the exact GELU and its slope.
#pragma once

#include "simd.h"

namespace hope {

// e^x for x from -87 to 0: 2^n times a Taylor polynomial of the rest, which is at most ln(2) / 2.
static inline Vec exp_negative(Vec x) {
  const Vec low = spread(-87.0f);
  // In this order what is no number stays none.
  x = x < low ? low : x;
  const Vec halves = x * 1.44269504f - 0.5f;
  const IntVec n = __builtin_convertvector(halves, IntVec);
  const Vec whole = __builtin_convertvector(n, Vec);
  // ln 2 in two parts, the first exact in few bits.
  const Vec r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Vec p = spread(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const IntVec scale = (n + 127) << 23;
  Vec power;
  std::memcpy(&power, &scale, sizeof(power));
  return p * power;
}

static inline Vec size_of(Vec x) { return x < 0.0f ? -x : x; }

// Of both exponentials the small one is taken: neither end overflows.
static inline Vec sigmoid(Vec x) {
  const Vec small = exp_negative(-size_of(x));
  return (x < 0.0f ? small : spread(1.0f)) / (1.0f + small);
}

// log(1 + e^x) = max(x, 0) + log(1 + u), u = e^-|x|; log(1 + u) = 2 atanh(z), z = u / (2 + u), at most 1 / 3: the
// series' first term left out is below 1e-9 of its sum.
static inline Vec softplus(Vec x) {
  const Vec u = exp_negative(-size_of(x)), z = u / (2.0f + u), square = z * z;
  Vec series = spread(1.0f / 17);
  for (int n = 15; n >= 1; n -= 2) series = series * square + 1.0f / n;
  return (x < 0.0f ? Vec{} : x) + 2.0f * z * series;
}

// gelu(x) = x Phi(x), and its slope Phi(x) + x phi(x).
//
// Phi(-|x|) = e^(-x^2 / 2) t P(t) with t = 1 / (1 + 0.27 |x|): P is a least-squares fit of the relative error, at most
// 2e-7 in single precision for |x| up to 13; beyond, both are 0 or x within rounding.
static inline void gelu(Vec x, Vec* value, Vec* slope) {
  static const float fit[] = {0.10772177577018738f, 0.10752156376838684f, 0.1019769236445427f,
                              0.07134991884231567f, 0.10957065969705582f, -0.07186645269393921f,
                              0.17220620810985565f, -0.12769849598407745f, 0.0292179137468338f};
  const Vec size = size_of(x);
  const Vec bell = exp_negative(-0.5f * x * x);
  const Vec t = 1.0f / (1.0f + 0.27f * size);
  Vec p = spread(fit[8]);
  for (int i = 7; i >= 0; i--) p = p * t + fit[i];
  const Vec tail = bell * t * p;
  const Vec share = x < 0.0f ? tail : 1.0f - tail;
  *value = x * share;
  if (slope) *slope = share + x * bell * 0.3989422804f;
}

}  // namespace hope
