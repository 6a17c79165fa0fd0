// SPDX-License-Identifier: Apache-2.0
//
// layout_test's claim for ranks on Device::cuda, which speak over NCCL: a run of several, under
// mpirun, is held to the same run of one rank on the same device.
//
//   weights of step 0    the same bits
//   gradient of step 1   every parameter within twice the error that one rank has in the dtype,
//                        among the parameters of a kind
//   losses               of step 1 and of validation after it: in f32 within 1e-5 of one rank's, in
//                        bf16 within twice the error that one rank's have
//
// The exact ones are those of one rank in f64 on the CPU. A step on the simulated device takes
// seconds, so there is one, of few tokens.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/comm/gpu_of_rank.h"
#include "csrc/comm/together.h"
#include "csrc/core/device.h"
#include "tests/support/layout_run.h"
#include "tests/support/ranks.h"
#include "tests/support/tolerance.h"

namespace memphis::test {
namespace {

struct Case {
  Layout layout;
  int micro_batch;
  std::string compute;
};

void PrintTo(const Case& tested, std::ostream* out) {
  *out << tested.layout.name << "_" << tested.compute;
}

constexpr int kGlobalBatch = 4;

// A run with micro-batches of so many sequences. Widths are multiples of 8, as products in bf16
// want them. In bf16 every token goes to all experts: which ones are the best K may be decided by a
// rounding.
Outcome train_small(const Layout& layout,
                    Ranks ranks,
                    const std::string& device,
                    const std::string& compute,
                    bool all_experts,
                    int micro_batch,
                    double nudge = 0) {
  Layout small = layout;
  for (const std::string& override :
       {"run.device=" + device,
        std::string("model.vocab_size=264"),
        std::string("model.d_model=16"),
        std::string("model.num_heads=2"),
        std::string("model.ffn_dim=16"),
        std::string("schedule.warmup_steps=0"),
        std::string("batch.sequence_length=8"),
        "batch.global_batch=" + std::to_string(kGlobalBatch),
        "batch.micro_batch=" + std::to_string(micro_batch),
        // The same windows in every layout.
        "metrics.validate_batches=" + std::to_string(kGlobalBatch / micro_batch),
        "model.experts_per_token=" + std::string(all_experts ? "4" : "2")}) {
    small.overrides.push_back(override);
  }
  return train(small, ranks, compute, 1, nudge);
}

const std::vector<Case>& cases() {
  static const std::vector<Case> table = {
      {layout("data2_expert2_small_buckets_shared_gradients",
              2,
              1,
              2,
              1,
              {"parallel.zero=2", "parallel.bucket_mib=0"}),
       1,
       "f32"},
      {layout("data2_expert2_shared_weights", 2, 1, 2, 1, {"parallel.zero=3"}), 2, "bf16"},
      {layout("tensor2_expert2", 1, 2, 2, 1), 4, "f32"},
      {layout("tensor2_split_expert", 1, 2, 1, 2), 4, "bf16"},
      {layout("data2_tensor2_expert2_split2",
              2,
              2,
              2,
              2,
              {"parallel.zero=2", "parallel.bucket_mib=0"}),
       2,
       "f32"},
      {in_context(layout("keys", 1, 1, 1, 1), 2), 2, "f32"},
      {in_context(layout("keys_tensor2_expert2", 1, 2, 2, 1, {"memory.recompute=block"}), 2),
       2,
       "bf16"},
      {in_context(layout("keys_in_a_ring", 1, 1, 2, 1, {"parallel.context_exchange=ring"}), 2),
       4,
       "bf16"},
      {in_context(layout("keys_from_all_to_all",
                         1,
                         1,
                         1,
                         1,
                         {"parallel.context_exchange=all_to_all", "model.num_kv_heads=2"}),
                  2),
       2,
       "f32"},
      {piped("pipeline2_zb_h1", layout("", 1, 1, 1, 1), 2, {"parallel.schedule=zb-h1"}), 1, "f32"},
      {piped("pipeline2_v",
             layout("", 1, 1, 1, 1),
             2,
             {"parallel.schedule=zbv", "parallel.stages=[1,0,1,0]"}),
       2,
       "bf16"},
      {piped("pipeline2_interleaved_tensor2",
             layout("", 1, 2, 2, 1),
             2,
             {"parallel.schedule=interleaved", "parallel.stages=[0,1,1,0]"}),
       1,
       "f32"},
  };
  return table;
}

// What is compared of a run.
struct Results {
  Tensors initial;
  Tensors gradient;
  std::vector<double> losses;
};

Results results_of(const Outcome& outcome) {
  return {outcome.initial, outcome.gradient, {outcome.losses.front(), outcome.validation}};
}

// Every rank's `results` become those of rank `owner`; they are alike in form.
void share(Results& results, int owner, const World& world, Communicator& all) {
  std::vector<std::vector<double>*> parts = {&results.losses};
  for (Tensors* tensors : {&results.initial, &results.gradient}) {
    for (auto& [name, values] : *tensors) {
      parts.push_back(&values);
    }
  }
  for (std::vector<double>* part : parts) {
    if (world.rank() != owner) {
      part->assign(part->size(), std::nan(""));
    }
    *part = join(all, *part).high;
  }
}

struct References {
  Results exact;
  // Of one rank on the device, several, each as good as another: with micro-batches of another
  // size, and weights that are off by a rounding.
  std::vector<Results> ones;
};

// All ranks call, and take turns in the runs, which take seconds each where the device is
// simulated.
const References& references(const std::string& compute) {
  static std::map<std::string, References> all_references;
  const auto [found, is_new] = all_references.try_emplace(compute);
  References& result = found->second;
  if (!is_new) {
    return result;
  }
  const bool all_experts = compute == "bf16";
  const auto run = [&](const char* device, const std::string& in, int micro_batch, double nudge) {
    return results_of(train_small(
        layout("one", 1, 1, 1, 1), Ranks::threads, device, in, all_experts, micro_batch, nudge));
  };
  result.exact = run("cpu", "f64", kGlobalBatch, 0);

  World& world = process_world();
  const std::unique_ptr<Communicator> all = create_group_of_all(world);
  int owner = 0;
  for (const auto& [micro_batch, nudge] : {std::pair(4, 0), std::pair(2, 1), std::pair(4, -1)}) {
    result.ones.push_back(owner == world.rank() ? run("cuda", compute, micro_batch, nudge)
                                                : result.exact);
    owner = (owner + 1) % world.size();
  }
  owner = 0;
  for (Results& one : result.ones) {
    share(one, owner, world, *all);
    owner = (owner + 1) % world.size();
  }
  return result;
}

// Of what a name says that holds for every layer and expert: "experts.w1.weight". Norms are small,
// and alike.
std::string kind_of(const std::string& name) {
  if (name.ends_with("norm.weight")) {
    return "norms";
  }
  std::string kind;
  std::copy_if(name.begin(), name.end(), std::back_inserter(kind), [](char letter) {
    return letter < '0' || letter > '9';
  });
  return kind;
}

// The gradients of all parameters of a kind, one after the other.
struct Kind {
  std::vector<double> actual;
  Reference reference;
  std::int64_t row_length = 0;  // of one parameter
};

std::map<std::string, Kind> kinds(const Results& actual, const References& all) {
  std::map<std::string, Kind> result;
  for (const auto& [name, exact] : all.exact.gradient) {
    Kind& kind = result[kind_of(name)];
    const auto append = [&](std::vector<double>& values, const Tensors& gradient) {
      const std::vector<double>& more = gradient.at(name);
      values.insert(values.end(), more.begin(), more.end());
    };
    kind.row_length = static_cast<std::int64_t>(exact.size());
    kind.reference.naive.resize(all.ones.size());
    append(kind.actual, actual.gradient);
    append(kind.reference.exact, all.exact.gradient);
    for (std::size_t i = 0; i < all.ones.size(); ++i) {
      append(kind.reference.naive[i], all.ones[i].gradient);
    }
  }
  return result;
}

double farthest_loss(const References& all) {
  double result = 0;
  for (const Results& one : all.ones) {
    for (std::size_t i = 0; i < one.losses.size(); ++i) {
      result = std::max(result, std::abs(one.losses[i] - all.exact.losses[i]));
    }
  }
  return result;
}

class DeviceLayoutTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const std::string reason = why_no_gpu_ranks();
    if (!reason.empty()) {
      GTEST_SKIP() << reason;
    }
    World& world = process_world();
    if (world.size() == 1) {
      GTEST_SKIP() << "layouts of ranks on GPUs are for mpirun: device_layout_test_ranks_2 and _4";
    }
    use_own_gpu(*create_group_of_all(world), world.local_rank(), Device::cuda);
  }
};

