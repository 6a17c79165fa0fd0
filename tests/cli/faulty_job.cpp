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
// or, when its steps are done,
//
//   lingers  has more to do, for 9 s
//   stays    never ends, alive
//   stops    is stopped, within MPI_Finalize
//
// What the config has for run.lost_seconds and run.hang_seconds holds from there on: a machine may take
// longer than that to begin.
#include <chrono>
#include <csignal>
#include <filesystem>
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
#include "csrc/core/file.h"
#include "csrc/core/log.h"
#include "csrc/train/trainer.h"
#include "tests/support/world_decorator.h"

namespace memphis::test {
namespace {

bool stops_at_the_end = false;

bool is_in(const Activity::Place& place, std::string_view phase) {
  return std::string_view(place.phase.data()) == phase;
}

struct Fault {
  std::string name;
  HangLimits limits;              // once it may happen
  std::filesystem::path awaited;  // is there when rank 3 waits for what rank 2 is about to send
};

class FaultyCommunicator final : public Communicator {
 public:
  FaultyCommunicator(std::unique_ptr<Communicator> real, World& world, const Fault& fault)
      : real_(std::move(real)), world_(world), fault_(fault) {}

  int rank() const override { return real_->rank(); }
  int size() const override { return real_->size(); }
  std::unique_ptr<Work> start(const Collective& collective,
                              std::string_view name,
                              Stream stream) override {
    set_limits();
    const Activity::Place place = world_.activity().place();
    while (world_.rank() == 1 && place.step == 3 && fault_.name == "withholds" &&
           is_in(place, "send of an activation")) {
      std::this_thread::sleep_for(std::chrono::seconds(1));
    }
    if (world_.rank() == 2 && place.step == 3 && place.stage == 6 && place.micro_batch == 0 &&
        is_in(place, "send of an activation") &&
        (fault_.name == "dies" || fault_.name == "freezes")) {
      while (!std::filesystem::exists(fault_.awaited)) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      // Ranks tell each other where they are ten times a second, and look once whom they miss.
      std::this_thread::sleep_for(std::chrono::seconds(3));
      std::raise(fault_.name == "dies" ? SIGKILL : SIGSTOP);
    }
    if (is_left_out(name)) {
      return std::make_unique<NoWork>();
    }
    return std::make_unique<ToldWork>(real_->start(collective, name, stream), *this);
  }
  void run(const Collective& collective, std::string_view name, Stream stream) override {
    set_limits();
    if (!is_left_out(name)) {
      real_->run(collective, name, stream);
    }
  }

 private:
  class NoWork final : public Work {
    void wait(Stream /*stream*/) override {}
  };

  // Says that rank 3 waits for what rank 2 is about to send.
  class ToldWork final : public Work {
   public:
    ToldWork(std::unique_ptr<Work> real, const FaultyCommunicator& owner)
        : real_(std::move(real)), owner_(owner) {}
    void wait(Stream stream) override {
      const Activity::Place place = owner_.world_.activity().place();
      if (owner_.world_.rank() == 3 && place.step == 3 && place.stage == 7 &&
          place.micro_batch == 0 && is_in(place, "receive of an activation")) {
        write_text_atomically(owner_.fault_.awaited, "");
      }
      real_->wait(stream);
    }

   private:
    std::unique_ptr<Work> real_;
    const FaultyCommunicator& owner_;
  };

  void set_limits() {
    // Of the last three the main program sets them.
    if (world_.activity().place().step == 3 && fault_.name != "stops" && fault_.name != "stays" &&
        fault_.name != "lingers") {
      world_.activity().set_limits(fault_.limits);
    }
  }

  // Whether the call that is at fault is skipped, if this is it; it throws, or stands, otherwise.
  bool is_left_out(std::string_view name) const {
    const Activity::Place place = world_.activity().place();
    const bool now = world_.rank() == 1 && place.step == 3 && name == "tensor.sum_terms" &&
                     is_in(place, "backward");
    if (now && fault_.name == "throws") {
      throw std::runtime_error("planted");
    }
    while (now && fault_.name == "stands") {
      std::this_thread::sleep_for(std::chrono::seconds(1));
    }
    return now && fault_.name == "skips";
  }

  std::unique_ptr<Communicator> real_;
  World& world_;
  const Fault& fault_;
};

class FaultyWorld final : public WorldDecorator {
 public:
  FaultyWorld(World& real, Fault fault) : WorldDecorator(real), fault_(std::move(fault)) {}

  std::unique_ptr<Communicator> create_group(std::string axis,
                                             std::span<const int> ranks,
                                             Device device,
                                             int num_channels) override {
    return std::make_unique<FaultyCommunicator>(
        real().create_group(std::move(axis), ranks, device, num_channels), real(), fault_);
  }

 private:
  Fault fault_;
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
      Config config = load_config(argv[1], overrides, world.size());
      const HangLimits limits{.lost_seconds = config.run.lost_seconds,
                              .hang_seconds = config.run.hang_seconds};
      config.run.lost_seconds = 600;
      config.run.hang_seconds = 600;
      test::FaultyWorld faulty(world,
                               {.name = argv[2],
                                .limits = limits,
                                .awaited = std::filesystem::path(config.run.dir) / "rank-3-waits"});
      Trainer(config, {}, faulty).run();
      world.activity().set_limits(limits);
      const std::string_view fault = argv[2];
      if (world.rank() == 1 && fault == "lingers") {
        std::this_thread::sleep_for(std::chrono::seconds(9));
      }
      while (world.rank() == 1 && fault == "stays") {
        std::this_thread::sleep_for(std::chrono::seconds(1));
      }
    });
  } catch (const Error& error) {
    return static_cast<int>(error.code());
  }
  return 0;
}
