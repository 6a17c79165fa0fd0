// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/stop_signal.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"

namespace memphis {
namespace {

constexpr std::array<int, 5> kSignals = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2};

std::atomic<int> g_received = 0;
std::atomic<int> g_listener = -1;  // where the handler writes the signal, or -1
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler uses them");

// Of what follows.
std::mutex g_mutex;
int g_num_alive = 0;
std::array<struct sigaction, kSignals.size()> g_before{};

void tell_listener(int signal) {
  const int listener = g_listener;
  if (listener >= 0) {
    const int before = errno;
    const auto byte = static_cast<unsigned char>(signal);
    [[maybe_unused]] const ssize_t written = ::write(listener, &byte, 1);
    errno = before;
  }
}

void on_signal(int signal) {
  if (signal == SIGINT && g_received != 0) {
    std::signal(SIGINT, SIG_DFL);
    std::raise(SIGINT);
  }
  g_received = signal;
  tell_listener(signal);
}

// Calls `heard` with each signal that the handler writes, until it is gone.
class Listener {
 public:
  explicit Listener(std::function<void(int)> heard) {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
      throw PreflightError("cannot make a pipe (" + system_reason(errno) +
                           "); raise the limit on open files (`ulimit -n`)");
    }
    read_ = ends[0];
    write_ = ends[1];
    thread_ = std::thread([this, heard = std::move(heard)] {
      for (;;) {
        unsigned char signal = 0;
        const ssize_t count = ::read(read_, &signal, 1);
        if (count < 0 && errno == EINTR) {
          continue;
        }
        if (count != 1 || signal == 0) {
          return;
        }
        heard(signal);
      }
    });
    g_listener = write_;
  }
  ~Listener() {
    g_listener = -1;
    const unsigned char end = 0;
    [[maybe_unused]] const ssize_t written = ::write(write_, &end, 1);
    thread_.join();
    // The pipe stays: a handler on another thread may be about to write to it.
  }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

 private:
  int read_ = -1;
  int write_ = -1;
  std::thread thread_;
};

std::unique_ptr<Listener> g_listening;

}  // namespace

StopSignal::StopSignal() {
  std::unique_ptr<Listener> before;
  const std::lock_guard lock(g_mutex);
  before = std::move(g_listening);
  if (g_num_alive++ > 0) {
    return;
  }
  g_received = 0;
  for (std::size_t i = 0; i < kSignals.size(); ++i) {
    struct sigaction action {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    sigaction(kSignals[i], nullptr, &g_before[i]);
    if (kSignals[i] != SIGHUP || g_before[i].sa_handler != SIG_IGN) {
      sigaction(kSignals[i], &action, nullptr);
    }
  }
}

StopSignal::~StopSignal() {
  const std::lock_guard lock(g_mutex);
  if (--g_num_alive > 0) {
    return;
  }
  for (std::size_t i = 0; i < kSignals.size(); ++i) {
    sigaction(kSignals[i], &g_before[i], nullptr);
  }
}

int StopSignal::received() const {
  return g_received;
}

NothingToSave::NothingToSave(std::function<void(int signal)> end) {
  const std::lock_guard lock(g_mutex);
  g_listening = std::make_unique<Listener>(std::move(end));
  if (g_num_alive > 0 && g_received != 0) {
    tell_listener(g_received);
  }
}

NothingToSave::~NothingToSave() {
  const std::lock_guard lock(g_mutex);
  g_listening.reset();
}

}  // namespace memphis
