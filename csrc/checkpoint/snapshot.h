// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstddef>
#include <span>
#include <vector>

#include "csrc/checkpoint/state_pieces.h"
#include "csrc/core/device.h"
#include "csrc/optim/optimizer.h"

namespace memphis {

// What this rank writes of a checkpoint, in host memory of its own: copied segment by segment while
// the passes of the next step read the weights, and before its optimizer changes them.
//
//   the training thread      take(), then a step, whose optimizer asks await()
//   the thread that writes   copy(), then reads sources()
//
// Memory   snapshot_bytes (csrc/plan/memory.h), from the beginning; take() allocates nothing.
// Async    a GPU's copies run on a stream of their own and hold the optimizer's stream up, not the
//          CPU; the CPU's are made by copy(), and await() waits for it.
class Snapshot : public UpdateGate {
 public:
  // All referents must outlive it.
  Snapshot(const Parameters& parameters, const Optimizer& optimizer, Stream stream);

  // The state as what is enqueued on the stream leaves it. The last one has been read.
  void take();

  // Whether copy() will return without waiting for a GPU, which is not the writing thread's to do.
  bool can_copy() const;
  void wait_until_it_can() const;

  // Returns when all of it is there.
  void copy();

  // Of each file its tensors, which read this memory.
  std::span<const TensorSource> weights() const { return weights_; }
  std::span<const TensorSource> optimizer() const { return optimizer_; }

  std::size_t bytes() const { return memory_.bytes(); }

  // Of the CPU's await() since the last take().
  double awaited_seconds() const { return awaited_seconds_; }

  bool is_open() const override { return !taken_; }
  void await(std::size_t segment, Stream stream) override;

 private:
  struct Copy {
    const void* from;
    std::size_t offset;  // in memory_
    std::size_t bytes;
  };
  struct Bucket {  // of a segment
    std::vector<Copy> copies;
    Event copied;
  };

  void add(const std::vector<StatePiece>& pieces, std::vector<TensorSource>& sources);

  Stream stream_;
  PinnedBuffer memory_;
  std::size_t used_ = 0;
  std::vector<Bucket> buckets_;
  std::vector<TensorSource> weights_;
  std::vector<TensorSource> optimizer_;
  OwnedStream copies_;
  Event taken_at_;
  std::atomic<std::size_t> num_copied_ = 0;  // buckets, of the CPU
  double awaited_seconds_ = 0;
  bool taken_ = false;  // the training thread's: and an optimizer's step has not waited for all yet
};

}  // namespace memphis
