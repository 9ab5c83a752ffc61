// The operators of domain "dragoman" for ONNX Runtime, by its C interface for custom operators.
//
// Graphs carry each of them as a function of standard operators too (export/functions.py), so that a bundle runs
// without this library as well; where it is registered, ONNX Runtime takes what stands here.
//
//   SelfAttention     one query a row over the row's cache, to which its key and value are appended
//   CrossAttention    one query a row over the row's source
//   EncoderAttention  all queries of a sequence over all of its keys
//   SourceCaches      a source's keys and values as CrossAttention reads them
//   AddNorm           residual connection and layer normalisation
//   BestTokens        log-probabilities, and the best of each row
//   Int8Linear        quantise, multiply with packed weights, add the bias

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <functional>
#include <iterator>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels.h"
#include "third_party/onnxruntime/onnxruntime_c_api.h"

#define RETURN_IF_ERROR(call) \
  if (OrtStatus* status_ = (call)) return status_

namespace dragoman {
namespace {

const OrtApi* api = nullptr;
const Kernels* selected = &kPortable;  // for kernels that are made from now on

const Kernels* best_kernels() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
    return &kAvx512Vnni;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kAvx2;
#endif
  return &kPortable;
}

constexpr size_t pieces(size_t total, size_t size) { return (total + size - 1) / size; }

// --- tensors -------------------------------------------------------------------------------------

OrtStatus* invalid(const std::string& message) {
  return api->CreateStatus(ORT_INVALID_ARGUMENT, ("dragoman: " + message).c_str());
}

template <class T>
struct Tensor {
  T* data = nullptr;
  size_t size = 0;  // elements
  const OrtValue* value = nullptr;
};

template <class T>
OrtStatus* describe(const OrtValue* value, Tensor<T>& tensor) {
  void* data;
  size_t num_bytes;
  RETURN_IF_ERROR(api->GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  RETURN_IF_ERROR(api->GetTensorSizeInBytes(value, &num_bytes));
  tensor = {static_cast<T*>(data), num_bytes / sizeof(T), value};
  return nullptr;
}

template <class T>
OrtStatus* input(OrtKernelContext* context, size_t index, Tensor<T>& tensor) {
  const OrtValue* value;
  RETURN_IF_ERROR(api->KernelContext_GetInput(context, index, &value));
  return describe(value, tensor);
}

template <class T>
OrtStatus* constant(const OrtKernelInfo* info, size_t index, Tensor<const T>& tensor) {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  RETURN_IF_ERROR(api->KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value));
  if (!is_constant) return invalid("Int8Linear's weights have to be part of the graph");
  return describe(value, tensor);
}

constexpr size_t kMaxRank = 4;

struct Shape {
  int64_t sizes[kMaxRank];
  size_t rank;
};

OrtStatus* shape_of(const OrtValue* value, Shape& shape) {
  OrtTensorTypeAndShapeInfo* info;
  RETURN_IF_ERROR(api->GetTensorTypeAndShape(value, &info));
  OrtStatus* status = api->GetDimensionsCount(info, &shape.rank);
  if (status == nullptr)
    status = shape.rank < 1 || shape.rank > kMaxRank ? invalid("a tensor of rank " + std::to_string(shape.rank))
                                                     : api->GetDimensions(info, shape.sizes, shape.rank);
  api->ReleaseTensorTypeAndShapeInfo(info);
  return status;
}

template <class T>
OrtStatus* output(OrtKernelContext* context, size_t index, const Shape& shape, T** data) {
  OrtValue* value;
  RETURN_IF_ERROR(api->KernelContext_GetOutput(context, index, shape.sizes, shape.rank, &value));
  *data = nullptr;
  return value ? api->GetTensorMutableData(value, reinterpret_cast<void**>(data)) : nullptr;
}

OrtStatus* attribute(const OrtKernelInfo* info, const char* name, size_t& size) {
  int64_t value;
  RETURN_IF_ERROR(api->KernelInfoGetAttribute_int64(info, name, &value));
  if (value < 1) return invalid(std::string(name) + " is " + std::to_string(value));
  size = static_cast<size_t>(value);
  return nullptr;
}

// Scratch memory of the thread that computes; it grows to what the largest call needed and stays.
template <class T>
T* scratch(size_t size) {
  thread_local std::vector<T> memory;
  if (memory.size() < size) memory.resize(size);
  return memory.data();
}

// Run work(first, last) over `total` pieces, in chunks, on the session's threads.
template <class Work>
OrtStatus* in_parallel(OrtKernelContext* context, size_t total, size_t chunk, const Work& work) {
  if (total <= chunk) {
    work(size_t{0}, total);
    return nullptr;
  }
  struct Job {
    const Work* work;
    size_t total, chunk;
    std::atomic<bool> failed{false};
  } job{&work, total, chunk};
  const auto run = [](void* data, size_t index) {
    Job& job = *static_cast<Job*>(data);
    try {
      (*job.work)(index * job.chunk, std::min(job.total, (index + 1) * job.chunk));
    } catch (const std::exception&) {  // for want of memory, on a thread that is not ours
      job.failed = true;
    }
  };
  RETURN_IF_ERROR(api->KernelContext_ParallelFor(context, run, pieces(total, chunk), 0, &job));
  return job.failed ? api->CreateStatus(ORT_RUNTIME_EXCEPTION, "dragoman: out of memory") : nullptr;
}

// --- attention -----------------------------------------------------------------------------------

constexpr size_t kRowsOfChunk = 8;

struct Heads {
  size_t num_heads, num_kv_heads, head_size;
  const Kernels* kernels = selected;

