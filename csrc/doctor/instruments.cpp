// SPDX-License-Identifier: Apache-2.0
#include "csrc/doctor/instruments.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <vector>

#include <spdlog/fmt/fmt.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "csrc/comm/activity.h"
#include "csrc/core/arena.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/log.h"
#include "csrc/core/tensor.h"
#include "csrc/train/gpu_telemetry.h"
#include "kernels/matmul/matmul.h"

namespace memphis::doctor {
namespace {

// The least of a few: what else runs on the machine only adds.
template <class Work>
double least_seconds(const Work& work) {
  constexpr int kRepeats = 5;
  double least = 0;
  for (int i = 0; i <= kRepeats; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    least = i <= 1 ? seconds : std::min(least, seconds);  // the first one loads what it needs
  }
  return least;
}

double measure_product(Device device) {
  // A few milliseconds on either device.
  const std::int64_t edge = device == Device::cpu ? 512 : device_info(device).simulated ? 64 : 4096;
  const DType dtype = device == Device::cpu ? DType::f32 : DType::bf16;
  const TensorSpec spec({edge, edge}, dtype);
  const OwnedStream stream(device);
  Arena arena("doctor's product", 3 * arena_bytes(spec), device);
  const kernels::MatmulForward product{.y_TN = arena.allocate(spec),
                                       .x_TK = arena.allocate(spec),
                                       .weight_NK = arena.allocate(spec)};
  device_zero(product.x_TK.data, product.x_TK.bytes(), stream.view());
  device_zero(product.weight_NK.data, product.weight_NK.bytes(), stream.view());
  const double seconds = least_seconds([&] {
    kernels::matmul_forward(product, stream.view());
    synchronize(stream.view());
  });
  const auto size = static_cast<double>(edge);
  constexpr double kTera = 1e12;
  return 2 * size * size * size / seconds / kTera;
}

double measure_copy(Device device) {
  const TensorSpec spec({std::int64_t{8} << 20}, DType::i32);  // beyond caches
  const OwnedStream stream(device);
  Arena arena("doctor's copy", 2 * arena_bytes(spec), device);
  const TensorView y = arena.allocate(spec);
  const TensorView x = arena.allocate(spec);
  device_zero(x.data, x.bytes(), stream.view());
  const double seconds = least_seconds([&] {
    device_copy(y.data, x.data, x.bytes(), stream.view());
    synchronize(stream.view());
  });
  constexpr double kGiga = 1e9;
  return 2 * static_cast<double>(x.bytes()) / seconds / kGiga;  // read and written
}

// It has 16 MiB.
void remove_measured(const std::filesystem::path& path) {
  if (const int error = remove_file(path); error != 0 && error != ENOENT) {
    log_warning("cannot remove {} ({}); remove it by hand", path.string(), system_reason(error));
  }
}

double measure_write(const std::filesystem::path& path) {
  // A slow disk that others use as well takes this in a few seconds.
  const std::vector<std::byte> piece(std::size_t{2} << 20);
  constexpr int kPieces = 8;
  remove_file(path);
  const auto begin = std::chrono::steady_clock::now();
  try {
    DurableWriter writer(path);
    for (int i = 0; i < kPieces; ++i) {
      writer.write(piece);
    }
    writer.close();
  } catch (...) {
    remove_measured(path);
    throw;
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  remove_measured(path);
  constexpr double kMega = 1e6;
  return static_cast<double>(piece.size()) * kPieces / seconds / kMega;
}

Space space_of(const std::filesystem::path& path) {
  struct statvfs fs {};
  if (::statvfs(path.c_str(), &fs) != 0) {
    throw DataError(fmt::format("{} ({})", path.string(), system_reason(errno)));
  }
  return {.free_bytes = std::uint64_t{fs.f_bavail} * fs.f_frsize,
          .total_bytes = std::uint64_t{fs.f_blocks} * fs.f_frsize};
}

std::uint64_t memlock_limit() {
  rlimit limit{};
  // A process may raise its own to the second number.
  return ::getrlimit(RLIMIT_MEMLOCK, &limit) == 0 ? limit.rlim_max : 0;
}

std::string node_name() {
  const char* const slurm = std::getenv("SLURMD_NODENAME");
  return slurm == nullptr ? host_name() : std::string(slurm);
}

}  // namespace

Instruments instruments_of(Device device, const std::filesystem::path& root) {
  return {.node = node_name(),
          .sys = root / "sys",
          .shared_memory = root / "dev/shm",
          .nvml = kNvmlName,
          .memlock_bytes = memlock_limit(),
          .num_files = open_file_limit(),
          .space = space_of,
          .wall_nanoseconds =
              [] {
                return std::chrono::duration_cast<std::chrono::nanoseconds>(
                           std::chrono::system_clock::now().time_since_epoch())
                    .count();
              },
          .product_tflops = [device] { return measure_product(device); },
          .copy_gb_per_second = [device] { return measure_copy(device); },
          .rates_are_shared = device == Device::cpu || device_info(device).simulated,
          .write_mb_per_second = measure_write};
}

}  // namespace memphis::doctor
