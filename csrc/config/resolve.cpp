// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/config.h"
#include "csrc/core/error.h"

namespace memphis {

Device resolve_device(DeviceChoice choice) {
  switch (choice) {
    case DeviceChoice::cpu:
      return Device::cpu;
    case DeviceChoice::automatic:
      return device_available(Device::cuda) ? Device::cuda : Device::cpu;
    case DeviceChoice::cuda:
      break;
  }
  if (!device_available(Device::cuda)) {
    throw PreflightError("run.device is cuda and no GPU can be used (" +
                         device_unavailable_reason() + "); set run.device to auto or cpu");
  }
  return Device::cuda;
}

DType resolve_compute(Precision precision, Device device) {
  switch (precision) {
    case Precision::bf16:
      return DType::bf16;
    case Precision::f32:
      return DType::f32;
    case Precision::f64:
      if (device == Device::cuda) {
        throw ConfigError(
            "precision.compute is f64 and the device is cuda (the GPU's kernels compute in bf16 "
            "and f32); set run.device to cpu, or precision.compute to f32");
      }
      return DType::f64;
    case Precision::automatic:
      break;
  }
  return device == Device::cuda ? DType::bf16 : DType::f32;
}

std::string name_of_entry(const std::string& path, const DataEntry& entry) {
  if (!entry.name.empty()) {
    return entry.name;
  }
  const std::size_t end = path.find_last_not_of('/');
  const std::string whole = path.substr(0, end == std::string::npos ? 0 : end + 1);
  const std::string last = whole.substr(whole.rfind('/') + 1);
  return last.substr(0, last.find('.'));
}

}  // namespace memphis
