// What the operators compute with, one table for each kind of processor.
//
// Every kernel treats each row of its input by itself and in the same order of operations whatever the number of rows,
// so that an answer never depends on what else is in a batch.

#pragma once

#include <cstddef>
#include <cstdint>

namespace dragoman {

// Columns of a panel of packed weights: two vectors of 16 with AVX-512.
constexpr size_t kPanelColumns = 32;

// Values that `normaliser` tells the largest of.
constexpr size_t kMaximaBlock = 64;

// Weights (depth, columns) of signed 8 bits, as products read them: panels of 32 columns, in each of which four
// consecutive depths of a column lie side by side. Depth and columns are filled up with zeros.
struct PackedWeights {
  size_t depth;         // as the input has it
  size_t padded_depth;  // a multiple of 4
  size_t columns;
  const int8_t* panels;        // (panels, padded_depth / 4, 32, 4)
  const int32_t* corrections;  // (panels * 32): the input's zero point times the column's sum
  const float* scales;         // (panels * 32): the input's scale times the column's
  const float* bias;           // (panels * 32)
};

struct Kernels {
  const char* name;

  // sum = x + y; normed = layer normalisation of sum, over rows of `width`.
  void (*add_norm)(const float* x, const float* y, const float* weight, const float* bias, size_t rows, size_t width,
                   float epsilon, float* sum, float* normed);

  // Attention of one query over `length` keys and values (Vaswani et al. 2017, equation 1): scores, softmax, weighted
  // sum. `scratch` has room for attend_scratch(length) floats.
  void (*attend)(const float* query, const float* keys, const float* values, size_t length, size_t head_size,
                 float* scratch, float* heads);
  size_t (*attend_scratch)(size_t length);

  // The same for several queries. They, and keys and values, lie `stride` floats apart; heads come `heads_stride` apart.
  // `scratch` has room for attend_whole_scratch(length, head_size) floats.
  void (*attend_whole)(const float* queries, size_t num_queries, const float* keys, const float* values, size_t length,
                       size_t stride, size_t head_size, float* scratch, float* heads, size_t heads_stride);
  size_t (*attend_whole_scratch)(size_t length, size_t head_size);

  // log(sum(exp(x))) of one row, and the maxima of each kMaximaBlock of it.
  float (*normaliser)(const float* x, size_t size, float* maxima);

  // difference = x - subtrahend.
  void (*subtract)(const float* x, size_t size, float subtrahend, float* difference);

  // Round x / scale to the nearest, ties to even, add the zero point, saturate; rows of `depth` get zeros up to
  // `padded_depth`.
  void (*quantize)(const float* x, size_t rows, size_t depth, size_t padded_depth, float scale, int32_t zero_point,
                   uint8_t* quantized);

  // y (rows, columns) = (x - zero point) * weights * scales + bias, for panels first .. last - 1; nullptr: leave
  // integer products to ONNX Runtime.
  void (*multiply)(const uint8_t* x, size_t rows, const PackedWeights& weights, size_t first, size_t last, float* y);
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2;        // AVX2 and FMA
extern const Kernels kAvx512Vnni;  // AVX-512 F, BW, DQ, VL and VNNI
#endif

}  // namespace dragoman
