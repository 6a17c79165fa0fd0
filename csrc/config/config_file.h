// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>

namespace memphis {

// ConfigError where there is nothing at `file`: with the config of the nearest name in its directory
// or in configs/, or else those that there are. Pipes and devices are there.
void require_config_file(const std::filesystem::path& file);

}  // namespace memphis
