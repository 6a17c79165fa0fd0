// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/config/config.h"
#include "csrc/config/sources.h"
#include "csrc/core/device.h"

// What a resolved config asks of the machine that it is to run on.
namespace memphis {

// Every entry of data.train and data.validation exists and may be read (DataError), run.dir is or
// may become a directory (ConfigError), the device is there (PreflightError) and takes the model's
// sizes (ConfigError). The device is asked last.
void check_machine(const Config& config, const Sources& sources);

// The limits of the kernels of `device`. ConfigError.
void check_device_limits(const Config& config, Device device, const Sources& sources);

}  // namespace memphis
