// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/printable.h"
#include "csrc/report/plot.h"

namespace memphis {

std::string escaped(std::string_view text) {
  std::string result;
  for (const char letter : printable(text, Lines::kept)) {
    switch (letter) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      case '\'':
        result += "&#39;";
        break;
      default:
        result += letter;
    }
  }
  return result;
}

std::string short_number(double value) {
  if (!std::isfinite(value)) {
    return std::isnan(value) ? "NaN" : (value > 0 ? "inf" : "-inf");
  }
  const double size = std::abs(value);
  constexpr double kThousand = 1e3;
  constexpr std::string_view kPrefixes = "kMGTP";
  if (size >= 1e4 && size < 1e18) {
    double scaled = value / kThousand;
    std::size_t prefix = 0;
    while (std::abs(scaled) >= kThousand && prefix + 1 < kPrefixes.size()) {
      scaled /= kThousand;
      ++prefix;
    }
    return fmt::format("{:.4g}{}", scaled, kPrefixes[prefix]);
  }
  return fmt::format("{:.4g}", value);
}

std::vector<double> round_ticks(double low, double high, int count) {
  std::vector<double> ticks;
  const double range = high - low;
  if (!std::isfinite(range) || range <= 0 || count < 1) {
    return {low};
  }
  const double power = std::pow(10.0, std::floor(std::log10(range / count)));
  double step = power;
  for (const double times : {1.0, 2.0, 5.0, 10.0}) {
    step = power * times;
    if (range / step <= count) {
      break;
    }
  }
  const double first = std::ceil(low / step - 1e-9);
  const double last = std::floor(high / step + 1e-9);
  for (double n = first; n <= last; ++n) {
    ticks.push_back(n == 0 ? 0 : n * step);
  }
  return ticks;
}

std::vector<double> log_ticks(double low, double high) {
  std::vector<double> ticks;
  const int first = static_cast<int>(std::floor(std::log10(low)));
  const int last = static_cast<int>(std::ceil(std::log10(high)));
  constexpr int kMost = 8;
  const int stride = std::max(1, (last - first) / kMost);
  for (int power = first; power <= last; power += stride) {
    for (const double times : {1.0, 2.0, 5.0}) {
      const double tick = times * std::pow(10.0, power);
      constexpr int kFew = 3;
      if ((times == 1.0 || last - first <= kFew) && tick >= low * (1 - 1e-9) &&
          tick <= high * (1 + 1e-9)) {
        ticks.push_back(tick);
      }
    }
  }
  return ticks.empty() ? round_ticks(low, high, 4) : ticks;
}

Points decimated(const Points& points, std::size_t buckets) {
  const std::size_t count = points.x.size();
  if (count <= 2 * buckets || buckets == 0) {
    return points;
  }
  Points result;
  for (std::size_t bucket = 0; bucket < buckets; ++bucket) {
    const std::size_t begin = bucket * count / buckets;
    const std::size_t end = (bucket + 1) * count / buckets;
    constexpr std::size_t kNowhere = std::numeric_limits<std::size_t>::max();
    std::size_t lowest = kNowhere;
    std::size_t highest = kNowhere;
    std::size_t missing = kNowhere;
    for (std::size_t i = begin; i < end; ++i) {
      if (!std::isfinite(points.y[i])) {
        missing = std::min(missing, i);
        continue;
      }
      lowest = lowest == kNowhere || points.y[i] < points.y[lowest] ? i : lowest;
      highest = highest == kNowhere || points.y[i] > points.y[highest] ? i : highest;
    }
    // The ends of the line are those of the run.
    std::vector<std::size_t> kept = {lowest, highest, missing};
    if (bucket == 0) {
      kept.push_back(0);
    }
    if (bucket + 1 == buckets) {
      kept.push_back(count - 1);
    }
    std::sort(kept.begin(), kept.end());
    kept.erase(std::unique(kept.begin(), kept.end()), kept.end());
    for (const std::size_t i : kept) {
      if (i != kNowhere) {
        result.add(points.x[i], points.y[i]);
      }
    }
  }
  return result;
}

}  // namespace memphis
