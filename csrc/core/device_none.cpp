// SPDX-License-Identifier: Apache-2.0
//
// Device::cuda in a build without it: absent, and says so.
#include "csrc/core/device.h"
#include "csrc/core/error.h"

namespace memphis::cuda_device {
namespace {

[[noreturn]] void absent() {
  throw PreflightError(
      "device cuda is not in this binary (it was built with the cpu preset); build with "
      "`launch/build.sh cuda` or set run.device=cpu");
}

}  // namespace

std::string unavailable_reason() {
  return "this binary was built with the cpu preset";
}
DeviceInfo info() {
  absent();
}
int count() {
  return 0;
}
void select(int /*index*/) {
  absent();
}
std::array<std::int64_t, 2> identity() {
  absent();
}
bool loads_kernels_at_once() {
  absent();
}
void* allocate(std::size_t /*bytes*/) {
  absent();
}
void free(void* /*data*/) noexcept {}
void copy(void* /*destination*/, const void* /*source*/, std::size_t /*bytes*/, void* /*stream*/) {
  absent();
}
void zero(void* /*destination*/, std::size_t /*bytes*/, void* /*stream*/) {
  absent();
}
void synchronize(void* /*stream*/) {
  absent();
}
bool is_done(void* /*stream*/) {
  absent();
}
void* create_stream(StreamPriority /*priority*/) {
  absent();
}
void destroy_stream(void* /*stream*/) noexcept {}
void* create_event(bool /*timing*/) {
  absent();
}
void destroy_event(void* /*event*/) noexcept {}
void record_event(void* /*event*/, void* /*stream*/, bool /*timing*/) {
  absent();
}
void make_wait(void* /*stream*/, void* /*event*/) {
  absent();
}
void synchronize_event(void* /*event*/) {
  absent();
}
bool event_is_done(void* /*event*/) {
  absent();
}
double seconds_between(void* /*earlier*/, void* /*later*/) {
  absent();
}
void* allocate_pinned(std::size_t /*bytes*/) {
  absent();
}
void free_pinned(void* /*data*/) noexcept {}
void begin_capture(void* /*stream*/) {
  absent();
}
EndedCapture end_capture(void* /*stream*/) {
  absent();
}
void abandon_capture(void* /*stream*/) noexcept {}
void launch_graph(void* /*graph*/, void* /*stream*/) {
  absent();
}
void destroy_graph(void* /*graph*/) noexcept {}

}  // namespace memphis::cuda_device
