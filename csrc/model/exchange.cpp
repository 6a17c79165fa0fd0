// SPDX-License-Identifier: Apache-2.0
#include "csrc/model/exchange.h"

#include <algorithm>
#include <cmath>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/plan/host_memory.h"
#include "kernels/permute/permute.h"

namespace memphis {
namespace {

// Other layers, steps and groups of ranks route otherwise: a number that is just enough for the
// rows that did not fit would soon be raised again.
constexpr double kSpareRoom = 1.25;

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
      sent_offsets_(sent_offsets_bytes(dims), device),
      copied_(device, Event::Use::ordering),
      send_rows_(static_cast<std::size_t>(dims.expert_ranks)),
      recv_rows_(static_cast<std::size_t>(dims.expert_ranks)),
      num_arrived_(dims.local_R) {}

void ExpertExchange::sum_loads(const BlockContext& context, const Layer& layer) {
  if (!dims_.share_sequences()) {
    return;
  }
  const auto sum = [](const TensorView& view) { return AllReduce{.y = view, .x = view}; };
  const std::array<Sum, 3> sums = {
      sum(layer.counts_BE), sum(layer.probs_sum_BE), sum(layer.valid_B)};
  loads_ =
      context.groups.sequence_ranks().start(Sums{.parts = sums}, "moe.balance", context.stream);
}

void ExpertExchange::wait_for_loads(Stream stream) {
  if (loads_) {
    loads_->wait(stream);
    loads_.reset();
  }
}

void ExpertExchange::count(const BlockContext& context, const Layer& layer) {
  if (!dims_.exchange_rows) {
    return;
  }
  // All counts and not only those for this rank: a few more bytes, and ranks agree on whether all
  // have room.
  const TensorView& sent_offsets_PE1 = context.shared.sent_offsets_PE1;
  Communicator& ranks = context.groups.expert_ranks();
  rank_ = ranks.rank();
  ranks.run(AllGather{.y = sent_offsets_PE1, .x = layer.offsets_E1}, "moe.counts", context.stream);
  device_copy(
      sent_offsets_.data(), sent_offsets_PE1.data, sent_offsets_PE1.bytes(), context.stream);
  copied_.record(context.stream);
  reads_counts_ = true;
  kernels::arrival_index({.slot_R = layer.arrival_slot_R1.reshape({dims_.local_R}),
                          .source_R = layer.arrival_source_R,
                          .offsets_E1 = layer.arrival_offsets_E1,
                          .sent_offsets_PE1 = sent_offsets_PE1,
                          .rank = rank_},
                         context.stream);
}

std::int64_t ExpertExchange::num_arrived() const {
  if (reads_counts_) {
    copied_.wait();
    read_counts();
  }
  return num_arrived_;
}

void ExpertExchange::read_counts() const {
  reads_counts_ = false;
  const auto rows_between = [&](std::int64_t sender, std::int64_t receiver) -> std::int64_t {
    const std::int32_t* const offsets = static_cast<const std::int32_t*>(sent_offsets_.data()) +
                                        sender * num_expert_offsets(dims_) +
                                        receiver * dims_.local_E;
    return offsets[dims_.local_E] - offsets[0];
  };
  std::int64_t most_arrived = 0;
  for (std::int64_t receiver = 0; receiver < dims_.expert_ranks; ++receiver) {
    std::int64_t arrived = 0;
    for (std::int64_t sender = 0; sender < dims_.expert_ranks; ++sender) {
      arrived += rows_between(sender, receiver);
    }
    most_arrived = std::max(most_arrived, arrived);
  }
  require_room(most_arrived);
  num_arrived_ = 0;
  for (std::int64_t other = 0; other < dims_.expert_ranks; ++other) {
    send_rows_[static_cast<std::size_t>(other)] = rows_between(rank_, other);
    recv_rows_[static_cast<std::size_t>(other)] = rows_between(other, rank_);
    num_arrived_ += recv_rows_[static_cast<std::size_t>(other)];
  }
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
