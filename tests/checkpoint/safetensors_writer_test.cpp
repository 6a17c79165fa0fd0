// SPDX-License-Identifier: Apache-2.0
#include <numeric>

#include <gtest/gtest.h>

#include "csrc/checkpoint/safetensors.h"
#include "csrc/core/error.h"
#include "tests/checkpoint/source.h"
#include "tests/support/temporary_directory.h"

namespace memphis {
namespace {

using test::ramp;
using test::source;
using test::TemporaryDirectory;

TEST(SafetensorsWriter, WritesTheseBytes) {
  const TemporaryDirectory directory;
  const std::vector<TensorSource> tensors{
      source<std::uint8_t>("b", {3}, {1, 2, 3}),
      source<float>("a", {1}, {1.0F}),
  };
  const FileRecord record = write_safetensors(directory.path() / "x.safetensors", tensors);
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
      R"("b":{"dtype":"U8","shape":[3],"data_offsets":[4,7]}})";
  ASSERT_EQ(header.size(), 137U);  // so seven spaces pad it to 144, 0x90
  const std::string expected = std::string("\x90\0\0\0\0\0\0\0", 8) + header + std::string(7, ' ') +
                               std::string("\x00\x00\x80\x3F\x01\x02\x03", 7);
  EXPECT_EQ(read_text(directory.path() / "x.safetensors"), expected);
  EXPECT_EQ(record, (FileRecord{"x.safetensors", expected.size(), checksum_of(expected)}));
  EXPECT_EQ(safetensors_bytes(tensors), expected.size());
}

TEST(SafetensorsWriter, RoundTripsEveryTypeAndShape) {
  const TemporaryDirectory directory;
  const std::vector<TensorSource> tensors{
      source<bf16>("half \"quoted\" \u00e9", {2, 2}, {bf16(1.F), bf16(-2.F), bf16(3.F), bf16(0.F)}),
      source<double>("double", {1, 1, 1, 1, 1}, {0.1}),
      source<std::int64_t>("long", {2}, {INT64_MIN, INT64_MAX}),
      source<std::int32_t>("int", {1}, {-1}),
      source<std::uint8_t>("byte", {5}, {0, 1, 2, 3, 255}),
      source<float>("single", {7}, ramp(7)),
      source<float>("hollow", {0, 3}, {}),
      source<float>("scalar", {}, {5.0F}),
  };
  const auto path = directory.path() / "x.safetensors";
  write_safetensors(path, tensors);
  const SafetensorsFile file(path);
  EXPECT_EQ(file.tensors().size(), tensors.size());
  EXPECT_EQ(file.metadata().at("format"), "pt");
  for (const TensorSource& tensor : tensors) {
    const StoredTensor& stored = file.find(tensor.name, tensor.shape);
    EXPECT_EQ(stored.dtype, tensor.dtype);
    EXPECT_EQ(stored.offset % size_of(tensor.dtype), 0U)
        << tensor.name << " is not aligned to its element";
    std::vector<std::byte> expected;
    tensor.emit([&](std::span<const std::byte> piece) {
      expected.insert(expected.end(), piece.begin(), piece.end());
    });
    std::vector<std::byte> actual(stored.num_bytes);
    file.read_bytes(stored, 0, actual);
    EXPECT_EQ(actual, expected) << tensor.name;
  }
}

TEST(SafetensorsWriter, ATensorInHostMemoryIsItsOwnSource) {
  const TemporaryDirectory directory;
  std::vector<float> values = ramp(6);
  const TensorView view(values.data(), {2, 3}, DType::f32, Device::cpu);
  const PinnedBuffer none(0, Device::cpu);
  write_safetensors(directory.path() / "x.safetensors",
                    std::vector{source_of("x", view, none, {})});
  const SafetensorsFile file(directory.path() / "x.safetensors");
  std::vector<float> read(6);
  file.read("x", std::vector<std::int64_t>{2, 3}, 0, 6, DType::f32, read.data());
  EXPECT_EQ(read, values);
}

TEST(SafetensorsWriter, ATensorOnTheGpuPassesThroughASmallBuffer) {
  if (!device_available(Device::cuda)) {
    GTEST_SKIP() << device_unavailable_reason();
  }
  const TemporaryDirectory directory;
  const std::vector<float> values = ramp(1000);
  const std::size_t bytes = values.size() * sizeof(float);
  const OwnedStream stream(Device::cuda);
  void* data = device_allocate(bytes, Device::cuda);
  device_copy(data, values.data(), bytes, stream.view());
  synchronize(stream.view());
  const TensorView view(data, {1000}, DType::f32, Device::cuda);
  const PinnedBuffer staging(256, Device::cuda);  // 15 whole pieces and a part of one
  write_safetensors(directory.path() / "x.safetensors",
                    std::vector{source_of("x", view, staging, stream.view())});
  device_free(data, Device::cuda);
  std::vector<float> read(1000);
  SafetensorsFile(directory.path() / "x.safetensors")
      .read("x", std::vector<std::int64_t>{1000}, 0, 1000, DType::f32, read.data());
  EXPECT_EQ(read, values);
}

TEST(SafetensorsWriter, RefusesWhatItCouldNotReadBack) {
  const TemporaryDirectory directory;
  const auto path = directory.path() / "x.safetensors";
  const auto write = [&](const std::vector<TensorSource>& tensors) {
    std::filesystem::remove(path);
    write_safetensors(path, tensors);
  };
  EXPECT_THROW(write({source<float>("a", {1}, {1}), source<float>("a", {1}, {1})}), ContractError);
  EXPECT_THROW(write({source<float>("__metadata__", {1}, {1})}), ContractError);
  EXPECT_THROW(write({source<float>("a", {2}, {1})}), ContractError);
  EXPECT_THROW(write({source<float>("a", {1}, {1, 2})}), ContractError);
  EXPECT_THROW(write({source<float>("a", {-1}, {})}), ContractError);
  write({});
  EXPECT_TRUE(SafetensorsFile(path).tensors().empty());
  EXPECT_THROW(write_safetensors(path, {}), CheckpointError)
      << "an existing file is not written over";
}

}  // namespace
}  // namespace memphis
