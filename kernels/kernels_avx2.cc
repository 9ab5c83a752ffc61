// Compiled with -mavx2 -mfma.

#include <immintrin.h>

#include "kernels.h"

namespace dragoman {
namespace {
#include "shared_kernels.inl"

constexpr size_t kTileRows = 4;

inline __m256i broadcast_four(const uint8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, sizeof four);
  return _mm256_set1_epi32(four);
}

inline void store(__m256i sum, size_t column, const PackedWeights& weights, float* y) {
  const __m256i exact = _mm256_sub_epi32(sum, _mm256_loadu_si256((const __m256i*)(weights.corrections + column)));
  const __m256 result = _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(exact), _mm256_loadu_ps(weights.scales + column)),
                                      _mm256_loadu_ps(weights.bias + column));
  if (column + 8 <= weights.columns) {
    _mm256_storeu_ps(y + column, result);
    return;
  }
  float all[8];
  _mm256_storeu_ps(all, result);
  for (size_t i = 0; column + i < weights.columns; ++i) y[column + i] = all[i];
}

// ROWS rows by half a panel, 16 columns. Weights have seven bits, so that a pair of products fits 16.
template <size_t ROWS>
inline void multiply_tile(const uint8_t* x, const PackedWeights& weights, size_t column, float* y) {
  const size_t num_steps = weights.padded_depth / 4;
  const int8_t* panel = weights.panels + column / kPanelColumns * weights.padded_depth * kPanelColumns +
                        column % kPanelColumns * 4;
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[ROWS][2];
  for (size_t row = 0; row < ROWS; ++row) sums[row][0] = sums[row][1] = _mm256_setzero_si256();
  for (size_t step = 0; step < num_steps; ++step, panel += kPanelColumns * 4) {
    const __m256i left = _mm256_loadu_si256((const __m256i*)panel);
    const __m256i right = _mm256_loadu_si256((const __m256i*)(panel + 32));
    for (size_t row = 0; row < ROWS; ++row) {
      const __m256i four = broadcast_four(x + row * weights.padded_depth + step * 4);
      sums[row][0] = _mm256_add_epi32(sums[row][0], _mm256_madd_epi16(_mm256_maddubs_epi16(four, left), ones));
      sums[row][1] = _mm256_add_epi32(sums[row][1], _mm256_madd_epi16(_mm256_maddubs_epi16(four, right), ones));
    }
  }
  for (size_t row = 0; row < ROWS; ++row) {
    store(sums[row][0], column, weights, y + row * weights.columns);
    if (column + 8 < weights.columns) store(sums[row][1], column + 8, weights, y + row * weights.columns);
  }
}

void multiply(const uint8_t* x, size_t rows, const PackedWeights& weights, size_t first, size_t last, float* y) {
  for (size_t column = first * kPanelColumns; column < last * kPanelColumns && column < weights.columns; column += 16) {
    size_t row = 0;
    for (; row + kTileRows <= rows; row += kTileRows)
      multiply_tile<kTileRows>(x + row * weights.padded_depth, weights, column, y + row * weights.columns);
    const uint8_t* rest = x + row * weights.padded_depth;
    float* rest_y = y + row * weights.columns;
    switch (rows - row) {
      case 3: multiply_tile<3>(rest, weights, column, rest_y); break;
      case 2: multiply_tile<2>(rest, weights, column, rest_y); break;
      case 1: multiply_tile<1>(rest, weights, column, rest_y); break;
      default: break;
    }
  }
}

}  // namespace

const Kernels kAvx2 = {"avx2", add_norm, attend, attend_scratch, attend_whole, attend_whole_scratch, normaliser, subtract, quantize, multiply};

}  // namespace dragoman
