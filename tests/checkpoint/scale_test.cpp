// SPDX-License-Identifier: Apache-2.0
//
// The control plane of a hundred thousand ranks in one process: what must not be quadratic in them,
// nor make each of them look at all. Work is counted in what it allocates, and held to be linear: a
// table of ranks by ranks, of parameters by ranks, or a list of all ranks for each, breaks the limits
// by far.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <new>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/checkpoint/pieces.h"
#include "csrc/checkpoint/store.h"
#include "csrc/checkpoint/writer.h"
#include "csrc/config/load.h"
#include "csrc/core/file.h"
#include "csrc/plan/shard_map.h"
#include "tests/support/temporary_directory.h"

namespace {

std::atomic<std::int64_t> g_calls = 0;
std::atomic<std::int64_t> g_bytes = 0;

}  // namespace

[[gnu::noinline]] void* operator new(std::size_t bytes) {
  g_calls += 1;
  g_bytes += static_cast<std::int64_t>(bytes);
  void* const memory = std::malloc(std::max<std::size_t>(bytes, 1));
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t /*bytes*/) noexcept {
  std::free(memory);
}

namespace memphis {
namespace {

constexpr std::int64_t kNumRanks = 100'000;
// Of a rank, half as much again as it is: the names and sums of its two files and of their blocks, many
// times over in the JSON of the manifest, and its part of the model.
constexpr double kMaxCallsOfARank = 200;
constexpr double kMaxBytesOfARank = 24 << 10;

struct Work {
  std::int64_t calls;  // of operator new
  std::int64_t bytes;
};

Config grok_1_on(std::int64_t num_ranks, const std::string& parallel) {
  return parse_config("model: {preset: grok-1}\nparallel: {" + parallel +
                          "}\nbatch: {sequence_length: 8192, micro_batch: 1, global_batch: " +
                          std::to_string(num_ranks) +
                          "}\nschedule: {steps: 10, warmup_steps: 1}\nrun: {dir: run}\n",
                      "grok-1.yaml",
                      {},
                      Check::text,
                      num_ranks);
}

// All that is done for each of so many ranks, in one process.
void run_control_plane(std::int64_t num_ranks) {
  const Config config = grok_1_on(num_ranks, "tensor: 8, expert: 8");
  ASSERT_EQ(config.parallel.data, num_ranks / 8);

  // Each rank's place and share.
  const Mesh mesh(config.parallel, num_ranks);
  std::int64_t num_sequences = 0;
  for (std::int64_t rank = 0; rank < num_ranks; ++rank) {
    const Share share = make_share(config.model, config.parallel, mesh, rank);
    ASSERT_EQ(share.tensor.index, rank % 8);
    num_sequences += SampleShare(config.batch, share).num_sequences();
  }
  EXPECT_EQ(num_sequences, config.batch.global_batch * 8) << "ranks along `tensor` have the same";

  // What each writes.
  const ShardMap map(config.model, config.parallel, num_ranks);
  std::vector<std::int64_t> elements_of(static_cast<std::size_t>(num_ranks));
  std::map<std::string, std::int64_t> elements_left;
  for (const LogicalParameter& parameter : plan_parameters(config.model, DType::bf16).logical) {
    elements_left[parameter.name] = parameter.whole.num_elements();
  }
  std::int64_t num_shards = 0;
  map.for_each_shard([&](std::int64_t rank, const LogicalParameter& part, const Range& local) {
    ++num_shards;
    elements_of[static_cast<std::size_t>(rank)] += local.count;
    elements_left[part.name] -= local.count;
  });
  for (const auto& [name, left] : elements_left) {
    EXPECT_EQ(left, 0) << name;
  }
  // A piece of each bucket, which may lie in two parameters.
  const auto num_buckets = static_cast<std::int64_t>(
      plan_parameters(config.model, DType::bf16, make_share(config.model, config.parallel, mesh, 0))
          .segments.size());
  EXPECT_LT(num_shards, 2 * num_buckets * num_ranks);
  const std::int64_t equal = plan_parameters(config.model, DType::bf16).num_parameters / num_ranks;
  EXPECT_LT(*std::max_element(elements_of.begin(), elements_of.end()), 11 * equal / 10);

  // The manifest of what they wrote, and its way back.
  const test::TemporaryDirectory directory;
  const int count = static_cast<int>(num_ranks);
  Manifest manifest;
  manifest.config = to_yaml(config);
  {
    CheckpointWriter writer(directory.path(), 10);
    for (int rank = 0; rank < count; ++rank) {
      const auto bytes = static_cast<std::uint64_t>(elements_of[static_cast<std::size_t>(rank)]);
      for (const auto& [stem, width] : {std::pair("weights", 2U), std::pair("optimizer", 12U)}) {
        writer.add_file({.name = piece_file_name(stem, rank, count),
                         .bytes = width * bytes,
                         .xxh3 = bytes,
                         .blocks = std::vector<std::uint32_t>(num_blocks(width * bytes), 7)});
      }
    }
    writer.commit(manifest);
  }
  const std::filesystem::path file = directory.path() / checkpoint_name(10) / kManifestName;
  const Manifest read = read_manifest(read_text(file), file);
  ASSERT_EQ(std::ssize(read.files), 2 * num_ranks);
  EXPECT_EQ(read.files.back().name, piece_file_name("optimizer", count - 1, count));

  // Which files a rank opens to go on: its own, and in another layout a few.
  for (const auto& [num_readers, parallel, most] :
       {std::tuple(num_ranks, "tensor: 8, expert: 8", 1U),
        std::tuple(num_ranks / 5 * 4, "tensor: 4, expert: 2, expert_tensor: 4", 40U)}) {
    const Config reader = grok_1_on(num_readers, parallel);
    const Mesh reader_mesh(reader.parallel, num_readers);
    std::size_t num_opened = 0;
    for (const std::int64_t rank : {std::int64_t{0}, std::int64_t{12'345}, num_readers - 1}) {
      const ParameterPlan plan = plan_parameters(
          reader.model, DType::bf16, make_share(reader.model, reader.parallel, reader_mesh, rank));
      std::set<std::int64_t> writers;
      for (const LogicalParameter& part : plan.logical) {
        const Range& piece = plan.segments[static_cast<std::size_t>(part.segment)].piece;
        const std::int64_t from = std::max(part.begin, piece.begin);
        const std::int64_t to =
            std::min(part.begin + part.spec.num_elements(), piece.begin + piece.count);
        if (from < to) {
          map.add_writers(part, {.begin = from - part.begin, .count = to - from}, writers);
        }
      }
      num_opened += writers.size();  // the last ranks may have nothing but padding
      EXPECT_LE(writers.size(), most) << "rank " << rank << " of " << num_readers;
    }
    EXPECT_GE(num_opened, 1U);
  }
}

Work work_of(std::int64_t num_ranks) {
  const Work before{g_calls, g_bytes};
  run_control_plane(num_ranks);
  return {g_calls - before.calls, g_bytes - before.bytes};
}

TEST(Scale, TheControlPlaneOfAHundredThousandRanksIsLinearInThem) {
  const Work half = work_of(kNumRanks / 2);
  const Work whole = work_of(kNumRanks);
  testing::Test::RecordProperty("calls", std::to_string(whole.calls));
  testing::Test::RecordProperty("bytes", std::to_string(whole.bytes));
  // Containers that double make steps.
  EXPECT_LT(static_cast<double>(whole.calls), 2.2 * static_cast<double>(half.calls));
  EXPECT_LT(static_cast<double>(whole.bytes), 2.5 * static_cast<double>(half.bytes));
  constexpr auto kRanks = static_cast<double>(kNumRanks);
  EXPECT_LT(static_cast<double>(whole.calls), kMaxCallsOfARank * kRanks);
  EXPECT_LT(static_cast<double>(whole.bytes), kMaxBytesOfARank * kRanks);
}

}  // namespace
}  // namespace memphis
