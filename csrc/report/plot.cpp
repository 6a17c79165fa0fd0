// SPDX-License-Identifier: Apache-2.0
#include "csrc/report/plot.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <spdlog/fmt/fmt.h>

namespace memphis {
namespace {

constexpr double kWidth = 720;
constexpr double kHeight = 250;
constexpr double kLeft = 58;
constexpr double kRight = 14;
constexpr double kTop = 12;
constexpr double kBottom = 34;
constexpr std::size_t kBuckets = 400;  // of a line: two points to a pixel or so
// A span of values that is better seen in powers.
constexpr double kLogSpan = 50;

struct Scale {
  double low = 0;
  double high = 1;
  bool log = false;
  double begin = 0;  // pixels
  double end = 1;

  double operator()(double value) const {
    const double share = log ? (std::log(value) - std::log(low)) / (std::log(high) - std::log(low))
                             : (value - low) / (high - low);
    return begin + share * (end - begin);
  }
};

struct Span {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void add(double value) {
    if (std::isfinite(value)) {
      low = std::min(low, value);
      high = std::max(high, value);
    }
  }
  bool empty() const { return low > high; }
};

Scale steps_scale(Span span) {
  if (span.low == span.high) {  // a run of one step
    span.low -= 1;
    span.high += 1;
  }
  return {span.low, span.high, false, kLeft, kWidth - kRight};
}

Scale values_scale(Span span, bool from_zero) {
  Scale scale{span.low, span.high, false, kHeight - kBottom, kTop};
  if (from_zero) {
    scale.low = std::min(0.0, span.low);
  } else if (span.low > 0 && span.high / span.low > kLogSpan) {
    scale.log = true;
    constexpr double kMargin = 1.1;
    scale.low /= kMargin;
    scale.high *= kMargin;
    return scale;
  }
  const double range = scale.high - scale.low;
  if (range <= 0) {
    const double margin = span.high == 0 ? 1 : std::abs(span.high) * 0.1;
    scale.low -= from_zero && scale.low == 0 ? 0 : margin;
    scale.high += margin;
    return scale;
  }
  constexpr double kMargin = 0.05;
  scale.high += kMargin * range;
  scale.low -= from_zero && scale.low == 0 ? 0 : kMargin * range;
  return scale;
}

std::string axes(const Scale& x, const Scale& y) {
  std::string svg;
  const std::vector<double> ticks =
      y.log ? log_ticks(y.low, y.high) : round_ticks(y.low, y.high, 5);
  for (const double tick : ticks) {
    const double at = y(tick);
    svg += fmt::format(
        "<line class=\"grid\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>"
        "<text class=\"tick\" text-anchor=\"end\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>",
        kLeft,
        kWidth - kRight,
        at,
        at,
        kLeft - 7,
        at + 4,
        short_number(tick));
  }
  for (const double tick : round_ticks(x.low, x.high, 8)) {
    if (tick != std::round(tick)) {
      continue;  // between two steps
    }
    svg += fmt::format(
        "<line class=\"grid\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1:.1f}\" y2=\"{2:.1f}\"/>"
        "<text class=\"tick\" text-anchor=\"middle\" x=\"{0:.1f}\" y=\"{3:.1f}\">{4}</text>",
        x(tick),
        kHeight - kBottom,
        kHeight - kBottom + 4,
        kHeight - kBottom + 17,
        short_number(tick));
  }
  svg +=
      fmt::format("<text class=\"tick\" text-anchor=\"end\" x=\"{:.1f}\" y=\"{:.1f}\">step</text>",
                  kWidth - kRight,
                  kHeight - 3);
  return svg;
}

// A line that ends where a value is missing, and begins again behind it.
std::string path_of(const Points& points, const Scale& x, const Scale& y) {
  std::string path;
  bool pen_down = false;
  for (std::size_t i = 0; i < points.x.size(); ++i) {
    if (!std::isfinite(points.y[i]) || (y.log && points.y[i] <= 0)) {
      pen_down = false;
      continue;
    }
    path += fmt::format("{}{:.1f} {:.1f}", pen_down ? "L" : "M", x(points.x[i]), y(points.y[i]));
    pen_down = true;
  }
  return path;
}

// What the script under the pointer says: steps, values and pixels of each curve.
std::string data_of(const Curve& curve, const Points& points, const Scale& x, const Scale& y) {
  std::string steps;
  std::string values;
  std::string at;
  for (std::size_t i = 0; i < points.x.size(); ++i) {
    const char* const comma = i == 0 ? "" : " ";
    steps += fmt::format("{}{:.0f}", comma, points.x[i]);
    const bool shown = std::isfinite(points.y[i]) && (!y.log || points.y[i] > 0);
    values += fmt::format("{}{}", comma, short_number(points.y[i]));
    at += shown ? fmt::format("{}{:.1f}", comma, y(points.y[i])) : fmt::format("{}-", comma);
  }
  return fmt::format(
      " data-name=\"{}\" data-steps=\"{}\" data-values=\"{}\" data-y=\"{}\" data-x0=\"{}\" "
      "data-x1=\"{}\"",
      escaped(curve.name),
      steps,
      values,
      at,
      x.low,
      x.high);
}

std::string mark_of(const Mark& mark, const Scale& x) {
  return fmt::format(
      "<g class=\"mark{}\"><line x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>"
      "<path d=\"M{:.1f} {:.1f}l-5 -8h10z\"/><title>step {:.0f}: {}</title></g>",
      mark.bad ? " bad" : "",
      x(mark.step),
      x(mark.step),
      kTop,
      kHeight - kBottom,
      x(mark.step),
      kTop + 3,
      mark.step,
      escaped(mark.text));
}

std::string figure(const std::string& title,
                   const std::string& unit,
                   const std::string& what,
                   const std::string& body) {
  return fmt::format("<figure><figcaption><b>{}</b>{}</figcaption>{}{}</figure>\n",
                     escaped(title),
                     unit.empty() ? "" : fmt::format(" <span>{}</span>", escaped(unit)),
                     body,
                     what.empty() ? "" : fmt::format("<p class=\"what\">{}</p>", escaped(what)));
}

}  // namespace

std::string draw(const Plot& plot) {
  Span steps;
  Span values;
  for (const Curve& curve : plot.curves) {
    for (std::size_t i = 0; i < curve.points.x.size(); ++i) {
      steps.add(curve.points.x[i]);
      values.add(curve.points.y[i]);
    }
  }
  if (steps.empty() || values.empty()) {
    return "";
  }
  const Scale x = steps_scale(steps);
  const Scale y = values_scale(values, plot.from_zero);
  std::string svg =
      fmt::format("<svg class=\"plot\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">{}",
                  kWidth,
                  kHeight,
                  escaped(plot.title),
                  axes(x, y));
  for (const Mark& mark : plot.marks) {
    if (mark.step >= x.low && mark.step <= x.high) {
      svg += mark_of(mark, x);
    }
  }
  std::string names;
  for (const Curve& curve : plot.curves) {
    const Points points = decimated(curve.points, kBuckets);
    const std::string path = path_of(points, x, y);
    if (path.empty()) {
      continue;
    }
    svg += fmt::format("<path class=\"curve c{}{}\" d=\"{}\"{}/>",
                       curve.color % 8,
                       curve.faint ? " faint" : "",
                       path,
                       data_of(curve, points, x, y));
    // One point is no line.
    if (curve.dots || points.x.size() == 1) {
      for (std::size_t i = 0; i < points.x.size(); ++i) {
        if (std::isfinite(points.y[i]) && (!y.log || points.y[i] > 0)) {
          svg += fmt::format(
              "<circle class=\"dot c{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.2\"><title>step {:.0f}: "
              "{}</title></circle>",
              curve.color % 8,
              x(points.x[i]),
              y(points.y[i]),
              points.x[i],
              short_number(points.y[i]));
        }
      }
    }
    names += fmt::format("<span class=\"key c{}{}\">{}</span>",
                         curve.color % 8,
                         curve.faint ? " faint" : "",
                         escaped(curve.name));
  }
  svg += "</svg>";
  return figure(plot.title,
                plot.unit + (y.log ? ", logarithmic" : ""),
                plot.what,
                svg + (plot.curves.size() > 1 ? "<div class=\"keys\">" + names + "</div>" : ""));
}

std::string draw(const StackedPlot& plot) {
  // Means of runs of steps: a band of a single step is thinner than a pixel.
  constexpr std::size_t kColumns = 120;
  if (plot.parts.empty() || plot.parts.front().empty()) {
    return "";
  }
  const std::size_t count = plot.parts.front().x.size();
  const std::size_t columns = std::min(kColumns, count);
  std::vector<std::vector<double>> sums(columns, std::vector<double>(plot.parts.size()));
  Span values;
  values.add(0);
  for (std::size_t column = 0; column < columns; ++column) {
    double all = 0;
    for (std::size_t part = 0; part < plot.parts.size(); ++part) {
      double sum = 0;
      double num = 0;
      for (std::size_t i = column * count / columns; i < (column + 1) * count / columns; ++i) {
        const double value = plot.parts[part].y[i];
        sum += std::isfinite(value) ? value : 0;
        num += std::isfinite(value) ? 1 : 0;
      }
      all += sums[column][part] = num > 0 ? std::max(sum / num, 0.0) : 0;
    }
    values.add(all);
  }
  Span steps;
  steps.add(plot.parts.front().x.front());
  steps.add(plot.parts.front().x.back());
  const Scale x = steps_scale(steps);
  const Scale y = values_scale(values, true);
  std::string svg = fmt::format(
      "<svg class=\"plot\" viewBox=\"0 0 {} {}\" role=\"img\" "
      "aria-label=\"{}\">{}",
      kWidth,
      kHeight,
      escaped(plot.title),
      axes(x, y));
  const double width = (x.end - x.begin) / static_cast<double>(columns);
  std::string names;
  for (std::size_t part = 0; part < plot.parts.size(); ++part) {
    std::string bars;
    for (std::size_t column = 0; column < columns; ++column) {
      double below = 0;
      for (std::size_t k = 0; k < part; ++k) {
        below += sums[column][k];
      }
      const double top = y(below + sums[column][part]);
      bars += fmt::format("M{:.1f} {:.1f}h{:.2f}V{:.1f}h{:.2f}z",
                          x.begin + width * static_cast<double>(column),
                          top,
                          width + 0.3,
                          y(below),
                          -width - 0.3);
    }
    svg += fmt::format("<path class=\"area c{}\" d=\"{}\"><title>{}</title></path>",
                       part % 8,
                       bars,
                       escaped(plot.names[part]));
    names += fmt::format("<span class=\"key c{}\">{}</span>", part % 8, escaped(plot.names[part]));
  }
  return figure(
      plot.title, plot.unit, plot.what, svg + "</svg><div class=\"keys\">" + names + "</div>");
}

}  // namespace memphis
