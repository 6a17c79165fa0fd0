// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <type_traits>

#include <sys/mman.h>

#include "csrc/core/error.h"

namespace memphis::kernels::simt {

// An array of zeros of which only the pages that are touched take memory. T is one for which zeros
// are a valid value.
template <class T>
class SparseArray {
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);

 public:
  explicit SparseArray(std::size_t count) : bytes_(count * sizeof(T)) {
    void* const address = mmap(nullptr,
                               bytes_,
                               PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                               -1,
                               0);
    if (address == MAP_FAILED) {
      throw PreflightError("cannot map the history of shared memory (the system refused " +
                           std::to_string(bytes_) + " bytes); raise `ulimit -v`");
    }
    data_ = static_cast<T*>(address);
  }
  ~SparseArray() { munmap(data_, bytes_); }
  SparseArray(const SparseArray&) = delete;
  SparseArray& operator=(const SparseArray&) = delete;

  T& operator[](std::size_t index) { return data_[index]; }
  const T& operator[](std::size_t index) const { return data_[index]; }

 private:
  std::size_t bytes_;
  T* data_;
};

}  // namespace memphis::kernels::simt
