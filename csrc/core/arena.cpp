// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/arena.h"

#include "csrc/core/error.h"

namespace memphis {

Arena::Arena(std::string name, std::size_t capacity_bytes, Device device)
    : name_(std::move(name)),
      data_(device_allocate(capacity_bytes, device)),
      capacity_bytes_(capacity_bytes),
      device_(device) {
  const OwnedStream stream(device);
  device_zero(data_, capacity_bytes_, stream.view());
  synchronize(stream.view());
}

Arena::~Arena() {
  if (data_ != nullptr) {
    device_free(data_, device_);
  }
}

TensorView Arena::allocate(const TensorSpec& spec) {
  if (!spec.present()) {
    return {};
  }
  const std::size_t bytes = arena_bytes(spec);
  require(used_bytes_ + bytes <= capacity_bytes_,
          "arena " + name_ + " of " + std::to_string(capacity_bytes_) + " bytes is asked for " +
              describe(spec) + " at " + std::to_string(used_bytes_) + " (the plan sized it)");
  TensorView view(static_cast<char*>(data_) + used_bytes_, spec, device_);
  used_bytes_ += bytes;
  return view;
}

}  // namespace memphis