  OrtStatus* read(const OrtKernelInfo* info) {
    RETURN_IF_ERROR(attribute(info, "num_heads", num_heads));
    RETURN_IF_ERROR(attribute(info, "kv_num_heads", num_kv_heads));
    RETURN_IF_ERROR(attribute(info, "head_size", head_size));
    if (num_heads % num_kv_heads) return invalid("num_heads is no multiple of kv_num_heads");
    return head_size % 8 ? invalid("head_size is no multiple of 8") : nullptr;
  }
  size_t query_width() const { return num_heads * head_size; }
  size_t kv_width() const { return num_kv_heads * head_size; }
};

// Keys or values (rows, kv heads, capacity, head size), as the next call gets them: the memory that came in where the
// output is bound to it, as the server does, or a copy of it.
OrtStatus* carry_over(OrtKernelContext* context, size_t index, const Tensor<float>& past, const Shape& shape,
                      float** present) {
  RETURN_IF_ERROR(output(context, index, shape, present));
  if (*present == nullptr) return invalid("a cache is read by nobody");
  if (*present != past.data) std::memcpy(*present, past.data, past.size * sizeof(float));
  return nullptr;
}

struct Caches {
  size_t rows, capacity;
  float *keys, *values;

  const float* of(const float* cache, const Heads& heads, size_t row, size_t head) const {
    return cache + (row * heads.num_kv_heads + head) * capacity * heads.head_size;
  }
};

OrtStatus* open_caches(OrtKernelContext* context, const Heads& heads, size_t first_input, size_t rows, Caches& caches) {
  Tensor<float> keys, values;
  RETURN_IF_ERROR(input(context, first_input, keys));
  RETURN_IF_ERROR(input(context, first_input + 1, values));
  if (rows == 0 || keys.size != values.size || keys.size % (rows * heads.kv_width()))
    return invalid("caches are not (rows, kv heads, capacity, head size)");
  caches.rows = rows;
  caches.capacity = keys.size / (rows * heads.kv_width());
  const Shape shape = {{static_cast<int64_t>(rows), static_cast<int64_t>(heads.num_kv_heads),
                        static_cast<int64_t>(caches.capacity), static_cast<int64_t>(heads.head_size)},
                       4};
  RETURN_IF_ERROR(carry_over(context, 1, keys, shape, &caches.keys));
  return carry_over(context, 2, values, shape, &caches.values);
}

void prefetch(const float* data, size_t size) {
  const char* bytes = reinterpret_cast<const char*>(data);
  for (size_t offset = 0; offset < size * sizeof(float); offset += 64) __builtin_prefetch(bytes + offset);
}

// Attention of each row's query over the first lengths[row] + more tokens of its caches. While one head is computed, the
// keys and values of the next are fetched: they lie anywhere, and waiting for them is what takes the time.
void attend_rows(const Heads& heads, const Caches& caches, const float* queries, size_t query_stride,
                 const int32_t* lengths, size_t more, size_t first, size_t last, float* result) {
  const size_t groups = heads.num_heads / heads.num_kv_heads;
  float* scores = scratch<float>(heads.kernels->attend_scratch(caches.capacity));
  const size_t end = last * heads.num_kv_heads;
  for (size_t piece = first * heads.num_kv_heads; piece < end; ++piece) {
    const size_t row = piece / heads.num_kv_heads, head = piece % heads.num_kv_heads;
    if (const size_t next = piece + 1; next < end) {
      const size_t next_row = next / heads.num_kv_heads, next_head = next % heads.num_kv_heads;
      const size_t size = (lengths[next_row] + more) * heads.head_size;
      prefetch(caches.of(caches.keys, heads, next_row, next_head), size);
      prefetch(caches.of(caches.values, heads, next_row, next_head), size);
    }
    const float* keys = caches.of(caches.keys, heads, row, head);
    const float* values = caches.of(caches.values, heads, row, head);
    for (size_t group = 0; group < groups; ++group) {
      const size_t at = (head * groups + group) * heads.head_size;
      heads.kernels->attend(queries + row * query_stride + at, keys, values, lengths[row] + more, heads.head_size,
                      scores, result + row * heads.query_width() + at);
    }
  }
}

OrtStatus* check_lengths(const Tensor<int32_t>& lengths, size_t rows, size_t more, size_t capacity) {
  if (lengths.size != rows) return invalid(std::to_string(lengths.size) + " lengths of " + std::to_string(rows) + " rows");
  for (size_t row = 0; row < rows; ++row)
    if (lengths.data[row] < 0 || lengths.data[row] + more < 1 || lengths.data[row] + more > capacity)
      return invalid("a row of " + std::to_string(lengths.data[row]) + " tokens in a cache of " + std::to_string(capacity));
  return nullptr;
}

// A query a row, with key and value behind it where kAppends, over the row's caches. Inputs: queries, kOthers that are for
// the function of standard operators alone, keys, values, lengths (B) -> heads (B, query width), keys, values.
template <bool kAppends, size_t kOthers>
struct CachedAttention {
  Heads heads;

