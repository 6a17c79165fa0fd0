// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/device/simt/block.h"

namespace memphis::kernels::simt {

// Blocks that run together and reach each other's shared memory: one, unless a launch asks for more.
// They take turns on one thread of the machine.
class Cluster {
 public:
  // Of the calling thread of the machine.
  static Cluster& of_this_thread();

  // Runs the blocks from number `first` on to their ends. False: faulty() did not get there.
  bool run(const KernelCall& call, std::int64_t first);
  const Block& faulty() const { return *faulty_; }

  // Of a thread that is at its barrier: whether it was the last, and all go on.
  bool pass_barrier();
  // mbarrier.arrive at what lies in block `rank` where `barrier` lies in `from`, of whose running thread
  // it is.
  void arrive(Block& from, const void* barrier, int rank, const void* pc);
  // cp.async.bulk.tensor to all blocks of `ranks`, a bit each.
  void load(Block& from,
            void* shared,
            const TensorMap& map,
            const void* barrier,
            const Coordinates& corner,
            int num_coordinates,
            unsigned ranks,
            const void* pc);

 private:
  bool is_over() const;
  bool advance();
  bool wake();
  void find_deadlock();
  Block& block(Block& from, int rank, const void* pc);

  std::vector<std::unique_ptr<Block>> blocks_;  // as many as ever ran together
  std::size_t size_ = 0;
  const Block* faulty_ = nullptr;
};

}  // namespace memphis::kernels::simt