TEST_P(DeviceLayoutTest, TrainsAsOneRankDoes) {
  const auto& [layout, micro_batch, compute] = GetParam();
  const bool bf16 = compute == "bf16";
  const Results actual =
      results_of(train_small(layout, Ranks::processes, "cuda", compute, bf16, micro_batch));
  const References& all = references(compute);
  if (process_world().rank() != 0) {
    return;  // the first compares
  }
  const Results& one = all.ones.front();
  expect_same_bits(actual.initial, one.initial, "at step 0,");
  for (const auto& [name, kind] : kinds(actual, all)) {
    EXPECT_TRUE(
        close_to(kind.actual, kind.reference, bf16 ? DType::bf16 : DType::f32, kind.row_length))
        << name;
  }
  if (bf16) {
    // Of one rank's runs; sums over ranks round once more.
    const double farthest = 2 * farthest_loss(all);
    for (std::size_t i = 0; i < actual.losses.size(); ++i) {
      const double exact = all.exact.losses[i];
      EXPECT_NEAR(actual.losses[i], exact, std::max(farthest, rounding_unit(DType::bf16) * exact))
          << i;
    }
  } else {
    expect_near(actual.losses, one.losses, 1e-5, "loss");
  }
}

// Rows that travel beside another micro-batch: two of each rank, one pair.
class DeviceOverlapTest : public DeviceLayoutTest {};