  OrtStatus* create(const OrtKernelInfo* info) { return heads.read(info); }

  OrtStatus* compute(OrtKernelContext* context) {
    Tensor<float> queries;
    Tensor<int32_t> lengths;
    RETURN_IF_ERROR(input(context, 0, queries));
    RETURN_IF_ERROR(input(context, kOthers + 3, lengths));
    const size_t stride = heads.query_width() + (kAppends ? 2 * heads.kv_width() : 0), rows = queries.size / stride;
    Caches caches;
    RETURN_IF_ERROR(open_caches(context, heads, kOthers + 1, rows, caches));
    RETURN_IF_ERROR(check_lengths(lengths, rows, kAppends, caches.capacity));
    float* result;
    const Shape shape = {{static_cast<int64_t>(rows), static_cast<int64_t>(heads.query_width())}, 2};
    RETURN_IF_ERROR(output(context, 0, shape, &result));
    return in_parallel(context, rows, kRowsOfChunk, [&](size_t first, size_t last) {
      for (size_t row = first; kAppends && row < last; ++row)
        append(caches, queries.data + row * stride, row, lengths.data[row]);
      attend_rows(heads, caches, queries.data, stride, lengths.data, kAppends, first, last, result);
    });
  }

  void append(const Caches& caches, const float* packed, size_t row, size_t length) const {
    const float* key = packed + heads.query_width();
    const float* value = key + heads.kv_width();
    const size_t size = heads.head_size;
    for (size_t head = 0; head < heads.num_kv_heads; ++head) {
      const size_t place = ((row * heads.num_kv_heads + head) * caches.capacity + length) * size;
      std::memcpy(caches.keys + place, key + head * size, size * sizeof(float));
      std::memcpy(caches.values + place, value + head * size, size * sizeof(float));
    }
  }
};

using SelfAttention = CachedAttention<true, 0>;
using CrossAttention = CachedAttention<false, 2>;  // the source's last key and value

// packed (B, T, query + 2 kv width), lengths (B) -> heads (B, T, query width)
struct EncoderAttention {
  Heads heads;

  OrtStatus* create(const OrtKernelInfo* info) { return heads.read(info); }

