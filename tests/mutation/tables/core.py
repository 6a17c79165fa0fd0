# SPDX-License-Identifier: Apache-2.0
"""Faults in csrc/core: progress, and the calls that change files."""
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

# ---- what changes files

FILE = "core/file.cpp"
CALLS = "core/file_calls.cpp"

plant("core.write_in_pieces", CALLS, "operand",
      "    bytes = bytes.subspan(static_cast<std::size_t>(count));", "    bytes = {};",
      "a write that the system took in part is taken for done")
plant("core.write_interrupted", CALLS, "condition",
      "      if (errno == EINTR) {", "      if (errno == EAGAIN) {",
      "a signal ends a write")
plant("core.place_of_piece", CALLS, "operand",
      "static_cast<off_t>(offset + done)", "static_cast<off_t>(offset)",
      "the second piece of a write lies over the first")
plant("core.close_fails", CALLS, "unchecked",
      "return error == EINTR ? 0 : error;", "return 0;",
      "what a file failed to write, and said when it was closed, is not heard")
plant("core.directory_is_durable", CALLS, "missing fsync",
      "  const int error = flush_directory(above);", "  const int error = 0;",
      "a new run directory may be lost with the power, and its checkpoints with it")
plant("core.no_sync_of_directories", CALLS, "condition",
      "return error == EINVAL ? 0 : error;", "return error;",
      "nothing can be saved on a file system that does not sync directories")
plant("core.link_stays", FILE, "condition",
      "std::filesystem::is_symlink(path, error); ++i", "false; ++i",
      "a link is replaced by a file, and what it leads to stays old")
plant("core.link_is_relative", FILE, "operand",
      "    path = path.parent_path() / next;", "    path = next;",
      "a relative link is taken from where the program runs")
plant("core.pipe_stays", FILE, "condition",
      "  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status) &&",
      "  if (false && !std::filesystem::is_regular_file(status) &&",
      "a device or a pipe is renamed over")
plant("core.nothing_left", FILE, "missing call",
      "    remove_file(temporary_);\n  }\n}\n", "  }\n}\n",
      "a file that could not be written is left beside")

# ---- the threads of a caller

TEAM = "core/parallel.cpp"

plant("core.fewer_threads", TEAM, "condition",
      "      if (index < num_members_.load(std::memory_order_acquire)) {", "      if (index >= 0) {",
      "more threads work than were asked for")
plant("core.every_failure", TEAM, "missing call",
      "        failure_ = failure_ ? failure_ : std::current_exception();", "        (void)failure_;",
      "what a chunk throws is not heard")
plant("core.is_inside", TEAM, "operand",
      "    t_is_inside = true;\n    work(region);", "    work(region);",
      "a region within a chunk of its caller's starts another")
plant("core.kernels_at_once", "core/device.cpp", "condition",
      "  if (cuda_device::loads_kernels_at_once()) {", "  if (cuda_device::loads_kernels_at_once() || true) {",
      "a pipeline starts where a GPU loads a kernel only while it receives nothing")
