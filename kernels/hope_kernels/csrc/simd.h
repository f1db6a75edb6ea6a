// Vectors of floats and the small matrix products that every operator is made of.
//
// Compiled once for each instruction set; the width of a vector is what the compiler was told the machine has. Every
// element of a product is summed over its inner index in order, one fused multiply-add after the other, whatever the
// number of rows asked for: a token's numbers do not depend on the tokens it came with.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace hope {

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 6, COLUMNS = 4;
#elif defined(__AVX2__)
constexpr int LANES = 8, ROWS = 6, COLUMNS = 2;
#else
constexpr int LANES = 4, ROWS = 4, COLUMNS = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * LANES), aligned(4 * LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * LANES), aligned(4 * LANES)));

static inline Vec load(const float* from) {
  Vec out;
  std::memcpy(&out, from, sizeof(Vec));
  return out;
}

static inline void store(float* to, Vec value) { std::memcpy(to, &value, sizeof(Vec)); }

static inline Vec spread(float value) { return value - Vec{}; }

// Columns rounded up to whole vectors.
static inline int padded(int columns) { return (columns + LANES - 1) / LANES * LANES; }

// a b + c, rounded once where vectors are: left to itself, a compiler decides that anew for every loop.
static inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}

static inline float total(Vec values) {
  float parts[LANES];
  store(parts, values);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) parts[i] += parts[i + half];
  return parts[0];
}

static inline float dot(const float* a, const float* b, int size) {
  Vec sum{};
  for (int i = 0; i < size; i += LANES) sum += load(a + i) * load(b + i);
  return total(sum);
}

// A matrix operand: element (i, k) lies at data[i * row + k * column].
struct Operand {
  const float* data;
  int64_t row, column;
  Operand from(int i) const { return {data + i * row, row, column}; }
};

// What a product is added to: `keep` times a matrix, which may be the one that the product is stored to.
struct Start {
  const float* data;
  int64_t row;
  float keep;
  Start at(int i, int j) const { return {data + i * row + j, row, keep}; }
};

template <int MR, int NB>
static inline void block(Operand a, const float* b, int64_t ldb, float* out, int64_t ldo, int inner, Start start) {
  Vec sums[MR][NB];
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < NB; j++)
      sums[i][j] = start.keep != 0 ? start.keep * load(start.data + i * start.row + j * LANES) : Vec{};
  for (int k = 0; k < inner; k++) {
    Vec right[NB];
    for (int j = 0; j < NB; j++) right[j] = load(b + k * ldb + j * LANES);
    for (int i = 0; i < MR; i++) {
      const float left = a.data[i * a.row + k * a.column];
      for (int j = 0; j < NB; j++) sums[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < NB; j++) store(out + i * ldo + j * LANES, sums[i][j]);
}

template <int NB>
static void stripe(Operand a, const float* b, int64_t ldb, float* out, int64_t ldo, int rows, int inner, Start start) {
  int i = 0;
  for (; i + ROWS <= rows; i += ROWS) block<ROWS, NB>(a.from(i), b, ldb, out + i * ldo, ldo, inner, start.at(i, 0));
  switch (rows - i) {
    case 5: block<5, NB>(a.from(i), b, ldb, out + i * ldo, ldo, inner, start.at(i, 0)); break;
    case 4: block<4, NB>(a.from(i), b, ldb, out + i * ldo, ldo, inner, start.at(i, 0)); break;
    case 3: block<3, NB>(a.from(i), b, ldb, out + i * ldo, ldo, inner, start.at(i, 0)); break;
    case 2: block<2, NB>(a.from(i), b, ldb, out + i * ldo, ldo, inner, start.at(i, 0)); break;
    case 1: block<1, NB>(a.from(i), b, ldb, out + i * ldo, ldo, inner, start.at(i, 0)); break;
    default: break;
  }
}

// out = start + a b, for b [inner, columns] and out [rows, columns]; columns are whole vectors.
static inline void product(Operand a, const float* b, int64_t ldb, float* out, int64_t ldo, int rows, int columns,
                           int inner, Start start) {
  if (rows <= 0 || columns <= 0) return;
  int j = 0;
  for (; j + COLUMNS * LANES <= columns; j += COLUMNS * LANES)
    stripe<COLUMNS>(a, b + j, ldb, out + j, ldo, rows, inner, start.at(0, j));
  for (; j < columns; j += LANES) stripe<1>(a, b + j, ldb, out + j, ldo, rows, inner, start.at(0, j));
}

// out = keep * out + a b.
static inline void product(Operand a, const float* b, int64_t ldb, float* out, int64_t ldo, int rows, int columns,
                           int inner, float keep = 0) {
  product(a, b, ldb, out, ldo, rows, columns, inner, Start{out, ldo, keep});
}

// Copy [rows, columns] between buffers of different row lengths; the target's rows are filled up with zeros.
static inline void copy_padded(const float* from, int64_t ld, float* to, int64_t ldo, int rows, int columns) {
  for (int i = 0; i < rows; i++) {
    std::memcpy(to + i * ldo, from + i * ld, sizeof(float) * columns);
    std::memset(to + i * ldo + columns, 0, sizeof(float) * (ldo - columns));
  }
}

static inline void copy_rows(const float* from, int64_t ld, float* to, int64_t ldo, int rows, int columns) {
  for (int i = 0; i < rows; i++) std::memcpy(to + i * ldo, from + i * ld, sizeof(float) * columns);
}

static inline double squared_norm(const float* data, int64_t ld, int rows, int columns) {
  double total = 0;
  for (int i = 0; i < rows; i++) total += dot(data + i * ld, data + i * ld, columns);
  return total;
}

// Scale a vector to length 1; one shorter than 1e-12 is divided by that, as torch does.
static inline void normalize(float* data, int size) {
  const float scale = 1.0f / std::fmax(std::sqrt(dot(data, data, size)), 1e-12f);
  for (int i = 0; i < size; i += LANES) store(data + i, scale * load(data + i));
}

}  // namespace hope
