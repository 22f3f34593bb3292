// Declarations that cxx's generated code calls. The definitions are in bridge.cc but for the shortest.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include <mlx/mlx.h>

#include "rust/cxx.h"

namespace ltx {

using mlx::core::array;
using Arrays = std::vector<array>;
using Ints = rust::Slice<const int32_t>;
using Ptr = std::unique_ptr<array>;

enum class Type : uint8_t;
enum class Unary : uint8_t;
enum class Binary : uint8_t;
enum class Reduce : uint8_t;
enum class Packing : uint8_t;
struct ConvSettings;
struct Fact;
struct Owner;
struct Kernel;
struct Function;
struct Compiled {
  std::function<Arrays(const Arrays&)> run;
};

// For the functions below alone: refuses what is larger than this machine's memory.
Ptr own(array a);
mlx::core::Dtype to_dtype(Type type);
inline std::optional<array> optional(const array* a) {
  return a ? std::make_optional(*a) : std::nullopt;
}

std::unique_ptr<Arrays> new_list();
void push(Arrays& list, const array& a);
Ptr duplicate(const array& a);

Ptr scalar(double value, Type dtype);
Ptr from_bytes(rust::Slice<const uint8_t> bytes, Ints shape, Type dtype);
Ptr from_owner(const uint8_t* data, Ints shape, Type dtype, rust::Box<Owner> owner);
void copy_to(const array& a, rust::Slice<uint8_t> out);
Ints shape(const array& a);
Type dtype(const array& a);
void eval(const Arrays& list);

Ptr full(Ints shape, double value, Type dtype);
Ptr arange(double start, double stop, double step, Type dtype);
Ptr astype(const array& a, Type dtype);
Ptr view(const array& a, Type dtype);
Ptr contiguous(const array& a);

Ptr unary(Unary op, const array& a);
Ptr binary(Binary op, const array& a, const array& b);
Ptr reduce(Reduce op, const array& a, Ints axes, bool keep);
Ptr variance(const array& a, Ints axes, bool keep, int32_t ddof);
Ptr select(const array& condition, const array& a, const array& b);
Ptr softmax(const array& a, int32_t axis);

Ptr reshape(const array& a, Ints shape);
Ptr transpose(const array& a, Ints axes);
Ptr expand_dims(const array& a, Ints axes);
Ptr squeeze(const array& a, Ints axes);
Ptr broadcast_to(const array& a, Ints shape);
Ptr slice(const array& a, Ints start, Ints stop, Ints step);
Ptr slice_update(const array& a, const array& update, Ints start, Ints stop);
Ptr concatenate(const Arrays& list, int32_t axis);
Ptr stack(const Arrays& list, int32_t axis);
Ptr repeat(const array& a, int32_t repeats, int32_t axis);
Ptr tile(const array& a, Ints repeats);
Ptr pad(const array& a, int32_t axis, int32_t low, int32_t high, double value, bool edge);
Ptr take(const array& a, const array& indices, int32_t axis);

Ptr conv(const array& x, const array& weight, const ConvSettings& settings);
Ptr rms_norm(const array& x, const array* weight, float eps);
Ptr layer_norm(const array& x, const array* weight, const array* bias, float eps);
Ptr attention(const array& q, const array& k, const array& v, float scale, const array* mask);
std::unique_ptr<Arrays> quantize(const array& w, int32_t group, int32_t bits, Packing packing);
Ptr dequantize(
    const array& values, const array& scales, const array* biases, int32_t group, int32_t bits, Packing packing, Type dtype);
Ptr quantized_matmul(
    const array& x, const array& values, const array& scales, const array* biases, int32_t group, int32_t bits, Packing packing);
Ptr custom(const Arrays& inputs, Ints shape, Type dtype, rust::Box<Kernel> kernel);

void async_eval(const Arrays& list);
Ptr addmm(const array& bias, const array& a, const array& b);
Ptr uniform(double low, double high, Ints shape, Type dtype, uint64_t seed);
std::unique_ptr<Compiled> compile(rust::Box<Function> function);
std::unique_ptr<Arrays> call(const Compiled& compiled, const Arrays& inputs);
// An array that is read into the device's memory when it is computed.
Ptr upload(const uint8_t* data, Ints shape, Type dtype, rust::Box<Owner> owner);

bool gpu_available();
inline bool default_is_gpu() {
  return mlx::core::default_device() == mlx::core::Device::gpu;
}
void set_gpu(bool gpu);
rust::Vec<Fact> device_facts(bool gpu);
void synchronize();
size_t active_memory();
size_t peak_memory();
void reset_peak_memory();
size_t cache_memory();
void clear_cache();
size_t set_cache_limit(size_t bytes);
size_t set_memory_limit(size_t bytes);

} // namespace ltx
