#include "kernels.h"

namespace dragoman {
namespace {
#include "shared_kernels.inl"
}  // namespace

const Kernels kPortable = {"portable", add_norm, attend, attend_scratch, attend_whole, attend_whole_scratch, normaliser, subtract, quantize, nullptr};

}  // namespace dragoman