  OrtStatus* compute(OrtKernelContext* context) {
    Tensor<float> packed;
    Tensor<int32_t> lengths;
    Shape shape;
    RETURN_IF_ERROR(input(context, 0, packed));
    RETURN_IF_ERROR(input(context, 1, lengths));
    RETURN_IF_ERROR(shape_of(packed.value, shape));
    const size_t stride = heads.query_width() + 2 * heads.kv_width();
    if (shape.rank != 3 || shape.sizes[2] != static_cast<int64_t>(stride))
      return invalid("EncoderAttention reads (B, T, queries, keys and values)");
    const size_t rows = shape.sizes[0], num_tokens = shape.sizes[1];
    RETURN_IF_ERROR(check_lengths(lengths, rows, 0, num_tokens));
    shape.sizes[2] = heads.query_width();
    float* result;
    RETURN_IF_ERROR(output(context, 0, shape, &result));
    const size_t groups = heads.num_heads / heads.num_kv_heads, size = heads.head_size;
    return in_parallel(context, rows, 1, [&](size_t first, size_t last) {
      for (size_t row = first; row < last; ++row)
        for (size_t head = 0; head < heads.num_heads; ++head) {
          const float* queries = packed.data + row * num_tokens * stride + head * size;
          const float* keys = packed.data + row * num_tokens * stride + heads.query_width() + head / groups * size;
          float* to = result + row * num_tokens * heads.query_width() + head * size;
          const size_t length = lengths.data[row];
          heads.kernels->attend_whole(queries, num_tokens, keys, keys + heads.kv_width(), length, stride, size,
                                scratch<float>(heads.kernels->attend_whole_scratch(length, size)), to, heads.query_width());
        }
    });
  }
};

// packed (B, T, 2 kv width), lengths (B) -> keys, values (B, kv heads, T, head size), last key, last value (B, 1, kv width)
struct SourceCaches {
  size_t num_kv_heads, head_size;

  OrtStatus* create(const OrtKernelInfo* info) {
    RETURN_IF_ERROR(attribute(info, "kv_num_heads", num_kv_heads));
    return attribute(info, "head_size", head_size);
  }

  OrtStatus* compute(OrtKernelContext* context) {
    Tensor<float> packed;
    Tensor<int32_t> lengths;
    Shape shape;
    RETURN_IF_ERROR(input(context, 0, packed));
    RETURN_IF_ERROR(input(context, 1, lengths));
    RETURN_IF_ERROR(shape_of(packed.value, shape));
    const size_t width = num_kv_heads * head_size;
    if (shape.rank != 3 || shape.sizes[2] != static_cast<int64_t>(2 * width))
      return invalid("SourceCaches reads (B, T, keys and values)");
    const size_t rows = shape.sizes[0], num_tokens = shape.sizes[1];
    RETURN_IF_ERROR(check_lengths(lengths, rows, 0, num_tokens));
    const Shape whole = {{shape.sizes[0], static_cast<int64_t>(num_kv_heads), shape.sizes[1],
                          static_cast<int64_t>(head_size)},
                         4};
    const Shape one = {{shape.sizes[0], 1, static_cast<int64_t>(width)}, 3};
    for (size_t part = 0; part < 2; ++part) {
      float *cache, *last;
      RETURN_IF_ERROR(output(context, part, whole, &cache));
      RETURN_IF_ERROR(output(context, 2 + part, one, &last));
      for (size_t row = 0; row < rows; ++row) {
        const float* from = packed.data + row * num_tokens * 2 * width + part * width;
        for (size_t head = 0; head < num_kv_heads; ++head)
          for (size_t t = 0; t < num_tokens; ++t, cache += head_size)
            std::memcpy(cache, from + t * 2 * width + head * head_size, head_size * sizeof(float));
        std::memcpy(last + row * width, from + (lengths.data[row] - 1) * 2 * width, width * sizeof(float));
      }
    }
    return nullptr;
  }
};

// --- normalisation and products ------------------------------------------------------------------

// x, y (..., width), weight, bias (width) -> x + y, its normalisation
struct AddNorm {
  const Kernels* kernels = selected;
  float epsilon;

  OrtStatus* create(const OrtKernelInfo* info) { return api->KernelInfoGetAttribute_float(info, "epsilon", &epsilon); }

  OrtStatus* compute(OrtKernelContext* context) {
    Tensor<float> x, y, weight, bias;
    Shape shape;
    RETURN_IF_ERROR(input(context, 0, x));
    RETURN_IF_ERROR(input(context, 1, y));
    RETURN_IF_ERROR(input(context, 2, weight));
    RETURN_IF_ERROR(input(context, 3, bias));
    RETURN_IF_ERROR(shape_of(x.value, shape));
    const size_t width = weight.size;
    if (x.size != y.size || bias.size != width || width == 0 || shape.sizes[shape.rank - 1] != static_cast<int64_t>(width))
      return invalid("AddNorm adds tensors of one shape, (..., width)");
    float *sum, *normed;
    RETURN_IF_ERROR(output(context, 0, shape, &sum));
    RETURN_IF_ERROR(output(context, 1, shape, &normed));
    if (normed == nullptr) return invalid("a normalisation is read by nobody");
    if (sum == nullptr) sum = normed;  // post-norm: nobody reads the sum
    return in_parallel(context, x.size / width, 64, [&](size_t first, size_t last) {
      kernels->add_norm(x.data + first * width, y.data + first * width, weight.data, bias.data, last - first, width, epsilon,
                        sum + first * width, normed + first * width);
    });
  }
};

// logits (B, V), number K (1), whether all are needed (1) -> log-probabilities (B, V), written where they are needed; the
// K largest (B, K), their places (B, K), equal ones in the order of their places.
struct BestTokens {
  const Kernels* kernels = selected;

