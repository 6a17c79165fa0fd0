// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace memphis {

// A thread that does one thing at a time for another, after whatever else the processor has to do:
// what waits for disks belongs there. It calls no communicator and nothing of a GPU.
class Background {
 public:
  // here: there is no such thread, and start() returns when the work is done.
  enum class Where : std::uint8_t { apart, here };
  explicit Background(Where where = Where::apart);
  // Waits for what is under way; what it throws is lost.
  ~Background();
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;

  // Returns at once, unless it is done here. ContractError if the last work has not been waited for.
  void start(std::function<void()> work);

  // Whether work was started that wait() has not been called for.
  bool started() const { return started_; }
  // Whether that is at its end.
  bool done() const;
  // Returns once it is, and throws what it threw; at once where nothing was started.
  void wait();

 private:
  void loop();
  void do_work();

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> work_;  // empty: nothing is under way
  std::exception_ptr error_;
  bool leaves_ = false;
  bool started_ = false;  // of the thread that starts and waits alone
  std::thread thread_;    // last: it uses the others; none: here
};

}  // namespace memphis
