// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/nccl_warnings.h"

#include <array>
#include <cstdlib>
#include <mutex>

#include <spdlog/fmt/fmt.h>
#include <sys/mman.h>
#include <unistd.h>

#include "csrc/core/log.h"

namespace memphis {
namespace {

// Of all threads. Never destroyed: NCCL's may go on while static objects go.
struct Shared {
  std::mutex mutex;
  int file = -1;  // in memory; -1: NCCL writes elsewhere
  off_t num_read = 0;
  std::string unfinished;  // a line that is not at its end yet
};

Shared& shared() {
  static Shared& instance = *new Shared;
  return instance;
}

// Of a line as "[date] host:pid:tid [0] file.cc:123 NCCL WARN text"; empty if it is of another
// kind.
std::string_view warning_in(std::string_view line) {
  constexpr std::string_view kMark = "NCCL WARN ";
  const std::size_t at = line.find(kMark);
  return at == std::string_view::npos ? std::string_view() : line.substr(at + kMark.size());
}

}  // namespace

void collect_nccl_warnings() {
  const bool says_how_much = std::getenv("NCCL_DEBUG") != nullptr;
  if (!says_how_much && std::getenv("NCCL_DEBUG_FILE") == nullptr) {
    const int file = memfd_create("nccl-warnings", MFD_CLOEXEC);
    if (file < 0) {
      return;  // NCCL is silent, and keeps its last warning for the exception
    }
    shared().file = file;
    // NCCL opens it by this name, and writes each line when it is whole.
    setenv("NCCL_DEBUG_FILE", fmt::format("/proc/self/fd/{}", file).c_str(), 0);
  }
  setenv("NCCL_DEBUG", "WARN", 0);
}

std::vector<std::string> take_nccl_warnings() {
  std::vector<std::string> warnings;
  const std::lock_guard lock(shared().mutex);
  if (shared().file < 0) {
    return warnings;
  }
  std::array<char, 4096> piece{};
  for (;;) {
    const ssize_t size = pread(shared().file, piece.data(), piece.size(), shared().num_read);
    if (size <= 0) {
      break;
    }
    shared().num_read += size;
    shared().unfinished.append(piece.data(), static_cast<std::size_t>(size));
  }
  std::string& text = shared().unfinished;
  std::size_t begin = 0;
  for (std::size_t end = 0; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const std::string_view warning = warning_in(std::string_view(text).substr(begin, end - begin));
    if (!warning.empty() && (warnings.empty() || warnings.back() != warning)) {
      warnings.emplace_back(warning);
    }
  }
  text.erase(0, begin);
  return warnings;
}

void log_nccl_warnings() {
  for (const std::string& warning : take_nccl_warnings()) {
    log_warning("NCCL warns: {}", warning);
  }
}

std::string with_warnings(std::string_view error, const std::vector<std::string>& warnings) {
  constexpr std::size_t kMost = 3;
  std::string text(error);
  for (std::size_t i = 0; i < warnings.size(); ++i) {
    if (warnings.size() > kMost && i == kMost - 1) {
      text += fmt::format(", then {} more", warnings.size() - kMost);
      i = warnings.size() - 1;
    }
    text += fmt::format("{}{}", i == 0 ? ": " : ", then ", warnings[i]);
  }
  return text;
}

}  // namespace memphis