  OrtStatus* create(const OrtKernelInfo*) { return nullptr; }

  OrtStatus* compute(OrtKernelContext* context) {
    Tensor<float> logits;
    Tensor<int64_t> number, needed;
    Shape shape;
    RETURN_IF_ERROR(input(context, 0, logits));
    RETURN_IF_ERROR(input(context, 1, number));
    RETURN_IF_ERROR(input(context, 2, needed));
    RETURN_IF_ERROR(shape_of(logits.value, shape));
    if (shape.rank != 2) return invalid("BestTokens reads (B, V)");
    const size_t rows = shape.sizes[0], size = shape.sizes[1];
    if (number.size != 1 || needed.size != 1 || number.data[0] < 1 || number.data[0] > shape.sizes[1])
      return invalid("the best " + std::to_string(number.size ? number.data[0] : 0) + " of " + std::to_string(size));
    const size_t num_best = number.data[0];
    float *all, *best;
    int64_t* places;
    RETURN_IF_ERROR(output(context, 0, shape, &all));
    shape.sizes[1] = num_best;
    RETURN_IF_ERROR(output(context, 1, shape, &best));
    RETURN_IF_ERROR(output(context, 2, shape, &places));
    if (best == nullptr || places == nullptr) return invalid("the best are read by nobody");
    if (!needed.data[0]) all = nullptr;
    return in_parallel(context, rows, kRowsOfChunk, [&](size_t first, size_t last) {
      float* maxima = scratch<float>(2 * pieces(size, kMaximaBlock));
      for (size_t row = first; row < last; ++row) {
        const float* values = logits.data + row * size;
        const float normaliser = kernels->normaliser(values, size, maxima);
        if (all) kernels->subtract(values, size, normaliser, all + row * size);
        select({values, normaliser}, size, maxima, num_best, best + row * num_best, places + row * num_best);
      }
    });
  }

  struct LogProbabilities {
    const float* logits;
    float normaliser;

    // Where a model computes what is not a number, that comes last: comparisons with it would lead sorting astray.
    static float known(float value) { return value == value ? value : -HUGE_VALF; }
    float operator[](size_t place) const { return known(logits[place] - normaliser); }
    float of(float logit) const { return known(logit - normaliser); }
  };

  // The k-th largest of the blocks' maxima is at most the k-th largest value, so only blocks that reach it are looked at.
  // Compared are log-probabilities, not logits: two of these may differ where what is told of them does not.
  static void select(const LogProbabilities& values, size_t size, float* maxima, size_t num_best, float* best,
                     int64_t* places) {
    const size_t num_blocks = pieces(size, kMaximaBlock);
    for (size_t block = 0; block < num_blocks; ++block) maxima[block] = values.of(maxima[block]);
    if (num_best == 1) {
      size_t place = (std::max_element(maxima, maxima + num_blocks) - maxima) * kMaximaBlock;
      const size_t end = std::min(size, place + kMaximaBlock);
      *places = place;
      *best = values[place];
      for (++place; place < end; ++place)
        if (values[place] > *best) {
          *places = place;
          *best = values[place];
        }
      return;
    }
    float threshold = -HUGE_VALF;
    if (num_best < num_blocks) {
      float* copied = maxima + num_blocks;
      std::copy(maxima, maxima + num_blocks, copied);
      std::nth_element(copied, copied + num_best - 1, copied + num_blocks, std::greater<float>());
      threshold = copied[num_best - 1];
    }
    // No logit that reaches the threshold as a log-probability, rounded as that is, lies below this.
    const float lowest = threshold + values.normaliser - 1e-6f * (std::fabs(threshold) + std::fabs(values.normaliser));
    using Found = std::pair<float, int64_t>;
    thread_local std::vector<Found> reaching;
    reaching.clear();
    for (size_t block = 0; block < num_blocks; ++block) {
      if (maxima[block] < threshold) continue;
      const size_t end = std::min(size, (block + 1) * kMaximaBlock);
      for (size_t first = block * kMaximaBlock; first < end; first += kGlance) {
        const size_t last = std::min(end, first + kGlance);
        if (last - first == kGlance && !any_reaches(values.logits + first, lowest)) continue;
        for (size_t i = first; i < last; ++i)
          if (const float value = values[i]; value >= threshold) reaching.emplace_back(value, i);
      }
    }
    // A block whose maximum is no number may hide numbers; so few were found only then.
    for (size_t i = 0; reaching.size() < num_best && i < size; ++i)
      if (std::none_of(reaching.begin(), reaching.end(), [&](const Found& one) { return one.second == static_cast<int64_t>(i); }))
        reaching.emplace_back(values[i], i);
    std::partial_sort(reaching.begin(), reaching.begin() + num_best, reaching.end(), [](const Found& one, const Found& other) {
      return one.first != other.first ? one.first > other.first : one.second < other.second;
    });
    for (size_t i = 0; i < num_best; ++i) std::tie(best[i], places[i]) = reaching[i];
  }

