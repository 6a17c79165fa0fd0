// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <future>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

namespace memphis::doctor {

// What `work` returns, or throws, unless that takes longer than `seconds`: nothing then, and a thread
// is left behind that still waits, as for a file server that is gone, and hands what it finds to
// `undo`. Both own what they use.
template <class Work, class Undo>
auto within(double seconds, Work work, Undo undo) -> std::optional<decltype(work())> {
  enum class Said : std::uint8_t { nothing, done, given_up };
  auto said = std::make_shared<std::atomic<Said>>(Said::nothing);
  std::packaged_task<decltype(work())()> task(
      [said, work = std::move(work), undo = std::move(undo)]() mutable {
        auto found = work();
        if (said->exchange(Said::done) == Said::given_up) {
          undo(found);
        }
        return found;
      });
  auto result = task.get_future();
  std::thread(std::move(task)).detach();
  if (result.wait_for(std::chrono::duration<double>(seconds)) != std::future_status::ready &&
      said->exchange(Said::given_up) != Said::done) {
    return std::nullopt;
  }
  return result.get();
}

template <class Work>
auto within(double seconds, Work work) {
  return within(seconds, std::move(work), [](const auto& /*found*/) {});
}

}  // namespace memphis::doctor
