// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <numeric>

#include <spdlog/fmt/fmt.h>

#include "csrc/report/plot.h"

namespace memphis {
namespace {

constexpr double kWidth = 720;
constexpr double kLeft = 58;
constexpr double kTop = 8;

// Too little, even, or too much, and how strongly: classes would be as many as there are shades.
std::string shade(const HeatMap& map, double value) {
  if (!std::isfinite(value)) {
    return "class=\"none\"";
  }
  const bool more = value > map.even;
  const double range = more ? map.high - map.even : map.even - map.low;
  const double share = range > 0 ? std::clamp(std::abs(value - map.even) / range, 0.0, 1.0) : 0;
  return fmt::format("class=\"{}\" fill-opacity=\"{:.2f}\"", more ? "much" : "little", share);
}

}  // namespace

std::string draw(const HeatMap& map) {
  if (map.values_RC.empty() || map.columns.empty()) {
    return "";
  }
  const std::size_t rows = map.values_RC.size();
  const std::size_t columns = map.columns.size();
  constexpr double kTallest = 24;
  constexpr double kTotal = 420;
  const double height = std::clamp(kTotal / static_cast<double>(rows), 5.0, kTallest);
  const double width = (kWidth - kLeft - 14) / static_cast<double>(columns);
  const double bottom = kTop + height * static_cast<double>(rows);
  std::string svg =
      fmt::format("<svg class=\"heat\" viewBox=\"0 0 {} {:.0f}\" role=\"img\" aria-label=\"{}\">",
                  kWidth,
                  bottom + 34,
                  escaped(map.title));
  const bool roomy = width > 30 && height > 14;
  for (std::size_t row = 0; row < rows; ++row) {
    const double y = kTop + height * static_cast<double>(row);
    for (std::size_t column = 0; column < std::min(columns, map.values_RC[row].size()); ++column) {
      const double value = map.values_RC[row][column];
      const double x = kLeft + width * static_cast<double>(column);
      svg += fmt::format(
          "<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" {}>"
          "<title>{} {}, {} {}: {}</title></rect>",
          x,
          y,
          std::max(width - (roomy ? 1.5 : 0), 0.5),
          height - (height > 8 ? 1.5 : 0),
          shade(map, value),
          map.row_name,
          row,
          map.column_name,
          escaped(map.columns[column]),
          short_number(value));
      if (roomy) {
        svg += fmt::format(
            "<text class=\"cell\" text-anchor=\"middle\" x=\"{:.1f}\" "
            "y=\"{:.1f}\">{:.2f}</text>",
            x + width / 2,
            y + height / 2 + 4,
            value);
      }
    }
    const std::size_t every = std::max<std::size_t>(1, static_cast<std::size_t>(14 / height));
    if (row % every == 0) {
      svg += fmt::format(
          "<text class=\"tick\" text-anchor=\"end\" x=\"{:.1f}\" y=\"{:.1f}\">{}"
          "</text>",
          kLeft - 7,
          y + height / 2 + 4,
          row == 0 ? map.row_name + " 0" : std::to_string(row));
    }
  }
  const std::size_t every =
      std::max<std::size_t>(1, static_cast<std::size_t>(std::ceil(60 / width)));
  for (std::size_t column = 0; column < columns; column += every) {
    svg += fmt::format(
        "<text class=\"tick\" text-anchor=\"middle\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>",
        kLeft + width * (static_cast<double>(column) + 0.5),
        bottom + 15,
        escaped(map.columns[column]));
  }
  svg +=
      fmt::format("<text class=\"tick\" text-anchor=\"end\" x=\"{}\" y=\"{:.1f}\">{}</text></svg>",
                  kWidth - 14,
                  bottom + 30,
                  map.column_name);
  return fmt::format(
      "<figure><figcaption><b>{}</b></figcaption>{}<p class=\"what\">{}</p></figure>\n",
      escaped(map.title),
      svg,
      escaped(map.what));
}

std::string draw_parts(const std::vector<Part>& parts) {
  const double all =
      std::accumulate(parts.begin(), parts.end(), 0.0, [](double sum, const Part& part) {
        return sum + part.value;
      });
  if (all <= 0) {
    return "";
  }
  std::string bar;
  std::string table;
  double x = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const double width = parts[i].value / all * kWidth;
    if (parts[i].value > 0) {
      bar += fmt::format(
          "<rect class=\"area c{}\" x=\"{:.2f}\" y=\"0\" width=\"{:.2f}\" "
          "height=\"26\"><title>{}: {}</title></rect>",
          i % 8,
          x,
          std::max(width - 1, 0.3),
          escaped(parts[i].name),
          escaped(parts[i].text));
      table += fmt::format(
          "<tr><td><span class=\"key c{}\">{}</span></td><td class=\"n\">{}</td>"
          "<td class=\"n\">{:.1f} %</td></tr>",
          i % 8,
          escaped(parts[i].name),
          escaped(parts[i].text),
          100 * parts[i].value / all);
    }
    x += width;
  }
  return fmt::format(
      "<svg class=\"parts\" viewBox=\"0 0 {} 26\" role=\"img\">{}</svg>"
      "<table>{}</table>",
      kWidth,
      bar,
      table);
}

}  // namespace memphis