  static constexpr size_t kGlance = 16;

  static bool any_reaches(const float* logits, float lowest) {
    int num = 0;
    for (size_t i = 0; i < kGlance; ++i) num += logits[i] >= lowest;
    return num;
  }
};

struct FreeAligned {
  void operator()(void* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
};

// Weights as products read them. Nodes with equal weights share them: the steps of `decode_steps`, `decode` beside it,
// the lanes' sessions of a bundle that is loaded twice.
class SharedWeights {
 public:
  SharedWeights(const int8_t* given, size_t depth, size_t columns, const float* column_scales, const float* given_bias,
                float scale, int32_t zero_point) {
    const size_t padded_depth = pieces(depth, 4) * 4, num_panels = pieces(columns, kPanelColumns);
    const size_t padded_columns = num_panels * kPanelColumns;
    num_bytes_ = padded_columns * padded_depth;
    panels_.reset(new (std::align_val_t{64}) int8_t[num_bytes_]());
    corrections_.assign(padded_columns, 0);
    scales_.assign(padded_columns, 0);
    bias_.assign(padded_columns, 0);
    for (size_t k = 0; k < depth; ++k)
      for (size_t n = 0; n < columns; ++n) {
        const int8_t weight = given[k * columns + n];
        const size_t panel = n / kPanelColumns;
        panels_[panel * padded_depth * kPanelColumns + k / 4 * kPanelColumns * 4 + n % kPanelColumns * 4 + k % 4] = weight;
        corrections_[n] += zero_point * weight;
      }
    for (size_t n = 0; n < columns; ++n) {
      scales_[n] = scale * column_scales[n];
      bias_[n] = given_bias[n];
    }
    packed_ = {depth, padded_depth, columns, panels_.get(), corrections_.data(), scales_.data(), bias_.data()};
  }

  const PackedWeights& packed() const { return packed_; }

  // The same weights where they are in memory already, or `made` itself.
  static std::shared_ptr<const SharedWeights> shared(std::shared_ptr<const SharedWeights> made) {
    static std::mutex mutex;
    static std::unordered_multimap<size_t, std::weak_ptr<const SharedWeights>> known;
    const size_t hash =
        std::hash<std::string_view>{}({reinterpret_cast<const char*>(made->panels_.get()), made->num_bytes_});
    const std::lock_guard<std::mutex> guard(mutex);
    auto [entry, end] = known.equal_range(hash);
    while (entry != end) {
      const auto other = entry->second.lock();
      if (other && *other == *made) return other;
      entry = other ? std::next(entry) : known.erase(entry);
    }
    known.emplace(hash, made);
    return made;
  }

  bool operator==(const SharedWeights& other) const {
    return packed_.depth == other.packed_.depth && packed_.columns == other.packed_.columns &&
           std::memcmp(panels_.get(), other.panels_.get(), num_bytes_) == 0 && corrections_ == other.corrections_ &&
           scales_ == other.scales_ && bias_ == other.bias_;
  }

