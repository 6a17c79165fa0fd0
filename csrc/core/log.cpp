// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/log.h"

#include <memory>
#include <string>
#include <string_view>

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include "csrc/core/printable.h"
#include "csrc/core/progress.h"

namespace memphis {
namespace {

// The message, whatever it quotes: files, arguments, models. What a terminal would obey, or a log of
// UTF-8 would choke on, is escaped. Ends of lines are the message's own to make: what must not break
// one is passed through printable() before.
class PrintableMessage final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message,
              const std::tm& /*time*/,
              spdlog::memory_buf_t& line) override {
    const std::string text =
        printable(std::string_view(message.payload.data(), message.payload.size()), Lines::kept);
    line.append(text.data(), text.data() + text.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override {
    return std::make_unique<PrintableMessage>();
  }
};

}  // namespace

void configure_log() {
  auto logger = spdlog::stderr_color_mt("memphis");
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  formatter->add_flag<PrintableMessage>('*').set_pattern("%^%*%$");
  logger->set_formatter(std::move(formatter));
  spdlog::set_default_logger(std::move(logger));
}

void log_warnings_alone() {
  spdlog::set_level(spdlog::level::warn);
}

bool logs_info() {
  return spdlog::should_log(spdlog::level::info);
}

void log(LogLevel level, std::string_view message) {
  const auto spdlog_level = level == LogLevel::info      ? spdlog::level::info
                            : level == LogLevel::warning ? spdlog::level::warn
                                                         : spdlog::level::err;
  const AboveLiveLine above;
  spdlog::log(spdlog_level, message);
}

}  // namespace memphis
