// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/simt/bulk_copies.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/device/simt/bulk_load.h"
#include "kernels/device/simt/inexact.h"

namespace memphis::kernels::simt {
namespace {

// Of the device's memory. PTX ISA, cp.reduce.async.bulk: add.f32 flushes subnormal inputs and
// results to zeros of their sign.
void add_float(std::byte* address, float value) {
  auto* const bits = reinterpret_cast<std::uint32_t*>(address);
  std::uint32_t before = __atomic_load_n(bits, __ATOMIC_RELAXED);
  std::uint32_t after = 0;
  do {
    after = std::bit_cast<std::uint32_t>(
        flush_subnormal(flush_subnormal(std::bit_cast<float>(before)) + flush_subnormal(value)));
  } while (
      !__atomic_compare_exchange_n(bits, &before, after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
}

}  // namespace

void BulkCopies::begin_block(int num_threads) {
  stores_.resize(std::max(stores_.size(), static_cast<std::size_t>(num_threads)));
  if (any_stores_) {
    std::fill(stores_.begin(), stores_.end(), Stores{});
    any_stores_ = false;
  }
}

void BulkCopies::check_map(const TensorMap& map, int num_coordinates, const void* pc) {
  if (map.magic != TensorMap::kMagic || map.num_dims != num_coordinates) {
    block_.stop({.what = "issues a bulk copy with a tensor map that make_tensor_map did not write, "
                         "or with another number of coordinates than it has dims",
                 .advice = "pass the map as a const __grid_constant__ TensorMap",
                 .pc = pc});
  }
}

// No document of CUDA's says so. On a GPU it is an illegal instruction, of copies in both directions
// (triton-lang/triton issue 7385, tile-ai/tilelang issue 2527).
void BulkCopies::check_corner(const TensorMap& map, const Coordinates& corner, const void* pc) {
  if (std::int64_t{corner[0]} * map.element_bytes % kChunkBytes != 0) {
    block_.stop({.what =
                     "issues a bulk copy of a box whose innermost coordinate is not at whole 16 "
                     "bytes of its row",
                 .advice = "begin at a multiple of 16 bytes, before or behind the tensor too",
                 .pc = pc});
  }
}

void BulkCopies::check_box(const void* shared, const void* pc) {
  constexpr std::uintptr_t kAlignment = 128;
  if (address_of(shared) % kAlignment != 0 || !block_.shared().contains(address_of(shared))) {
    block_.stop({.what = "issues a bulk copy whose box is not in shared memory, or not at a "
                         "multiple of 128 bytes",
                 .advice = "align the box; with a swizzle, to 8 of its rows",
                 .pc = pc});
  }
}

void BulkCopies::check_contiguous(const void* global,
                                  const void* shared,
                                  std::uint32_t bytes,
                                  const void* pc) {
  if (bytes == 0 || bytes > SharedMemory::kMaxBytes || bytes % kChunkBytes != 0 ||
      address_of(shared) % kChunkBytes != 0 || address_of(global) % kChunkBytes != 0 ||
      !block_.shared().contains(address_of(shared))) {
    block_.stop({.what = "issues a bulk copy that is not of whole 16 bytes, from 16-byte aligned "
                         "global to shared memory or back",
                 .advice = "align both sides and the size",
                 .pc = pc});
  }
}

void BulkCopies::load(void* shared,
                      const TensorMap& map,
                      const void* mbarrier,
                      const Coordinates& corner,
                      int num_coordinates,
                      const void* pc) {
  read_box(shared, map, corner, num_coordinates, pc);
  deliver(shared, map, mbarrier, corner, pc);
}

void BulkCopies::load(
    void* shared, const void* global, std::uint32_t bytes, const void* mbarrier, const void* pc) {
  check_contiguous(global, shared, bytes, pc);
  const TensorMap map = contiguous(global, bytes);
  read_global(map, {}, pc);
  deliver(shared, map, mbarrier, {}, pc);
}

void BulkCopies::read_box(const void* shared,
                          const TensorMap& map,
                          const Coordinates& corner,
                          int num_coordinates,
                          const void* pc) {
  check_map(map, num_coordinates, pc);
  check_corner(map, corner, pc);
  check_box(shared, pc);
  read_global(map, corner, pc);
}

void BulkCopies::read_global(const TensorMap& map, const Coordinates& corner, const void* pc) {
  for_each_chunk(map, corner, [&](const BoxChunk& chunk) {
    if (chunk.first < chunk.last) {
      block_.access(reinterpret_cast<const void*>(chunk.global + chunk.first),
                    chunk.last - chunk.first,
                    Access::async_read,
                    pc);
    }
  });
}

void BulkCopies::deliver(void* shared,
                         const TensorMap& map,
                         const void* mbarrier,
                         const Coordinates& corner,
                         const void* pc) {
  mbarriers_.require_copyable(mbarrier, pc);
  block_.access(shared, map.box_bytes, Access::async_write, pc);
  block_.shared().begin_copy(address_of(shared), map.box_bytes);
  mbarriers_.add_copy(
      mbarrier, {.map = map, .corner = corner, .to = static_cast<std::byte*>(shared), .pc = pc});
}

void BulkCopies::prefetch(const TensorMap& map, const void* pc) {
  check_map(map, map.num_dims, pc);
}

void BulkCopies::store(const TensorMap& map,
                       const void* shared,
                       const Coordinates& corner,
                       int num_coordinates,
                       Combine combine,
                       const void* pc) {
  check_map(map, num_coordinates, pc);
  check_corner(map, corner, pc);
  check_box(shared, pc);
  if (combine == Combine::add_floats && map.element_bytes != sizeof(float)) {
    block_.stop({.what = "adds to a tensor that is not of f32",
                 .advice = "make the map of the f32 tensor",
                 .pc = pc});
  }
  if (std::any_of(corner.begin(), corner.end(), [](std::int32_t c) { return c < 0; })) {
    block_.stop({.what = "writes a box that begins before the tensor, at a negative coordinate "
                         "(only what is read may begin there)",
                 .advice = "begin at 0, and leave away what lies before it",
                 .pc = pc});
  }
  issue_store(map, shared, corner, combine, pc);
}

void BulkCopies::store(
    void* global, const void* shared, std::uint32_t bytes, Combine combine, const void* pc) {
  check_contiguous(global, shared, bytes, pc);
  issue_store(contiguous(global, bytes), shared, {}, combine, pc);
}

void BulkCopies::issue_store(const TensorMap& map,
                             const void* shared,
                             const Coordinates& corner,
                             Combine combine,
                             const void* pc) {
  block_.access(shared, map.box_bytes, Access::async_read, pc);
  for_each_chunk(map, corner, [&](const BoxChunk& chunk) {
    if (chunk.first < chunk.last) {
      block_.access(reinterpret_cast<const void*>(chunk.global + chunk.first),
                    chunk.last - chunk.first,
                    Access::async_write,
                    pc);
    }
  });
  block_.shared().begin_reading(address_of(shared), map.box_bytes);
  any_stores_ = true;
  stores_[static_cast<std::size_t>(block_.thread_id())].open_group.push_back(
      {.map = map,
       .corner = corner,
       .from = static_cast<const std::byte*>(shared),
       .combine = combine,
       .pc = pc,
       .box = {}});
}

void BulkCopies::commit() {
  any_stores_ = true;
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
    std::vector<Store>& group = stores.groups.front();
    if (options().seed % 2 == 1) {
      std::reverse(group.begin(), group.end());
    }
    for (const Store& store : group) {
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
  for (std::uint32_t offset = 0; offset < store.map.box_bytes; offset += kChunkBytes) {
    std::memcpy(store.box.data() + offset,
                store.from + box_place(store.from, offset, store.map.swizzle),
                kChunkBytes);
  }
}

// Device memory is copied by the byte: it is poisoned for the host's memcpy. Floats are added one
// by one, as another block may add to them at the same time.
void BulkCopies::write(const Store& store) {
  for_each_chunk(store.map, store.corner, [&](const BoxChunk& chunk) {
    auto* const to = reinterpret_cast<std::byte*>(chunk.global);
    if (store.combine == Combine::add_floats) {
      for (std::size_t i = chunk.first; i < chunk.last; i += sizeof(float)) {
        float value = 0.0F;
        std::memcpy(&value, store.box.data() + chunk.offset + i, sizeof(value));
        add_float(to + i, value);
      }
      return;
    }
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
