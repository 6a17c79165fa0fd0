// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

// What this program's symbol table knows of kernels. `__shared__` variables are thread-local ones
// here (see words.h): an address in a thread's local storage is one of them, or a mistake.
namespace memphis::kernels::simt {

// Before each `__shared__` variable lies one of these, named by kSharedGapName and a number.
struct [[gnu::aligned(128)]] SharedGap {
  char bytes[128];
};
constexpr std::string_view kSharedGapName = "shared_gap_";

struct SharedVariable {
  std::size_t offset;  // in the thread-local storage of the program
  std::size_t bytes;
  std::string name;  // "scratch"
};

class Symbols {
 public:
  // Read from the program's file at the first call. Throws PreflightError if it is stripped.
  static const Symbols& instance();

  // All `__shared__` variables, by offset.
  const std::vector<SharedVariable>& shared_variables() const { return variables_; }
  // Size of the program's thread-local storage, and where the calling thread has its own.
  std::size_t local_storage_bytes() const { return local_storage_bytes_; }
  static std::uintptr_t local_storage();

  std::uintptr_t image_begin() const { return image_begin_; }
  // Whether the address is in the program's constants (read-only or not) and code.
  bool in_image(std::uintptr_t address) const { return address - image_begin_ < image_bytes_; }

  struct Kernel {
    std::string name;                 // "rmsnorm_forward_kernel<float, false>"
    std::size_t static_shared_bytes;  // its own `__shared__` variables
  };
  Kernel kernel(const void* function) const;

 private:
  Symbols();

  struct Function {
    std::uintptr_t address;
    std::string name;  // mangled
  };
  std::vector<Function> functions_;  // by address
  std::vector<SharedVariable> variables_;
  std::vector<std::string> mangled_;  // names of the variables, which begin with their function's
  std::size_t local_storage_bytes_ = 0;
  std::uintptr_t image_begin_ = 0;
  std::size_t image_bytes_ = 0;
};

}  // namespace memphis::kernels::simt
