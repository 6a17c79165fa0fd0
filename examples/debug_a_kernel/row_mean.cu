// SPDX-License-Identifier: Apache-2.0
//
// debug_a_kernel [right | races | unwritten | out_of_bounds | hangs]: the mean of each row of a
// matrix, by a kernel that is right or has one of four faults.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <gpu_launch.h>
#include <gpu_warp.h>

#include "csrc/core/device.h"
#include "csrc/core/error.h"

namespace memphis::kernels {
namespace {

enum class Fault { right, races, unwritten, out_of_bounds, hangs };

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / gpu::kWarpSize;
constexpr int kRows = 2;

// A block takes kRows rows, one after the other: each thread sums every 128th element, each warp
// its threads, one thread the warps. grid: rows / kRows, block: kThreads
template <Fault fault>
__global__ void row_mean_kernel(float* mean, const float* x, int width) {
  __shared__ float warp_sums[kWarps];
  const int thread = static_cast<int>(threadIdx.x);
  const int end = fault == Fault::out_of_bounds ? width + 1 : width;
  for (int i = 0; i < kRows; ++i) {
    const int row = static_cast<int>(blockIdx.x) * kRows + i;
    float sum = 0.0F;
    for (int column = thread; column < end; column += kThreads) {
      sum += x[row * width + column];
    }
    sum = gpu::warp_sum(sum);
    if (gpu::lane_id() == 0 && (fault != Fault::unwritten || gpu::warp_id() != 2)) {
      warp_sums[gpu::warp_id()] = sum;
    }
    if (fault == Fault::hangs && thread >= width) {
      return;  // there is nothing to do for this thread, but the others wait for it
    }
    gpu::sync_threads();  // all warps' sums are written
    if (thread == 0) {
      float total = 0.0F;
      for (int warp = 0; warp < kWarps; ++warp) {
        total += warp_sums[warp];
      }
      mean[row] = total / static_cast<float>(width);
    }
    if (fault != Fault::races) {
      gpu::sync_threads();  // the sums are read: the next row may overwrite them
    }
  }
}

template <Fault fault>
std::vector<float> row_means(const std::vector<float>& x, int width) {
  const std::size_t rows = x.size() / static_cast<std::size_t>(width);
  const OwnedStream stream(Device::cuda);
  std::vector<float> result(rows);
  void* const device_x = device_allocate(x.size() * sizeof(float), Device::cuda);
  void* const device_mean = device_allocate(rows * sizeof(float), Device::cuda);
  device_copy(device_x, x.data(), x.size() * sizeof(float), stream.view());
  launch(row_mean_kernel<fault>,
         {.grid = {.x = static_cast<std::int64_t>(rows) / kRows},
          .block = {.x = kThreads},
          .shared_bytes = 0,
          .stream = stream.view()},
         static_cast<float*>(device_mean),
         static_cast<const float*>(device_x),
         width);
  device_copy(result.data(), device_mean, rows * sizeof(float), stream.view());
  synchronize(stream.view());
  device_free(device_x, Device::cuda);
  device_free(device_mean, Device::cuda);
  return result;
}

void run(const std::string& fault) {
  constexpr int kWidth = 100;
  const std::vector<float> x(2 * kRows * kWidth, 2.0F);
  std::vector<float> means;
  if (fault == "right") {
    means = row_means<Fault::right>(x, kWidth);
  } else if (fault == "races") {
    means = row_means<Fault::races>(x, kWidth);
  } else if (fault == "unwritten") {
    means = row_means<Fault::unwritten>(x, kWidth);
  } else if (fault == "out_of_bounds") {
    means = row_means<Fault::out_of_bounds>(x, kWidth);
  } else if (fault == "hangs") {
    means = row_means<Fault::hangs>(x, kWidth);
  } else {
    throw ConfigError(
        "there is no fault " + fault +
        " (they are in this file); use right, races, unwritten, out_of_bounds or hangs");
  }
  for (const float mean : means) {
    std::printf("%g\n", static_cast<double>(mean));
  }
}

}  // namespace
}  // namespace memphis::kernels

int main(int argc, char** argv) {
  try {
    memphis::kernels::run(argc > 1 ? argv[1] : "right");
    return EXIT_SUCCESS;
  } catch (const memphis::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return static_cast<int>(error.code());
  }
}
