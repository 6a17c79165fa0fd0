// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/replica_check.h"

#include <algorithm>
#include <array>
#include <map>
#include <string>

#include <spdlog/fmt/fmt.h>

#include "csrc/checkpoint/checksum.h"
#include "csrc/checkpoint/chunked_checksum.h"
#include "csrc/comm/together.h"
#include "csrc/core/error.h"

namespace memphis {
namespace {

constexpr std::array kReplicaAxes = {Axis::data_context, Axis::expert_data, Axis::stage_ranks};

constexpr const char* kWhatToDo =
    "nothing more is saved: leave out that machine, see what `memphis doctor` says of it, and "
    "start "
    "the same command again, which goes on from the last checkpoint";

// "2 on gpu17 and 5 on gpu18". Every rank calls, with the same ranks.
std::string ranks_with_hosts(Communicator& all, const std::vector<int>& ranks) {
  constexpr std::size_t kMost = 8;
  const std::size_t count = std::min(ranks.size(), kMost);
  std::string text;
  for (std::size_t i = 0; i < count; ++i) {
    const std::string host = text_of_rank(all, ranks[i], host_name(), "replicas.host");
    const bool is_last = i + 1 == ranks.size();
    text += fmt::format("{}{} on {}", i == 0 ? "" : is_last ? " and " : ", ", ranks[i], host);
  }
  return ranks.size() > count ? fmt::format("{} and {} more", text, ranks.size() - count) : text;
}

// The first of them says so; launchers see on which node the rank was that ended the job.
void blame(Communicator& all, const std::vector<int>& ranks, const std::string& message) {
  together(all, "replicas.verdict", [&] {
    if (!ranks.empty() && all.rank() == ranks.front()) {
      throw Error(ExitCode::bad_hardware, message);
    }
  });
}

}  // namespace

std::vector<int> dissenters(std::span<const ReplicaHash> of_ranks) {
  std::map<std::int64_t, std::map<std::uint64_t, std::int64_t>> votes;
  std::map<std::int64_t, std::int64_t> sizes;
  for (const auto& [group, hash] : of_ranks) {
    ++votes[group][hash];
    ++sizes[group];
  }
  std::vector<int> ranks;
  for (std::size_t rank = 0; rank < of_ranks.size(); ++rank) {
    const auto& [group, hash] = of_ranks[rank];
    if (2 * votes[group][hash] <= sizes[group]) {
      ranks.push_back(static_cast<int>(rank));
    }
  }
  return ranks;
}

ReplicaCheck::ReplicaCheck(const Mesh& mesh,
                           const Groups& groups,
                           const Parameters& parameters,
                           Optimizer& optimizer,
                           std::size_t host_bytes,
                           Stream stream)
    : mesh_(mesh),
      groups_(groups),
      parameters_(parameters),
      stream_(stream),
      pieces_(stream.device, host_bytes, ChunkedChecksum::kChunkBytes),
      seal_(parameters, optimizer, pieces_, stream) {}

std::uint64_t ReplicaCheck::hash_of_weights(Axis axis) const {
  Checksum checksum;
  const std::vector<Segment>& segments = parameters_.plan().segments;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    // Layers that take turns are on one rank each.
    if (segments[i].replicated() && !segments[i].place && segments[i].replicas == axis) {
      const std::uint64_t hash = seal_.weights_hash(i);
      checksum.update(std::as_bytes(std::span(&hash, 1)));
    }
  }
  return checksum.value();
}

std::vector<std::int64_t> ReplicaCheck::gather(std::span<const std::int64_t> own,
                                               std::string_view name) {
  Communicator& all = groups_.all_host();
  std::vector<std::int64_t> sent(own.begin(), own.end());
  std::vector<std::int64_t> words(own.size() * static_cast<std::size_t>(all.size()));
  const auto view_of = [](std::vector<std::int64_t>& values) {
    return TensorView(
        values.data(), {static_cast<std::int64_t>(values.size())}, DType::i64, Device::cpu);
  };
  all.run(AllGather{.y = view_of(words), .x = view_of(sent)}, name, {});
  return words;
}

