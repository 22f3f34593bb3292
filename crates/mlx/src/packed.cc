// Matrices of few bits.
#include "ltx-mlx/src/bridge.h"

#include "ltx-mlx/src/bridge.rs.h"

namespace ltx {

namespace mx = mlx::core;

namespace {

const char* mode(Packing packing) {
  switch (packing) {
    case Packing::Mxfp8: return "mxfp8";
    case Packing::Nvfp4: return "nvfp4";
    default: return "affine";
  }
}

} // namespace

std::unique_ptr<Arrays> quantize(const array& w, int32_t group, int32_t bits, Packing packing) {
  return std::make_unique<Arrays>(mx::quantize(w, group, bits, mode(packing)));
}

Ptr dequantize(
    const array& values, const array& scales, const array* biases, int32_t group, int32_t bits, Packing packing, Type dtype) {
  return own(
      mx::dequantize(values, scales, optional(biases), group, bits, mode(packing), std::nullopt, to_dtype(dtype)));
}

Ptr quantized_matmul(
    const array& x, const array& values, const array& scales, const array* biases, int32_t group, int32_t bits, Packing packing) {
  return own(mx::quantized_matmul(x, values, scales, optional(biases), true, group, bits, mode(packing)));
}

} // namespace ltx
