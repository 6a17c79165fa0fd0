// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/simt/clocks.h"

#include <algorithm>

namespace memphis::kernels::simt {

void merge(Carried& into, const Carried& more) {
  if (more.interval != into.interval) {  // what the older one carries is known to all
    if (more.interval > into.interval) {
      into = more;
    }
    return;
  }
  for (std::size_t i = 0; i < more.clocks.size(); ++i) {
    into.clocks[i] = std::max(into.clocks[i], more.clocks[i]);
  }
}

void Clocks::begin_block(int num_threads) {
  num_threads_ = static_cast<std::size_t>(num_threads) + 1;
  own_.resize(num_threads_);
  fresh_.assign(num_threads_, 0);
  known_.resize(std::max(known_.size(), num_threads_ * num_threads_));
  joined_.resize(num_threads_);
  begin_interval();
}

void Clocks::begin_interval() {
  ++interval_;
  std::fill(own_.begin(), own_.end(), 1U);
}

std::uint32_t* Clocks::known_by(int thread) {
  const auto t = static_cast<std::size_t>(thread);
  std::uint32_t* const row = known_.data() + t * num_threads_;
  if (fresh_[t] != interval_) {
    std::fill_n(row, num_threads_, 0U);
    fresh_[t] = interval_;
  }
  return row;
}

void Clocks::join(std::span<const int> threads) {
  std::fill(joined_.begin(), joined_.end(), 0U);
  for (const int thread : threads) {
    const std::uint32_t* const row = known_by(thread);
    for (std::size_t i = 0; i < num_threads_; ++i) {
      joined_[i] = std::max(joined_[i], row[i]);
    }
  }
  for (const int thread : threads) {
    joined_[static_cast<std::size_t>(thread)] = own_[static_cast<std::size_t>(thread)]++;
  }
  for (const int thread : threads) {
    std::copy(joined_.begin(), joined_.end(), known_by(thread));
  }
}

void Clocks::release(int thread, Carried& carried) {
  if (carried.interval != interval_) {  // what it carried is older than a barrier: known to all
    carried.interval = interval_;
    carried.clocks.assign(num_threads_, 0);
  }
  const std::uint32_t* const row = known_by(thread);
  for (std::size_t i = 0; i < num_threads_; ++i) {
    carried.clocks[i] = std::max(carried.clocks[i], row[i]);
  }
  const auto t = static_cast<std::size_t>(thread);
  carried.clocks[t] = own_[t]++;
}

void Clocks::acquire(int thread, const Carried& carried) {
  if (carried.interval != interval_) {
    return;
  }
  std::uint32_t* const row = known_by(thread);
  for (std::size_t i = 0; i < num_threads_; ++i) {
    row[i] = std::max(row[i], carried.clocks[i]);
  }
}

}  // namespace memphis::kernels::simt
