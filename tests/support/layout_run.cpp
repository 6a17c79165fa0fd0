// SPDX-License-Identifier: Apache-2.0
#include "tests/support/layout_run.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <exception>
#include <limits>
#include <numeric>
#include <utility>

#include <gtest/gtest.h>

#include "csrc/comm/threads.h"
#include "csrc/comm/together.h"
#include "csrc/config/load.h"
#include "csrc/core/device.h"
#include "csrc/plan/parameters.h"
#include "tests/support/ranks.h"
#include "tests/support/tiny_run.h"
#include "tests/support/tolerance.h"

namespace memphis::test {
namespace {

// Appends what of `values` is no NaN: runs of elements, each with where it begins, counted from
// `offset`, and how many they are.
void pack(std::size_t offset, std::span<const double> values, std::vector<double>& packed) {
  for (std::size_t i = 0; i < values.size();) {
    if (std::isnan(values[i])) {
      ++i;
      continue;
    }
    std::size_t end = i;
    while (end < values.size() && !std::isnan(values[end])) {
      ++end;
    }
    packed.push_back(static_cast<double>(offset + i));
    packed.push_back(static_cast<double>(end - i));
    packed.insert(packed.end(),
                  values.begin() + static_cast<std::ptrdiff_t>(i),
                  values.begin() + static_cast<std::ptrdiff_t>(end));
    i = end;
  }
}

// Calls visit(begin, values) with each run that a rank has packed, of `num_elements` at most, in the
// order of ranks. A rank sends what it has and not the whole: most of it is another's. Collective.
template <class Visit>
void for_each_packed_run(Communicator& all,
                         std::vector<double> packed,
                         std::size_t num_elements,
                         const Visit& visit) {
  constexpr std::size_t kFew =
      16;  // so few that asking who has most takes longer than to send them
  const std::size_t most = num_elements <= kFew
                               ? 2 * num_elements + 2
                               : static_cast<std::size_t>(largest_of_all(
                                     all, static_cast<std::int64_t>(packed.size()), "test.join"));
  packed.resize(most, std::nan(""));
  std::vector<double> of_all(most * static_cast<std::size_t>(all.size()));
  const auto view = [](std::vector<double>& values) {
    return TensorView(
        values.data(), {static_cast<std::int64_t>(values.size())}, DType::f64, Device::cpu);
  };
  all.run(AllGather{.y = view(of_all), .x = view(packed)}, "test.join", {});
  for (int rank = 0; rank < all.size(); ++rank) {
    const std::size_t end = (static_cast<std::size_t>(rank) + 1) * most;
    for (std::size_t i = end - most; i < end && !std::isnan(of_all[i]);) {
      const auto count = static_cast<std::size_t>(of_all[i + 1]);
      visit(static_cast<std::size_t>(of_all[i]), std::span(of_all).subspan(i + 2, count));
      i += 2 + count;
    }
  }
}

template <class T>
void nudge(std::vector<std::byte>& bytes, double sign) {
  const double unit = rounding_unit(dtype_of<T>());
  T* const weights = reinterpret_cast<T*>(bytes.data());
  for (std::size_t i = 0; i < bytes.size() / sizeof(T); ++i) {
    const double factor = 1.0 + 2.0 * unit * (i % 2 == 0 ? sign : -sign);
    weights[i] = static_cast<T>(static_cast<double>(weights[i]) * factor);
  }
}

void nudge_weights(Trainer& trainer, double sign) {
  const Stream stream = trainer.stream();
  const auto num_segments = trainer.plan().parameters.segments.size();
  for (std::size_t segment = 0; segment < num_segments; ++segment) {
    const bool shared_out = trainer.plan().parameters.segments[segment].place.has_value();
    const TensorView weights_n = shared_out ? trainer.parameters().owned_weights(segment)
                                            : trainer.parameters().segment_weights(segment);
    std::vector<std::byte> bytes(weights_n.bytes());
    synchronize(stream);
    device_copy(bytes.data(), weights_n.data, bytes.size(), stream);
    synchronize(stream);
    if (weights_n.dtype == DType::bf16) {
      nudge<bf16>(bytes, sign);
    } else {
      require(weights_n.dtype == DType::f32, "weights in f32 and bf16 are nudged");
      nudge<float>(bytes, sign);
    }
    device_copy(weights_n.data, bytes.data(), bytes.size(), stream);
    synchronize(stream);
    if (shared_out) {
      trainer.residency().changed(segment);
    }
  }
}

}  // namespace

Layout layout(const std::string& name,
              int data,
              int tensor,
              int expert,
              int expert_tensor,
              const std::vector<std::string>& more) {
  Layout result{.name = name,
                .num_ranks = data * tensor,
                .data = data,
                .overrides = {"parallel.tensor=" + std::to_string(tensor),
                              "parallel.expert=" + std::to_string(expert),
                              "parallel.expert_tensor=" + std::to_string(expert_tensor)}};
  result.overrides.insert(result.overrides.end(), more.begin(), more.end());
  return result;
}

Layout piped(const std::string& name,
             const Layout& layout,
             int pipeline,
             const std::vector<std::string>& more) {
  Layout result = layout;
  result.name = name;
  result.num_ranks *= pipeline;
  result.overrides.push_back("parallel.pipeline=" + std::to_string(pipeline));
  result.overrides.insert(result.overrides.end(), more.begin(), more.end());
  return result;
}

Layout in_context(const Layout& layout, int context, const std::vector<std::string>& more) {
  Layout result = layout;
  result.name += "_context" + std::to_string(context);
  result.num_ranks *= context;
  result.overrides.push_back("parallel.context=" + std::to_string(context));
  result.overrides.insert(result.overrides.end(), more.begin(), more.end());
  return result;
}

const std::vector<Layout>& layouts() {
  static const std::vector<Layout> table = {
      layout("one", 1, 1, 1, 1),
      layout("one_small_batches", 1, 1, 1, 1, {"batch.micro_batch=2"}),
      layout("data2", 2, 1, 1, 1),
      layout("data2_whole_optimizer", 2, 1, 1, 1, {"parallel.zero=0"}),
      layout("data2_shared_gradients", 2, 1, 1, 1, {"parallel.zero=2", "batch.micro_batch=2"}),
      layout("data2_shared_weights", 2, 1, 1, 1, {"parallel.zero=3", "batch.micro_batch=2"}),
      layout("data2_small_buckets", 2, 1, 2, 1, {"parallel.bucket_mib=0"}),
      layout("data2_expert2", 2, 1, 2, 1),
      layout("data2_split_expert", 2, 1, 1, 2),
      layout("tensor2", 1, 2, 1, 1),
      layout("tensor2_whole_sequences", 1, 2, 1, 1, {"parallel.sequence_parallel=false"}),
      layout("tensor2_expert2", 1, 2, 2, 1),
      layout("tensor2_split_expert", 1, 2, 1, 2),
      layout("data4", 4, 1, 1, 1),
      layout("data4_expert4", 4, 1, 4, 1),
      layout("data4_expert2_split2", 4, 1, 2, 2),
      layout("data4_expert4_batch1", 4, 1, 4, 1, {"batch.micro_batch=1"}),
      layout("data2_tensor2", 2, 2, 1, 1),
      layout("data2_tensor2_expert4", 2, 2, 4, 1),
      layout("data2_tensor2_expert2_split2", 2, 2, 2, 2),
      layout("data2_tensor2_split4", 2, 2, 1, 4),
      layout("data2_tensor2_whole_sequences_expert4",
             2,
             2,
             4,
             1,
             {"parallel.sequence_parallel=false"}),
      layout("data2_tensor2_whole_optimizer", 2, 2, 2, 1, {"parallel.zero=0"}),
      layout("data2_tensor2_shared_gradients", 2, 2, 2, 1, {"parallel.zero=2"}),
      layout("data4_expert2_small_buckets_shared_gradients",
             4,
             1,
             2,
             1,
             {"parallel.zero=2", "parallel.bucket_mib=0", "batch.micro_batch=1"}),
      layout("data2_tensor2_shared_weights", 2, 2, 2, 1, {"parallel.zero=3"}),
      layout("data4_expert2_small_buckets_shared_weights",
             4,
             1,
             2,
             1,
             {"parallel.zero=3", "parallel.bucket_mib=0", "batch.micro_batch=1"}),
      layout("tensor4_shared_heads", 1, 4, 1, 1),
      layout("tensor4_shared_heads_small_buckets", 1, 4, 1, 1, {"parallel.bucket_mib=0"}),
      layout("data2_tensor4_shared_heads_shared_gradients",
             2,
             4,
             2,
             1,
             {"parallel.zero=2", "batch.micro_batch=2"}),
      layout("data2_tensor4_shared_heads_shared_weights", 2, 4, 2, 1, {"parallel.zero=3"}),
      layout("tensor4_shared_heads_expert4", 1, 4, 4, 1),
      layout("tensor4_shared_heads_whole_sequences",
             1,
             4,
             2,
             2,
             {"parallel.sequence_parallel=false", "parallel.zero=0"}),
      layout("data8", 8, 1, 4, 1, {"batch.micro_batch=1"}),
      layout("data4_tensor2_expert4", 4, 2, 4, 1, {"batch.micro_batch=2"}),
      layout("data4_tensor2_expert4_split2", 4, 2, 4, 2, {"batch.micro_batch=2"}),
      layout("data2_tensor4_expert2_split2", 2, 4, 2, 2),
      layout("data2_tensor4_whole_sequences", 2, 4, 4, 2, {"parallel.sequence_parallel=false"}),
      layout("data8_tensor2_expert4_split4", 8, 2, 4, 4, {"batch.micro_batch=1"}),
      layout("data4_tensor4_expert4_split2", 4, 4, 4, 2, {"batch.micro_batch=2"}),
      layout("data16", 16, 1, 2, 2, {"batch.micro_batch=1"}),
      layout("data4_tensor4_room_for_twice_the_share",
             4,
             4,
             4,
             1,
             {"batch.micro_batch=2", "parallel.expert_buffer=2.5"}),
  };
  return table;
}

Layout layout_named(const std::string& name) {
  for (const Layout& one : layouts()) {
    if (one.name == name) {
      return one;
    }
  }
  throw ContractError("there is no layout " + name);
}

void on_ranks(Ranks ranks, int num_ranks, const std::function<void(World&)>& body) {
  if (ranks == Ranks::threads) {
    run_threads(num_ranks, body);
    return;
  }
  World& world = process_world();
  require(world.size() == num_ranks, "a layout of processes has the ranks of the job");
  try {
    body(world);
  } catch (const std::exception& error) {
    world.abort(ExitCode::internal, error.what());
    throw;
  }
}

bool keeps_result(Ranks ranks, const World& world) {
  return ranks == Ranks::processes || world.rank() == 0;
}

bool fails_on_any_rank(Ranks ranks, bool fails_here) {
  return ranks == Ranks::threads
             ? fails_here
             : largest_of_all(
                   *create_group_of_all(process_world()), fails_here ? 1 : 0, "test.failed") != 0;
}

Joined join(Communicator& all, std::span<const double> own) {
  constexpr double kNone = -std::numeric_limits<double>::infinity();
  Joined result{.low = std::vector<double>(own.size(), -kNone),
                .high = std::vector<double>(own.size(), kNone),
                .num_ranks = std::vector<std::int32_t>(own.size())};
  std::vector<double> packed;
  pack(0, own, packed);
  for_each_packed_run(
      all, std::move(packed), own.size(), [&](std::size_t begin, std::span<const double> values) {
        for (std::size_t i = 0; i < values.size(); ++i) {
          double& low = result.low[begin + i];
          double& high = result.high[begin + i];
          low = std::min(low, values[i]);
          high = std::max(high, values[i]);
          ++result.num_ranks[begin + i];
        }
      });
  return result;
}

double element(const TensorView& view, std::int64_t index) {
  switch (view.dtype) {
    case DType::f64:
      return view.as<double>()[index];
    case DType::i32:
      return view.as<std::int32_t>()[index];
    case DType::bf16:
      return static_cast<double>(view.as<bf16>()[index]);
    default:
      return static_cast<double>(view.as<float>()[index]);
  }
}

std::vector<double> elements(const TensorView& view, const Range& range, Stream stream) {
  const auto count = static_cast<std::size_t>(range.count);
  const std::size_t bytes = size_of(view.dtype);
  std::vector<std::byte> copy(count * bytes);
  synchronize(stream);
  device_copy(
      copy.data(),
      static_cast<const std::byte*>(view.data) + static_cast<std::size_t>(range.begin) * bytes,
      copy.size(),
      stream);
  synchronize(stream);
  std::vector<double> result(count);
  const TensorView host(copy.data(), {range.count}, view.dtype, Device::cpu);
  for (std::size_t i = 0; i < count; ++i) {
    result[i] = element(host, static_cast<std::int64_t>(i));
  }
  return result;
}

RankRun::RankRun(World& world, const std::string& yaml, const std::vector<std::string>& overrides)
    : world_(world),
      all_(create_group_of_all(world)),
      // Processes have a directory each; they train in that of the first.
      config_(parse_config(text_of_rank(*all_, 0, yaml, "test.config"),
                           "tiny.yaml",
                           overrides,
                           Check::machine,
                           world.size())),
      mesh_(config_.parallel, world.size()) {
  trainer_ = std::make_unique<Trainer>(config_, std::vector<std::string>{}, world);
}

Tensors RankRun::empty() const {
  Tensors result;
  for (const LogicalParameter& parameter : plan_parameters(config_.model, DType::f64).logical) {
    result[parameter.name].resize(static_cast<std::size_t>(parameter.whole.num_elements()),
                                  std::nan(""));
  }
  return result;
}

Tensors RankRun::joined(const Tensors& own, Copies copies) {
  Tensors result;
  std::vector<std::pair<std::size_t, std::vector<double>*>> tensors;  // and where each begins
  std::vector<double> packed;
  std::size_t num_elements = 0;
  for (const auto& [name, values] : own) {
    pack(num_elements, values, packed);
    std::vector<double>& tensor = result[name];
    tensor.assign(values.size(), std::nan(""));
    tensors.emplace_back(num_elements, &tensor);
    num_elements += values.size();
  }
  std::map<const std::vector<double>*, std::int64_t> num_wrong;
  for_each_packed_run(
      *all_,
      std::move(packed),
      num_elements,
      [&](std::size_t begin, std::span<const double> values) {
        const auto [first, tensor] =
            *(std::upper_bound(tensors.begin(),
                               tensors.end(),
                               begin,
                               [](std::size_t at, const auto& one) { return at < one.first; }) -
              1);
        double* const targets = tensor->data() + (begin - first);
        std::int64_t num_others = 0;
        for (std::size_t i = 0; i < values.size(); ++i) {
          const bool right =
              std::isnan(targets[i]) || (copies == Copies::equal && targets[i] == values[i]);
          num_others += right ? 0 : 1;
        }
        std::copy(values.begin(), values.end(), targets);
        num_wrong[tensor] += num_others;
      });
  for (const auto& [name, values] : result) {
    const auto num_absent =
        std::count_if(values.begin(), values.end(), [](double value) { return std::isnan(value); });
    EXPECT_EQ(num_wrong[&values] + num_absent, 0)
        << "elements of " << name
        << (copies == Copies::one ? " that not one rank counts, or NaN"
                                  : " that nobody has, or ranks differ in");
  }
  return result;
}

// The elements that this rank counts: values_of(parameter, local) are those `local` of its part.
template <class Values>
Tensors RankRun::counted(const Values& values_of) const {
  Tensors all = empty();
  const ParameterPlan& plan = trainer_->plan().parameters;
  for (const LogicalParameter& parameter : plan.logical) {
    std::vector<double>& whole = all.at(parameter.name);
    for (const Range& run : plan.counted) {
      const std::int64_t begin = std::max(run.begin, parameter.begin);
      const std::int64_t end =
          std::min(run.begin + run.count, parameter.begin + parameter.spec.num_elements());
      if (begin >= end) {
        continue;
      }
      const Range local{.begin = begin - parameter.begin, .count = end - begin};
      const std::vector<double> values = values_of(parameter, local);
      for_each_run(parameter, local, [&](std::int64_t at, std::int64_t from, std::int64_t count) {
        for (std::int64_t i = 0; i < count; ++i) {
          double& target = whole[static_cast<std::size_t>(at + i)];
          EXPECT_TRUE(std::isnan(target)) << parameter.name << " is counted twice by a rank";
          target = values[static_cast<std::size_t>(from + i - local.begin)];
        }
      });
    }
  }
  return all;
}

Tensors RankRun::own_weights() {
  return counted([&](const LogicalParameter& parameter, const Range& local) {
    return elements(trainer_->parameters().held_weights(parameter, local),
                    {.begin = 0, .count = local.count},
                    trainer_->stream());
  });
}

Tensors RankRun::weights() {
  return joined(own_weights(), Copies::one);
}

Tensors RankRun::gradients() {
  return joined(counted([&](const LogicalParameter& parameter, const Range& local) {
                  const Range run{.begin = parameter.begin + local.begin, .count = local.count};
                  return elements(trainer_->parameters().sums(run),
                                  {.begin = 0, .count = local.count},
                                  trainer_->stream());
                }),
                Copies::one);
}

Tensors RankRun::state() {
  Tensors own;
  for (const auto& [name, values] : empty()) {
    for (const char* suffix : {".m", ".v"}) {
      own[name + suffix].resize(values.size(), std::nan(""));
    }
  }
  for (const Optimizer::StateTensor& state : trainer_->optimizer().state()) {
    std::vector<double>& whole = own.at(state.name);
    const std::vector<double> values =
        elements(state.view, {.begin = 0, .count = state.local.count}, trainer_->stream());
    for_each_run(
        *state.parameter, state.local, [&](std::int64_t at, std::int64_t from, std::int64_t count) {
          for (std::int64_t i = 0; i < count; ++i) {
            whole[static_cast<std::size_t>(at + i)] =
                values[static_cast<std::size_t>(from + i - state.local.begin)];
          }
        });
  }
  // Without ZeRO, or where ranks share a head, several keep the same.
  Tensors result = joined(own, Copies::equal);
  result.merge(weights());
  return result;
}

double RankRun::same_on_all(double value) {
  const Joined ranks = join(*all_, std::span(&value, 1));
  EXPECT_TRUE(ranks.low[0] == ranks.high[0])
      << "ranks report " << ranks.low[0] << " and " << ranks.high[0];
  return value;
}

std::vector<std::string> run_overrides(const Layout& layout, const std::string& compute) {
  std::vector<std::string> overrides = layout.overrides;
  for (const std::string& usual : {"precision.compute=" + compute,
                                   std::string("model.router_init_std=0.3"),
                                   std::string("batch.global_batch=16"),
                                   std::string("optimizer.learning_rate=1e-3")}) {
    const std::string key = usual.substr(0, usual.find('=') + 1);
    if (std::none_of(layout.overrides.begin(), layout.overrides.end(), [&](const auto& given) {
          return given.starts_with(key);
        })) {
      overrides.push_back(usual);
    }
  }
  return overrides;
}

Outcome train(
    const Layout& layout, Ranks ranks, const std::string& compute, int num_steps, double nudge) {
  const TemporaryDirectory directory;
  const std::string yaml = tiny_yaml(directory);
  Outcome outcome;
  on_ranks(ranks, layout.num_ranks, [&](World& world) {
    RankRun run(world, yaml, run_overrides(layout, compute));
    if (nudge != 0) {
      nudge_weights(run.trainer(), nudge);
    }
    Outcome own;
    own.initial = run.weights();
    for (int step = 0; step < num_steps; ++step) {
      const StepResult result = run.trainer().step();
      if (step == 0) {
        own.gradient = run.gradients();
      }
      own.losses.push_back(run.same_on_all(result.loss));
      own.balance.push_back(run.same_on_all(result.balance));
      own.grad_norms.push_back(run.same_on_all(result.grad_norm));
    }
    own.final = run.weights();
    own.validation = run.trainer().validation_loss();
    if (keeps_result(ranks, world)) {
      outcome = std::move(own);
    }
  });
  return outcome;
}

void expect_same_bits(const Tensors& actual, const Tensors& expected, const char* what) {
  ASSERT_EQ(actual.size(), expected.size());
  for (const auto& [name, values] : expected) {
    const std::vector<double>& others = actual.at(name);
    ASSERT_EQ(others.size(), values.size()) << name;
    std::size_t num_equal = 0;
    while (num_equal < values.size() && others[num_equal] == values[num_equal]) {
      ++num_equal;
    }
    EXPECT_EQ(num_equal, values.size())
        << what << " " << name << ": element " << num_equal << " is " << others[num_equal]
        << " and not " << values[num_equal];
  }
}

void expect_near(const std::vector<double>& actual,
                 const std::vector<double>& exact,
                 double relative,
                 const char* what) {
  ASSERT_EQ(actual.size(), exact.size());
  for (std::size_t i = 0; i < exact.size(); ++i) {
    EXPECT_NEAR(actual[i], exact[i], relative * std::abs(exact[i])) << what << " of step " << i + 1;
  }
}

void expect_same_run(const Outcome& actual, const Outcome& exact, double least) {
  for (const auto& [name, gradient] : exact.gradient) {
    double largest = least;
    double difference = 0;
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      largest = std::max(largest, std::abs(gradient[i]));
      const double apart = std::abs(actual.gradient.at(name)[i] - gradient[i]);
      difference = std::isnan(apart) ? apart : std::max(difference, apart);
    }
    EXPECT_LE(difference, 1e-12 * largest) << name;
  }
  expect_near(actual.losses, exact.losses, 1e-9, "loss");
  expect_near(actual.balance, exact.balance, 1e-9, "balance loss");
  expect_near(actual.grad_norms, exact.grad_norms, 1e-9, "gradient norm");
  EXPECT_NEAR(actual.validation, exact.validation, 1e-9 * exact.validation);
}

void expect_memory_as_planned(const Layout& layout,
                              const std::string& compute,
                              const std::function<void(RankRun&)>& look) {
  const TemporaryDirectory directory;
  const std::string yaml = tiny_yaml(directory);
  const std::uint64_t before = allocated_bytes();
  const std::uint64_t pinned_before = pinned_bytes();
  on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
    RankRun run(world, yaml, run_overrides(layout, compute));
    if (look) {
      look(run);
    }
    const MemoryPlan& memory = run.trainer().plan().memory;
    std::array<std::int64_t, 2> planned = {static_cast<std::int64_t>(memory.allocated_bytes()),
                                           static_cast<std::int64_t>(memory.host.standing_bytes())};
    sum_over_ranks(run.all(), planned, "test.planned");
    if (world.rank() == 0) {
      EXPECT_EQ(allocated_bytes() - before, static_cast<std::uint64_t>(planned[0])) << layout.name;
      EXPECT_EQ(pinned_bytes() - pinned_before, static_cast<std::uint64_t>(planned[1]))
          << layout.name;
    }
    sum_over_ranks(run.all(), planned, "test.end");
  });
}

}  // namespace memphis::test
