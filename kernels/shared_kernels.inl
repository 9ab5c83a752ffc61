// The kernels that compilers vectorise by themselves; included once for each kind of processor, into a namespace of its
// own, and compiled with its flags. No inline functions of the standard library: one definition of those would be kept
// for all, perhaps that for a processor which is not there.

typedef float Vector __attribute__((vector_size(32)));  // a register with AVX, two without; heads are multiples of it
typedef float UnalignedVector __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t IntegerVector __attribute__((vector_size(32)));

constexpr size_t kLanes = sizeof(Vector) / sizeof(float);

inline size_t padded(size_t size) { return (size + kLanes - 1) / kLanes * kLanes; }

#define LOAD(address) (*(const UnalignedVector*)(address))
#define STORE(address, vector) (*(UnalignedVector*)(address) = (vector))
#if defined(__clang__)
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else  // GCC has the other one from version 12 on only
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (IntegerVector){__VA_ARGS__})
#endif

inline Vector larger(Vector x, Vector y) { return x > y ? x : y; }

inline float largest(Vector x) {
  x = larger(x, SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3));
  x = larger(x, SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5));
  return x[0] > x[1] ? x[0] : x[1];
}

inline float sum_of(Vector x) {
  x += SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3);
  x += SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5);
  return x[0] + x[1];
}

// exp(x) for x <= 0: Cody and Waite's reduction to |r| <= ln 2 / 2, then Cephes' polynomial; 2 units in the last place.
inline Vector exponential(Vector x) {
  x = x < -87.0f ? -87.0f - Vector{} : x;
  const IntegerVector n = __builtin_convertvector(x * 1.44269504f - 0.5f, IntegerVector);
  const Vector whole = __builtin_convertvector(n, Vector);
  const Vector r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * (Vector)((n + 127) << 23);
}

// --- attention -----------------------------------------------------------------------------------

// Scores of one query become weights that sum to 1. `scores` has room for padded(length); what is beyond `length` ends
// as 0.
inline void soften(float* scores, size_t length, float scale) {
  const size_t end = padded(length);
  for (size_t t = length; t < end; ++t) scores[t] = -__builtin_inff();
  Vector tops = LOAD(scores);
  for (size_t t = kLanes; t < end; t += kLanes) tops = larger(tops, LOAD(scores + t));
  const float top = largest(tops);
  Vector totals = {};
  for (size_t t = 0; t < end; t += kLanes) {
    const Vector weights = exponential((LOAD(scores + t) - top) * scale);
    totals += weights;
    STORE(scores + t, weights);
  }
  const float factor = 1.0f / sum_of(totals);
  for (size_t t = 0; t < end; t += kLanes) STORE(scores + t, LOAD(scores + t) * factor);
  for (size_t t = length; t < end; ++t) scores[t] = 0;
}

size_t attend_scratch(size_t length) { return padded(length); }

