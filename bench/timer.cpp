// SPDX-License-Identifier: Apache-2.0
#include "bench/timer.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <exception>
#include <vector>

#include <benchmark/benchmark.h>
#include <omp.h>

#include "bench/filled_tensor.h"
#include "csrc/core/parallel.h"
#include "kernels/cpu/openblas.h"
#include "kernels/global_norm/global_norm.h"
#include "kernels/matmul/matmul.h"

namespace memphis::bench {
namespace {

// Overwriting this much leaves nothing of a case's operands in a cache: no less than the last level of
// most CPUs, and eight times the largest L2 of a GPU (126 MB, B200), which keeps it at work for about half a
// millisecond, by its bandwidth, while the host enqueues a case of many launches.
constexpr std::int64_t kFlushBytesCpu = 256LL << 20U;
constexpr std::int64_t kFlushBytesGpu = 1LL << 30U;
// A copy this long hides its launch, and does not fit in a cache.
constexpr std::int64_t kCopyBytesCpu = 256LL << 20U;
constexpr std::int64_t kCopyBytesGpu = 1LL << 30U;
constexpr std::int64_t kChunkBytes = 4LL << 20U;  // what one CPU thread copies at a time
constexpr double kSecondsPerCase = 2.0;

bool is_simulated(Device device) {
  return device == Device::cuda && device_info(device).simulated;
}

// Of what is copied or overwritten: a chunk, where nothing is measured.
std::int64_t bytes_on(Device device, std::int64_t bytes) {
  return is_simulated(device) ? kChunkBytes : bytes;
}

// What is overwritten, and what its norm needs.
TensorSpec flushed_spec(Device device) {
  return TensorSpec({bytes_on(device, device == Device::cpu ? kFlushBytesCpu : kFlushBytesGpu) / 4},
                    DType::f32);
}
TensorSpec norm_spec() {
  return TensorSpec({1}, DType::f32);
}
TensorSpec partial_spec() {
  return TensorSpec({kernels::kGlobalNormPartials}, DType::f64);
}

// Takes the aggregates that Google Benchmark forms over the repetitions and prints nothing.
class AggregateReporter final : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context& /*context*/) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      if (run.aggregate_name == "median") {
        measurement_.seconds = run.GetAdjustedRealTime();
        measurement_.repeats = static_cast<int>(run.repetitions);
      } else if (run.aggregate_name == "cv") {
        // A ratio: the adjusted time would divide it by the number of repetitions.
        measurement_.relative_sigma = run.real_accumulated_time;
      }
    }
  }
  const Measurement& measurement() const { return measurement_; }

 private:
  Measurement measurement_;
};

// Normal values, a tile of them repeated. Not zeros: the rate of a GPU at its power limit depends
// on how many bits flip.
void fill_random(const TensorView& view, Stream stream) {
  fill_repeated(view, random_normal(1 << 20, "benchmark/tile"), stream);
}

double measure_copy(BenchmarkTimer& timer) {
  const Device device = timer.stream().device;
  const std::int64_t num_bytes =
      bytes_on(device, device == Device::cpu ? kCopyBytesCpu : kCopyBytesGpu);
  const TensorSpec spec({num_bytes / 4}, DType::f32);
  Arena arena("benchmark copy", 2 * arena_bytes(spec), device);
  const TensorView source = arena.allocate(spec);
  const TensorView destination = arena.allocate(spec);
  fill_random(source, timer.stream());
  const Measurement measurement = timer.measure([&](Stream stream) {
    if (stream.device == Device::cuda) {
      device_copy(destination.data, source.data, source.bytes(), stream);
      return;
    }
    // One thread does not reach what the machine's memory can do.
    parallel_ranges(num_bytes, kChunkBytes, [&](std::int64_t first, std::int64_t last) {
      device_copy(static_cast<std::byte*>(destination.data) + first,
                  static_cast<const std::byte*>(source.data) + first,
                  static_cast<std::size_t>(last - first),
                  stream);
    });
  });
  return 2.0 * static_cast<double>(num_bytes) / measurement.seconds;
}

double measure_matmul(BenchmarkTimer& timer) {
  constexpr std::int64_t kSimulatedSize = 64;
  const Device device = timer.stream().device;
  if (device == Device::cpu) {
    return kernels::cpu::measure_openblas_sgemm(kMatmulSizeCpu, omp_get_max_threads(), kMinRepeats);
  }
  return measure_square_product(timer, is_simulated(device) ? kSimulatedSize : kMatmulSizeGpu);
}

}  // namespace

