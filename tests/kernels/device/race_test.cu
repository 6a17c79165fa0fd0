// SPDX-License-Identifier: Apache-2.0
//
// Races that people write, each with its repair beside it: the check must find every one and none
// of the repairs.
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <gpu_launch.h>
#include <gpu_memory.h>
#include <gpu_warp.h>

#include "kernels/device/simt/executor.h"
#include "tests/support/test_tensor.h"

namespace memphis::kernels {
namespace {

constexpr int kThreads = 64;

// `kFaulty` leaves out what orders the accesses. Where a thread might be first to read what another
// is still to write, the memory is filled before: what nobody has written is another report.
template <int kCount>
__device__ void fill(float (&tile)[kCount]) {
  if (threadIdx.x < kCount) {
    tile[threadIdx.x] = 0.0F;
  }
  gpu::sync_threads();
}

template <bool kFaulty>
__global__ void barrier_after_load_kernel(float* out) {
  __shared__ float tile[kThreads];
  fill(tile);
  const unsigned thread = threadIdx.x;
  tile[thread] = out[thread];
  if (!kFaulty) {
    gpu::sync_threads();
  }
  out[thread] = tile[kThreads - 1 - thread];
}

template <bool kFaulty>
__global__ void barrier_before_overwrite_kernel(float* out) {
  __shared__ float tile[kThreads];
  const unsigned thread = threadIdx.x;
  tile[thread] = out[thread];
  gpu::sync_threads();
  const float value = tile[(thread + 1) % kThreads];
  if (!kFaulty) {
    gpu::sync_threads();
  }
  tile[thread] = value;
}

// The first pass is right; the second overwrites what is still being read.
template <bool kFaulty>
__global__ void second_pass_kernel(float* out) {
  __shared__ float tile[kThreads];
  const unsigned thread = threadIdx.x;
  for (int pass = 0; pass < 2; ++pass) {
    tile[thread] = out[thread];
    gpu::sync_threads();
    out[thread] = tile[(thread + 1) % kThreads];
    if (!kFaulty) {
      gpu::sync_threads();
    }
  }
}

// Within a warp everything is in order; between the two warps nothing is.
template <bool kFaulty>
__global__ void between_warps_kernel(float* out) {
  __shared__ float tile[kThreads];
  fill(tile);
  const unsigned thread = threadIdx.x;
  tile[thread] = out[thread];
  if (kFaulty) {
    gpu::sync_warp();
  } else {
    gpu::sync_threads();
  }
  out[thread] = tile[(thread + 1) % kThreads];
}

// A tree in shared memory by one warp, as written when warps were believed to run in step.
template <bool kFaulty>
__global__ void reduction_kernel(float* out) {
  __shared__ float tile[32];
  fill(tile);
  const unsigned lane = threadIdx.x;
  tile[lane] = out[lane];
  for (unsigned half = 16; half > 0; half /= 2) {
    if (!kFaulty) {
      gpu::sync_warp();
    }
    if (lane < half) {
      tile[lane] += tile[lane + half];
    }
  }
  if (lane == 0) {
    out[0] = tile[0];
  }
}

// Two buffers take turns; one barrier a step is enough only if the other buffer is the one written.
template <bool kFaulty>
__global__ void double_buffer_kernel(float* out) {
  __shared__ float tile[2][kThreads];
  const unsigned thread = threadIdx.x;
  tile[0][thread] = out[thread];
  for (int step = 0; step < 4; ++step) {
    gpu::sync_threads();
    const float value = tile[step % 2][(thread + 1) % kThreads];
    tile[(step + (kFaulty ? 0 : 1)) % 2][thread] = value;
  }
}

// Every thread writes the same value: on a GPU it "works", and is a race all the same.
template <bool kFaulty>
__global__ void same_value_kernel(float* out) {
  __shared__ float flag;
  if (kFaulty || threadIdx.x == 0) {
    flag = 1.0F;
  }
  gpu::sync_threads();
  out[threadIdx.x] = flag;
}

// A counter without its atomic.
template <bool kFaulty>
__global__ void counter_kernel(float* out) {
  __shared__ int count;
  if (threadIdx.x == 0) {
    count = 0;
  }
  gpu::sync_threads();
  if (kFaulty) {
    count += 1;
  } else {
    gpu::atomic_add(&count, 1);
  }
  gpu::sync_threads();
  out[threadIdx.x] = static_cast<float>(count);
}

// The counter is read before all have counted.
template <bool kFaulty>
__global__ void counter_read_kernel(float* out) {
  __shared__ int count;
  if (threadIdx.x == 0) {
    count = 0;
  }
  gpu::sync_threads();
  gpu::atomic_add(&count, 1);
  if (!kFaulty) {
    gpu::sync_threads();
  }
  out[threadIdx.x] = static_cast<float>(count);
}

// Neighbouring bytes are no race, the same byte is.
template <bool kFaulty>
__global__ void bytes_kernel(float* out) {
  __shared__ std::uint8_t bytes[kThreads];
  bytes[threadIdx.x / (kFaulty ? 2 : 1)] = static_cast<std::uint8_t>(threadIdx.x);
  gpu::sync_threads();
  out[threadIdx.x] = bytes[threadIdx.x / 2];
}

// One's own copy has arrived; that of the neighbour is known only after a barrier.
template <bool kFaulty>
__global__ void copies_kernel(float* out) {
  float* const tile = gpu::dynamic_shared<float>();
  const unsigned first = threadIdx.x * 4;
  tile[first] = 0.0F;
  gpu::sync_threads();
  gpu::copy_async_16(tile + first, out + first, true);
  gpu::copy_async_commit();
  gpu::copy_async_wait<0>();
  if (!kFaulty) {
    gpu::sync_threads();
  }
  out[first] = tile[(first + 4) % (4 * kThreads)];
}

// A copy into a buffer that others may still read.
template <bool kFaulty>
__global__ void copy_over_readers_kernel(float* out) {
  float* const tile = gpu::dynamic_shared<float>();
  const unsigned first = threadIdx.x * 4;
  tile[first] = 1.0F;
  gpu::sync_threads();
  const float value = tile[(first + 4) % (4 * kThreads)];
  if (!kFaulty) {
    gpu::sync_threads();
  }
  gpu::copy_async_16(tile + first, out + first, true);
  gpu::copy_async_commit();
  gpu::copy_async_wait<0>();
  out[first] = value;
}

// A barrier of some warps orders those, and no other.
template <bool kFaulty>
__global__ void named_barrier_kernel(float* out) {
  __shared__ float tile[32];
  fill(tile);
  const int warp = gpu::warp_id();
  if (warp == 0) {
    tile[threadIdx.x] = 1.0F;
  }
  if (kFaulty || warp < 2) {
    simt::sync_named(warp == 1 && kFaulty ? 2 : 1, kFaulty ? 32 : 64);
  }
  if (warp == 1) {
    out[threadIdx.x] = tile[threadIdx.x - 32];
  }
}

using Kernel = void (*)(float*);
struct Race {
  const char* name;
  Kernel faulty;
  Kernel repaired;
  int num_threads = kThreads;
};

#define MEMPHIS_RACE(name, ...) \
  { #name, name##_kernel < true>, name##_kernel < false>, __VA_ARGS__ }

const std::vector<Race> kRaces = {
    MEMPHIS_RACE(barrier_after_load),
    MEMPHIS_RACE(barrier_before_overwrite),
    MEMPHIS_RACE(second_pass),
    MEMPHIS_RACE(between_warps),
    MEMPHIS_RACE(reduction, 32),
    MEMPHIS_RACE(double_buffer),
    MEMPHIS_RACE(same_value),
    MEMPHIS_RACE(counter),
    MEMPHIS_RACE(counter_read),
    MEMPHIS_RACE(bytes),
    MEMPHIS_RACE(copies),
    MEMPHIS_RACE(copy_over_readers),
    MEMPHIS_RACE(named_barrier),
};

class Races : public testing::TestWithParam<Race> {
 protected:
  ~Races() override { simt::options() = before_; }

  // What launch() says of the kernel, in the order of threads that `seed` gives.
  static std::string fault_of(Kernel kernel, std::uint64_t seed) {
    simt::options().seed = seed;
    const test::TestTensor out(
        {{4 * kThreads}, DType::f32}, Device::cuda, std::vector<double>(4 * kThreads, 1.0));
    try {
      launch(kernel,
             {.grid = {.x = 3},
              .block = {.x = GetParam().num_threads},
              .shared_bytes = 4 * kThreads * sizeof(float),
              .stream = {}},
             out.view().as<float>());
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

 private:
  simt::Options before_ = simt::options();
};

TEST_P(Races, IsFoundInEveryOrderAndItsRepairIsNot) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const std::string message = fault_of(GetParam().faulty, seed);
    EXPECT_NE(message.find("of shared memory, in a race"), std::string::npos)
        << "seed " << seed << ": \"" << message << "\"";
    // Both sides are named, with their lines.
    const std::size_t first = message.find("race_test.cu:");
    EXPECT_NE(message.find("race_test.cu:", first + 1), std::string::npos) << message;
    EXPECT_EQ(fault_of(GetParam().repaired, seed), "") << "seed " << seed;
  }
}

TEST_P(Races, IsNotLookedForWhenTheCheckIsOff) {
  simt::options().check_races = false;
  EXPECT_EQ(fault_of(GetParam().repaired, 1), "");
  EXPECT_EQ(fault_of(GetParam().faulty, 1).find("in a race"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Planted, Races, testing::ValuesIn(kRaces), [](const auto& instance) {
  return std::string(instance.param.name);
});

}  // namespace
}  // namespace memphis::kernels
