// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/stop_signal.h"

#include <array>
#include <atomic>
#include <csignal>

namespace memphis {
namespace {

volatile std::sig_atomic_t g_received = 0;
std::atomic<int> g_num_alive = 0;

constexpr std::array<int, 4> kSignals = {SIGTERM, SIGINT, SIGUSR1, SIGUSR2};

void on_signal(int signal) {
  if (signal == SIGINT && g_received != 0) {
    std::signal(SIGINT, SIG_DFL);
    std::raise(SIGINT);
  }
  g_received = signal;
}

}  // namespace

StopSignal::StopSignal() {
  if (g_num_alive++ > 0) {
    return;
  }
  g_received = 0;
  for (const int signal : kSignals) {
    std::signal(signal, on_signal);
  }
}

StopSignal::~StopSignal() {
  if (--g_num_alive > 0) {
    return;
  }
  for (const int signal : kSignals) {
    std::signal(signal, SIG_DFL);
  }
}

int StopSignal::received() const {
  return g_received;
}

}  // namespace memphis
