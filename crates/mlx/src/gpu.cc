// What pays on a GPU: work queued without waiting, elementwise operations joined into one kernel, products with a bias,
// random numbers, and memory of ours read straight into the device's.

#include "ltx-mlx/src/bridge.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include <mlx/compile.h>
#include <mlx/io/load.h>

#include "ltx-mlx/src/bridge.rs.h"

namespace ltx {

namespace mx = mlx::core;

void async_eval(const Arrays& list) {
  mx::async_eval(list);
}

Ptr addmm(const array& bias, const array& a, const array& b) {
  return own(mx::addmm(bias, a, b));
}

Ptr uniform(double low, double high, Ints shape, Type dtype, uint64_t seed) {
  auto type = to_dtype(dtype);
  mx::Shape sizes(shape.begin(), shape.end());
  return own(mx::random::uniform(array(low, type), array(high, type), sizes, type, mx::random::key(seed)));
}

std::unique_ptr<Compiled> compile(rust::Box<Function> function) {
  auto shared = std::make_shared<rust::Box<Function>>(std::move(function));
  auto run = [shared](const Arrays& inputs) -> Arrays { return std::move(*(*shared)->call(inputs)); };
  return std::make_unique<Compiled>(mx::compile(std::function<Arrays(const Arrays&)>(run)));
}

std::unique_ptr<Arrays> call(const Compiled& compiled, const Arrays& inputs) {
  return std::make_unique<Arrays>(compiled.run(inputs));
}

namespace {

// Memory that Rust owns as a file of one tensor. MLX makes no public name of the operation that reads straight into the
// device's memory when its array is computed; it gives such arrays to those who read files.
class Memory : public mx::io::Reader {
 public:
  Memory(const uint8_t* data, size_t bytes, std::string header, rust::Box<Owner> owner)
      : data_(data), bytes_(bytes), header_(std::move(header)), owner_(std::move(owner)) {}

  bool is_open() const override { return true; }
  bool good() const override { return true; }
  size_t tell() override { return at_; }
  void seek(int64_t offset, std::ios_base::seekdir way) override {
    at_ = offset + (way == std::ios_base::end ? header_.size() + bytes_ : way == std::ios_base::cur ? at_ : 0);
  }
  void read(char* out, size_t count) override {
    read(out, count, at_);
    at_ += count;
  }
  void read(char* out, size_t count, size_t offset) override {
    size_t start = header_.size();
    bool within = offset < start ? count <= start - offset : count <= bytes_ - std::min(offset - start, bytes_);
    if (!within) throw std::out_of_range("borrowed memory is read past its end");
    if (offset < start) std::memcpy(out, header_.data() + offset, count);
    else std::memcpy(out, data_ + (offset - start), count);
  }
  std::string label() const override { return "borrowed memory"; }

 private:
  const uint8_t* data_;
  size_t bytes_, at_ = 0;
  std::string header_;
  rust::Box<Owner> owner_;
};

const char* safetensors_name(Type dtype) {
  switch (dtype) {
    case Type::Bool: return "BOOL";
    case Type::U8: return "U8";
    case Type::I32: return "I32";
    case Type::U32: return "U32";
    case Type::I64: return "I64";
    case Type::F16: return "F16";
    case Type::Bf16: return "BF16";
    case Type::F32: return "F32";
    default: throw std::invalid_argument("the device does not read this dtype");
  }
}

} // namespace

Ptr upload(const uint8_t* data, Ints shape, Type dtype, rust::Box<Owner> owner) {
  size_t bytes = mx::size_of(to_dtype(dtype));
  std::string sizes;
  for (int32_t size : shape) {
    bytes *= size;
    sizes += (sizes.empty() ? "" : ",") + std::to_string(size);
  }
  std::string json = std::string("{\"a\":{\"dtype\":\"") + safetensors_name(dtype) + "\",\"shape\":[" + sizes +
      "],\"data_offsets\":[0," + std::to_string(bytes) + "]}}";
  uint64_t length = json.size();
  std::string header(reinterpret_cast<const char*>(&length), sizeof(length));
  auto memory = std::make_shared<Memory>(data, bytes, header + json, std::move(owner));
  return own(mx::load_safetensors(memory).first.at("a"));
}

} // namespace ltx
