// SPDX-License-Identifier: Apache-2.0
//
// Kernels are compiled with -fsanitize=thread and linked without its runtime: the compiler then
// calls the functions below before every access to memory that another thread might see, and they
// ask the running block whether it is allowed. Nothing of ThreadSanitizer itself is in the program.
// The host's half of a .cu file makes the same calls, and passes at once.
#include <cstddef>
#include <cstdint>

#include "kernels/device/simt/block.h"

namespace memphis::kernels::simt {
namespace {

inline void on_access(const void* address, std::size_t bytes, Access access, const void* pc) {
  if (Block::in_kernel()) {
    ExecutorCall()->access(address, bytes, access, pc);
  }
}

}  // namespace
}  // namespace memphis::kernels::simt

using memphis::kernels::simt::Access;
using memphis::kernels::simt::on_access;

// The names are the compiler's.
// NOLINTBEGIN(bugprone-reserved-identifier, cppcoreguidelines-macro-usage)
extern "C" {

void __tsan_init() {}

#define MEMPHIS_SIMT_ACCESS(bytes)                                         \
  void __tsan_read##bytes(void* address) {                                 \
    on_access(address, bytes, Access::read, __builtin_return_address(0));  \
  }                                                                        \
  void __tsan_write##bytes(void* address) {                                \
    on_access(address, bytes, Access::write, __builtin_return_address(0)); \
  }                                                                        \
  void __tsan_unaligned_read##bytes(void* address) {                       \
    on_access(address, bytes, Access::read, __builtin_return_address(0));  \
  }                                                                        \
  void __tsan_unaligned_write##bytes(void* address) {                      \
    on_access(address, bytes, Access::write, __builtin_return_address(0)); \
  }
MEMPHIS_SIMT_ACCESS(1)
MEMPHIS_SIMT_ACCESS(2)
MEMPHIS_SIMT_ACCESS(4)
MEMPHIS_SIMT_ACCESS(8)
MEMPHIS_SIMT_ACCESS(16)

void __tsan_read_range(void* address, long bytes) {
  on_access(address, static_cast<std::size_t>(bytes), Access::read, __builtin_return_address(0));
}
void __tsan_write_range(void* address, long bytes) {
  on_access(address, static_cast<std::size_t>(bytes), Access::write, __builtin_return_address(0));
}
void __tsan_vptr_update(void* address, void* /*value*/) {
  on_access(address, sizeof(void*), Access::write, __builtin_return_address(0));
}
void __tsan_vptr_read(void* address) {
  on_access(address, sizeof(void*), Access::read, __builtin_return_address(0));
}

// Atomic operations of the host's half (a shared_ptr's count, a function's static variable);
// kernels use the dialect's functions.
#define MEMPHIS_SIMT_ATOMIC(bits, type)                                                        \
  type __tsan_atomic##bits##_load(const volatile void* address, int /*order*/) {               \
    return __atomic_load_n(static_cast<const volatile type*>(address), __ATOMIC_SEQ_CST);      \
  }                                                                                            \
  void __tsan_atomic##bits##_store(volatile void* address, type value, int /*order*/) {        \
    __atomic_store_n(static_cast<volatile type*>(address), value, __ATOMIC_SEQ_CST);           \
  }                                                                                            \
  type __tsan_atomic##bits##_exchange(volatile void* address, type value, int /*order*/) {     \
    return __atomic_exchange_n(static_cast<volatile type*>(address), value, __ATOMIC_SEQ_CST); \
  }                                                                                            \
  type __tsan_atomic##bits##_fetch_add(volatile void* address, type value, int /*order*/) {    \
    return __atomic_fetch_add(static_cast<volatile type*>(address), value, __ATOMIC_SEQ_CST);  \
  }                                                                                            \
  type __tsan_atomic##bits##_fetch_sub(volatile void* address, type value, int /*order*/) {    \
    return __atomic_fetch_sub(static_cast<volatile type*>(address), value, __ATOMIC_SEQ_CST);  \
  }                                                                                            \
  bool __tsan_atomic##bits##_compare_exchange_strong(                                          \
      volatile void* address, void* expected, type desired, int /*order*/, int /*failure*/) {  \
    return __atomic_compare_exchange_n(static_cast<volatile type*>(address),                   \
                                       static_cast<type*>(expected),                           \
                                       desired,                                                \
                                       false,                                                  \
                                       __ATOMIC_SEQ_CST,                                       \
                                       __ATOMIC_SEQ_CST);                                      \
  }                                                                                            \
  bool __tsan_atomic##bits##_compare_exchange_weak(                                            \
      volatile void* address, void* expected, type desired, int order, int failure) {          \
    return __tsan_atomic##bits##_compare_exchange_strong(                                      \
        address, expected, desired, order, failure);                                           \
  }
MEMPHIS_SIMT_ATOMIC(8, std::uint8_t)
MEMPHIS_SIMT_ATOMIC(16, std::uint16_t)
MEMPHIS_SIMT_ATOMIC(32, std::uint32_t)
MEMPHIS_SIMT_ATOMIC(64, std::uint64_t)
#undef MEMPHIS_SIMT_ACCESS
#undef MEMPHIS_SIMT_ATOMIC

}  // extern "C"
// NOLINTEND(bugprone-reserved-identifier, cppcoreguidelines-macro-usage)