void ReplicaCheck::compare() {
  Communicator& all = groups_.all_host();
  constexpr std::size_t kParts = 2 * kReplicaAxes.size();
  constexpr std::size_t kWords = kParts + 1;
  std::array<std::int64_t, kWords> own{};
  own[kParts] = seal_.take();
  for (std::size_t i = 0; i < kReplicaAxes.size(); ++i) {
    const Axis axis = kReplicaAxes[i];
    own[2 * i] = mesh_.group(axis, all.rank()).first;
    own[2 * i + 1] = static_cast<std::int64_t>(hash_of_weights(axis));
  }
  const std::vector<std::int64_t> words = gather(own, "replicas.hashes");
  std::vector<int> ranks;
  for (std::size_t at = kParts; at < words.size(); at += kWords) {
    if (words[at] != 0) {
      ranks.push_back(static_cast<int>(at / kWords));
    }
  }
  if (!ranks.empty()) {
    blame(all,
          ranks,
          fmt::format("the weights of rank{} {} are not {} master weights, rounded (a bit was "
                      "flipped in memory, of the one or the other); {}",
                      ranks.size() == 1 ? "" : "s",
                      ranks_with_hosts(all, ranks),
                      ranks.size() == 1 ? "its" : "their",
                      kWhatToDo));
  }
  for (std::size_t i = 0; i < kReplicaAxes.size(); ++i) {
    std::vector<ReplicaHash> hashes;
    for (std::size_t at = 2 * i; at < words.size(); at += kWords) {
      hashes.push_back({.group = words[at], .hash = static_cast<std::uint64_t>(words[at + 1])});
    }
    const std::vector<int> found = dissenters(hashes);
    ranks.insert(ranks.end(), found.begin(), found.end());
  }
  if (ranks.empty()) {
    return;
  }
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  blame(all,
        ranks,
        fmt::format("the weights of rank{} {} are not those of the other ranks that hold the same "
                    "(a bit was flipped, in memory or under way; where half of the ranks stand "
                    "against the other half, all are named); {}",
                    ranks.size() == 1 ? "" : "s",
                    ranks_with_hosts(all, ranks),
                    kWhatToDo));
}

void ReplicaCheck::require_kept(Since since) {
  // The same on all ranks: they compare at the same steps.
  if (since == Since::compared ? !seal_.is_taken() : !seal_.has_findings()) {
    return;
  }
  Communicator& all = groups_.all_host();
  const unsigned own = since == Since::compared ? seal_.check() : seal_.take_findings();
  std::vector<std::int64_t> parts(static_cast<std::size_t>(all.size()));
  parts[static_cast<std::size_t>(all.rank())] = own;
  sum_over_ranks(all, parts, "replicas.kept");
  std::vector<int> ranks;
  unsigned of_all = 0;
  for (std::size_t rank = 0; rank < parts.size(); ++rank) {
    if (parts[rank] != 0) {
      ranks.push_back(static_cast<int>(rank));
      of_all |= static_cast<unsigned>(parts[rank]);
    }
  }
  if (ranks.empty()) {
    return;
  }
  blame(all,
        ranks,
        fmt::format("the {} of rank{} {} have changed between two steps (nothing writes them then: "
                    "a bit was flipped in memory); {}",
                    describe_parts(of_all),
                    ranks.size() == 1 ? "" : "s",
                    ranks_with_hosts(all, ranks),
                    kWhatToDo));
}

std::uint64_t ReplicaCheck::hash_of_gradients() {
  synchronize(stream_);
  ChunkedChecksum checksum;
  for (std::size_t i = 0; i < parameters_.plan().segments.size(); ++i) {
    pieces_.for_each(parameters_.segment_gradients(i),
                     [&](std::span<const std::byte> piece) { checksum.update(piece); });
  }
  return checksum.value();
}

void ReplicaCheck::require_repeated(std::uint64_t first, std::uint64_t second) {
  Communicator& all = groups_.all_host();
  std::vector<std::int64_t> differs(static_cast<std::size_t>(all.size()));
  differs[static_cast<std::size_t>(all.rank())] = first != second ? 1 : 0;
  sum_over_ranks(all, differs, "replicas.repeated");
  std::vector<int> ranks;
  for (std::size_t rank = 0; rank < differs.size(); ++rank) {
    if (differs[rank] != 0) {
      ranks.push_back(static_cast<int>(rank));
    }
  }
  if (ranks.empty()) {
    return;
  }
  blame(all,
        ranks,
        fmt::format(
            "rank{} {} computed the same micro-batch twice and got other gradients (the program "
            "gives the same bits each time, so this is a machine's fault; ranks that share a layer "
            "pass on what they got wrong, and are named with it); nothing more is saved: leave out "
            "that machine, see what `memphis doctor` says of it, and start the same command again",
            ranks.size() == 1 ? "" : "s",
            ranks_with_hosts(all, ranks)));
}

}  // namespace memphis
