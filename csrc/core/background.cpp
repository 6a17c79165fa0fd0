// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/background.h"

#include <utility>

#include <sys/resource.h>
#include <unistd.h>

#include "csrc/core/error.h"

namespace memphis {
namespace {

// As nice(1) has it by default. Linux has a nice value for each thread.
constexpr int kNice = 10;

}  // namespace

Background::Background(Where where) {
  if (where == Where::apart) {
    thread_ = std::thread([this] { loop(); });
  }
}

Background::~Background() {
  if (!thread_.joinable()) {
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    leaves_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Background::loop() {
  // Where that is refused it is no reason to do nothing.
  (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kNice);
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return leaves_ || work_; });
    if (!work_) {
      return;
    }
    lock.unlock();
    do_work();
    lock.lock();
  }
}

void Background::do_work() {
  std::exception_ptr error;
  try {
    work_();
  } catch (...) {
    error = std::current_exception();
  }
  {
    const std::lock_guard lock(mutex_);
    error_ = error;
    work_ = nullptr;
  }
  changed_.notify_all();
}

void Background::start(std::function<void()> work) {
  require(!started_, "the last work in the background has been waited for");
  started_ = true;
  {
    const std::lock_guard lock(mutex_);
    work_ = std::move(work);
  }
  if (!thread_.joinable()) {
    do_work();
    return;
  }
  changed_.notify_all();
}

bool Background::done() const {
  const std::lock_guard lock(mutex_);
  return !work_;
}

void Background::wait() {
  std::exception_ptr error;
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !work_; });
    error = std::exchange(error_, nullptr);
  }
  started_ = false;
  if (error) {
    std::rethrow_exception(error);
  }
}

}  // namespace memphis