TEST_P(DeviceOverlapTest, HasTheSameBits) {
  const auto& [layout, micro_batch, compute] = GetParam();
  const auto run = [&, &of = layout, &in = compute, size = micro_batch](const std::string& choice) {
    Layout chosen = of;
    chosen.overrides.push_back("parallel.overlap_experts=" + choice);
    return results_of(train_small(chosen, Ranks::processes, "cuda", in, false, size));
  };
  const Results actual = run("required");
  const Results expected = run("never");
  if (process_world().rank() != 0) {
    return;  // the first compares
  }
  EXPECT_EQ(actual.losses, expected.losses);
  expect_same_bits(actual.gradient, expected.gradient, "gradient of");
}

std::vector<Case> overlap_cases() {
  std::vector<Case> result;
  const std::vector<Case> table = {
      {layout("data2_expert2_again", 2, 1, 2, 1, {"memory.recompute=block"}), 1, "f32"},
      {layout("tensor2_expert2_pairs", 1, 2, 2, 1), 1, "f32"},
      {piped("pipeline2_expert2_zb_h1",
             layout("", 2, 1, 2, 1, {"model.num_layers=2"}),
             2,
             {"parallel.schedule=zb-h1"}),
       1,
       "bf16"},
  };
  std::copy_if(table.begin(), table.end(), std::back_inserter(result), [](const Case& one) {
    return process_world().size() == 1 || one.layout.num_ranks == process_world().size();
  });
  return result;
}

INSTANTIATE_TEST_SUITE_P(processes,
                         DeviceOverlapTest,
                         testing::ValuesIn(overlap_cases()),
                         [](const auto& tested) {
                           return tested.param.layout.name + "_" + tested.param.compute;
                         });

// What tensor ranks exchange in chunks beside products. On the simulated device the bits are those
// without; on a GPU cuBLASLt may take another algorithm for fewer rows, and NCCL sums in an order that
// depends on where in a message a number lies.
class DeviceTensorOverlapTest : public DeviceLayoutTest {};

TEST_P(DeviceTensorOverlapTest, TrainsAsWithoutOverlap) {
  const auto& [layout, micro_batch, compute] = GetParam();
  const auto run = [&, &of = layout, &in = compute, size = micro_batch](const std::string& choice) {
    Layout chosen = of;
    chosen.overrides.push_back("parallel.overlap_tensor=" + choice);
    return results_of(train_small(chosen, Ranks::processes, "cuda", in, in == "bf16", size));
  };
  const Results actual = run("required");
  const Results expected = run("never");
  if (process_world().rank() != 0) {
    return;  // the first compares
  }
  if (device_info(Device::cuda).simulated) {
    EXPECT_EQ(actual.losses, expected.losses);
    expect_same_bits(actual.gradient, expected.gradient, "gradient of");
  } else if (compute == "f32") {
    expect_near(actual.losses, expected.losses, 1e-5, "loss");
  }
}

std::vector<Case> tensor_overlap_cases() {
  std::vector<Case> result;
  const std::vector<Case> table = {
      {layout("tensor2_of_sequences", 1, 2, 1, 1, {"model.dense_ffn_dim=16"}), 4, "f32"},
      {layout("tensor2_of_parts_of_one", 1, 2, 1, 1, {"model.dense_ffn_dim=16"}), 1, "bf16"},
      {layout("tensor2_whole_sequences",
              1,
              2,
              1,
              1,
              {"model.dense_ffn_dim=16", "parallel.sequence_parallel=false"}),
       2,
       "f32"},
      {piped("pipeline2_tensor2_zb_h1",
             layout("", 1, 2, 1, 1, {"model.num_layers=2", "model.dense_ffn_dim=16"}),
             2,
             {"parallel.schedule=zb-h1"}),
       1,
       "f32"},
  };
  std::copy_if(table.begin(), table.end(), std::back_inserter(result), [](const Case& one) {
    return process_world().size() == 1 || one.layout.num_ranks == process_world().size();
  });
  return result;
}

INSTANTIATE_TEST_SUITE_P(processes,
                         DeviceTensorOverlapTest,
                         testing::ValuesIn(tensor_overlap_cases()),
                         [](const auto& tested) {
                           return tested.param.layout.name + "_" + tested.param.compute;
                         });

// All where it is no job, to be skipped one by one.
std::vector<Case> cases_of_this_job() {
  if (process_world().size() == 1) {
    return cases();
  }
  std::vector<Case> result;
  for (const Case& one : cases()) {
    if (one.layout.num_ranks == process_world().size()) {
      result.push_back(one);
    }
  }
  return result;
}

INSTANTIATE_TEST_SUITE_P(processes,
                         DeviceLayoutTest,
                         testing::ValuesIn(cases_of_this_job()),
                         [](const auto& tested) {
                           return tested.param.layout.name + "_" + tested.param.compute;
                         });

}  // namespace
}  // namespace memphis::test
