// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <deque>
#include <vector>

#include "kernels/device/simt/mbarrier.h"
#include "kernels/device/simt/tensor_map.h"
#include "kernels/device/simt/unit_host.h"

namespace memphis::kernels::simt {

// What a bulk store does with the values that are in global memory.
enum class Combine : std::uint8_t { replace, add_floats };

// cp.async.bulk and cp.async.bulk.tensor of a block, cp.reduce among them. Everything that can be
// wrong with a copy is found where it is issued; it is made as late as the kernel allows. Functions
// are of the running thread, which is at `pc`, unless they say otherwise.
class BulkCopies {
 public:
  BulkCopies(UnitHost& block, Mbarriers& mbarriers) : block_(block), mbarriers_(mbarriers) {}

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

  // In two steps: what is asked of the tensor, once, and of a block that the box goes to.
  void read_box(const void* shared,
                const TensorMap& map,
                const Coordinates& corner,
                int num_coordinates,
                const void* pc);
  void deliver(void* shared,
               const TensorMap& map,
               const void* mbarrier,
               const Coordinates& corner,
               const void* pc);

  // The same of contiguous bytes.
  void load(
      void* shared, const void* global, std::uint32_t bytes, const void* mbarrier, const void* pc);

  // A box to global memory, read from shared memory by wait(…, true) at the latest and written by
  // wait(…, false). Stores of one group are written in any order.
  void store(const TensorMap& map,
             const void* shared,
             const Coordinates& corner,
             int num_coordinates,
             Combine combine,
             const void* pc);
  void store(
      void* global, const void* shared, std::uint32_t bytes, Combine combine, const void* pc);
  void prefetch(const TensorMap& map, const void* pc);
  void commit();
  // Until at most `pending` of the thread's newest groups are under way, or have only been read.
  void wait(std::size_t pending, bool only_read);

 private:
  struct Store {
    TensorMap map;
    Coordinates corner;
    const std::byte* from;
    Combine combine;
    const void* pc;
    std::vector<std::byte> box;  // in its order without a swizzle, from when it has been read
  };
  struct Stores {
    std::deque<std::vector<Store>> groups;  // committed, oldest first
    std::size_t num_read = 0;               // of these groups, the oldest
    std::vector<Store> open_group;
  };

  void check_map(const TensorMap& map, int num_coordinates, const void* pc);
  void check_corner(const TensorMap& map, const Coordinates& corner, const void* pc);
  void check_box(const void* shared, const void* pc);
  void check_contiguous(const void* global,
                        const void* shared,
                        std::uint32_t bytes,
                        const void* pc);
  void read_global(const TensorMap& map, const Coordinates& corner, const void* pc);
  void issue_store(const TensorMap& map,
                   const void* shared,
                   const Coordinates& corner,
                   Combine combine,
                   const void* pc);
  void read(Store& store);
  static void write(const Store& store);

  UnitHost& block_;
  Mbarriers& mbarriers_;
  std::vector<Stores> stores_;  // by thread; kept from block to block, as making them allocates
  bool any_stores_ = false;     // since they were last cleared
};

}  // namespace memphis::kernels::simt
