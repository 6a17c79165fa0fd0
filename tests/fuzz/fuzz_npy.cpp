// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/npy.h"
#include "tests/fuzz/fuzz.h"

// An array of NumPy.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace memphis;
  const auto path = fuzz::file_of(fuzz::text_of(data, size), "x.npy");
  return fuzz::read_or_refuse([&] {
    std::size_t count = 1;
    const NpyArray array = read_npy(path);
    for (const std::int64_t dim : array.dims) {
      count *= static_cast<std::size_t>(dim);
    }
    require(array.values.size() == count, "an array has the values of its shape");
  });
}
