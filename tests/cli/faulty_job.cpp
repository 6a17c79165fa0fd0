// SPDX-License-Identifier: Apache-2.0
//
// faulty_job CONFIG FAULT [section.key=value ...]: `memphis train`, whose rank 1 does wrong in the
// backward pass of step 3:
//
//   throws   an exception that nobody expects
//   skips    a collective that the others are in
//   stands   still for ever, alive
//
// or in a pipeline, alive,
//
//   withholds   an activation that it is to send in step 3
//
// or whose rank 2, of a pipeline too, about to send the activation of micro-batch 0 of its stage 6
// in step 3,
//
//   dies        is killed
//   freezes     is stopped
//
// or, as `stops`, is stopped when all is done, within MPI_Finalize.
#include <chrono>
#include <csignal>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <mpi.h>

#include "csrc/comm/job.h"
#include "csrc/config/load.h"
#include "csrc/core/log.h"
#include "csrc/train/trainer.h"
#include "tests/support/world_decorator.h"

namespace memphis::test {
namespace {

bool stops_at_the_end = false;

class FaultyCommunicator final : public Communicator {
 public:
  FaultyCommunicator(std::unique_ptr<Communicator> real, World& world, const std::string& fault)
      : real_(std::move(real)), world_(world), fault_(fault) {}

  int rank() const override { return real_->rank(); }
  int size() const override { return real_->size(); }
  std::unique_ptr<Work> start(const Collective& collective,
                              std::string_view name,
                              Stream stream) override {
    const Activity::Place place = world_.activity().place();
    while (world_.rank() == 1 && place.step == 3 && fault_ == "withholds" &&
           std::string_view(place.phase.data()) == "send of an activation") {
      std::this_thread::sleep_for(std::chrono::seconds(1));
    }
    if (world_.rank() == 2 && place.step == 3 && place.stage == 6 && place.micro_batch == 0 &&
        std::string_view(place.phase.data()) == "send of an activation" &&
        (fault_ == "dies" || fault_ == "freezes")) {
      // All ranks have come to where they wait for this one, and have told each other so.
      std::this_thread::sleep_for(std::chrono::seconds(2));
      std::raise(fault_ == "dies" ? SIGKILL : SIGSTOP);
    }
    if (is_left_out(name)) {
      return std::make_unique<NoWork>();
    }
    return real_->start(collective, name, stream);
  }
  void run(const Collective& collective, std::string_view name, Stream stream) override {
    if (!is_left_out(name)) {
      real_->run(collective, name, stream);
    }
  }

 private:
  class NoWork final : public Work {
    void wait(Stream /*stream*/) override {}
  };

  // Whether the call that is at fault is skipped, if this is it; it throws, or stands, otherwise.
  bool is_left_out(std::string_view name) const {
    const Activity::Place place = world_.activity().place();
    const bool now = world_.rank() == 1 && place.step == 3 && name == "tensor.sum_terms" &&
                     std::string_view(place.phase.data()) == "backward";
    if (now && fault_ == "throws") {
      throw std::runtime_error("planted");
    }
    while (now && fault_ == "stands") {
      std::this_thread::sleep_for(std::chrono::seconds(1));
    }
    return now && fault_ == "skips";
  }

  std::unique_ptr<Communicator> real_;
  World& world_;
  const std::string& fault_;
};

class FaultyWorld final : public WorldDecorator {
 public:
  FaultyWorld(World& real, std::string fault) : WorldDecorator(real), fault_(std::move(fault)) {}

  std::unique_ptr<Communicator> create_group(std::string axis,
                                             std::span<const int> ranks,
                                             Device device,
                                             int num_channels) override {
    return std::make_unique<FaultyCommunicator>(
        real().create_group(std::move(axis), ranks, device, num_channels), real(), fault_);
  }

 private:
  std::string fault_;
};

}  // namespace
}  // namespace memphis::test

// In the place of MPI's own, which is there under the name for profilers too.
int MPI_Finalize() {
  if (memphis::test::stops_at_the_end) {
    std::raise(SIGSTOP);
  }
  return PMPI_Finalize();
}

int main(int argc, char** argv) {
  using namespace memphis;
  configure_log();
  try {
    const std::vector<std::string> overrides(argv + 3, argv + argc);
    run_as_job([&](World& world) {
      test::stops_at_the_end = world.rank() == 1 && std::string_view(argv[2]) == "stops";
      test::FaultyWorld faulty(world, argv[2]);
      Trainer(load_config(argv[1], overrides, world.size()), {}, faulty).run();
    });
  } catch (const Error& error) {
    return static_cast<int>(error.code());
  }
  return 0;
}
