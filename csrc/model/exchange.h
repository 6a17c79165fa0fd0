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
// Counts stay where the rows are, and so does the order that follows from them. The host reads them
// besides, because a collective's sizes and an op's shapes are its to give. One object serves one
// layer from its forward to its backward pass.
class ExpertExchange {
 public:
  explicit ExpertExchange(const Dims& dims, Device device);

  // What the experts are given of a sequence, and with which probabilities, summed over the ranks that
  // share it out: three small sums in one call, under way until wait_for_loads().
  void sum_loads(const BlockContext& context, const Layer& layer);
  void wait_for_loads(Stream stream);

  // Tells the others the counts of layer.offsets_E1 and sets the layer's arrival_* tensors: one
  // collective of expert_ranks, and nothing that the host waits for on the GPU.
  void count(const BlockContext& context, const Layer& layer);

  // Rows that arrive, of the room for local_R. The first call after count() waits for the counts,
  // which are copied right behind their exchange: enqueue what does not need them before it. If more
  // rows arrive at one of the ranks than the plan has room for, all throw the same ConfigError, which
  // names the number to raise: nothing is dropped.
  std::int64_t num_arrived() const;

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
  void read_counts() const;
  void move(const BlockContext& context, const AllToAll& rows, const char* name) const;
  void require_room(std::int64_t num_rows) const;

  Dims dims_;
  std::unique_ptr<Communicator::Work> loads_;  // null: none are under way
  PinnedBuffer sent_offsets_;  // i32 [expert_ranks, E * expert_pieces + 1], of every rank
  Event copied_;
  std::int64_t rank_ = 0;  // among expert_ranks
  // What the host makes of the counts, once it asks for them.
  mutable bool reads_counts_ = false;
  mutable std::vector<std::int64_t> send_rows_;
  mutable std::vector<std::int64_t> recv_rows_;
  mutable std::int64_t num_arrived_;
};

}  // namespace memphis
