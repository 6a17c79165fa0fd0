// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <sys/types.h>

namespace memphis::test {

// A program that a test runs. Its output goes to files in `scratch`; the destructor kills what
// still runs.
class Process {
 public:
  Process(const std::vector<std::string>& arguments, const std::filesystem::path& scratch);
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  void send(int signal) const;
  bool running();

  // Waits for the end: the exit code, or 128 + the signal that killed it.
  int wait();

  std::string standard_output() const;
  std::string standard_error() const;

 private:
  std::filesystem::path output_;
  std::filesystem::path error_;
  pid_t pid_ = -1;
  int status_ = -1;
};

// How a program ended: its exit code as wait() gives it, and what it wrote.
struct Ended {
  int code;
  std::string out;
  std::string error;
};

// Waits for the end.
Ended end_of(Process& process);

// Runs a program to its end.
Ended run_to_end(const std::vector<std::string>& arguments, const std::filesystem::path& scratch);

}  // namespace memphis::test
