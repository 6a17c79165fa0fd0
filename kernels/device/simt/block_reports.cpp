// SPDX-License-Identifier: Apache-2.0
//
// What a block says of its fault, or of why nobody in it can go on.
#include <map>
#include <string>

#include "csrc/core/simt_memory.h"
#include "kernels/device/simt/block.h"
#include "kernels/device/simt/sanitizer.h"
#include "kernels/device/simt/symbols.h"

namespace memphis::kernels::simt {
namespace {

std::string text_of(const Index3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

std::string verb(Access access) {
  switch (access) {
    case Access::read:
    case Access::async_read:
      return "reads";
    case Access::write:
      return "writes";
    case Access::atomic:
      return "adds to";
    case Access::copy:
    case Access::async_write:
      return "copies to";
  }
  return "";
}

}  // namespace

// Everybody waits, or has left: says who waits where and who will never come.
void Block::find_deadlock() {
  struct Group {
    const Thread* first;
    int count;
  };
  std::map<std::string, Group> groups;
  for (int i = 0; i < num_threads_; ++i) {
    const Thread& thread = threads_[static_cast<std::size_t>(i)];
    const std::string text =
        thread.state == State::exited
            ? "left the kernel"
            : "wait for " + std::string(thread.waits_for) + " at " + kernel_place(thread.pc).text();
    ++groups.try_emplace(text, Group{.first = &thread, .count = 0}).first->second.count;
  }
  for (const auto& [text, group] : groups) {
    deadlock_ += (deadlock_.empty() ? "" : "; ") + std::to_string(group.count) +
                 " threads, thread " + text_of(group.first->index) + " the first, " + text;
  }
  deadlock_ += mbarriers_.describe_awaited();
}

std::string Block::text_of_thread(int thread) const {
  return thread < num_threads_
             ? "thread " + text_of(threads_[static_cast<std::size_t>(thread)].index)
             : "another block of the cluster";
}

std::string Block::where() const {
  return "kernel " + Symbols::instance().kernel(call_->kernel).name + ", block " + text_of(index_) +
         ", thread " + text_of(current_->index);
}

std::string Block::fault_message(const std::string& kernel) const {
  std::string message = "kernel " + kernel + ", block " + text_of(index_) + ": ";
  if (fault_.what == nullptr) {
    return message + "no thread can go on: " + deadlock_ +
           " (a barrier waits for those who have left or wait elsewhere); let all of them pass it";
  }
  const Thread& thread = threads_[static_cast<std::size_t>(fault_.thread)];
  message += "thread " + text_of(thread.index) + " at " + kernel_place(fault_.pc).text() + " ";
  if (fault_.bytes != 0) {
    message += verb(fault_.access) + " " + std::to_string(fault_.bytes) + " bytes ";
  }
  message += fault_.what;
  if (fault_.bytes != 0) {
    if (shared_.contains(fault_.address)) {
      message += " (" + shared_.describe(fault_.address) + ")";
    } else if (simt_memory::contains(fault_.address)) {
      message += " (" + simt_memory::describe(fault_.address) + ")";
    }
  }
  if (fault_.has_other) {
    message += "; " + text_of_thread(fault_.other_thread) +
               (fault_.bytes != 0 ? " " + verb(fault_.other_access) + " it" : " is") + " at " +
               kernel_place(fault_.other_pc).text();
  }
  return message + "; " + fault_.advice;
}

}  // namespace memphis::kernels::simt
