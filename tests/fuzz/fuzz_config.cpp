// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/load.h"
#include "tests/fuzz/fuzz.h"

// A config of YAML; what is taken is the same when it is written and read again.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace memphis;
  return fuzz::read_or_refuse([&] {
    const Config config =
        parse_config(fuzz::text_of(data, size), "fuzz.yaml", {}, Check::machine, 1);
    static_cast<void>(to_yaml(config));
  });
}
