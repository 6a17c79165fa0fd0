// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>

namespace memphis {

void configure_log() {
  auto logger = spdlog::stderr_color_mt("memphis");
  logger->set_pattern("%^%v%$");
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace memphis
