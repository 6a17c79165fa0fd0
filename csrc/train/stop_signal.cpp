// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/stop_signal.h"

#include <array>
#include <csignal>

namespace memphis {
namespace {

volatile std::sig_atomic_t g_received = 0;

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
  g_received = 0;
  for (const int signal : kSignals) {
    std::signal(signal, on_signal);
  }
}

StopSignal::~StopSignal() {
  for (const int signal : kSignals) {
    std::signal(signal, SIG_DFL);
  }
}

int StopSignal::received() const {
  return g_received;
}

}  // namespace memphis
