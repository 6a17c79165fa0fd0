// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "csrc/core/device.h"

namespace memphis::test {

// Values of T in device memory.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& values)
      : count_(values.size()),
        data_(static_cast<T*>(device_allocate(count_ * sizeof(T), Device::cuda))) {
    device_copy(data_, values.data(), count_ * sizeof(T), stream());
    synchronize(stream());
  }
  DeviceArray(std::size_t count, T value) : DeviceArray(std::vector<T>(count, value)) {}
  ~DeviceArray() { device_free(data_, Device::cuda); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  std::vector<T> values() const {
    synchronize(stream());
    std::vector<T> result(count_);
    device_copy(result.data(), data_, count_ * sizeof(T), stream());
    synchronize(stream());
    return result;
  }

 private:
  static Stream stream() { return {.device = Device::cuda, .handle = nullptr}; }

  std::size_t count_;
  T* data_;
};

// Why kernels for GPUs of this compute capability cannot run here; empty if they can.
inline std::string no_device_reason(int compute_capability) {
  if (!device_available(Device::cuda)) {
    return device_unavailable_reason();
  }
  const int found = device_info(Device::cuda).compute_capability;
  return found >= compute_capability ? ""
                                     : "the GPU is of sm_" + std::to_string(found) + ", not sm_" +
                                           std::to_string(compute_capability);
}

}  // namespace memphis::test
