// SPDX-License-Identifier: Apache-2.0
#include "tests/support/overlap_run.h"

#include <cstddef>
#include <string_view>

#include <gtest/gtest.h>

#include "kernels/op_profile.h"

namespace memphis::test {
namespace {

// FLOP of the products that the rank's thread has called.
double flops_so_far() {
  double flops = 0;
  if (const kernels::OpProfile* const profile = kernels::OpProfile::active()) {
    for (const kernels::OpTotals& op : profile->totals()) {
      flops += op.flops;
    }
  }
  return flops;
}

class WatchedWork final : public Communicator::Work {
 public:
  WatchedWork(std::unique_ptr<Communicator::Work> real, std::vector<Exchanged>& all)
      : real_(std::move(real)), all_(all), index_(all.size() - 1) {}

  void wait(Stream stream) override {
    all_[index_].flops_at_wait = flops_so_far();
    real_->wait(stream);
  }

 private:
  std::unique_ptr<Communicator::Work> real_;
  std::vector<Exchanged>& all_;
  std::size_t index_;
};

class WatchingCommunicator final : public CommunicatorDecorator {
 public:
  WatchingCommunicator(std::unique_ptr<Communicator> real,
                       Activity& activity,
                       std::vector<Exchanged>& begun,
                       std::vector<std::string>& done)
      : CommunicatorDecorator(std::move(real)), activity_(activity), begun_(begun), done_(done) {}

  std::unique_ptr<Work> start(const Collective& collective,
                              std::string_view name,
                              Stream stream) override {
    begun_.push_back({.name = std::string(name),
                      .started_in = activity_.place().micro_batch,
                      .flops_at_start = flops_so_far()});
    return std::make_unique<WatchedWork>(CommunicatorDecorator::start(collective, name, stream),
                                         begun_);
  }
  void run(const Collective& collective, std::string_view name, Stream stream) override {
    done_.emplace_back(name);
    CommunicatorDecorator::run(collective, name, stream);
  }

 private:
  void before(const Collective& /*collective*/, std::string_view /*name*/) override {}

  Activity& activity_;
  std::vector<Exchanged>& begun_;
  std::vector<std::string>& done_;
};

}  // namespace

Layout with(const Layout& layout, const std::vector<std::string>& more) {
  Layout result = layout;
  result.overrides.insert(result.overrides.end(), more.begin(), more.end());
  return result;
}

void expect_same_bits_with(const Layout& layout,
                           const std::string& compute,
                           const char* one,
                           const char* other) {
  constexpr int kNumSteps = 3;
  const Outcome actual = train(with(layout, {one}), Ranks::threads, compute, kNumSteps);
  const Outcome expected = train(with(layout, {other}), Ranks::threads, compute, kNumSteps);
  EXPECT_EQ(actual.losses, expected.losses);
  EXPECT_EQ(actual.balance, expected.balance);
  EXPECT_EQ(actual.grad_norms, expected.grad_norms);
  EXPECT_EQ(actual.validation, expected.validation);
  expect_same_bits(actual.gradient, expected.gradient, "gradient of");
  expect_same_bits(actual.final, expected.final, "after 3 steps,");
}

std::unique_ptr<Communicator> WatchingWorld::create_group(std::string axis,
                                                          std::span<const int> ranks,
                                                          Device device,
                                                          int num_channels) {
  const bool watched = axis == axis_;
  auto group = real().create_group(std::move(axis), ranks, device, num_channels);
  if (!watched) {
    return group;
  }
  return std::make_unique<WatchingCommunicator>(std::move(group), real().activity(), begun, done);
}

void WatchingWorld::watch_step(RankRun& run) {
  constexpr std::size_t kMaxCalls = 1 << 16;
  begun.clear();
  done.clear();
  const kernels::OpProfile profile(run.trainer().stream(), kMaxCalls);
  run.trainer().step();
}

}  // namespace memphis::test
