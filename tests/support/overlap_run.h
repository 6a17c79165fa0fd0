// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "csrc/comm/communicator.h"
#include "tests/support/layout_run.h"
#include "tests/support/world_decorator.h"

// Runs whose exchanges travel beside work: that they have the bits of runs without, and what work it is.
namespace memphis::test {

// `layout` with `more` behind its own overrides.
Layout with(const Layout& layout, const std::vector<std::string>& more);

// Of a layout trained for three steps with either override: losses, gradients and weights.
void expect_same_bits_with(const Layout& layout,
                           const std::string& compute,
                           const char* one,
                           const char* other);

// An exchange that was begun and waited for later.
struct Exchanged {
  std::string name;
  std::int64_t started_in = -1;  // micro-batch
  double flops_at_start = 0;     // of the products that the rank has called by then
  double flops_at_wait = -1;
};

// The calls of one group of a rank.
class WatchingWorld final : public WorldDecorator {
 public:
  // `axis` is the group's.
  WatchingWorld(World& real, std::string axis) : WorldDecorator(real), axis_(std::move(axis)) {}

  std::unique_ptr<Communicator> create_group(std::string axis,
                                             std::span<const int> ranks,
                                             Device device,
                                             int num_channels) override;

  // A step of `run`, which is in this world, of which alone the calls are kept, with their products.
  void watch_step(RankRun& run);

  std::vector<Exchanged> begun;
  std::vector<std::string> done;  // at once

 private:
  std::string axis_;
};

}  // namespace memphis::test
