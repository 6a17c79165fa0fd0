// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/simt/bulk_copies.h"

#include <cstring>

#include "kernels/device/simt/bulk_load.h"

namespace memphis::kernels::simt {
namespace {

constexpr std::size_t kChunk = 16;

std::uintptr_t address_of(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer);
}

}  // namespace

void BulkCopies::begin_block(int num_threads) {
  stores_.clear();
  stores_.resize(static_cast<std::size_t>(num_threads));
}

void BulkCopies::check(const TensorMap& map,
                       const void* shared,
                       int num_coordinates,
                       const void* pc) {
  constexpr std::uintptr_t kAlignment = 128;
  if (map.magic != TensorMap::kMagic || map.num_dims != num_coordinates) {
    block_.stop({.what = "issues a bulk copy with a tensor map that make_tensor_map did not write, "
                         "or with another number of coordinates than it has dims",
                 .advice = "pass the map as a const __grid_constant__ TensorMap",
                 .pc = pc});
  }
  if (address_of(shared) % kAlignment != 0 || !block_.shared().contains(address_of(shared))) {
    block_.stop({.what = "issues a bulk copy whose box is not in shared memory, or not at a "
                         "multiple of 128 bytes",
                 .advice = "align the box; with a swizzle, to 8 of its rows",
                 .pc = pc});
  }
}

void BulkCopies::load(void* shared,
                      const TensorMap& map,
                      const void* mbarrier,
                      const Coordinates& corner,
                      int num_coordinates,
                      const void* pc) {
  check(map, shared, num_coordinates, pc);
  mbarriers_.require_copyable(mbarrier, pc);
  for_each_chunk(map, corner, [&](const BoxChunk& chunk) {
    if (chunk.first < chunk.last) {
      block_.access(reinterpret_cast<const void*>(chunk.global + chunk.first),
                    chunk.last - chunk.first,
                    Access::read,
                    pc);
    }
  });
  block_.access(shared, map.box_bytes, Access::async_write, pc);
  block_.shared().begin_copy(address_of(shared), map.box_bytes);
  mbarriers_.add_copy(
      mbarrier, {.map = map, .corner = corner, .to = static_cast<std::byte*>(shared), .pc = pc});
}

void BulkCopies::store(const TensorMap& map,
                       const void* shared,
                       const Coordinates& corner,
                       int num_coordinates,
                       const void* pc) {
  check(map, shared, num_coordinates, pc);
  block_.access(shared, map.box_bytes, Access::async_read, pc);
  for_each_chunk(map, corner, [&](const BoxChunk& chunk) {
    if (chunk.first < chunk.last) {
      block_.access(reinterpret_cast<const void*>(chunk.global + chunk.first),
                    chunk.last - chunk.first,
                    Access::write,
                    pc);
    }
  });
  block_.shared().begin_reading(address_of(shared), map.box_bytes);
  stores_[static_cast<std::size_t>(block_.thread_id())].open_group.push_back(
      {.map = map,
       .corner = corner,
       .from = static_cast<const std::byte*>(shared),
       .pc = pc,
       .box = {}});
}

void BulkCopies::commit() {
  Stores& stores = stores_[static_cast<std::size_t>(block_.thread_id())];
  stores.groups.push_back(std::move(stores.open_group));
  stores.open_group.clear();
}

void BulkCopies::wait(std::size_t pending, bool only_read) {
  Stores& stores = stores_[static_cast<std::size_t>(block_.thread_id())];
  while (stores.groups.size() > stores.num_read + pending) {
    for (Store& store : stores.groups[stores.num_read]) {
      read(store);
    }
    ++stores.num_read;
  }
  while (!only_read && stores.groups.size() > pending) {
    for (const Store& store : stores.groups.front()) {
      write(store);
    }
    stores.groups.pop_front();
    --stores.num_read;
  }
}

void BulkCopies::read(Store& store) {
  block_.shared().end_reading(address_of(store.from), store.map.box_bytes);
  // Noted again, as a read between the issue and now: who overwrites must come after the wait.
  block_.access(store.from, store.map.box_bytes, Access::async_read, store.pc);
  store.box.resize(store.map.box_bytes);
  for (std::uint32_t offset = 0; offset < store.map.box_bytes; offset += kChunk) {
    std::memcpy(store.box.data() + offset,
                store.from + box_place(store.from, offset, store.map.swizzle),
                kChunk);
  }
}

// Device memory is copied by the byte: it is poisoned for the host's memcpy.
void BulkCopies::write(const Store& store) {
  for_each_chunk(store.map, store.corner, [&](const BoxChunk& chunk) {
    auto* const to = reinterpret_cast<std::byte*>(chunk.global);
    for (std::size_t i = chunk.first; i < chunk.last; ++i) {
      to[i] = store.box[chunk.offset + i];
    }
  });
}

void BulkCopies::leave() {
  Stores& stores = stores_[static_cast<std::size_t>(block_.thread_id())];
  const Store* unread = stores.open_group.empty() ? nullptr : &stores.open_group.front();
  for (std::size_t i = stores.num_read; i < stores.groups.size(); ++i) {
    unread = stores.groups[i].empty() ? unread : &stores.groups[i].front();
  }
  if (unread != nullptr) {
    block_.stop({.what = "issued a bulk store that it has not waited for when it left the kernel",
                 .advice = "call tma_commit and tma_wait_read before: shared memory may be another "
                           "block's by then",
                 .pc = unread->pc});
  }
  wait(0, false);
}

}  // namespace memphis::kernels::simt
