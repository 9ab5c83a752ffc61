// Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma.

#include <immintrin.h>

#include "kernels.h"

namespace dragoman {
namespace {
#include "shared_kernels.inl"

constexpr size_t kTileRows = 8;  // two vectors of sums each; more rows, and compilers move sums to memory

inline __m512i broadcast_four(const uint8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, sizeof four);
  return _mm512_set1_epi32(four);
}

inline void store(__m512i sum, size_t column, const PackedWeights& weights, float* y) {
  const __m512i exact = _mm512_sub_epi32(sum, _mm512_loadu_si512(weights.corrections + column));
  const __m512 result = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(exact), _mm512_loadu_ps(weights.scales + column)),
                                      _mm512_loadu_ps(weights.bias + column));
  const size_t left = weights.columns - column;
  if (left >= 16)
    _mm512_storeu_ps(y + column, result);
  else
    _mm512_mask_storeu_ps(y + column, (__mmask16)((1u << left) - 1), result);
}

// ROWS rows by one panel. CHAINS sums for each element, so that few rows do not wait for one sum after the other.
template <size_t ROWS, size_t CHAINS>
inline void multiply_tile(const uint8_t* x, const PackedWeights& weights, size_t column, float* y) {
  const size_t num_steps = weights.padded_depth / 4;
  const int8_t* panel = weights.panels + column * weights.padded_depth;
  __m512i sums[CHAINS][ROWS][2];
  for (size_t chain = 0; chain < CHAINS; ++chain)
#pragma GCC unroll 8
    for (size_t row = 0; row < ROWS; ++row) sums[chain][row][0] = sums[chain][row][1] = _mm512_setzero_si512();
  size_t step = 0;
  for (; step + CHAINS <= num_steps; step += CHAINS)
    for (size_t chain = 0; chain < CHAINS; ++chain, panel += kPanelColumns * 4) {
      const __m512i left = _mm512_loadu_si512(panel), right = _mm512_loadu_si512(panel + 64);
#pragma GCC unroll 8
      for (size_t row = 0; row < ROWS; ++row) {
        const __m512i four = broadcast_four(x + row * weights.padded_depth + (step + chain) * 4);
        sums[chain][row][0] = _mm512_dpbusd_epi32(sums[chain][row][0], four, left);
        sums[chain][row][1] = _mm512_dpbusd_epi32(sums[chain][row][1], four, right);
      }
    }
  for (; step < num_steps; ++step, panel += kPanelColumns * 4) {
    const __m512i left = _mm512_loadu_si512(panel), right = _mm512_loadu_si512(panel + 64);
#pragma GCC unroll 8
    for (size_t row = 0; row < ROWS; ++row) {
      const __m512i four = broadcast_four(x + row * weights.padded_depth + step * 4);
      sums[0][row][0] = _mm512_dpbusd_epi32(sums[0][row][0], four, left);
      sums[0][row][1] = _mm512_dpbusd_epi32(sums[0][row][1], four, right);
    }
  }
#pragma GCC unroll 8
  for (size_t row = 0; row < ROWS; ++row) {
    for (size_t chain = 1; chain < CHAINS; ++chain)
      for (size_t half = 0; half < 2; ++half)
        sums[0][row][half] = _mm512_add_epi32(sums[0][row][half], sums[chain][row][half]);
    store(sums[0][row][0], column, weights, y + row * weights.columns);
    if (column + 16 < weights.columns) store(sums[0][row][1], column + 16, weights, y + row * weights.columns);
  }
}

void multiply_rows(const uint8_t* x, size_t rows, const PackedWeights& weights, size_t column, float* y) {
  switch (rows) {
    case 8: return multiply_tile<8, 1>(x, weights, column, y);
    case 7: return multiply_tile<7, 1>(x, weights, column, y);
    case 6: return multiply_tile<6, 1>(x, weights, column, y);
    case 5: return multiply_tile<5, 1>(x, weights, column, y);
    case 4: return multiply_tile<4, 1>(x, weights, column, y);
    case 3: return multiply_tile<3, 2>(x, weights, column, y);
    case 2: return multiply_tile<2, 2>(x, weights, column, y);
    case 1: return multiply_tile<1, 4>(x, weights, column, y);
    default: return;
  }
}

void multiply(const uint8_t* x, size_t rows, const PackedWeights& weights, size_t first, size_t last, float* y) {
  for (size_t panel = first; panel < last; ++panel) {
    size_t row = 0;
    for (; row + kTileRows <= rows; row += kTileRows)
      multiply_rows(x + row * weights.padded_depth, kTileRows, weights, panel * kPanelColumns, y + row * weights.columns);
    multiply_rows(x + row * weights.padded_depth, rows - row, weights, panel * kPanelColumns, y + row * weights.columns);
  }
}

}  // namespace

const Kernels kAvx512Vnni = {"avx512vnni", add_norm, attend, attend_scratch, attend_whole, attend_whole_scratch, normaliser, subtract, quantize, multiply};

}  // namespace dragoman
