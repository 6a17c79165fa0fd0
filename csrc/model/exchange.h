// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "csrc/comm/communicator.h"
#include "csrc/core/device.h"
#include "csrc/model/block.h"

namespace memphis {

// Exchanges that one pass has begun, and another computes beside.
class RowsUnderWay {
 public:
  void start(Communicator& ranks, const AllToAll& rows, const char* name, Stream stream);
  // What follows on `stream` sees all of them.
  void wait(Stream stream);
  bool any() const { return num_ > 0; }

 private:
  // Rows and the gates that go with them.
  std::array<std::unique_ptr<Communicator::Work>, 2> works_;
  std::size_t num_ = 0;
};

// Rows on their way to the ranks that hold their experts, and back. Counts are exact: no row is
// padded or dropped. A rank sends its rows sorted by expert, so those for one rank lie together;
// what arrives is sorted by sender and is put in the order of this rank's experts.
//
// An expert whose width is cut over `expert_pieces` ranks is that many experts here: a choice goes
// to each of them, each computes its term of the down projection, and the sum over a token's
// choices is the sum over the terms too.
//
// Counts pass through the host, because a collective's sizes are the host's to give. One object
// serves one layer from its forward to its backward pass.
class ExpertExchange {
 public:
  explicit ExpertExchange(const Dims& dims, Device device);

  // Tells the others the counts of layer.offsets_E1 and sets the layer's arrival_* tensors. If more
  // rows arrive at one of the ranks than the plan has room for, all throw the same ConfigError,
  // which names the number to raise: nothing is dropped.
  void count(const BlockContext& context, const Layer& layer);

  std::int64_t num_arrived() const { return num_arrived_; }

  // Rows as sent -> rows as received, or back: begun where context.under_way is, until arrive();
  // else done.
  void dispatch(const BlockContext& context,
                const TensorView& received,
                const TensorView& sent,
                const char* name) const;
  void combine(const BlockContext& context,
               const TensorView& sent,
               const TensorView& received,
               const char* name) const;
  void arrive(const BlockContext& context) const;

 private:
  void move(const BlockContext& context, const AllToAll& rows, const char* name) const;
  void require_room(std::int64_t num_rows) const;

  Dims dims_;
  PinnedBuffer offsets_;              // i32 [E * expert_pieces + 1]
  PinnedBuffer arrival_;              // i32 source [local_R], slot [local_R], offsets [local_E + 1]
  std::vector<std::int64_t> counts_;  // [E * expert_pieces], sent to each expert
  std::vector<std::int64_t> all_counts_;  // [expert_ranks, E * expert_pieces], of every rank
  std::vector<std::int64_t> send_rows_;
  std::vector<std::int64_t> recv_rows_;
  std::int64_t num_arrived_ = 0;
};

}  // namespace memphis
