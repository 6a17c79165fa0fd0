// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include "csrc/core/error.h"

// What the targets share: an input as text or as a file, and what a reader may do with it, which is to
// take it or to throw an error that says what is wrong with it. A ContractError is none: it says that
// the program broke a promise to itself, which no file should bring it to.
namespace memphis::fuzz {

inline std::string_view text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// A file with the input's bytes, under one name each time, in memory where the machine has such a disk.
inline std::filesystem::path file_of(std::string_view bytes, const std::string& name) {
  static const std::filesystem::path folder = [] {
    std::string made = (std::filesystem::exists("/dev/shm") ? "/dev/shm" : "/tmp") +
                       std::string("/memphis-fuzz-XXXXXX");
    if (::mkdtemp(made.data()) == nullptr) {
      std::abort();
    }
    static const std::string removed_at_end = made;
    std::atexit([] { std::filesystem::remove_all(removed_at_end); });
    return std::filesystem::path(made);
  }();
  const std::filesystem::path path = folder / name;
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (file < 0 || ::write(file, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) {
    std::abort();
  }
  ::close(file);
  return path;
}

template <class Read>
int read_or_refuse(const Read& read) {
  static const bool quiet = [] {
    spdlog::set_level(spdlog::level::off);
    return true;
  }();
  static_cast<void>(quiet);
  try {
    read();
  } catch (const ContractError& error) {
    std::fprintf(stderr, "broken promise: %s\n", error.what());
    std::abort();
  } catch (const Error& error) {
    // "<what>; <what to do>"
    if (std::string_view(error.what()).find("; ") == std::string_view::npos) {
      std::fprintf(stderr, "no advice: %s\n", error.what());
      std::abort();
    }
  }
  return 0;
}

}  // namespace memphis::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