// scores[0 .. 3]: one query by four keys that follow one another.
template <size_t HEAD_SIZE>
inline __attribute__((always_inline)) void score_four(const float* query, const float* keys, size_t head_size,
                                                      float* scores) {
  const size_t size = HEAD_SIZE ? HEAD_SIZE : head_size;
  Vector a = {}, b = {}, c = {}, d = {};
  for (size_t i = 0; i < size; i += kLanes) {
    const Vector part = LOAD(query + i);
    a += part * LOAD(keys + i);
    b += part * LOAD(keys + size + i);
    c += part * LOAD(keys + 2 * size + i);
    d += part * LOAD(keys + 3 * size + i);
  }
  // Halves of two keys beside each other, then quarters of four: three additions for what would take twelve.
  const Vector ab = SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  const Vector cd = SHUFFLE(c, d, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(c, d, 4, 5, 6, 7, 12, 13, 14, 15);
  const Vector pairs = SHUFFLE(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLE(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
  const Vector sums = pairs + SHUFFLE(pairs, pairs, 1, 0, 3, 2, 5, 4, 7, 6);
  scores[0] = sums[0];
  scores[1] = sums[4];
  scores[2] = sums[2];
  scores[3] = sums[6];
}

// With HEAD_SIZE known the loops over it unroll and the sums stay in registers.
template <size_t HEAD_SIZE>
inline __attribute__((always_inline)) void attend_sized(const float* query, const float* keys, const float* values,
                                                        size_t length, size_t head_size, float* scores, float* heads) {
  const size_t size = HEAD_SIZE ? HEAD_SIZE : head_size;
  size_t t = 0;
  for (; t + 4 <= length; t += 4) score_four<HEAD_SIZE>(query, keys + t * size, size, scores + t);
  for (; t < length; ++t) {
    Vector sums = {};
    for (size_t i = 0; i < size; i += kLanes) sums += LOAD(query + i) * LOAD(keys + t * size + i);
    scores[t] = sum_of(sums);
  }
  soften(scores, length, 1.0f / __builtin_sqrtf((float)size));
  Vector sums[HEAD_SIZE ? HEAD_SIZE / kLanes : 1];
  for (size_t first = 0; first < size; first += kLanes * (sizeof sums / sizeof(Vector))) {
    for (size_t i = 0; i < sizeof sums / sizeof(Vector); ++i) sums[i] = Vector{};
    for (t = 0; t < length; ++t) {
      const float* value = values + t * size + first;
      for (size_t i = 0; i < sizeof sums / sizeof(Vector); ++i) sums[i] += scores[t] * LOAD(value + i * kLanes);
    }
    for (size_t i = 0; i < sizeof sums / sizeof(Vector); ++i) STORE(heads + first + i * kLanes, sums[i]);
  }
}

void attend(const float* query, const float* keys, const float* values, size_t length, size_t head_size, float* scratch,
            float* heads) {
  switch (head_size) {
    case 32: return attend_sized<32>(query, keys, values, length, head_size, scratch, heads);
    case 40: return attend_sized<40>(query, keys, values, length, head_size, scratch, heads);
    case 48: return attend_sized<48>(query, keys, values, length, head_size, scratch, heads);
    case 64: return attend_sized<64>(query, keys, values, length, head_size, scratch, heads);
    default: return attend_sized<0>(query, keys, values, length, head_size, scratch, heads);
  }
}

constexpr size_t kBlock = 4;  // queries that share what is loaded of keys and values, and wait for none of the others' sums

// Eight rows of `x`, `stride` apart, as columns: transposed[i * row + t] = x[t * stride + i]. From row `num` on, zeros.
inline void transpose_eight(const float* x, size_t stride, size_t num, float* transposed, size_t row) {
  Vector r[kLanes];
  for (size_t t = 0; t < kLanes; ++t) r[t] = t < num ? LOAD(x + t * stride) : Vector{};
  Vector pairs[kLanes], fours[kLanes];
  for (size_t t = 0; t < kLanes; t += 2) {
    pairs[t] = SHUFFLE(r[t], r[t + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    pairs[t + 1] = SHUFFLE(r[t], r[t + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (size_t t = 0; t < kLanes; t += 4)
    for (size_t k = 0; k < 2; ++k) {
      fours[t + 2 * k] = SHUFFLE(pairs[t + k], pairs[t + 2 + k], 0, 1, 8, 9, 4, 5, 12, 13);
      fours[t + 2 * k + 1] = SHUFFLE(pairs[t + k], pairs[t + 2 + k], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  for (size_t k = 0; k < 4; ++k) {
    STORE(transposed + k * row, SHUFFLE(fours[k], fours[4 + k], 0, 1, 2, 3, 8, 9, 10, 11));
    STORE(transposed + (4 + k) * row, SHUFFLE(fours[k], fours[4 + k], 4, 5, 6, 7, 12, 13, 14, 15));
  }
}

// scores (kBlock, stride), from vector t on VECTORS of them: kBlock queries by transposed keys (head size, stride).
template <size_t VECTORS>
inline void score_columns(const float* const* queries, const float* transposed, size_t stride, size_t head_size, size_t t,
                          float* scores) {
  Vector sums[kBlock][VECTORS] = {};
  for (size_t i = 0; i < head_size; ++i) {
    Vector keys[VECTORS];
    for (size_t v = 0; v < VECTORS; ++v) keys[v] = LOAD(transposed + i * stride + t + v * kLanes);
#pragma GCC unroll 4
    for (size_t q = 0; q < kBlock; ++q)
      for (size_t v = 0; v < VECTORS; ++v) sums[q][v] += queries[q][i] * keys[v];
  }
#pragma GCC unroll 4
  for (size_t q = 0; q < kBlock; ++q)
    for (size_t v = 0; v < VECTORS; ++v) STORE(scores + q * stride + t + v * kLanes, sums[q][v]);
}

// As `soften` for each of kBlock rows of scores (kBlock, stride), but the weights sum to 1 / factors[q].
inline void soften_block(float* scores, size_t stride, size_t length, float scale, float* factors) {
  Vector tops[kBlock], totals[kBlock] = {};
#pragma GCC unroll 4
  for (size_t q = 0; q < kBlock; ++q) {
    for (size_t t = length; t < stride; ++t) scores[q * stride + t] = -__builtin_inff();
    tops[q] = LOAD(scores + q * stride);
    for (size_t t = kLanes; t < stride; t += kLanes) tops[q] = larger(tops[q], LOAD(scores + q * stride + t));
    tops[q] = Vector{} + largest(tops[q]);
  }
  for (size_t t = 0; t < stride; t += kLanes)
#pragma GCC unroll 4
    for (size_t q = 0; q < kBlock; ++q) {
      const Vector weights = exponential((LOAD(scores + q * stride + t) - tops[q]) * scale);
      totals[q] += weights;
      STORE(scores + q * stride + t, weights);
    }
#pragma GCC unroll 4
  for (size_t q = 0; q < kBlock; ++q) factors[q] = 1.0f / sum_of(totals[q]);
}

// heads[q], of `num` queries, from value i on VECTORS of them: row q of weights (kBlock, weights_stride) by values that lie
// `stride` apart, times factors[q].
template <size_t VECTORS>
inline void weigh_columns(const float* weights, size_t weights_stride, const float* factors, const float* values,
                          size_t length, size_t stride, size_t num, float* heads, size_t heads_stride) {
  Vector sums[kBlock][VECTORS] = {};
  for (size_t t = 0; t < length; ++t) {
    Vector value[VECTORS];
    for (size_t v = 0; v < VECTORS; ++v) value[v] = LOAD(values + t * stride + v * kLanes);
#pragma GCC unroll 4
    for (size_t q = 0; q < kBlock; ++q)
      for (size_t v = 0; v < VECTORS; ++v) sums[q][v] += weights[q * weights_stride + t] * value[v];
  }
#pragma GCC unroll 4
  for (size_t q = 0; q < kBlock; ++q)
    if (q < num)
      for (size_t v = 0; v < VECTORS; ++v) STORE(heads + q * heads_stride + v * kLanes, sums[q][v] * factors[q]);
}

size_t attend_whole_scratch(size_t length, size_t head_size) {
  return (head_size + kBlock) * padded(length);
}

void attend_whole(const float* queries, size_t num_queries, const float* keys, const float* values, size_t length,
                  size_t stride, size_t head_size, float* scratch, float* heads, size_t heads_stride) {
  const size_t row = padded(length);
  float* transposed = scratch;
  float* scores = transposed + head_size * row;
  for (size_t t = 0; t < length; t += kLanes)
    for (size_t i = 0; i < head_size; i += kLanes)
      transpose_eight(keys + t * stride + i, stride, length - t, transposed + i * row + t, row);
  const float scale = 1.0f / __builtin_sqrtf((float)head_size);
  for (size_t first = 0; first < num_queries; first += kBlock) {
    const size_t num = num_queries - first < kBlock ? num_queries - first : kBlock;
    const float* block[kBlock];  // a block that is not full computes its last query more than once
    for (size_t q = 0; q < kBlock; ++q) block[q] = queries + (first + (q < num ? q : num - 1)) * stride;
    size_t t = 0;
    for (; t + 2 * kLanes <= row; t += 2 * kLanes) score_columns<2>(block, transposed, row, head_size, t, scores);
    if (t < row) score_columns<1>(block, transposed, row, head_size, t, scores);
    float factors[kBlock];
    soften_block(scores, row, length, scale, factors);
    float* to = heads + first * heads_stride;
    size_t i = 0;
    for (; i + 2 * kLanes <= head_size; i += 2 * kLanes)
      weigh_columns<2>(scores, row, factors, values + i, length, stride, num, to + i, heads_stride);
    if (i < head_size) weigh_columns<1>(scores, row, factors, values + i, length, stride, num, to + i, heads_stride);
  }
}

// --- log-probabilities ---------------------------------------------------------------------------

float normaliser(const float* x, size_t size, float* maxima) {
  const size_t whole = size / kLanes * kLanes;
  Vector rest = Vector{} - __builtin_inff();  // what is left of the row behind its last whole vector
  for (size_t i = whole; i < size; ++i) rest[i - whole] = x[i];
  Vector tops = Vector{} - __builtin_inff();
  for (size_t block = 0; block < size; block += kMaximaBlock) {
    const size_t end = block + kMaximaBlock < whole ? block + kMaximaBlock : whole;
    Vector here = block + kMaximaBlock >= size ? rest : Vector{} - __builtin_inff();
    for (size_t i = block; i < end; i += kLanes) here = larger(here, LOAD(x + i));
    *maxima++ = largest(here);
    tops = larger(tops, here);
  }
  const float top = largest(tops);
  // What is less than e^-87 of the largest adds e^-87, which no sum of single precision notices.
  Vector totals[2] = {whole < size ? exponential(rest - top) : Vector{}, {}};
  size_t i = 0;
  for (; i + 2 * kLanes <= whole; i += 2 * kLanes)
    for (size_t part = 0; part < 2; ++part) totals[part] += exponential(LOAD(x + i + part * kLanes) - top);
  for (; i < whole; i += kLanes) totals[0] += exponential(LOAD(x + i) - top);
  return __builtin_logf(sum_of(totals[0] + totals[1])) + top;
}

void subtract(const float* x, size_t size, float subtrahend, float* difference) {
#pragma omp simd
  for (size_t i = 0; i < size; ++i) difference[i] = x[i] - subtrahend;
}

// --- normalisation and quantisation --------------------------------------------------------------

void add_norm(const float* x, const float* y, const float* weight, const float* bias, size_t rows, size_t width,
              float epsilon, float* sum, float* normed) {
  for (size_t row = 0; row < rows; ++row, x += width, y += width, sum += width, normed += width) {
    float total = 0;
#pragma omp simd reduction(+ : total)
    for (size_t i = 0; i < width; ++i) {
      const float value = x[i] + y[i];
      sum[i] = value;
      total += value;
    }
    const float mean = total / (float)width;
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (size_t i = 0; i < width; ++i) {
      const float deviation = sum[i] - mean;
      squares += deviation * deviation;
    }
    const float factor = 1.0f / __builtin_sqrtf(squares / (float)width + epsilon);
#pragma omp simd
    for (size_t i = 0; i < width; ++i) normed[i] = (sum[i] - mean) * factor * weight[i] + bias[i];
  }
}

void quantize(const float* x, size_t rows, size_t depth, size_t padded_depth, float scale, int32_t zero_point,
              uint8_t* quantized) {
  const float zero = (float)zero_point;
  for (size_t row = 0; row < rows; ++row, x += depth, quantized += padded_depth) {
#pragma omp simd
    for (size_t i = 0; i < depth; ++i) {
      float level = __builtin_rintf(x[i] / scale) + zero;
      level = level > 0.0f ? level : 0.0f;
      level = level < 255.0f ? level : 255.0f;
      quantized[i] = (uint8_t)(int32_t)level;
    }
    for (size_t i = depth; i < padded_depth; ++i) quantized[i] = 0;
  }
}

#undef SHUFFLE
#undef LOAD
#undef STORE
