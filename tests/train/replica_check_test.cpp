// SPDX-License-Identifier: Apache-2.0
//
// Machines that lie: bits that are flipped in one rank's memory or on its way to another are found, the
// rank is named, and nothing is saved of it.
#include "csrc/train/replica_check.h"

#include <atomic>
#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/comm/solo.h"
#include "csrc/comm/threads.h"
#include "csrc/comm/together.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "tests/support/error_text.h"
#include "tests/support/layout_run.h"
#include "tests/support/tiny_run.h"
#include "tests/support/world_decorator.h"

namespace memphis::test {
namespace {

using Ranks = std::vector<int>;

TEST(Dissenters, AreThoseOutsideOfTheMajorityOfTheirGroup) {
  EXPECT_EQ(dissenters({}), Ranks{});
  using Hashes = std::vector<ReplicaHash>;
  EXPECT_EQ(dissenters(Hashes{{0, 7}, {0, 7}, {0, 7}}), Ranks{});
  EXPECT_EQ(dissenters(Hashes{{0, 7}, {0, 8}, {0, 7}}), Ranks{1});
  EXPECT_EQ(dissenters(Hashes{{0, 7}, {0, 8}}), (Ranks{0, 1})) << "none tells which of two";
  EXPECT_EQ(dissenters(Hashes{{0, 7}, {0, 8}, {0, 7}, {0, 8}}), (Ranks{0, 1, 2, 3}));
  // Two groups, one beside the other, and one rank alone.
  EXPECT_EQ(dissenters(Hashes{{0, 7}, {1, 8}, {0, 7}, {1, 9}, {0, 6}, {1, 8}, {6, 1}}),
            (Ranks{3, 4}));
}

void flip_a_bit(const TensorView& view, std::int64_t element = 0) {
  static_cast<unsigned char*>(view.data)[static_cast<std::size_t>(element) * size_of(view.dtype)] ^=
      1U;
}

class Replicas : public testing::Test {
 protected:
  // Of the job, whose ranks each call `body`.
  struct End {
    ExitCode code = ExitCode::done;
    std::string text;
  };
  // All ranks throw, and one of them has the reason.
  template <class Body>
  static End end_of(int num_ranks, const Body& body) {
    End end;
    std::mutex mutex;
    try {
      run_threads(num_ranks, [&](World& world) {
        try {
          body(world);
        } catch (const FailedElsewhere&) {
          throw;
        } catch (const Error& error) {
          const std::lock_guard lock(mutex);
          end.text = error.what();
          throw;
        }
      });
    } catch (const Error& error) {
      end.code = error.code();
    }
    return end;
  }
  std::vector<std::string> overrides(const std::vector<std::string>& more) const {
    std::vector<std::string> all = {
        "batch.global_batch=24", "batch.micro_batch=2", "metrics.validate_every=0"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  std::string yaml() const { return tiny_yaml(directory_); }
  bool has_saved(std::int64_t step) const {
    return std::filesystem::exists(directory_.path() / "run" /
                                   ("step-0000000" + std::to_string(step)));
  }

  TemporaryDirectory directory_;
};

// The others have what they should; of two that differ both are named.
TEST_F(Replicas, AFlippedBitNamesItsRankBeforeAnythingIsSaved) {
  struct Row {
    const char* verify;
    const char* save;
  };
  // At the step that is due, or else before the save.
  for (const Row& row : {Row{"run.verify_every=2", "checkpoint.every=0"},
                         Row{"run.verify_every=1000000", "checkpoint.every=2"}}) {
    std::atomic<std::int64_t> step = 0;
    const End end = end_of(4, [&](World& world) {
      RankRun run(world,
                  yaml(),
                  overrides({"parallel.data=4",
                             "parallel.zero=0",
                             "schedule.steps=4",
                             "schedule.warmup_steps=1",
                             row.verify,
                             row.save}));
      run.trainer().step();
      if (world.rank() == 2) {
        flip_a_bit(run.trainer().parameters().segment_weights(0));
      }
      try {
        run.trainer().run();
      } catch (const Error&) {
        step = run.trainer().current_step();
        throw;
      }
    });
    EXPECT_EQ(end.code, ExitCode::bad_hardware) << end.text;
    EXPECT_NE(end.text.find("the weights of rank 2 on "), std::string::npos) << end.text;
    EXPECT_EQ(end.text.find("rank 1"), std::string::npos) << end.text;
    EXPECT_EQ(step, 2) << row.verify;
    EXPECT_FALSE(has_saved(2));
    EXPECT_FALSE(has_saved(4));
  }
}

TEST_F(Replicas, EveryKindOfThemIsCompared) {
  struct Row {
    const char* name;
    int num_ranks;
    std::vector<std::string> overrides;
    Axis axis;
    const char* named;  // where the last rank's bit is flipped
  };
  const std::vector<Row> rows = {
      {"owned by one", 4, {"parallel.data=4", "parallel.zero=1"}, Axis::data_context, "rank 3 on "},
      {"dense under ZeRO-2", 3, {"parallel.zero=2"}, Axis::data_context, "rank 2 on "},
      {"experts", 4, {"parallel.expert=2", "parallel.zero=0"}, Axis::expert_data, "ranks 1 on "},
      {"norms",
       4,
       {"parallel.tensor=2", "parallel.expert=4", "parallel.zero=0"},
       Axis::stage_ranks,
       "rank 3 on "},
  };
  for (const Row& row : rows) {
    std::atomic<int> num_flipped = 0;
    const End end = end_of(row.num_ranks, [&](World& world) {
      RankRun run(world, yaml(), overrides(row.overrides));
      Trainer& trainer = run.trainer();
      trainer.step();
      trainer.verify_replicas();  // all are well
      trainer.step();
      Parameters& parameters = trainer.parameters();
      const std::vector<Segment>& segments = parameters.plan().segments;
      for (std::size_t i = 0; world.rank() + 1 == row.num_ranks && i < segments.size(); ++i) {
        if (segments[i].replicas == row.axis && segments[i].replicated()) {
          flip_a_bit(parameters.segment_weights(i), segments[i].num_elements - 1);
          ++num_flipped;
          break;
        }
      }
      trainer.verify_replicas();
    });
    EXPECT_EQ(num_flipped, 1) << row.name;
    EXPECT_EQ(end.code, ExitCode::bad_hardware) << row.name << ": " << end.text;
    EXPECT_NE(end.text.find(row.named), std::string::npos) << row.name << ": " << end.text;
  }
}

// What a rank keeps alone.
enum class Array { weights, master, m, v };

// The last element that this rank owns of some segment, in a bit that rounding does not lose.
bool flip_what_is_owned(Trainer& trainer, Array array, bool of_a_layer, bool with_master) {
  Parameters& parameters = trainer.parameters();
  const std::vector<Segment>& segments = parameters.plan().segments;
  for (std::size_t i = segments.size(); i-- > 0;) {
    const Optimizer::SegmentState& state = trainer.optimizer().segment_state(i);
    if (segments[i].owned.count == 0 || !segments[i].has_state() ||
        (segments[i].layer == kBeforeLayers) == of_a_layer || (with_master && !state.owns_master)) {
      continue;
    }
    const TensorView view = array == Array::weights  ? parameters.owned_weights(i)
                            : array == Array::master ? state.master_n
                            : array == Array::m      ? state.m_n
                                                     : state.v_n;
    auto* const end = static_cast<unsigned char*>(view.data) + view.bytes();
    end[-1] ^= 0x80U;  // the sign of a little-endian number
    return true;
  }
  return false;
}

struct Owned {
  const char* name;
  int num_ranks;
  int rank;  // whose bit is flipped
  std::vector<std::string> overrides;
};

const std::vector<Owned>& owned_layouts() {
  static const std::vector<Owned> layouts = {
      {"alone", 1, 0, {}},
      {"replicas", 3, 1, {"parallel.data=3", "parallel.zero=0"}},
      {"ZeRO-1", 4, 2, {"parallel.data=4", "parallel.zero=1"}},
      {"ZeRO-2 of experts", 4, 3, {"parallel.expert=2", "parallel.zero=2"}},
      {"ZeRO-3", 4, 0, {"parallel.data=4", "parallel.zero=3"}},
      {"ZeRO-3 of tensor ranks", 4, 3, {"parallel.tensor=2", "parallel.zero=3"}},
      {"last stage", 4, 3, {"parallel.pipeline=2", "parallel.schedule=1f1b"}},
      {"beside stages of nothing",
       4,
       3,
       {"parallel.pipeline=4", "parallel.schedule=1f1b", "parallel.stages=[1,0,0,1]"}},
  };
  return layouts;
}

// After the comparison the run goes through a whole step: what lay there while it was computed is
// looked at before the step changes it, on whichever rank, whether or not another one has it too.
TEST_F(Replicas, ABitThatFlipsBetweenTwoStepsIsFound) {
  for (const Owned& row : owned_layouts()) {
    for (const Array array : {Array::weights, Array::master, Array::m, Array::v}) {
      std::atomic<bool> flipped = false;
      std::atomic<std::int64_t> step = -1;
      std::vector<std::string> more = row.overrides;
      more.emplace_back("precision.compute=bf16");
      const End end = end_of(row.num_ranks, [&](World& world) {
        RankRun run(world, yaml(), overrides(more));
        Trainer& trainer = run.trainer();
        for (int i = 0; i < 3; ++i) {
          trainer.step();
          trainer.verify_replicas();  // all are well
        }
        trainer.verify_replicas();  // and still are
        if (world.rank() == row.rank) {
          flipped = flip_what_is_owned(trainer, array, true, array == Array::master);
        }
        try {
          trainer.step();
        } catch (const Error&) {
          step = trainer.current_step();
          throw;
        }
      });
      EXPECT_TRUE(flipped) << row.name;
      EXPECT_EQ(end.code, ExitCode::bad_hardware) << row.name << ": " << end.text;
      const char* const part = array == Array::weights  ? "the weights of rank "
                               : array == Array::master ? "the master weights of rank "
                                                        : "the moments of rank ";
      EXPECT_NE(end.text.find(part + std::to_string(row.rank) + " on "), std::string::npos)
          << row.name << ": " << end.text;
      EXPECT_NE(end.text.find("have changed between two steps"), std::string::npos) << end.text;
      EXPECT_EQ(step, 3) << "it is not counted as a step that was made";
    }
  }
}

// The owner's fault, which all ranks have from it after the next step: its own master weights tell.
TEST_F(Replicas, WeightsThatAreNotTheirMastersAreFound) {
  for (const Owned& row : owned_layouts()) {
    for (const Array array : {Array::weights, Array::master}) {
      for (const bool of_a_layer : {false, true}) {
        std::atomic<bool> flipped = false;
        std::vector<std::string> more = row.overrides;
        more.emplace_back("precision.compute=bf16");
        const End end = end_of(row.num_ranks, [&](World& world) {
          RankRun run(world, yaml(), overrides(more));
          Trainer& trainer = run.trainer();
          trainer.step();
          if (world.rank() == row.rank) {
            flipped = flip_what_is_owned(trainer, array, of_a_layer, true);
          }
          trainer.verify_replicas();
        });
        if (!flipped) {
          EXPECT_EQ(end.code, ExitCode::done) << row.name << ": " << end.text;
          continue;  // another stage has what comes before the layers
        }
        EXPECT_EQ(end.code, ExitCode::bad_hardware) << row.name << ": " << end.text;
        EXPECT_NE(end.text.find("the weights of rank " + std::to_string(row.rank) + " on "),
                  std::string::npos)
            << row.name << ": " << end.text;
        EXPECT_NE(end.text.find("are not its master weights, rounded"), std::string::npos)
            << row.name << ": " << end.text;
      }
    }
  }
}

// Of a GPU, whose memory comes through pieces of the host's: each of its arrays, and weights beside
// their masters.
TEST_F(Replicas, ABitThatFlipsInAGpusMemoryIsFound) {
  if (!device_available(Device::cuda)) {
    GTEST_SKIP() << device_unavailable_reason();
  }
  const auto flip = [](const TensorView& view, Stream stream) {
    unsigned char byte = 0;
    auto* const last = static_cast<unsigned char*>(view.data) + view.bytes() - 1;
    device_copy(&byte, last, 1, stream);
    synchronize(stream);
    byte ^= 0x80U;
    device_copy(last, &byte, 1, stream);
    synchronize(stream);
  };
  const std::unique_ptr<World> world = make_solo_world();
  RankRun run(*world,
              yaml(),
              {"run.device=cuda",
               "precision.compute=bf16",
               "model.vocab_size=264",
               "model.d_model=16",
               "model.num_heads=2",
               "model.ffn_dim=16",
               "batch.sequence_length=8",
               "batch.micro_batch=2",
               "batch.global_batch=2",
               "metrics.validate_every=0"});
  Trainer& trainer = run.trainer();
  trainer.step();
  trainer.verify_replicas();
  trainer.step();  // and all is as it was
  std::size_t last = trainer.plan().parameters.segments.size() - 1;
  while (last > 0 && !trainer.optimizer().segment_state(last).owns_master) {
    --last;
  }
  const Optimizer::SegmentState& state = trainer.optimizer().segment_state(last);
  ASSERT_TRUE(state.owns_master);
  trainer.verify_replicas();
  for (const auto& [view, part] : {std::pair(trainer.parameters().owned_weights(last), "weights"),
                                   std::pair(state.master_n, "master weights"),
                                   std::pair(state.m_n, "moments"),
                                   std::pair(state.v_n, "moments")}) {
    flip(view, trainer.stream());
    const std::string text = error_text<Error>([&] { trainer.verify_replicas(); });
    EXPECT_NE(text.find(std::string("the ") + part + " of rank 0 on "), std::string::npos) << text;
    flip(view, trainer.stream());
    trainer.verify_replicas();
  }
  trainer.step();
  flip(trainer.parameters().owned_weights(last), trainer.stream());
  const std::string text = error_text<Error>([&] { trainer.verify_replicas(); });
  EXPECT_NE(text.find("are not its master weights, rounded"), std::string::npos) << text;
  world->close();
}

// Between the comparison of a step and its save a run validates, evaluates and samples.
TEST_F(Replicas, NothingThatFlippedSinceTheComparisonIsSaved) {
  const End end = end_of(2, [&](World& world) {
    RankRun run(world,
                yaml(),
                overrides({"parallel.data=2",
                           "parallel.zero=3",
                           "schedule.steps=2",
                           "schedule.warmup_steps=1",
                           "run.verify_every=2"}));
    Trainer& trainer = run.trainer();
    trainer.step();
    trainer.step();
    trainer.verify_replicas();
    if (world.rank() == 1) {
      flip_what_is_owned(trainer, Array::v, true, false);
    }
    trainer.verify_replicas();  // as each save begins
  });
  EXPECT_EQ(end.code, ExitCode::bad_hardware);
  EXPECT_NE(end.text.find("the moments of rank 1 on "), std::string::npos) << end.text;
}

// Twice what a rank holds: when it is compared, with the weights once more, and before the step that
// follows. Nothing in others.
TEST_F(Replicas, ReadsWhatARankHoldsTwice) {
  for (const char* zero : {"parallel.zero=1", "parallel.zero=3"}) {
    const End end = end_of(2, [&](World& world) {
      RankRun run(world, yaml(), overrides({"parallel.data=2", "precision.compute=bf16", zero}));
      Trainer& trainer = run.trainer();
      trainer.step();
      std::uint64_t held = 0;
      std::uint64_t rounded = 0;  // weights, beside their masters
      const std::vector<Segment>& segments = trainer.plan().parameters.segments;
      for (std::size_t i = 0; i < segments.size(); ++i) {
        const Optimizer::SegmentState& state = trainer.optimizer().segment_state(i);
        held += segments[i].place ? trainer.parameters().owned_weights(i).bytes()
                                  : trainer.parameters().segment_weights(i).bytes();
        held += (state.owns_master ? state.master_n.bytes() : 0) + state.m_n.bytes() +
                state.v_n.bytes();
        rounded += state.owns_master ? trainer.parameters().owned_weights(i).bytes() : 0;
      }
      EXPECT_EQ(trainer.replica_check().bytes_read(), 0U);
      trainer.verify_replicas();
      EXPECT_GT(rounded, 0U);
      EXPECT_EQ(trainer.replica_check().bytes_read(), held + rounded) << zero;
      trainer.step();
      EXPECT_EQ(trainer.replica_check().bytes_read(), 2 * held + rounded) << zero;
      trainer.step();
      EXPECT_EQ(trainer.replica_check().bytes_read(), 2 * held + rounded) << zero;
    });
    EXPECT_EQ(end.code, ExitCode::done) << end.text;
  }
}

// Looking changes nothing, and a run with sound machines is not stopped by it.
TEST_F(Replicas, LookingAtEachStepChangesNoBit) {
  for (const Owned& row : owned_layouts()) {
    std::vector<std::map<std::string, std::string>> saved;
    for (const char* every : {"run.verify_every=0", "run.verify_every=1"}) {
      const std::filesystem::path run = directory_.path() / row.name / every;
      std::vector<std::string> more = row.overrides;
      for (const std::string& each : {std::string(every),
                                      std::string("precision.compute=bf16"),
                                      std::string("schedule.steps=5"),
                                      std::string("schedule.warmup_steps=1"),
                                      std::string("checkpoint.every=2"),
                                      "run.dir=" + run.string()}) {
        more.push_back(each);
      }
      const End end = end_of(row.num_ranks, [&](World& world) {
        RankRun(world, yaml(), overrides(more)).trainer().run();
      });
      ASSERT_EQ(end.code, ExitCode::done) << row.name << ": " << end.text;
      std::map<std::string, std::string>& files = saved.emplace_back();
      for (const auto& entry : std::filesystem::directory_iterator(run / "step-00000005")) {
        if (entry.path().extension() == ".safetensors") {
          files[entry.path().filename().string()] = read_text(entry.path());
        }
      }
      EXPECT_EQ(std::ssize(files), 2 * row.num_ranks);
    }
    EXPECT_TRUE(saved[0] == saved[1]) << row.name;
  }
}

// Of a layout of each kind: computing twice is no fault, and changes no bit of the run.
TEST_F(Replicas, WhatIsComputedTwiceIsTheSameAndChangesNothing) {
  const std::vector<std::vector<std::string>> layouts = {
      {},
      {"parallel.tensor=2", "parallel.expert=2", "parallel.zero=2"},
      {"parallel.data=4", "parallel.zero=3"},
      {"parallel.pipeline=2", "parallel.schedule=1f1b"},
      {"parallel.pipeline=2", "parallel.schedule=zb-h1"},
  };
  for (const std::vector<std::string>& layout : layouts) {
    std::vector<Tensors> states;
    for (const bool checks : {false, true}) {
      const End end = end_of(layout.empty() ? 1 : 4, [&](World& world) {
        RankRun run(world, yaml(), overrides(layout));
        for (int step = 0; step < 3; ++step) {
          run.trainer().step();
          if (checks) {
            run.trainer().check_repeats();
          }
        }
        Tensors state = run.state();
        if (world.rank() == 0) {
          states.push_back(std::move(state));
        }
      });
      ASSERT_EQ(end.code, ExitCode::done) << end.text;
    }
    EXPECT_TRUE(states[0] == states[1]) << (layout.empty() ? "one rank" : layout.front());
  }
}

// Flips a bit of what a rank sends, once, when it is told to.
class LyingCommunicator final : public CommunicatorDecorator {
 public:
  LyingCommunicator(std::unique_ptr<Communicator> real, const bool& armed)
      : CommunicatorDecorator(std::move(real)), armed_(armed) {}

 private:
  void before(const Collective& collective, std::string_view name) override {
    const auto* const moved = std::get_if<AllToAll>(&collective);
    if (armed_ && !lied_ && moved != nullptr && name == "moe.dispatch") {
      lied_ = true;
      // An f32's lowest bits might be lost in rounding: the sign's byte is not.
      static_cast<unsigned char*>(moved->x.data)[3] ^= 0x80U;
    }
  }

  const bool& armed_;
  bool lied_ = false;
};

class LyingWorld final : public WorldDecorator {
 public:
  explicit LyingWorld(World& real) : WorldDecorator(real) {}
  std::unique_ptr<Communicator> create_group(std::string axis,
                                             std::span<const int> ranks,
                                             Device device,
                                             int num_channels) override {
    return std::make_unique<LyingCommunicator>(
        real().create_group(std::move(axis), ranks, device, num_channels), armed);
  }

  bool armed = false;
};

TEST_F(Replicas, WhatIsComputedOtherwiseTheSecondTimeNamesWhoComputedIt) {
  const End end = end_of(4, [&](World& real) {
    LyingWorld world(real);
    RankRun run(world, yaml(), overrides({"parallel.expert=2", "parallel.data=4"}));
    run.trainer().step();
    run.trainer().check_repeats();
    // Ranks 2 and 3 have the experts of each other's tokens.
    world.armed = world.rank() == 3;
    run.trainer().check_repeats();
  });
  EXPECT_EQ(end.code, ExitCode::bad_hardware);
  EXPECT_NE(end.text.find("ranks 2 on "), std::string::npos) << end.text;
  EXPECT_NE(end.text.find(" and 3 on "), std::string::npos) << end.text;
  EXPECT_NE(end.text.find("computed the same micro-batch twice"), std::string::npos) << end.text;
}

}  // namespace
}  // namespace memphis::test
