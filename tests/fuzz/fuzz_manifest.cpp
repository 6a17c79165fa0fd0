// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/manifest.h"
#include "tests/fuzz/fuzz.h"

// manifest.json of a checkpoint; what is taken is the same when it is written and read again.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace memphis;
  return fuzz::read_or_refuse([&] {
    const Manifest manifest = read_manifest(fuzz::text_of(data, size), "manifest.json");
    require(read_manifest(write_manifest(manifest), "again") == manifest,
            "a manifest is what is read of it");
  });
}
