// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "csrc/core/arena.h"
#include "csrc/core/device.h"
#include "csrc/core/tensor.h"

namespace memphis::bench {

// Repeats are odd, so that the median is one of the samples; fewer where a call takes long.
constexpr int kMinRepeats = 3;
constexpr int kMaxRepeats = 15;

struct Measurement {
  double seconds = 0;         // median
  double relative_sigma = 0;  // standard deviation over mean
  int repeats = 0;
};

// Times calls on one device: single ones, each from cold caches, after a warm-up. Repetition and
// statistics are Google Benchmark's. A simulated device makes one call.
class BenchmarkTimer {
 public:
  explicit BenchmarkTimer(Device device);

  Stream stream() const { return stream_.view(); }
  // Throws what `call` throws.
  Measurement measure(const std::function<void(Stream)>& call);

 private:
  double time_once(const std::function<void(Stream)>& call);
  void flush();

  OwnedStream stream_;
  Arena arena_;
  TensorView flushed_;
  TensorView norm_;
  TensorView partial_;
  bool once_;
  Event begin_;
  Event end_;
};

// The reference products: large enough to be bound by arithmetic, small enough for a second or two.
constexpr std::int64_t kMatmulSizeCpu = 2048;  // OpenBLAS's sgemm
constexpr std::int64_t kMatmulSizeGpu = 8192;  // cuBLASLt, bf16

// A simulated device takes seconds for what a GPU does in microseconds, and its times mean nothing: a
// benchmark calls its op once there, to show that it runs, with yardsticks as small as can be. Cases
// that do more than this are left out.
constexpr double kMaxSimulatedFlops = 3e8;
constexpr double kMaxSimulatedBytes = 64e6;

// What this machine does at best, measured here and now.
struct Roofs {
  double copy_bytes_per_second = 0;    // read and written
  double matmul_flops_per_second = 0;  // 0: not asked for
};
Roofs measure_roofs(BenchmarkTimer& timer, bool with_matmul);
// FLOP/s of the op matmul on two square matrices, in f32 on a processor and in bf16 on a GPU: what a
// step's products reach, where the yardstick of a processor is OpenBLAS's sgemm.
double measure_square_product(BenchmarkTimer& timer, std::int64_t size);

// The upper one of the two in the middle where they are even in number; one value at least.
double median(std::vector<double> values);

}  // namespace memphis::bench
