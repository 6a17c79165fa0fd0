// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/report/run_history.h"

// Plots as inline SVG, in the colours that the page's style gives to classes.
namespace memphis {

// As HTML and its attributes have it; bytes that are not UTF-8, and control characters, replaced.
std::string escaped(std::string_view text);

// Three or four digits, with k, M, G or T: "12.4k", "0.0031", "3.1e-05".
std::string short_number(double value);

// Round values, 1, 2 or 5 times a power of ten, about `count` of them, within [low, high].
std::vector<double> round_ticks(double low, double high, int count);
// Powers of ten within [low, high], and 2 and 5 times those where there are few.
std::vector<double> log_ticks(double low, double high);

// At most about 2 * buckets points: of each bucket the lowest and the highest, in their order, and the
// first that is not a number, so that no spike and no gap is lost. The same where there are fewer.
Points decimated(const Points& points, std::size_t buckets);

struct Curve {
  std::string name;
  int color = 0;       // of the run
  bool faint = false;  // dashed, of a second kind
  bool dots = false;   // seldom measured: each is shown
  Points points;
};

struct Mark {
  double step = 0;
  std::string text;
  bool bad = false;
};

struct Plot {
  std::string title;
  std::string unit;
  std::string what;  // a sentence below
  std::vector<Curve> curves;
  std::vector<Mark> marks;
  bool from_zero = false;
};
// Nothing where no curve has a finite value. The scale is logarithmic where the values span more than
// a factor of fifty and all are positive.
std::string draw(const Plot& plot);

// Cells of equal size: value_RC[row][column].
struct HeatMap {
  std::string title;
  std::string what;
  std::string row_name;     // "layer"
  std::string column_name;  // "expert", "step"
  std::vector<std::string> columns;
  std::vector<std::vector<float>> values_RC;
  double low = 0;   // shown in the colour of what is too little
  double even = 1;  // and in that of the page
  double high = 2;
};
std::string draw(const HeatMap& map);

// Shares of a whole, one above another, over steps: means of runs of steps.
struct StackedPlot {
  std::string title;
  std::string unit;
  std::string what;
  std::vector<std::string> names;
  std::vector<Points> parts;
};
std::string draw(const StackedPlot& plot);

// Parts of a sum in one line, with a table below: name and value as text.
struct Part {
  std::string name;
  double value = 0;
  std::string text;
};
std::string draw_parts(const std::vector<Part>& parts);

}  // namespace memphis
