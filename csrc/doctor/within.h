// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <exception>
#include <future>
#include <optional>
#include <thread>
#include <utility>

namespace memphis::doctor {

// What `work` returns, or throws, unless that takes longer than `seconds`: nothing then, and a thread
// is left behind that still waits, as for a file server that is gone. `work` owns what it uses.
template <class Work>
auto within(double seconds, Work work) -> std::optional<decltype(work())> {
  std::packaged_task<decltype(work())()> task(std::move(work));
  auto result = task.get_future();
  std::thread(std::move(task)).detach();
  if (result.wait_for(std::chrono::duration<double>(seconds)) != std::future_status::ready) {
    return std::nullopt;
  }
  return result.get();
}

}  // namespace memphis::doctor
