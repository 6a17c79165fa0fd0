// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <deque>
#include <vector>

#include "kernels/device/simt/tensor_map.h"

namespace memphis::kernels::simt {

class Block;

// A copy of TMA into shared memory that is under way.
struct BulkLoad {
  TensorMap map;
  Coordinates corner;
  std::byte* to;
  const void* pc;
};

// cp.async.bulk.tensor of a block. Everything that can be wrong with a copy is found where it is
// issued; it is made as late as the kernel allows. Functions are of the running thread, which is at
// `pc`, unless they say otherwise.
class BulkCopies {
 public:
  explicit BulkCopies(Block& block) : block_(block) {}

  void begin_block(int num_threads);
  // By a thread that leaves the kernel.
  void leave();

  // A box into shared memory, made when somebody waits for the mbarrier's phase.
  void load(void* shared,
            const TensorMap& map,
            const void* mbarrier,
            const Coordinates& corner,
            int num_coordinates,
            const void* pc);
  // Makes it. Of any side.
  void finish(const BulkLoad& load);

  // A box to global memory, read from shared memory by wait(…, true) at the latest and written by
  // wait(…, false).
  void store(const TensorMap& map,
             const void* shared,
             const Coordinates& corner,
             int num_coordinates,
             const void* pc);
  void commit();
  // Until at most `pending` of the thread's newest groups are under way, or have only been read.
  void wait(std::size_t pending, bool only_read);

 private:
  struct Store {
    TensorMap map;
    Coordinates corner;
    const std::byte* from;
    const void* pc;
    std::vector<std::byte> box;  // in its order without a swizzle, from when it has been read
  };
  struct Stores {
    std::deque<std::vector<Store>> groups;  // committed, oldest first
    std::size_t num_read = 0;               // of these groups, the oldest
    std::vector<Store> open_group;
  };

  void check(const TensorMap& map, const void* shared, int num_coordinates, const void* pc);
  void read(Store& store);
  static void write(const Store& store);

  Block& block_;
  std::vector<Stores> stores_;  // by thread
};

}  // namespace memphis::kernels::simt
