// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/shard_map.h"

#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

namespace memphis {
namespace {

// Grok-2's shape, small: cut experts, a dense FFN, a head of its own, sizes that divide unevenly.
ModelConfig small_model() {
  ModelConfig model;
  model.vocab_size = 259;
  model.num_layers = 2;
  model.d_model = 24;
  model.num_heads = 12;
  model.num_kv_heads = 2;
  model.head_dim = 2;
  model.ffn_dim = 36;
  model.num_experts = 6;
  model.dense_ffn_dim = 20;
  model.tie_embeddings = false;
  return model;
}

struct Case {
  ParallelConfig parallel;
  std::int64_t num_ranks() const { return parallel.data * parallel.tensor; }
};

std::vector<Case> cases() {
  std::vector<Case> result;
  for (const auto& [data, tensor, expert, expert_tensor] :
       std::vector<std::tuple<int, int, int, int>>{{1, 1, 1, 1},
                                                   {3, 1, 3, 1},
                                                   {2, 2, 2, 2},
                                                   {1, 4, 2, 1},
                                                   {3, 4, 6, 2},
                                                   {2, 12, 6, 4},
                                                   {40, 2, 1, 1}}) {
    for (const bool sequence_parallel : {true, false}) {
      result.push_back({{.data = data,
                         .expert = expert,
                         .tensor = tensor,
                         .expert_tensor = expert_tensor,
                         .sequence_parallel = sequence_parallel}});
    }
  }
  return result;
}

Range overlap(const LogicalParameter& parameter, const Range& run) {
  const std::int64_t begin = std::max(parameter.begin, run.begin);
  const std::int64_t end =
      std::min(parameter.begin + parameter.spec.num_elements(), run.begin + run.count);
  return {.begin = begin - parameter.begin, .count = std::max<std::int64_t>(end - begin, 0)};
}

using Shard = std::tuple<std::int64_t, std::string, std::int64_t, std::int64_t>;

TEST(ShardMap, SaysWhatTheRanksPlansSay) {
  for (const Case& one : cases()) {
    std::set<Shard> expected;
    const Mesh mesh(one.parallel, one.num_ranks());
    for (std::int64_t rank = 0; rank < one.num_ranks(); ++rank) {
      const ParameterPlan plan = plan_parameters(
          small_model(), DType::bf16, make_share(small_model(), one.parallel, mesh, rank));
      for (const LogicalParameter& parameter : plan.logical) {
        for (const Range& run : plan.counted) {
          const Range local = overlap(parameter, run);
          if (local.count > 0) {
            expected.insert({rank, parameter.name, local.begin, local.count});
          }
        }
      }
    }
    std::set<Shard> actual;
    ShardMap(small_model(), one.parallel, one.num_ranks())
        .for_each_shard([&](std::int64_t rank, const LogicalParameter& part, const Range& local) {
          EXPECT_TRUE(actual.insert({rank, part.name, local.begin, local.count}).second);
        });
    EXPECT_EQ(actual, expected) << one.num_ranks() << " ranks";
  }
}

TEST(ShardMap, GivesEachElementOneWriter) {
  const ParameterPlan whole = plan_parameters(small_model(), DType::bf16);
  for (const Case& one : cases()) {
    std::map<std::string, std::vector<int>> writers;
    ShardMap(small_model(), one.parallel, one.num_ranks())
        .for_each_shard(
            [&](std::int64_t /*rank*/, const LogicalParameter& part, const Range& local) {
              std::vector<int>& elements = writers[part.name];
              elements.resize(static_cast<std::size_t>(part.whole.num_elements()));
              for_each_run(
                  part, local, [&](std::int64_t at, std::int64_t /*from*/, std::int64_t count) {
                    for (std::int64_t i = at; i < at + count; ++i) {
                      ++elements[static_cast<std::size_t>(i)];
                    }
                  });
            });
    EXPECT_EQ(writers.size(), whole.logical.size());
    for (const auto& [name, elements] : writers) {
      EXPECT_EQ(elements, std::vector<int>(elements.size(), 1)) << name;
    }
  }
}

// A rank of any layout finds the writers of its pieces in any other: all of them and nobody else.
TEST(ShardMap, FindsTheWritersOfWhatAnotherLayoutWants) {
  for (const Case& writer : cases()) {
    const ShardMap map(small_model(), writer.parallel, writer.num_ranks());
    std::map<std::string, std::vector<std::int64_t>> written_by;
    map.for_each_shard([&](std::int64_t rank, const LogicalParameter& part, const Range& local) {
      std::vector<std::int64_t>& elements = written_by[part.name];
      elements.resize(static_cast<std::size_t>(part.whole.num_elements()));
      for_each_run(part, local, [&](std::int64_t at, std::int64_t /*from*/, std::int64_t count) {
        std::fill_n(elements.begin() + at, count, rank);
      });
    });
    for (const Case& reader : cases()) {
      const Mesh mesh(reader.parallel, reader.num_ranks());
      for (const std::int64_t rank : {std::int64_t{0}, reader.num_ranks() / 2}) {
        const ParameterPlan plan = plan_parameters(
            small_model(), DType::bf16, make_share(small_model(), reader.parallel, mesh, rank));
        for (const LogicalParameter& part : plan.logical) {
          const std::int64_t all = part.spec.num_elements();
          const Range wanted{.begin = all / 3, .count = all / 4 + 1};
          std::set<std::int64_t> expected;
          for_each_run(
              part, wanted, [&](std::int64_t at, std::int64_t /*from*/, std::int64_t count) {
                const auto begin = written_by.at(part.name).begin() + at;
                expected.insert(begin, begin + count);
              });
          std::set<std::int64_t> actual;
          map.add_writers(part, wanted, actual);
          EXPECT_EQ(actual, expected) << part.name;
        }
      }
    }
  }
}

}  // namespace
}  // namespace memphis
