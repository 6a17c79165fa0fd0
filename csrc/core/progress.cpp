// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/progress.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <utility>
#include <vector>

#include <spdlog/fmt/fmt.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "csrc/core/file_calls.h"
#include "csrc/core/log.h"
#include "csrc/core/printable.h"

namespace memphis {
namespace {

// Often enough to be seen moving, and too seldom to cost a step anything.
constexpr std::chrono::milliseconds kRedraw{150};
// Of plain lines: a log of a day has some thousands.
constexpr std::chrono::seconds kPlain{10};

constexpr std::string_view kClear = "\r\x1b[K";

// Where nobody looks any more, nobody misses it.
void show(std::string_view text) {
  static_cast<void>(write_all(STDERR_FILENO, text));
}

std::size_t terminal_columns() {
  constexpr std::size_t kUsual = 80;
  winsize size{};
  const bool known = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : kUsual;
}

bool is_terminal() {
  const char* const terminal = std::getenv("TERM");
  return ::isatty(STDERR_FILENO) != 0 &&
         !(terminal != nullptr && std::string_view(terminal) == "dumb");
}

// The first `columns` characters of UTF-8.
std::string cut(const std::string& text, std::size_t columns) {
  std::size_t end = 0;
  for (std::size_t count = 0; end < text.size(); ++end) {
    const bool begins = (static_cast<unsigned char>(text[end]) & 0xC0U) != 0x80U;
    if (begins && count++ == columns) {
      break;
    }
  }
  return text.substr(0, end);
}

}  // namespace

// What is on the last line of the terminal. Recursive: what is logged while a line is drawn is
// written by the thread that draws.
class LiveLine {
 public:
  static LiveLine& instance() {
    static LiveLine line;
    return line;
  }

  void push(Progress* progress) {
    const std::lock_guard lock(mutex_);
    shown_.push_back(progress);
  }
  void remove(Progress* progress) {
    const std::lock_guard lock(mutex_);
    shown_.erase(std::remove(shown_.begin(), shown_.end(), progress), shown_.end());
    clear();
  }
  bool is_live() const { return is_terminal_ && logs_info(); }

  void update(Progress& progress, std::int64_t done, std::string_view note) {
    std::string plain;
    {
      const std::lock_guard lock(mutex_);
      progress.done_ = done;
      progress.note_ = printable(note);
      const auto now = Progress::Clock::now();
      const bool live = is_live();
      if (!logs_info() || (!live && progress.only_live_) || (live && shown_.back() != &progress) ||
          now - progress.shown_ < (live ? Progress::Clock::duration(kRedraw) : kPlain)) {
        return;
      }
      progress.shown_ = now;
      if (live) {
        draw();
        return;
      }
      plain = progress.line(0);
    }
    log_info("{}", plain);
  }

  void begin_above() {
    mutex_.lock();
    clear();
  }
  void end_above() {
    if (is_live() && !shown_.empty() && shown_.back()->shown_ != shown_.back()->start_) {
      draw();
    }
    mutex_.unlock();
  }

 private:
  void clear() {
    if (drawn_) {
      show(kClear);
      drawn_ = false;
    }
  }
  void draw() {
    // The last column stays free: a terminal may break the line behind it.
    const std::size_t columns = std::max<std::size_t>(terminal_columns(), 2) - 1;
    show(std::string(kClear) + shown_.back()->line(columns));
    drawn_ = true;
  }

  std::recursive_mutex mutex_;
  std::vector<Progress*> shown_;
  bool is_terminal_ = is_terminal();
  bool drawn_ = false;
};

Progress::Progress(std::string what, std::int64_t total, std::string unit, std::int64_t begun)
    : what_(std::move(what)),
      total_(total),
      unit_(std::move(unit)),
      begun_(begun),
      done_(begun),
      shown_(start_) {
  LiveLine::instance().push(this);
}

Progress::~Progress() {
  LiveLine::instance().remove(this);
}

void Progress::update(std::int64_t done, std::string_view note) {
  LiveLine::instance().update(*this, done, note);
}

bool Progress::is_live() {
  return LiveLine::instance().is_live();
}

std::string Progress::line(std::size_t columns) const {
  return progress_text({.what = what_,
                        .total = total_,
                        .unit = unit_,
                        .begun = begun_,
                        .done = done_,
                        .note = note_,
                        .seconds = std::chrono::duration<double>(Clock::now() - start_).count()},
                       columns);
}

std::string progress_text(const ProgressState& state, std::size_t columns) {
  constexpr std::size_t kBar = 20;
  std::string text(state.what);
  const double share =
      state.total > 0
          ? std::clamp(static_cast<double>(state.done) / static_cast<double>(state.total), 0.0, 1.0)
          : 0;
  if (state.total > 0 && columns > 0) {
    const auto full = static_cast<std::size_t>(share * kBar);
    text += fmt::format(" [{}{}]", std::string(full, '#'), std::string(kBar - full, '.'));
  }
  text += columns > 0 ? " " : ": ";
  text += state.total > 0 ? fmt::format("{}/{} {}", state.done, state.total, state.unit)
                          : fmt::format("{} {}", state.done, state.unit);
  if (state.total > 0 && columns == 0) {
    text += fmt::format(" ({:.0f} %)", 100 * share);
  }
  const std::int64_t since = state.done - state.begun;
  if (since > 0 && state.total > state.done) {
    text += fmt::format("  {} left",
                        short_duration(state.seconds / static_cast<double>(since) *
                                       static_cast<double>(state.total - state.done)));
  } else {
    text += "  " + short_duration(state.seconds);
  }
  if (!state.note.empty()) {
    text += "  ";
    text += state.note;
  }
  return columns > 0 ? cut(text, columns) : text;
}

std::string short_duration(double seconds) {
  constexpr std::int64_t kMinute = 60;
  constexpr std::int64_t kHour = 60 * kMinute;
  constexpr std::int64_t kDay = 24 * kHour;
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  if (whole < kMinute) {
    return fmt::format("{}s", whole);
  }
  if (whole < kHour) {
    return fmt::format("{}m{:02}s", whole / kMinute, whole % kMinute);
  }
  if (whole < kDay) {
    return fmt::format("{}h{:02}m", whole / kHour, whole / kMinute % 60);
  }
  return fmt::format("{}d{:02}h", whole / kDay, whole / kHour % 24);
}

AboveLiveLine::AboveLiveLine() {
  LiveLine::instance().begin_above();
}
AboveLiveLine::~AboveLiveLine() {
  LiveLine::instance().end_above();
}

}  // namespace memphis