 private:
  PackedWeights packed_;
  size_t num_bytes_;
  std::unique_ptr<int8_t[], FreeAligned> panels_;
  std::vector<int32_t> corrections_;
  std::vector<float> scales_, bias_;
};

// x (..., depth), its scale and zero point, weights (depth, columns) of seven bits, their scales, bias (columns)
// -> (..., columns)
struct Int8Linear {
  const Kernels* kernels = selected;
  std::shared_ptr<const SharedWeights> shared;
  PackedWeights weights;
  float scale;
  int32_t zero_point;

  OrtStatus* create(const OrtKernelInfo* info) {
    if (kernels->multiply == nullptr) return invalid(std::string("no integer products in kernels ") + kernels->name);
    Tensor<const float> input_scale, column_scales, given_bias;
    Tensor<const uint8_t> input_zero_point;
    Tensor<const int8_t> given;
    RETURN_IF_ERROR(constant(info, 1, input_scale));
    RETURN_IF_ERROR(constant(info, 2, input_zero_point));
    RETURN_IF_ERROR(constant(info, 3, given));
    RETURN_IF_ERROR(constant(info, 4, column_scales));
    RETURN_IF_ERROR(constant(info, 5, given_bias));
    const size_t columns = given_bias.size;
    if (input_scale.size != 1 || input_zero_point.size != 1 || columns == 0 || column_scales.size != columns ||
        given.size == 0 || given.size % columns)
      return invalid("Int8Linear's weights do not fit together");
    for (size_t i = 0; i < given.size; ++i)
      if (given.data[i] < -64 || given.data[i] > 64) return invalid("Int8Linear's weights have more than seven bits");
    scale = *input_scale.data;
    zero_point = *input_zero_point.data;
    shared = SharedWeights::shared(std::make_shared<const SharedWeights>(given.data, given.size / columns, columns,
                                                                         column_scales.data, given_bias.data, scale,
                                                                         zero_point));
    weights = shared->packed();
    return nullptr;
  }

  OrtStatus* compute(OrtKernelContext* context) {
    Tensor<float> x;
    Shape shape;
    RETURN_IF_ERROR(input(context, 0, x));
    RETURN_IF_ERROR(shape_of(x.value, shape));
    if (shape.sizes[shape.rank - 1] != static_cast<int64_t>(weights.depth))
      return invalid("an input " + std::to_string(shape.sizes[shape.rank - 1]) + " wide for weights of depth " +
                     std::to_string(weights.depth));
    const size_t rows = x.size / weights.depth;
    shape.sizes[shape.rank - 1] = weights.columns;
    float* y;
    RETURN_IF_ERROR(output(context, 0, shape, &y));
    uint8_t* quantized = scratch<uint8_t>(rows * weights.padded_depth);
    kernels->quantize(x.data, rows, weights.depth, weights.padded_depth, scale, zero_point, quantized);
    return in_parallel(context, pieces(weights.columns, kPanelColumns), 8, [&](size_t first, size_t last) {
      kernels->multiply(quantized, rows, weights, first, last, y);
    });
  }
};

// --- registration --------------------------------------------------------------------------------

using Types = std::vector<ONNXTensorElementDataType>;

struct Operator : OrtCustomOp {
  const char* name;
  Types inputs, outputs;
  bool may_drop_outputs;  // that nobody reads
};

// What is thrown here, for want of memory, must not cross a C interface.
template <class Call>
OrtStatus* without_exceptions(const Call& call) {
  try {
    return call();
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_RUNTIME_EXCEPTION, error.what());
  }
}

template <class Kernel>
Operator* make_operator(const char* name, Types inputs, Types outputs, bool may_drop_outputs = false) {
  auto* op = new Operator();
  static_cast<OrtCustomOp&>(*op) = {};
  op->name = name;
  op->inputs = std::move(inputs);
  op->outputs = std::move(outputs);
  op->may_drop_outputs = may_drop_outputs;
  op->version = ORT_API_VERSION;
  op->GetName = [](const OrtCustomOp* op) { return static_cast<const Operator*>(op)->name; };
  op->GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
  op->GetInputTypeCount = [](const OrtCustomOp* op) { return static_cast<const Operator*>(op)->inputs.size(); };
  op->GetInputType = [](const OrtCustomOp* op, size_t i) { return static_cast<const Operator*>(op)->inputs[i]; };
  op->GetOutputTypeCount = [](const OrtCustomOp* op) { return static_cast<const Operator*>(op)->outputs.size(); };
  op->GetOutputType = [](const OrtCustomOp* op, size_t i) { return static_cast<const Operator*>(op)->outputs[i]; };
  op->GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op->GetOutputCharacteristic = [](const OrtCustomOp* op, size_t) {
    return static_cast<const Operator*>(op)->may_drop_outputs ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  };
  op->GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op->GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op->GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op->GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op->GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op->GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op->GetEndVersion = [](const OrtCustomOp*) { return 1; };
  op->CreateKernelV2 = [](const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** result) {
    return without_exceptions([&]() -> OrtStatus* {
      auto kernel = std::make_unique<Kernel>();
      RETURN_IF_ERROR(kernel->create(info));
      *result = kernel.release();
      return nullptr;
    });
  };
  op->KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    return without_exceptions([&] { return static_cast<Kernel*>(kernel)->compute(context); });
  };
  op->KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return op;
}

