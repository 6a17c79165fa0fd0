# SPDX-License-Identifier: Apache-2.0
"""Faults in csrc/report."""
from table import planter

plant = planter("csrc")

FINDINGS = "report/findings.cpp"
HISTORY = "report/run_history.cpp"
NUMBERS = "report/numbers.cpp"
PLOT = "report/plot.cpp"

plant("report.gravest_first", FINDINGS, "order",
      "return a.weight < b.weight;", "return a.step < b.step;",
      "an explosion stands below a spike that came before it")
plant("report.worst_of_explosion", FINDINGS, "dropped line",
      "      worst = std::max(worst, std::isfinite(losses[i]) ? losses[i] : worst);\n", "",
      "an explosion has the number of its first step")
plant("report.spike_deviations", FINDINGS, "constant",
      "constexpr double kDeviations = 6;", "constexpr double kDeviations = 600;",
      "no loss is a spike")
plant("report.torn_line", HISTORY, "condition",
      "(!object || !take(*object)) && !torn", "(!object || !take(*object))",
      "a line that is being written counts as damage")
plant("report.steps_again", HISTORY, "dropped line",
      "      run_.clock.resize(keep);\n", "      run_.steps_again = 0;\n      run_.clock.resize(keep);\n",
      "steps that a file has twice are not counted")
plant("report.nan_line", HISTORY, "constant",
      '{"-Infinity", "Infinity", "NaN"}', '{"-Infinity", "Infinity"}',
      "a line with NaN is damaged, and the divergence unseen")
plant("report.lowest_of_bucket", NUMBERS, "condition",
      "points.y[i] < points.y[lowest] ? i : lowest;", "points.y[i] > points.y[lowest] ? i : lowest;",
      "a dip of one step among a million is not drawn")
plant("report.gap", NUMBERS, "dropped value",
      "{lowest, highest, missing}", "{lowest, highest}",
      "a value that is not a number is drawn over")
plant("report.escaped", NUMBERS, "dropped escape",
      'result += "&lt;";', "result += letter;",
      "text of a model is markup of the page")
plant("report.pen", PLOT, "dropped line",
      "      pen_down = false;\n", "",
      "a curve goes on through what is not a number")
plant("report.step_range", HISTORY, "dropped condition",
      "if (!(step >= 0 && step < kMaxStep)) {", "if (std::isnan(step)) {",
      "a damaged line with a step of 1e300 is drawn")
