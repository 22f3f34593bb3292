#include "ltx-mlx/src/bridge.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>

#include <unistd.h>

#include <mlx/backend/cpu/encoder.h>
#include <mlx/primitives.h>

#include "ltx-mlx/src/bridge.rs.h"

namespace ltx {

namespace mx = mlx::core;

namespace {

// MLX's CPU allocator hands out a null pointer when the system refuses, and its kernels write through it. So nothing
// larger than this machine's memory may get as far as being computed. Sizes are doubles: they cannot overflow.
bool fits_memory(double bytes) {
  static const double memory = double(sysconf(_SC_PHYS_PAGES)) * double(sysconf(_SC_PAGESIZE));
  return bytes <= memory;
}

void check_bytes(double bytes, const std::string& what) {
  if (fits_memory(bytes)) return;
  throw std::length_error(
      what + " needs " + std::to_string(static_cast<long long>(std::min(bytes / (1 << 30), 1e18))) +
      " GiB, more than this machine's memory");
}

template <typename Shape>
void check_shape(const Shape& shape, size_t item_bytes) {
  double bytes = static_cast<double>(item_bytes);
  for (int32_t size : shape) {
    if (size < 0) throw std::invalid_argument("negative size in a shape");
    bytes *= size;
  }
  if (fits_memory(bytes)) return;
  std::string text;
  for (int32_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  check_bytes(bytes, "an array of [" + text + "]");
}

mx::Shape to_shape(Ints ints) {
  return mx::Shape(ints.begin(), ints.end());
}

std::vector<int> to_vector(Ints ints) {
  return std::vector<int>(ints.begin(), ints.end());
}

void check_rank(const array& a, Ints values, const char* what) {
  if (values.size() != a.ndim()) throw std::invalid_argument(std::string(what) + ": one value per axis is needed");
}

bool on_cpu() {
  return mx::default_device() == mx::Device::cpu;
}

int check_axis(const array& a, int axis, const char* what) {
  int rank = static_cast<int>(a.ndim());
  if (axis < -rank || axis >= rank) throw std::invalid_argument(std::string(what) + ": axis out of range");
  return axis < 0 ? axis + rank : axis;
}

} // namespace

Ptr own(array a) {
  check_shape(a.shape(), a.itemsize());
  return std::make_unique<array>(std::move(a));
}

mx::Dtype to_dtype(Type type) {
  switch (type) {
    case Type::Bool: return mx::bool_;
    case Type::U8: return mx::uint8;
    case Type::I32: return mx::int32;
    case Type::U32: return mx::uint32;
    case Type::I64: return mx::int64;
    case Type::F16: return mx::float16;
    case Type::Bf16: return mx::bfloat16;
    case Type::F32: return mx::float32;
    case Type::F64: return mx::float64;
    default: throw std::invalid_argument("unsupported dtype");
  }
}

std::unique_ptr<Arrays> new_list() {
  return std::make_unique<Arrays>();
}

void push(Arrays& list, const array& a) {
  list.push_back(a);
}

Ptr duplicate(const array& a) {
  return own(a);
}

Ptr scalar(double value, Type dtype) {
  return own(array(value, to_dtype(dtype)));
}

Ptr from_bytes(rust::Slice<const uint8_t> bytes, Ints shape, Type dtype) {
  check_shape(shape, mx::size_of(to_dtype(dtype)));
  array out(mx::allocator::malloc(bytes.size()), to_shape(shape), to_dtype(dtype));
  if (out.nbytes() != bytes.size()) throw std::invalid_argument("the bytes do not fill the shape");
  std::memcpy(out.data<uint8_t>(), bytes.data(), bytes.size());
  return own(std::move(out));
}

// Borrows `data` without a copy where the backend can: CUDA reads it into the device's memory when it is used; Metal
// wraps page-aligned memory itself; MLX's CPU-only
// allocator has no such door, but its buffers are plain pointers to a size followed by the data. So a buffer of our
// own that is only that size, and an offset from it to `data`, read correctly. MLX never writes into memory that it
// did not allocate itself (`Data::is_owned`).
Ptr from_owner(const uint8_t* data, Ints shape, Type dtype, rust::Box<Owner> owner) {
  check_shape(shape, mx::size_of(to_dtype(dtype)));
#ifndef __APPLE__
  if (gpu_available() && dtype != Type::F64) return upload(data, shape, dtype, std::move(owner));
#endif
  auto keep = std::make_shared<rust::Box<Owner>>(std::move(owner));
  static const bool plain = [] {
    auto probe = mx::allocator::malloc(64);
    auto buffer = probe.buffer();
    return buffer.raw_ptr() == static_cast<size_t*>(buffer.ptr()) + 1;
  }();
  if (!plain || gpu_available())
    return own(array(const_cast<uint8_t*>(data), to_shape(shape), to_dtype(dtype), [keep](void*) {}));

  array out(to_shape(shape), to_dtype(dtype), nullptr, {});
  auto header = std::make_shared<size_t>(out.nbytes());
  mx::allocator::Buffer buffer(header.get());
  auto offset = reinterpret_cast<intptr_t>(data) - reinterpret_cast<intptr_t>(buffer.raw_ptr());
  array::Flags flags{true, true, out.size() <= 1 || std::ranges::max(out.shape()) == static_cast<int64_t>(out.size())};
  mx::allocator::Data borrowed(buffer, [keep, header](mx::allocator::Buffer) {});
  out.set_data(std::move(borrowed), out.size(), out.strides(), flags, offset);
  out.set_status(array::Status::available);
  return own(std::move(out));
}

void copy_to(const array& a, rust::Slice<uint8_t> out) {
  array row = mx::contiguous(a);
  row.eval();
  if (row.nbytes() != out.size()) throw std::invalid_argument("the output has another size than the array");
  if (out.empty()) return;
  std::memcpy(out.data(), row.data<uint8_t>(), out.size());
}

Ints shape(const array& a) {
  return Ints(a.shape().begin(), a.ndim());
}

Type dtype(const array& a) {
  switch (a.dtype().val()) {
    case mx::Dtype::Val::bool_: return Type::Bool;
    case mx::Dtype::Val::uint8: return Type::U8;
    case mx::Dtype::Val::int32: return Type::I32;
    case mx::Dtype::Val::uint32: return Type::U32;
    case mx::Dtype::Val::int64: return Type::I64;
    case mx::Dtype::Val::float16: return Type::F16;
    case mx::Dtype::Val::bfloat16: return Type::Bf16;
    case mx::Dtype::Val::float32: return Type::F32;
    case mx::Dtype::Val::float64: return Type::F64;
    default: return Type::Other;
  }
}

void eval(const Arrays& list) {
  mx::eval(list);
}

Ptr full(Ints shape, double value, Type dtype) {
  check_shape(shape, mx::size_of(to_dtype(dtype)));
  return own(mx::full(to_shape(shape), array(value, to_dtype(dtype))));
}

Ptr arange(double start, double stop, double step, Type dtype) {
  return own(mx::arange(start, stop, step, to_dtype(dtype)));
}

Ptr astype(const array& a, Type dtype) {
  return own(mx::astype(a, to_dtype(dtype)));
}

Ptr view(const array& a, Type dtype) {
  return own(mx::view(a, to_dtype(dtype)));
}

Ptr contiguous(const array& a) {
  return own(mx::contiguous(a));
}

Ptr unary(Unary op, const array& a) {
  switch (op) {
    case Unary::Abs: return own(mx::abs(a));
    case Unary::Cos: return own(mx::cos(a));
    case Unary::Erf: return own(mx::erf(a));
    case Unary::Exp: return own(mx::exp(a));
    case Unary::Floor: return own(mx::floor(a));
    case Unary::IsFinite: return own(mx::isfinite(a));
    case Unary::Log: return own(mx::log(a));
    case Unary::LogicalNot: return own(mx::logical_not(a));
    case Unary::Negative: return own(mx::negative(a));
    case Unary::Reciprocal: return own(mx::reciprocal(a));
    case Unary::Round: return own(mx::round(a));
    case Unary::Rsqrt: return own(mx::rsqrt(a));
    case Unary::Sigmoid: return own(mx::sigmoid(a));
    case Unary::Sin: return own(mx::sin(a));
    case Unary::Sqrt: return own(mx::sqrt(a));
    case Unary::Square: return own(mx::square(a));
    case Unary::Tanh: return own(mx::tanh(a));
  }
  throw std::invalid_argument("unknown unary operation");
}

Ptr binary(Binary op, const array& a, const array& b) {
  switch (op) {
    case Binary::Add: return own(mx::add(a, b));
    case Binary::Subtract: return own(mx::subtract(a, b));
    case Binary::Multiply: return own(mx::multiply(a, b));
    case Binary::Divide: return own(mx::divide(a, b));
    case Binary::Maximum: return own(mx::maximum(a, b));
    case Binary::Minimum: return own(mx::minimum(a, b));
    case Binary::Power: return own(mx::power(a, b));
    case Binary::Equal: return own(mx::equal(a, b));
    case Binary::Greater: return own(mx::greater(a, b));
    case Binary::GreaterEqual: return own(mx::greater_equal(a, b));
    case Binary::Less: return own(mx::less(a, b));
    case Binary::LogicalAnd: return own(mx::logical_and(a, b));
    case Binary::Matmul: return own(mx::matmul(a, b));
  }
  throw std::invalid_argument("unknown binary operation");
}

Ptr reduce(Reduce op, const array& a, Ints axes, bool keep) {
  auto over = to_vector(axes);
  switch (op) {
    case Reduce::Sum: return own(mx::sum(a, over, keep));
    case Reduce::Mean: return own(mx::mean(a, over, keep));
    case Reduce::Max: return own(mx::max(a, over, keep));
    case Reduce::Min: return own(mx::min(a, over, keep));
    case Reduce::All: return own(mx::all(a, over, keep));
    case Reduce::Any: return own(mx::any(a, over, keep));
  }
  throw std::invalid_argument("unknown reduction");
}

Ptr variance(const array& a, Ints axes, bool keep, int32_t ddof) {
  return own(mx::var(a, to_vector(axes), keep, ddof));
}

Ptr select(const array& condition, const array& a, const array& b) {
  return own(mx::where(condition, a, b));
}

Ptr softmax(const array& a, int32_t axis) {
  return own(mx::softmax(a, check_axis(a, axis, "softmax"), /* precise = */ true));
}

Ptr reshape(const array& a, Ints shape) {
  return own(mx::reshape(a, to_shape(shape)));
}

Ptr transpose(const array& a, Ints axes) {
  return own(mx::transpose(a, to_vector(axes)));
}

Ptr expand_dims(const array& a, Ints axes) {
  return own(mx::expand_dims(a, to_vector(axes)));
}

Ptr squeeze(const array& a, Ints axes) {
  return own(mx::squeeze(a, to_vector(axes)));
}

Ptr broadcast_to(const array& a, Ints shape) {
  check_shape(shape, a.itemsize());
  return own(mx::broadcast_to(a, to_shape(shape)));
}

Ptr slice(const array& a, Ints start, Ints stop, Ints step) {
  check_rank(a, start, "slice");
  check_rank(a, stop, "slice");
  check_rank(a, step, "slice");
  // MLX divides by the step, and adds to it: a step past the axis takes one element, like one as long as the axis.
  auto bounded = to_shape(step);
  for (size_t axis = 0; axis < a.ndim(); ++axis) {
    if (bounded[axis] == 0) throw std::invalid_argument("slice: a step of 0");
    int32_t most = std::max(a.shape(axis), 1);
    bounded[axis] = std::clamp(bounded[axis], -most, most);
  }
  return own(mx::slice(a, to_shape(start), to_shape(stop), std::move(bounded)));
}

Ptr slice_update(const array& a, const array& update, Ints start, Ints stop) {
  check_rank(a, start, "slice_update");
  check_rank(a, stop, "slice_update");
  return own(mx::slice_update(a, update, to_shape(start), to_shape(stop)));
}

Ptr concatenate(const Arrays& list, int32_t axis) {
  if (!list.empty()) check_axis(list[0], axis, "concatenate");
  return own(mx::concatenate(list, axis));
}

Ptr stack(const Arrays& list, int32_t axis) {
  return own(mx::stack(list, axis));
}

Ptr repeat(const array& a, int32_t repeats, int32_t axis) {
  return own(mx::repeat(a, repeats, check_axis(a, axis, "repeat")));
}

Ptr tile(const array& a, Ints repeats) {
  for (int32_t count : repeats)
    if (count < 0) throw std::invalid_argument("tile: a negative count");
  return own(mx::tile(a, to_vector(repeats)));
}

Ptr pad(const array& a, int32_t axis, int32_t low, int32_t high, double value, bool edge) {
  // Edge mode reads one size per axis of the array, whatever axes it is given.
  std::vector<int> axes(a.ndim());
  std::iota(axes.begin(), axes.end(), 0);
  mx::Shape lows(a.ndim(), 0), highs(a.ndim(), 0);
  axis = check_axis(a, axis, "pad");
  lows[axis] = low;
  highs[axis] = high;
  // In 64 bits, before MLX adds in 32.
  if (low < 0 || high < 0) throw std::invalid_argument("pad: a negative size");
  if (int64_t{a.shape(axis)} + low + high > INT32_MAX) throw std::length_error("pad: the axis gets too long");
  return own(mx::pad(a, axes, lows, highs, array(value, a.dtype()), edge ? "edge" : "constant"));
}

Ptr take(const array& a, const array& indices, int32_t axis) {
  axis = check_axis(a, axis, "take");
  if (!mx::issubdtype(indices.dtype(), mx::integer)) throw std::invalid_argument("take: indices must be integers");
  // No byte is outside of 256 places.
  if (indices.dtype() == mx::uint8 && a.shape(axis) >= 256) return own(mx::take(a, indices, axis));
  // MLX gathers without looking at the indices, and would read outside the array.
  auto known = mx::contiguous(mx::astype(indices, mx::int64, mx::Device::cpu), false, mx::Device::cpu);
  known.eval();
  int64_t size = a.shape(axis);
  for (size_t i = 0; i < known.size(); ++i) {
    int64_t index = known.data<int64_t>()[i];
    if (index < -size || index >= size)
      throw std::out_of_range("take: index " + std::to_string(index) + " into an axis of " + std::to_string(size));
  }
  return own(mx::take(a, indices, axis));
}

Ptr conv(const array& x, const array& weight, const ConvSettings& s) {
  auto out = own(mx::conv_general(
      x,
      weight,
      to_vector(s.stride),
      to_vector(s.padding_low),
      to_vector(s.padding_high),
      to_vector(s.dilation),
      to_vector(s.input_dilation),
      s.groups,
      s.flip));
  auto is_one = [](int32_t value) { return value == 1; };
  bool unfolds = std::all_of(s.dilation.begin(), s.dilation.end(), is_one) &&
      std::all_of(s.input_dilation.begin(), s.input_dilation.end(), is_one);
  if (unfolds && on_cpu()) {
    double rows = double(out->size()) / weight.shape(0);
    if (rows > INT32_MAX) throw std::length_error("the output has too many positions for the CPU");
    check_bytes(rows * (double(weight.size()) / weight.shape(0)) * s.groups * sizeof(float), "the unfolded input");
  }
  return out;
}

Ptr rms_norm(const array& x, const array* weight, float eps) {
  return own(mx::fast::rms_norm(x, optional(weight), eps));
}

Ptr layer_norm(const array& x, const array* weight, const array* bias, float eps) {
  return own(mx::fast::layer_norm(x, optional(weight), optional(bias), eps));
}

Ptr attention(const array& q, const array& k, const array& v, float scale, const array* mask) {
  if (on_cpu() && q.ndim() == 4 && k.ndim() == 4) {
    double scores = double(q.shape(0)) * q.shape(1) * q.shape(2) * k.shape(2);
    check_bytes(scores * sizeof(float), "the table of all pairs of tokens");
  }
  return own(mx::fast::scaled_dot_product_attention(q, k, v, scale, mask ? "array" : "", optional(mask)));
}

namespace {

// A node of the lazy graph whose value a Rust closure computes. Its inputs are made row-contiguous beforehand, and
// MLX keeps every input's and output's buffer alive until the queued task has run. Pointers are taken only inside the
// task: before it, other devices may still be writing the inputs.
class Custom : public mx::Primitive {
 public:
  Custom(mx::Stream stream, rust::Box<Kernel> kernel)
      : mx::Primitive(stream), kernel_(std::make_shared<rust::Box<Kernel>>(std::move(kernel))) {}

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    auto& output = outputs[0];
    output.set_data(mx::allocator::malloc(output.nbytes()));
    auto& encoder = mx::cpu::get_command_encoder(stream());
    Arrays held;
    for (const auto& input : inputs) {
      encoder.set_input_array(input);
      held.push_back(array::unsafe_weak_copy(input));
    }
    encoder.set_output_array(output);
    encoder.dispatch([kernel = kernel_, held = std::move(held), output = array::unsafe_weak_copy(output)]() mutable {
      std::vector<std::vector<uint64_t>> aligned; // copies of inputs that `view` left misaligned
      std::vector<RawView> views;
      for (auto& input : held) {
        auto view = raw(input);
        if (view.bytes > 0 && reinterpret_cast<uintptr_t>(view.data) % input.itemsize() != 0) {
          auto& copy = aligned.emplace_back((view.bytes + 7) / 8);
          std::memcpy(copy.data(), view.data, view.bytes);
          view.data = reinterpret_cast<uint8_t*>(copy.data());
        }
        views.push_back(std::move(view));
      }
      auto out = raw(output);
      try {
        (*kernel)->run(rust::Slice<const RawView>(views.data(), views.size()), out);
      } catch (...) {
        // MLX counts the node as computed all the same: whoever reads it later must see NaN, not chance.
        std::memset(out.data, 0xff, out.bytes);
        throw;
      }
    });
  }

