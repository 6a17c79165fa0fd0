// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/trace_file.h"

#include <cerrno>
#include <chrono>
#include <map>
#include <string>
#include <string_view>

#include <fcntl.h>
#include <spdlog/fmt/fmt.h>

#include "csrc/comm/together.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "csrc/core/log.h"
#include "csrc/core/write_advice.h"

namespace memphis {
namespace {

constexpr int kMaxTogether = 64;  // ranks: more make a file that no viewer opens

std::filesystem::path file_of(const std::filesystem::path& dir, int rank) {
  return dir / fmt::format("rank-{:05}.json", rank);
}

double microseconds(Trace::Clock::duration duration) {
  return std::chrono::duration<double, std::micro>(duration).count();
}

using Json = nlohmann::ordered_json;

Json name_event(const char* what, int rank, int thread, const std::string& name) {
  return {{"ph", "M"}, {"name", what}, {"pid", rank}, {"tid", thread}, {"args", {{"name", name}}}};
}

// One event a line, so that files are joined line by line.
std::string events(const Trace& trace, int rank) {
  std::string lines = name_event("process_name", rank, 0, fmt::format("rank {}", rank)).dump();
  const auto add = [&](const Json& event) { lines += ",\n" + event.dump(); };
  std::map<std::string_view, int> threads;
  for (const Trace::Span& span : trace.spans()) {
    const auto [thread, is_new] = threads.emplace(span.track, static_cast<int>(threads.size()));
    if (is_new) {
      add(name_event("thread_name", rank, thread->second, span.track));
    }
    const std::string name(span.name);
    Json event = {{"ph", "X"},
                  {"name", span.detail < 0 ? name : fmt::format("{} {}", name, span.detail)},
                  {"pid", rank},
                  {"tid", thread->second},
                  {"ts", microseconds(span.begin.time_since_epoch())},
                  {"dur", microseconds(span.end - span.begin)}};
    if (span.micro_batch >= 0) {
      event["args"] = {{"micro_batch", span.micro_batch}};
    }
    add(event);
  }
  return lines;
}

[[noreturn]] void throw_write_error(const std::filesystem::path& path, int error) {
  throw DataError(fmt::format("cannot write {} ({}); {} or set metrics.trace to false",
                              path.string(),
                              system_reason(error),
                              write_advice(error)));
}

void write(const std::filesystem::path& path, const std::string& lines) {
  constexpr mode_t kMode = 0666;  // less the umask
  Descriptor file = open_path(path, O_WRONLY | O_CREAT | O_TRUNC, kMode);
  int error = file.is_open() ? write_all(file.number(), "[\n" + lines + "\n]\n") : errno;
  if (error == 0) {
    error = file.close_checked();
  }
  if (error != 0) {
    throw_write_error(path, error);
  }
}

}  // namespace

void write_traces(const std::filesystem::path& dir, const Trace& trace, Communicator& all_host) {
  const int rank = all_host.rank();
  together(all_host, "trace.write", [&] {
    if (const int error = make_directories(dir); error != 0) {
      throw_write_error(dir, error);
    }
    write(file_of(dir, rank), events(trace, rank));
    if (trace.num_left_out() > 0) {
      log_warning("rank {}: the trace has the first {} spans; {} more are left out",
                  rank,
                  trace.spans().size(),
                  trace.num_left_out());
    }
  });
  if (all_host.size() > kMaxTogether) {
    return;
  }
  together(all_host, "trace.join", [&] {
    if (rank != 0) {
      return;
    }
    std::string all;
    for (int r = 0; r < all_host.size(); ++r) {
      const std::string text = read_text(file_of(dir, r));
      constexpr std::size_t kBracket = 2;  // with its line's end
      all += (r == 0 ? "" : ",\n") + text.substr(kBracket, text.size() - 2 * kBracket - 1);
    }
    write(dir / "all.json", all);
  });
}

}  // namespace memphis
