// SPDX-License-Identifier: Apache-2.0
#include "csrc/model/exchange.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/plan/host_memory.h"

namespace memphis {
namespace {

// Other layers, steps and groups of ranks route otherwise: a number that is just enough for the
// rows that did not fit would soon be raised again.
constexpr double kSpareRoom = 1.25;

std::size_t i32_bytes(std::int64_t count) {
  return static_cast<std::size_t>(count) * sizeof(std::int32_t);
}

TensorView host_counts(std::vector<std::int64_t>& counts) {
  return {counts.data(), {static_cast<std::int64_t>(counts.size())}, DType::i64, Device::cpu};
}

}  // namespace

void RowsUnderWay::start(Communicator& ranks,
                         const AllToAll& rows,
                         const char* name,
                         Stream stream) {
  require(num_ < works_.size(), "a pass waits for its rows before it sends more");
  works_[num_++] = ranks.start(rows, name, stream);
}

void RowsUnderWay::wait(Stream stream) {
  for (std::unique_ptr<Communicator::Work>& work : works_) {
    if (work) {
      work->wait(stream);
      work.reset();
    }
  }
  num_ = 0;
}

ExpertExchange::ExpertExchange(const Dims& dims, Device device)
    : dims_(dims),
      offsets_(dims.exchange_rows ? expert_offsets_bytes(dims) : 0, device),
      arrival_(arrival_bytes(dims), device),
      counts_(static_cast<std::size_t>(dims.E * dims.expert_pieces)),
      all_counts_(static_cast<std::size_t>(dims.expert_ranks * dims.E * dims.expert_pieces)),
      send_rows_(static_cast<std::size_t>(dims.expert_ranks)),
      recv_rows_(static_cast<std::size_t>(dims.expert_ranks)),
      num_arrived_(dims.local_R) {}

void ExpertExchange::count(const BlockContext& context, const Layer& layer) {
  if (!dims_.exchange_rows) {
    return;
  }
  const std::int64_t local_E = dims_.local_E;
  const std::int64_t num_ranks = dims_.expert_ranks;
  auto* const offsets = static_cast<std::int32_t*>(offsets_.data());
  device_copy(offsets, layer.offsets_E1.data, layer.offsets_E1.bytes(), context.stream);
  synchronize(context.stream);
  for (std::size_t e = 0; e < counts_.size(); ++e) {
    counts_[e] = offsets[e + 1] - offsets[e];
  }
  // All counts and not only those for this rank: a few more bytes, and ranks agree on whether all
  // have room.
  Communicator& ranks = context.groups.expert_ranks_host();
  ranks.run(AllGather{.y = host_counts(all_counts_), .x = host_counts(counts_)}, "moe.counts", {});
  const auto rows_between = [&](std::int64_t sender, std::int64_t receiver) {
    const auto begin = all_counts_.begin() + (sender * num_ranks + receiver) * local_E;
    return std::accumulate(begin, begin + local_E, std::int64_t{0});
  };
  std::int64_t most_arrived = 0;
  for (std::int64_t receiver = 0; receiver < num_ranks; ++receiver) {
    std::int64_t arrived = 0;
    for (std::int64_t sender = 0; sender < num_ranks; ++sender) {
      arrived += rows_between(sender, receiver);
    }
    most_arrived = std::max(most_arrived, arrived);
  }
  require_room(most_arrived);
  num_arrived_ = 0;
  for (std::int64_t rank = 0; rank < num_ranks; ++rank) {
    send_rows_[static_cast<std::size_t>(rank)] = rows_between(ranks.rank(), rank);
    recv_rows_[static_cast<std::size_t>(rank)] = rows_between(rank, ranks.rank());
    num_arrived_ += recv_rows_[static_cast<std::size_t>(rank)];
  }

  // By expert, then by sender, then as sent.
  auto* const source = static_cast<std::int32_t*>(arrival_.data());
  std::int32_t* const slot = source + dims_.local_R;
  std::int32_t* const arrival_offsets = slot + dims_.local_R;
  std::int32_t next = 0;
  for (std::int64_t e = 0; e < local_E; ++e) {
    arrival_offsets[e] = next;
    std::int64_t received = 0;
    for (std::int64_t rank = 0; rank < num_ranks; ++rank) {
      for (std::int64_t other = 0; other < local_E; ++other) {
        const std::int64_t count = all_counts_[static_cast<std::size_t>(
            (rank * num_ranks + ranks.rank()) * local_E + other)];
        for (std::int64_t i = 0; other == e && i < count; ++i) {
          source[next] = static_cast<std::int32_t>(received + i);
          slot[received + i] = next++;
        }
        received += count;
      }
    }
  }
  arrival_offsets[local_E] = next;
  const auto upload = [&](const TensorView& to, const std::int32_t* from, std::int64_t n) {
    device_copy(to.data, from, i32_bytes(n), context.stream);
  };
  upload(layer.arrival_source_R, source, num_arrived_);
  upload(layer.arrival_slot_R1, slot, num_arrived_);
  upload(layer.arrival_offsets_E1, arrival_offsets, local_E + 1);
}

void ExpertExchange::require_room(std::int64_t num_rows) const {
  if (num_rows <= dims_.local_R) {
    return;
  }
  const auto equal = static_cast<double>(dims_.sent_R);  // every rank sends as many
  throw ConfigError(
      fmt::format("{} rows arrived for the experts of one rank and the plan has room for {} "
                  "(routing is uneven, and no row is dropped); raise parallel.expert_buffer to "
                  "{:.1f}, which has a quarter to spare for other layers and steps, or set it to 0 "
                  "for every case",
                  num_rows,
                  dims_.local_R,
                  std::ceil(10 * kSpareRoom * static_cast<double>(num_rows) / equal) / 10));
}

void ExpertExchange::dispatch(const BlockContext& context,
                              const TensorView& received,
                              const TensorView& sent,
                              const char* name) const {
  move(context, {.y = received, .x = sent, .send_rows = send_rows_, .recv_rows = recv_rows_}, name);
}

void ExpertExchange::combine(const BlockContext& context,
                             const TensorView& sent,
                             const TensorView& received,
                             const char* name) const {
  move(context, {.y = sent, .x = received, .send_rows = recv_rows_, .recv_rows = send_rows_}, name);
}

void ExpertExchange::arrive(const BlockContext& context) const {
  if (context.under_way != nullptr) {
    context.under_way->wait(context.stream);
  }
}

void ExpertExchange::move(const BlockContext& context,
                          const AllToAll& rows,
                          const char* name) const {
  Communicator& ranks = context.groups.expert_ranks();
  if (context.under_way != nullptr) {
    context.under_way->start(ranks, rows, name, context.stream);
  } else {
    ranks.run(rows, name, context.stream);
  }
}

}  // namespace memphis
