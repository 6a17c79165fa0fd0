// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <utility>

#include "csrc/core/device.h"
#include "csrc/core/tensor.h"

namespace memphis {

// Bytes that a tensor takes in an arena: its own, rounded up so that the next one is aligned.
constexpr std::size_t kArenaAlignment = 256;
constexpr std::size_t arena_bytes(std::size_t bytes) {
  return (bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
}
inline std::size_t arena_bytes(const TensorSpec& spec) {
  return arena_bytes(spec.bytes());
}

// One allocation of a size that the plan computed, handed out front to back and never given back.
// Zeroed at birth. Owner of the memory; the views it hands out must not outlive it.
class Arena {
 public:
  Arena(std::string name, std::size_t capacity_bytes, Device device);
  ~Arena();
  Arena(Arena&& other) noexcept
      : name_(std::move(other.name_)),
        data_(std::exchange(other.data_, nullptr)),
        capacity_bytes_(other.capacity_bytes_),
        used_bytes_(other.used_bytes_),
        device_(other.device_) {}
  Arena& operator=(Arena&&) = delete;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Aligned to 256 bytes. ContractError if the plan's size is exceeded: the plan is then wrong. An
  // absent spec gives an absent view and takes nothing.
  TensorView allocate(const TensorSpec& spec);

  const std::string& name() const { return name_; }
  std::size_t capacity_bytes() const { return capacity_bytes_; }
  std::size_t used_bytes() const { return used_bytes_; }
  Device device() const { return device_; }

 private:
  std::string name_;
  void* data_ = nullptr;
  std::size_t capacity_bytes_ = 0;
  std::size_t used_bytes_ = 0;
  Device device_;
};

}  // namespace memphis