BenchmarkTimer::BenchmarkTimer(Device device)
    : stream_(device),
      arena_("benchmark cache flush",
             arena_bytes(flushed_spec(device)) + arena_bytes(norm_spec()) +
                 arena_bytes(partial_spec()),
             device),
      flushed_(arena_.allocate(flushed_spec(device))),
      norm_(arena_.allocate(norm_spec())),
      partial_(arena_.allocate(partial_spec())),
      once_(is_simulated(device)),
      begin_(device),
      end_(device) {}

Measurement BenchmarkTimer::measure(const std::function<void(Stream)>& call) {
  if (once_) {
    return {.seconds = std::max(time_once(call), 1e-9), .repeats = 1};
  }
  call(stream());  // pages, threads, workspaces and clocks are set up by the first calls
  const double warm_seconds = std::max(time_once(call), 1e-9);
  const int repeats = static_cast<int>(
      std::clamp<double>(kSecondsPerCase / warm_seconds, kMinRepeats, kMaxRepeats));

  // One iteration a repetition: the caches are cold for each call, and the median is over calls.
  std::exception_ptr failure;
  benchmark::ClearRegisteredBenchmarks();
  benchmark::RegisterBenchmark("case",
                               [&](benchmark::State& state) {
                                 for (auto iteration : state) {
                                   static_cast<void>(iteration);
                                   try {
                                     flush();
                                     state.SetIterationTime(time_once(call));
                                   } catch (...) {
                                     failure = std::current_exception();
                                     state.SkipWithError("");
                                     break;
                                   }
                                 }
                               })
      ->Iterations(1)
      ->Repetitions(repeats | 1)
      ->UseManualTime()
      ->Unit(benchmark::kSecond);
  AggregateReporter reporter;
  benchmark::RunSpecifiedBenchmarks(&reporter, "case");
  if (failure) {
    std::rethrow_exception(failure);
  }
  return reporter.measurement();
}

double BenchmarkTimer::time_once(const std::function<void(Stream)>& call) {
  begin_.record(stream());
  call(stream());
  end_.record(stream());
  return end_.seconds_since(begin_);
}

// On the GPU this also keeps the device busy while the host enqueues what is timed, so that the
// time holds no launch latency; and what was overwritten is read, as a GPU's L2 keeps up to 50 MB of
// it that it has yet to write, which it would do while a case reads. On the CPU all threads write,
// each through its own caches.
void BenchmarkTimer::flush() {
  auto* data = static_cast<std::byte*>(flushed_.data);
  if (stream().device == Device::cuda) {
    device_zero(data, flushed_.bytes(), stream());
    kernels::global_norm({.norm_1 = norm_, .x_n = flushed_, .partial_P = partial_}, stream());
    return;
  }
  parallel_ranges(kFlushBytesCpu, kChunkBytes, [&](std::int64_t first, std::int64_t last) {
    device_zero(data + first, static_cast<std::size_t>(last - first), stream());
  });
}

double measure_square_product(BenchmarkTimer& timer, std::int64_t size) {
  const Device device = timer.stream().device;
  const TensorSpec spec({size, size}, device == Device::cpu ? DType::f32 : DType::bf16);
  Arena arena("benchmark matmul", 3 * arena_bytes(spec), device);
  const kernels::MatmulForward op{.y_TN = arena.allocate(spec),
                                  .x_TK = arena.allocate(spec),
                                  .weight_NK = arena.allocate(spec)};
  fill_random(op.x_TK, timer.stream());
  fill_random(op.weight_NK, timer.stream());
  const auto edge = static_cast<double>(size);
  const double flops = 2.0 * edge * edge * edge;
  if (device == Device::cpu) {
    // Equally often in every rank, so that ranks which measure together end together; and the mean, as
    // one that shares its core with others waits in some of the calls.
    kernels::matmul_forward(op, timer.stream());  // pages and threads are new
    const auto begin = std::chrono::steady_clock::now();
    for (int repeat = 0; repeat < kMinRepeats; ++repeat) {
      kernels::matmul_forward(op, timer.stream());
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    return flops * kMinRepeats / seconds.count();
  }
  return flops / timer.measure([&](Stream stream) { kernels::matmul_forward(op, stream); }).seconds;
}

Roofs measure_roofs(BenchmarkTimer& timer, bool with_matmul) {
  return {.copy_bytes_per_second = measure_copy(timer),
          .matmul_flops_per_second = with_matmul ? measure_matmul(timer) : 0.0};
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace memphis::bench
