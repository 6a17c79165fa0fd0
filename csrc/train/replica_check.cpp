// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/replica_check.h"

#include <algorithm>
#include <array>
#include <map>
#include <string>

#include <spdlog/fmt/fmt.h>

#include "csrc/checkpoint/checksum.h"
#include "csrc/comm/together.h"
#include "csrc/core/error.h"

namespace memphis {
namespace {

constexpr std::array kReplicaAxes = {Axis::data_context, Axis::expert_data, Axis::stage_ranks};

constexpr std::size_t kStagingBytes = std::size_t{16} << 20;

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

// Takes a tensor of either device.
class ReplicaCheck::Hasher {
 public:
  explicit Hasher(ReplicaCheck& check) : check_(check) {}

  void add(const TensorView& view) {
    const auto* const bytes = static_cast<const std::byte*>(view.data);
    if (view.device == Device::cpu) {
      checksum_.update({bytes, view.bytes()});
      return;
    }
    std::vector<std::byte>& staging = check_.staging_;
    staging.resize(kStagingBytes);
    for (std::size_t at = 0; at < view.bytes(); at += kStagingBytes) {
      const std::size_t count = std::min(kStagingBytes, view.bytes() - at);
      device_copy(staging.data(), bytes + at, count, check_.stream_);
      synchronize(check_.stream_);
      checksum_.update({staging.data(), count});
    }
  }
  std::uint64_t value() const { return checksum_.value(); }

 private:
  ReplicaCheck& check_;
  Checksum checksum_;
};

ReplicaCheck::ReplicaCheck(const Mesh& mesh,
                           const Groups& groups,
                           const Parameters& parameters,
                           Stream stream)
    : mesh_(mesh), groups_(groups), parameters_(parameters), stream_(stream) {}

template <class Selects>
std::uint64_t ReplicaCheck::hash_of_weights(const Selects& selects) {
  Hasher hasher(*this);
  const std::vector<Segment>& segments = parameters_.plan().segments;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    // Layers that take turns are whole now and then.
    if (segments[i].replicated() && !segments[i].place && selects(segments[i])) {
      hasher.add(parameters_.segment_weights(i));
    }
  }
  return hasher.value();
}

void ReplicaCheck::compare_weights() {
  synchronize(stream_);
  Communicator& all = groups_.all_host();
  constexpr std::size_t kWords = 2 * kReplicaAxes.size();
  std::array<std::int64_t, kWords> own{};
  for (std::size_t i = 0; i < kReplicaAxes.size(); ++i) {
    const Axis axis = kReplicaAxes[i];
    own[2 * i] = mesh_.group(axis, all.rank()).first;
    own[2 * i + 1] = static_cast<std::int64_t>(
        hash_of_weights([axis](const Segment& segment) { return segment.replicas == axis; }));
  }
  std::vector<std::int64_t> words(kWords * static_cast<std::size_t>(all.size()));
  const auto view_of = [](std::int64_t* data, std::size_t count) {
    return TensorView(data, {static_cast<std::int64_t>(count)}, DType::i64, Device::cpu);
  };
  all.run(AllGather{.y = view_of(words.data(), words.size()), .x = view_of(own.data(), own.size())},
          "replicas.hashes",
          {});
  std::vector<int> ranks;
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
  blame(
      all,
      ranks,
      fmt::format(
          "the weights of rank{} {} are not those of the other ranks that hold the same (a bit "
          "was flipped, in memory or under way; where half of the ranks stand against the other "
          "half, all are named); nothing more is saved: leave out that machine, see what `memphis "
          "doctor` says of it, and start the same command again, which goes on from the last "
          "checkpoint",
          ranks.size() == 1 ? "" : "s",
          ranks_with_hosts(all, ranks)));
}

std::uint64_t ReplicaCheck::hash_of_gradients() {
  synchronize(stream_);
  Hasher hasher(*this);
  for (std::size_t i = 0; i < parameters_.plan().segments.size(); ++i) {
    hasher.add(parameters_.segment_gradients(i));
  }
  return hasher.value();
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
