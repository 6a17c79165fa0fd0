// SPDX-License-Identifier: Apache-2.0
//
// The control plane of a hundred thousand ranks in one process: what must not be quadratic in them,
// nor make each of them look at all. The limits of time and memory are the feature: a table of
// ranks by ranks, or of parameters by ranks, breaks them by far.
#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <sys/resource.h>

#include "csrc/checkpoint/pieces.h"
#include "csrc/checkpoint/store.h"
#include "csrc/checkpoint/writer.h"
#include "csrc/config/load.h"
#include "csrc/core/file.h"
#include "csrc/plan/shard_map.h"
#include "tests/support/temporary_directory.h"

namespace memphis {
namespace {

constexpr std::int64_t kNumRanks = 100'000;
constexpr double kMaxSeconds = 10;
constexpr std::int64_t kMaxBytes = std::int64_t{4} << 30;

// Of this process alone: what else the machine does is not held against it.
double processor_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

std::int64_t peak_bytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
}

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

TEST(Scale, TheControlPlaneOfAHundredThousandRanksIsSecondsOfOneCore) {
  const double begin = processor_seconds();
  const std::int64_t bytes_before = peak_bytes();
  const Config config = grok_1_on(kNumRanks, "tensor: 8, expert: 8");
  ASSERT_EQ(config.parallel.data, kNumRanks / 8);

  // Each rank's place and share.
  const Mesh mesh(config.parallel, kNumRanks);
  std::int64_t num_sequences = 0;
  for (std::int64_t rank = 0; rank < kNumRanks; ++rank) {
    const Share share = make_share(config.parallel, mesh, rank);
    ASSERT_EQ(share.tensor.index, rank % 8);
    num_sequences += SampleShare(config.batch, share).num_sequences();
  }
  EXPECT_EQ(num_sequences, config.batch.global_batch * 8) << "ranks along `tensor` have the same";

  // What each writes.
  const ShardMap map(config.model, config.parallel, kNumRanks);
  std::vector<std::int64_t> elements_of(kNumRanks);
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
      plan_parameters(config.model, DType::bf16, make_share(config.parallel, mesh, 0))
          .segments.size());
  EXPECT_LT(num_shards, 2 * num_buckets * kNumRanks);
  const std::int64_t equal = plan_parameters(config.model, DType::bf16).num_parameters / kNumRanks;
  EXPECT_LT(*std::max_element(elements_of.begin(), elements_of.end()), 11 * equal / 10);

  // The manifest of what they wrote, and its way back.
  const test::TemporaryDirectory directory;
  Manifest manifest;
  manifest.config = to_yaml(config);
  {
    CheckpointWriter writer(directory.path(), 10);
    for (int rank = 0; rank < kNumRanks; ++rank) {
      const auto bytes = static_cast<std::uint64_t>(elements_of[static_cast<std::size_t>(rank)]);
      for (const auto& [stem, width] : {std::pair("weights", 2U), std::pair("optimizer", 12U)}) {
        writer.add_file({.name = piece_file_name(stem, rank, kNumRanks),
                         .bytes = width * bytes,
                         .xxh3 = bytes});
      }
    }
    writer.commit(manifest);
  }
  const std::filesystem::path file = directory.path() / checkpoint_name(10) / kManifestName;
  const Manifest read = read_manifest(read_text(file), file);
  ASSERT_EQ(read.files.size(), 2U * kNumRanks);
  EXPECT_EQ(read.files.back().name, "optimizer-99999-of-100000.safetensors");

  // Which files a rank opens to go on: its own, and in another layout a few.
  for (const auto& [num_ranks, parallel, most] :
       {std::tuple(kNumRanks, "tensor: 8, expert: 8", 1U),
        std::tuple(std::int64_t{80'000}, "tensor: 4, expert: 2, expert_tensor: 4", 40U)}) {
    const Config reader = grok_1_on(num_ranks, parallel);
    const Mesh reader_mesh(reader.parallel, num_ranks);
    std::size_t num_opened = 0;
    for (const std::int64_t rank : {std::int64_t{0}, std::int64_t{12'345}, num_ranks - 1}) {
      const ParameterPlan plan = plan_parameters(
          reader.model, DType::bf16, make_share(reader.parallel, reader_mesh, rank));
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
      EXPECT_LE(writers.size(), most) << "rank " << rank << " of " << num_ranks;
    }
    EXPECT_GE(num_opened, 1U);
  }

  EXPECT_LT(processor_seconds() - begin, kMaxSeconds);
  EXPECT_LT(peak_bytes() - bytes_before, kMaxBytes);
  RecordProperty("seconds", std::to_string(processor_seconds() - begin));
  RecordProperty("MiB", std::to_string((peak_bytes() - bytes_before) >> 20));
}

}  // namespace
}  // namespace memphis
