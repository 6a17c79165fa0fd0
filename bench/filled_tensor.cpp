// SPDX-License-Identifier: Apache-2.0
#include "bench/filled_tensor.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

namespace memphis::bench {
namespace {

void store(std::byte* destination, DType dtype, double value) {
  const auto put = [&](auto typed) { std::memcpy(destination, &typed, sizeof(typed)); };
  switch (dtype) {
    case DType::f64:
      return put(value);
    case DType::f32:
      return put(static_cast<float>(value));
    case DType::bf16:
      return put(bf16(value));
    case DType::i64:
      return put(static_cast<std::int64_t>(value));
    case DType::i32:
      return put(static_cast<std::int32_t>(value));
    case DType::u8:
      return put(static_cast<std::uint8_t>(value));
  }
}

template <class T>
double get(const std::byte* source) {
  T typed;
  std::memcpy(&typed, source, sizeof(typed));
  return static_cast<double>(typed);
}

double load(const std::byte* source, DType dtype) {
  switch (dtype) {
    case DType::f64:
      return get<double>(source);
    case DType::f32:
      return get<float>(source);
    case DType::bf16:
      return get<bf16>(source);
    case DType::i64:
      return get<std::int64_t>(source);
    case DType::i32:
      return get<std::int32_t>(source);
    case DType::u8:
      return get<std::uint8_t>(source);
  }
  return 0;
}

double poison(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::f32:
    case DType::bf16:
      return std::numeric_limits<double>::quiet_NaN();
    case DType::u8:
      return std::numeric_limits<std::uint8_t>::max();
    default:
      return std::numeric_limits<std::int32_t>::max();
  }
}

constexpr std::size_t kPoisonTile = 1 << 12;

}  // namespace

FilledTensor::FilledTensor(const TensorSpec& spec, Device device)
    : FilledTensor(repeated(spec, device, std::vector<double>(kPoisonTile, poison(spec.dtype)))) {}

FilledTensor::FilledTensor(const TensorSpec& spec, Device device, const std::vector<double>& values)
    : view_(device_allocate(spec.bytes(), device), spec, device) {
  assign(values);
}

FilledTensor FilledTensor::repeated(const TensorSpec& spec,
                                    Device device,
                                    const std::vector<double>& values) {
  FilledTensor tensor(TensorView(device_allocate(spec.bytes(), device), spec, device));
  fill_repeated(tensor, values, OwnedStream(device).view());
  return tensor;
}

FilledTensor::~FilledTensor() {
  if (view_.data != nullptr) {
    device_free(view_.data, view_.device);
  }
}

FilledTensor::FilledTensor(FilledTensor&& other) noexcept
    : view_(std::exchange(other.view_, TensorView{})) {}

void FilledTensor::assign(const std::vector<double>& values) {
  require(static_cast<std::int64_t>(values.size()) == view_.num_elements(),
          "a tensor is filled with as many values as it has elements");
  fill_repeated(view_, values, OwnedStream(view_.device).view());
}

void fill_repeated(const TensorView& view, const std::vector<double>& values, Stream stream) {
  require(!values.empty() || view.num_elements() == 0, "a tensor is filled with some value");
  const std::size_t width = size_of(view.dtype);
  const std::size_t count = std::min(values.size(), static_cast<std::size_t>(view.num_elements()));
  std::vector<std::byte> host(count * width);
  for (std::size_t i = 0; i < count; ++i) {
    store(host.data() + i * width, view.dtype, values[i]);
  }
  device_copy(view.data, host.data(), host.size(), stream);
  auto* const data = static_cast<std::byte*>(view.data);
  for (std::size_t done = host.size(); done < view.bytes();) {
    const std::size_t more = std::min(done, view.bytes() - done);
    device_copy(data + done, data, more, stream);
    done += more;
  }
  synchronize(stream);
}

std::vector<std::byte> FilledTensor::bytes(Stream stream) const {
  synchronize(stream);
  std::vector<std::byte> host(view_.bytes());
  device_copy(host.data(), view_.data, host.size(), stream);
  synchronize(stream);
  return host;
}

std::vector<double> FilledTensor::values(Stream stream) const {
  const std::vector<std::byte> host = bytes(stream);
  std::vector<double> result(static_cast<std::size_t>(view_.num_elements()));
  for (std::size_t i = 0; i < result.size(); ++i) {
    result[i] = load(host.data() + i * size_of(view_.dtype), view_.dtype);
  }
  return result;
}

namespace {

std::uint64_t g_data_seed = 1;

}  // namespace

std::uint64_t data_seed() {
  return g_data_seed;
}

void set_data_seed(std::uint64_t seed) {
  g_data_seed = seed;
}

std::vector<double> random_normal(std::int64_t count,
                                  std::string_view name,
                                  double stddev,
                                  std::uint64_t seed) {
  const CounterRng rng(seed, name);
  std::vector<double> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = stddev * rng.normal(i);
  }
  return values;
}

std::vector<double> random_integers(std::int64_t count,
                                    std::string_view name,
                                    std::int64_t low,
                                    std::int64_t high,
                                    std::uint64_t seed) {
  const CounterRng rng(seed, name);
  std::vector<double> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<double>(
        low + static_cast<std::int64_t>(rng.word64(i) % static_cast<std::uint64_t>(high - low)));
  }
  return values;
}

std::vector<double> rounded_to(DType dtype, std::vector<double> values) {
  for (double& value : values) {
    std::byte stored[sizeof(double)];
    store(stored, dtype, value);
    value = load(stored, dtype);
  }
  return values;
}

std::string name_of(const Target& target) {
  return std::string(memphis::name_of(target.device)) + "_" +
         std::string(memphis::name_of(target.dtype));
}

}  // namespace memphis::bench
