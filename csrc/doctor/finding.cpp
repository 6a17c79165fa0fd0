// SPDX-License-Identifier: Apache-2.0
#include "csrc/doctor/finding.h"

#include <array>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/json.h"
#include "csrc/core/printable.h"

namespace memphis::doctor {

Finding good(std::string what, std::string measured) {
  return {.what = std::move(what), .state = State::good, .measured = std::move(measured)};
}

Finding bad(std::string what, std::string measured, std::string advice) {
  return {.what = std::move(what),
          .state = State::bad,
          .measured = std::move(measured),
          .advice = std::move(advice)};
}

Finding unchecked(std::string what, std::string why) {
  return {.what = std::move(what), .state = State::unchecked, .measured = std::move(why)};
}

std::string encode(std::span<const Finding> findings) {
  nlohmann::json list = nlohmann::json::array();
  for (const Finding& each : findings) {
    list.push_back({each.what,
                    static_cast<int>(each.state),
                    each.measured,
                    each.advice,
                    static_cast<int>(each.code),
                    each.beside_others});
  }
  // A path may hold bytes that are no text.
  return list.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

std::vector<Finding> decode(std::string_view text) {
  std::vector<Finding> findings;
  for (const nlohmann::json& each : nlohmann::json::parse(text)) {
    findings.push_back({.what = each[0],
                        .state = static_cast<State>(each[1].get<int>()),
                        .measured = each[2],
                        .advice = each[3],
                        .code = static_cast<ExitCode>(each[4].get<int>()),
                        .beside_others = each[5]});
  }
  return findings;
}

std::string line_of(const Finding& finding) {
  constexpr std::array kWords = {"good", "bad", "-"};
  std::string line = fmt::format("  {:<5} {:<18} {}{}",
                                 kWords[static_cast<std::size_t>(finding.state)],
                                 finding.what,
                                 finding.state == State::unchecked ? "not checked: " : "",
                                 finding.measured);
  if (!finding.advice.empty()) {
    line += "; " + finding.advice;
  }
  return printable(line);
}

std::string bytes_text(double bytes) {
  constexpr std::array kUnits = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  constexpr double kStep = 1024;
  std::size_t unit = 0;
  while (bytes >= kStep && unit + 1 < kUnits.size()) {
    bytes /= kStep;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", bytes, unit == 0 || bytes >= 100 ? 0 : 1, kUnits[unit]);
}

}  // namespace memphis::doctor