OrtStatus* make_domain(OrtCustomOpDomain** domain) {
  const auto real = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  const auto int64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  const auto int32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
  const auto int8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
  const auto uint8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  const Types caches = {real, real, real};
  std::vector<Operator*> operators = {
      make_operator<SelfAttention>("SelfAttention", {real, real, real, int32}, caches),
      make_operator<CrossAttention>("CrossAttention", {real, real, real, real, real, int32}, caches),
      make_operator<EncoderAttention>("EncoderAttention", {real, int32}, {real}),
      make_operator<SourceCaches>("SourceCaches", {real, int32}, {real, real, real, real}),
      make_operator<AddNorm>("AddNorm", {real, real, real, real}, {real, real}, true),
      make_operator<BestTokens>("BestTokens", {real, int64, int64}, {real, real, int64}, true),
  };
  if (selected->multiply)
    operators.push_back(make_operator<Int8Linear>("Int8Linear", {real, real, uint8, int8, real, real}, {real}));
  RETURN_IF_ERROR(api->CreateCustomOpDomain("dragoman", domain));
  for (Operator* each : operators) RETURN_IF_ERROR(api->CustomOpDomain_Add(*domain, each));
  return nullptr;
}

}  // namespace
}  // namespace dragoman

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Choose "avx512vnni", "avx2" or "portable" kernels, or by nullptr the best this processor has, for sessions that are
// loaded from now on. Returns the name of what is chosen, or nullptr, and nothing changed, where the processor lacks it.
EXPORTED const char* DragomanSelectKernels(const char* name) {
  using namespace dragoman;
  const Kernels* const best = best_kernels();
#if defined(__x86_64__)
  const Kernels* const by_rank[] = {&kPortable, &kAvx2, &kAvx512Vnni};
#else
  const Kernels* const by_rank[] = {&kPortable};
#endif
  for (const Kernels* each : by_rank) {
    if (name == nullptr ? each == best : std::strcmp(each->name, name) == 0) {
      selected = each;
      return each->name;
    }
    if (each == best) break;
  }
  return nullptr;
}

// Copy the first bytes of each piece of some rows, for every array of two lists: what moves rows of caches about. Arrays
// are (rows, num_pieces, piece bytes); `table` has the target rows, then the source rows, then how many bytes.
EXPORTED void DragomanCopyRows(size_t num_arrays, const uint64_t* targets, size_t target_piece, const uint64_t* sources,
                               size_t source_piece, size_t num_pieces, size_t num_rows, const int64_t* table) {
  const int64_t *target_rows = table, *source_rows = table + num_rows, *sizes = source_rows + num_rows;
  for (size_t array = 0; array < num_arrays; ++array)
    for (size_t row = 0; row < num_rows; ++row) {
      auto* target = reinterpret_cast<char*>(targets[array]) + target_rows[row] * num_pieces * target_piece;
      const auto* source = reinterpret_cast<const char*>(sources[array]) + source_rows[row] * num_pieces * source_piece;
      for (size_t piece = 0; piece < num_pieces; ++piece)
        std::memcpy(target + piece * target_piece, source + piece * source_piece, sizes[row]);
    }
}

// What ONNX Runtime calls for a session that is to have the operators.
EXPORTED OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace dragoman;
  const OrtApi* const offered = base->GetApi(ORT_API_VERSION);
  if (offered == nullptr)  // an older ONNX Runtime, whose first version had this already
    return base->GetApi(1)->CreateStatus(ORT_FAIL, "dragoman's kernels need ONNX Runtime 1.23 or newer");
  api = offered;
  return without_exceptions([&]() -> OrtStatus* {
    OrtCustomOpDomain* domain;  // ONNX Runtime's sessions keep using it: it lives as long as the process
    RETURN_IF_ERROR(make_domain(&domain));
    return api->AddCustomOpDomain(options, domain);
  });
}
