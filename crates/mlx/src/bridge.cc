#include "ltx-mlx/src/bridge.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>

#include <mlx/backend/cpu/encoder.h>
#include <mlx/primitives.h>

#include "ltx-mlx/src/bridge.rs.h"

namespace ltx {

namespace mx = mlx::core;

namespace {

Ptr own(array a) {
  return std::make_unique<array>(std::move(a));
}

mx::Shape to_shape(Ints ints) {
  return mx::Shape(ints.begin(), ints.end());
}

std::vector<int> to_vector(Ints ints) {
  return std::vector<int>(ints.begin(), ints.end());
}

std::optional<array> optional(const array* a) {
  return a ? std::make_optional(*a) : std::nullopt;
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

// MLX takes sizes as int32 and multiplies them unchecked in places: refuse what would overflow before it does.
void check_shape(Ints shape) {
  size_t elements = 1;
  for (int32_t size : shape) {
    if (size < 0) throw std::invalid_argument("negative size in a shape");
    if (__builtin_mul_overflow(elements, static_cast<size_t>(size), &elements))
      throw std::invalid_argument("a shape has too many elements");
  }
}

void check_rank(const array& a, Ints values, const char* what) {
  if (values.size() != a.ndim()) throw std::invalid_argument(std::string(what) + ": one value per axis is needed");
}

int check_axis(const array& a, int axis, const char* what) {
  int rank = static_cast<int>(a.ndim());
  if (axis < -rank || axis >= rank) throw std::invalid_argument(std::string(what) + ": axis out of range");
  return axis < 0 ? axis + rank : axis;
}

} // namespace

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
  check_shape(shape);
  array out(mx::allocator::malloc(bytes.size()), to_shape(shape), to_dtype(dtype));
  if (out.nbytes() != bytes.size()) throw std::invalid_argument("the bytes do not fill the shape");
  std::memcpy(out.data<uint8_t>(), bytes.data(), bytes.size());
  return own(std::move(out));
}

// Borrows `data` without a copy where the backend can: Metal wraps page-aligned memory itself; MLX's CPU-only
// allocator has no such door, but its buffers are plain pointers to a small header followed by the data, so a
// buffer that starts one header before `data` reads correctly. It is never owned by MLX, so the header is not used.
Ptr from_owner(const uint8_t* data, Ints shape, Type dtype, rust::Box<Owner> owner) {
  check_shape(shape);
  auto keep = std::make_shared<rust::Box<Owner>>(std::move(owner));
  void* pointer = const_cast<uint8_t*>(data);
#ifndef __APPLE__
  if (!gpu_available()) {
    static const std::ptrdiff_t header = [] {
      auto probe = mx::allocator::malloc(64);
      auto buffer = probe.buffer();
      return static_cast<char*>(buffer.raw_ptr()) - static_cast<char*>(buffer.ptr());
    }();
    mx::allocator::Buffer buffer(static_cast<char*>(pointer) - header);
    array out(mx::allocator::Data(buffer, [keep](mx::allocator::Buffer) {}), to_shape(shape), to_dtype(dtype));
    return own(std::move(out));
  }
#endif
  return own(array(pointer, to_shape(shape), to_dtype(dtype), [keep](void*) {}));
}

void copy_to(const array& a, rust::Slice<uint8_t> out) {
  array row = mx::contiguous(a);
  row.eval();
  if (row.nbytes() != out.size()) throw std::invalid_argument("the output has another size than the array");
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
  check_shape(shape);
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
  check_shape(shape);
  return own(mx::broadcast_to(a, to_shape(shape)));
}

Ptr slice(const array& a, Ints start, Ints stop, Ints step) {
  check_rank(a, start, "slice");
  check_rank(a, stop, "slice");
  check_rank(a, step, "slice");
  return own(mx::slice(a, to_shape(start), to_shape(stop), to_shape(step)));
}

Ptr slice_update(const array& a, const array& update, Ints start, Ints stop) {
  check_rank(a, start, "slice_update");
  check_rank(a, stop, "slice_update");
  return own(mx::slice_update(a, update, to_shape(start), to_shape(stop)));
}

Ptr concatenate(const Arrays& list, int32_t axis) {
  return own(mx::concatenate(list, axis));
}

Ptr stack(const Arrays& list, int32_t axis) {
  return own(mx::stack(list, axis));
}

Ptr repeat(const array& a, int32_t repeats, int32_t axis) {
  return own(mx::repeat(a, repeats, check_axis(a, axis, "repeat")));
}

Ptr tile(const array& a, Ints repeats) {
  check_shape(repeats);
  return own(mx::tile(a, to_vector(repeats)));
}

Ptr pad(const array& a, Ints axes, Ints low, Ints high, double value, bool edge) {
  if (low.size() != axes.size() || high.size() != axes.size())
    throw std::invalid_argument("pad: one low and one high size per axis is needed");
  check_shape(low);
  check_shape(high);
  for (int axis : axes) check_axis(a, axis, "pad");
  return own(mx::pad(a, to_vector(axes), to_shape(low), to_shape(high), array(value, a.dtype()), edge ? "edge" : "constant"));
}

Ptr take(const array& a, const array& indices, int32_t axis) {
  return own(mx::take(a, indices, check_axis(a, axis, "take")));
}

Ptr conv(const array& x, const array& weight, const ConvSettings& s) {
  return own(mx::conv_general(
      x,
      weight,
      to_vector(s.stride),
      to_vector(s.padding_low),
      to_vector(s.padding_high),
      to_vector(s.dilation),
      to_vector(s.input_dilation),
      s.groups,
      s.flip));
}

Ptr rms_norm(const array& x, const array* weight, float eps) {
  return own(mx::fast::rms_norm(x, optional(weight), eps));
}

Ptr layer_norm(const array& x, const array* weight, const array* bias, float eps) {
  return own(mx::fast::layer_norm(x, optional(weight), optional(bias), eps));
}

Ptr attention(const array& q, const array& k, const array& v, float scale, const array* mask) {
  return own(mx::fast::scaled_dot_product_attention(q, k, v, scale, mask ? "array" : "", optional(mask)));
}

namespace {

// A node of the lazy graph whose value a Rust closure computes. Its inputs are made row-contiguous beforehand, and
// MLX keeps every input's and output's buffer alive until the queued task has run.
class Custom : public mx::Primitive {
 public:
  Custom(mx::Stream stream, rust::Box<Kernel> kernel)
      : mx::Primitive(stream), kernel_(std::make_shared<rust::Box<Kernel>>(std::move(kernel))) {}

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    auto& output = outputs[0];
    output.set_data(mx::allocator::malloc(output.nbytes()));
    auto& encoder = mx::cpu::get_command_encoder(stream());
    auto views = std::make_shared<std::vector<RawView>>();
    for (const auto& input : inputs) {
      encoder.set_input_array(input);
      views->push_back(raw(input));
    }
    encoder.set_output_array(output);
    auto out = std::make_shared<RawView>(raw(output));
    encoder.dispatch([kernel = kernel_, views, out] {
      (*kernel)->run(rust::Slice<const RawView>(views->data(), views->size()), *out);
    });
  }

  void eval_gpu(const Arrays&, Arrays&) override {
    throw std::runtime_error("a custom kernel runs on the CPU only");
  }

  const char* name() const override {
    return "LtxCustom";
  }

 private:
  static RawView raw(const array& a) {
    RawView view{const_cast<array&>(a).data<uint8_t>(), a.nbytes(), {}, dtype(a)};
    for (int32_t size : a.shape()) view.shape.push_back(size);
    return view;
  }

  std::shared_ptr<rust::Box<Kernel>> kernel_;
};

} // namespace

Ptr custom(const Arrays& inputs, Ints shape, Type dtype, rust::Box<Kernel> kernel) {
  check_shape(shape);
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
