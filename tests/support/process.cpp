// SPDX-License-Identifier: Apache-2.0
#include "tests/support/process.h"

#include <atomic>
#include <csignal>
#include <fstream>
#include <sstream>

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "csrc/core/error.h"

namespace memphis::test {
namespace {

std::string contents(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

int exit_code(int status) {
  constexpr int kSignalled = 128;  // as a shell reports it
  return WIFEXITED(status) ? WEXITSTATUS(status) : kSignalled + WTERMSIG(status);
}

}  // namespace

Process::Process(const std::vector<std::string>& arguments, const std::filesystem::path& scratch) {
  static std::atomic<int> count{0};
  const std::string number = std::to_string(++count);
  output_ = scratch / ("process-" + number + ".out");
  error_ = scratch / ("process-" + number + ".err");
  std::vector<char*> argv;
  for (const std::string& argument : arguments) {
    argv.push_back(const_cast<char*>(argument.c_str()));
  }
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  constexpr int kFlags = O_WRONLY | O_CREAT | O_TRUNC;
  constexpr mode_t kMode = 0600;
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, output_.c_str(), kFlags, kMode);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, error_.c_str(), kFlags, kMode);
  // A test that runs under nohup ignores hangups itself, and its processes shall not.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGHUP, SIGINT, SIGQUIT, SIGPIPE}) {
    sigaddset(&signals, signal);
  }
  posix_spawnattr_setsigdefault(&attributes, &signals);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
  const int failure = posix_spawn(&pid_, argv[0], &actions, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  require(failure == 0, "cannot start " + arguments.front());
}

Process::~Process() {
  if (running()) {
    send(SIGKILL);
    wait();
  }
}

void Process::send(int signal) const {
  ::kill(pid_, signal);
}

bool Process::running() {
  if (status_ >= 0) {
    return false;
  }
  int status = 0;
  if (::waitpid(pid_, &status, WNOHANG) == pid_) {
    status_ = exit_code(status);
  }
  return status_ < 0;
}

int Process::wait() {
  if (status_ < 0) {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    status_ = exit_code(status);
  }
  return status_;
}

std::string Process::standard_output() const {
  return contents(output_);
}
std::string Process::standard_error() const {
  return contents(error_);
}

Ended end_of(Process& process) {
  const int code = process.wait();
  return {.code = code, .out = process.standard_output(), .error = process.standard_error()};
}

Ended run_to_end(const std::vector<std::string>& arguments, const std::filesystem::path& scratch) {
  Process process(arguments, scratch);
  return end_of(process);
}

}  // namespace memphis::test
