// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

// The memory of Device::cuda in the simt build: host memory of its own address
// range, every byte of which is either part of a live allocation or nobody's. Kernels ask here
// whether an access is theirs to make; the host may only copy to and from it, as on a GPU:
// AddressSanitizer stops a host function that reads or writes it.
namespace memphis::simt_memory {

// The address range. Nothing is ever handed out twice, so memory that was freed stays nobody's.
struct Range {
  std::uintptr_t begin = 0;
  std::size_t bytes = 0;
  // Of each 8 bytes of the range, how many belong to a live allocation, counted from the first.
  const std::uint8_t* valid = nullptr;
};
extern const Range& range;

inline bool contains(std::uintptr_t address) {
  return address - range.begin < range.bytes;
}

// Whether [address, address + bytes) lies in one live allocation. Requires contains(address).
inline bool is_live(std::uintptr_t address, std::size_t bytes) {
  std::uintptr_t offset = address - range.begin;
  const std::uintptr_t end = offset + bytes;
  while (offset < end) {
    const std::uintptr_t next = (offset | 7) + 1;
    const std::uintptr_t last = (end < next ? end : next) - 1;
    if (range.valid[offset / 8] <= last % 8) {
      return false;
    }
    offset = next;
  }
  return true;
}

// cudaMalloc and cudaFree. Memory begins as NaN in every dtype. Throws PreflightError where the range
// is used up, and ContractError for what is not allocated.
void* allocate(std::size_t bytes);
void release(void* data);

// What the device has in bytes, of which what is allocated and what libraries keep is taken:
// allocate() throws PreflightError where it is not enough. 0, as it is unless it is set: as much as
// there are addresses, and the memory is the machine's.
void set_capacity(std::size_t bytes);
std::size_t capacity();
std::size_t used_bytes();

// Memory that a library keeps for itself on the device while this exists. No kernel of ours reads
// or writes it, so it is counted and there is none. Throws as allocate() does.
class Kept {
 public:
  explicit Kept(std::size_t bytes);
  ~Kept();
  Kept(Kept&& other) noexcept : bytes_(std::exchange(other.bytes_, 0)) {}
  Kept& operator=(Kept&&) = delete;
  Kept(const Kept&) = delete;
  Kept& operator=(const Kept&) = delete;

 private:
  std::size_t bytes_;
};

// Where an address of the range lies: "4 bytes past the end of an allocation of 512 bytes".
std::string describe(std::uintptr_t address);

// Lets the host read and write [address, address + bytes) of live memory while it exists: for what
// stands in for the device, such as the product that replaces cuBLASLt's. Throws ContractError if
// the range is not live.
class HostAccess {
 public:
  HostAccess(const void* address, std::size_t bytes);
  ~HostAccess();
  HostAccess(const HostAccess&) = delete;
  HostAccess& operator=(const HostAccess&) = delete;

 private:
  const void* address_;
  std::size_t bytes_;
};

}  // namespace memphis::simt_memory
