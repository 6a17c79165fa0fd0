// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "csrc/core/device.h"

// What lies on streams of the simulated device (device_simt.cpp) and is not done yet: what another
// thread does, such as NCCL's. All else is done when its call returns. A kernel, a copy, a memset or a
// stream that is to wait for an event therefore waits on the host for what is pending before it.
namespace memphis::simt_stream {

struct Point;

// Returns when nothing is pending on `stream`, a cudaStream_t, any more.
void wait_for_pending(void* stream);

// The same of all streams, as a GPU may ask for before it loads a kernel (CUDA programming guide,
// "Lazy Loading").
void wait_for_all_pending();

// Whether what is enqueued on `stream` is recorded for a graph.
bool is_captured(void* stream);
// Adds `work` to the recording. Throws where that is lost already.
void record(void* stream, std::function<void()> work);

// Does `work`, which may be copied, in its turn on `stream`: now, behind what is pending there, or
// at each launch of the graph that the stream is captured for.
template <class Work>
void enqueue(void* stream, const Work& work) {
  if (is_captured(stream)) {
    record(stream, work);
    return;
  }
  wait_for_pending(stream);
  work();
}

// One piece of such work, of the thread that does it.
class PendingWork {
 public:
  // Enqueues it behind what lies on `stream`, a cudaStream_t. Not part of a graph: throws where the
  // stream is captured.
  explicit PendingWork(void* stream);
  // It is done, or given up: what follows on the stream runs.
  ~PendingWork();
  PendingWork(PendingWork&&) noexcept = default;
  PendingWork& operator=(PendingWork&&) = delete;
  PendingWork(const PendingWork&) = delete;
  PendingWork& operator=(const PendingWork&) = delete;

  // Whether nothing before it on the stream is pending any more.
  bool may_begin() const;

  // It will never be done. Like a kernel that waits for ranks that will not come it is not done as
  // long as this exists, which a GpuWatch ends; who waits without one waits no longer.
  void fail() noexcept;

 private:
  std::shared_ptr<Point> point_;
};

}  // namespace memphis::simt_stream

namespace memphis::simt_device {

// Which GPU is simulated, 90 unless it is set: kernels for newer ones are not chosen then. Set before
// the device is first asked for.
void set_compute_capability(int compute_capability);
// How many SMs it has; 0, as it is unless it is set: one for each core of this machine.
void set_num_multiprocessors(int num_multiprocessors);

// The time at which all that is recorded from here on is passed, in seconds from a common origin;
// nothing, as at the start: this machine's clock. While nothing is pending on any stream.
void set_clock(std::optional<double> seconds);

// Whether CUDA began, and read its environment, before the program could change that.
void set_started_early(bool early);

// Whether memory is given and taken only while nothing is on the device, as unless it is set. Not
// where ranks are threads of one process, which would each have a GPU.
void set_memory_waits(bool waits);

// Streams that there are, but for the default one. Priorities change nothing here.
std::int64_t num_streams(StreamPriority priority);

}  // namespace memphis::simt_device
