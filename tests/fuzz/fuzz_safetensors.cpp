// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <vector>

#include "csrc/checkpoint/safetensors.h"
#include "tests/fuzz/fuzz.h"

// A safetensors file: its header, and all values that it says it has.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace memphis;
  const auto path = fuzz::file_of(fuzz::text_of(data, size), "model.safetensors");
  return fuzz::read_or_refuse([&] {
    const SafetensorsFile file(path);
    for (const auto& [name, tensor] : file.tensors()) {
      require(tensor.num_bytes <= size, "a tensor lies in its file");
      std::vector<std::byte> bytes(tensor.num_bytes);
      file.read_bytes(tensor, 0, bytes);
      std::int64_t count = 1;
      for (const std::int64_t dim : tensor.shape) {
        count *= dim;
      }
      if (holds_floats(tensor)) {
        std::vector<float> values(static_cast<std::size_t>(count));
        file.read(name, tensor.shape, 0, count, DType::f32, values.data());
      }
    }
  });
}
