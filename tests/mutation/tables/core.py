# SPDX-License-Identifier: Apache-2.0
"""Faults in csrc/core/progress."""
from table import planter

plant = planter("csrc")

PROGRESS = "core/progress.cpp"

plant("core.time_left", PROGRESS, "operand",
      "const std::int64_t since = state.done - state.begun;", "const std::int64_t since = state.done;",
      "a run that went on promises too early an end")
plant("core.over_the_end", PROGRESS, "missing clamp",
      "? std::clamp(static_cast<double>(state.done) / static_cast<double>(state.total), 0.0, 1.0)",
      "? static_cast<double>(state.done) / static_cast<double>(state.total)",
      "a bar that is longer than its room")
plant("core.cut_character", PROGRESS, "condition",
      "if (begins && count++ == columns) {", "if (count++ == columns) {",
      "a character is cut in two")