  void eval_gpu(const Arrays&, Arrays&) override {
    throw std::runtime_error("a custom kernel runs on the CPU only");
  }

  const char* name() const override {
    return "LtxCustom";
  }

 private:
  static RawView raw(array& a) {
    RawView view{a.size() == 0 ? nullptr : a.data<uint8_t>(), a.nbytes(), {}, dtype(a)};
    for (int32_t size : a.shape()) view.shape.push_back(size);
    return view;
  }

  std::shared_ptr<rust::Box<Kernel>> kernel_;
};

} // namespace

Ptr custom(const Arrays& inputs, Ints shape, Type dtype, rust::Box<Kernel> kernel) {
  check_shape(shape, mx::size_of(to_dtype(dtype)));
  auto stream = mx::default_stream(mx::Device::cpu);
  Arrays rows;
  for (const auto& input : inputs) rows.push_back(mx::contiguous(input, false, stream));
  auto primitive = std::make_shared<Custom>(stream, std::move(kernel));
  return own(array(to_shape(shape), to_dtype(dtype), std::move(primitive), std::move(rows)));
}

bool gpu_available() {
  return mx::is_available(mx::Device::gpu);
}

void set_gpu(bool gpu) {
  if (gpu && !gpu_available()) throw std::runtime_error("this build of MLX found no GPU");
  mx::set_default_device(gpu ? mx::Device::gpu : mx::Device::cpu);
}

rust::Vec<Fact> device_facts(bool gpu) {
  rust::Vec<Fact> facts;
  for (const auto& [name, value] : mx::device_info(gpu ? mx::Device::gpu : mx::Device::cpu)) {
    auto* text = std::get_if<std::string>(&value);
    facts.push_back(Fact{name, text ? *text : std::to_string(std::get<size_t>(value))});
  }
  std::sort(facts.begin(), facts.end(), [](const Fact& a, const Fact& b) { return a.name < b.name; });
  return facts;
}

void synchronize() {
  mx::synchronize();
}

size_t active_memory() {
  return mx::get_active_memory();
}

size_t peak_memory() {
  return mx::get_peak_memory();
}

void reset_peak_memory() {
  mx::reset_peak_memory();
}

size_t cache_memory() {
  return mx::get_cache_memory();
}

void clear_cache() {
  mx::clear_cache();
}

size_t set_cache_limit(size_t bytes) {
  return mx::set_cache_limit(bytes);
}

size_t set_memory_limit(size_t bytes) {
  return mx::set_memory_limit(bytes);
}

} // namespace ltx
