// SPDX-License-Identifier: Apache-2.0
#include "csrc/doctor/instruments.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <random>
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

bool is_gpu(Device device) {
  return device == Device::cuda && !device_info(device).simulated;
}

// The least of a few: what else runs on the machine only adds. By the device's own clock, as a host that
// is busy starts late what a GPU does on time.
template <class Work>
double least_seconds(Stream stream, const Work& work) {
  constexpr int kRepeats = 5;
  double least = 0;
  for (int i = 0; i <= kRepeats; ++i) {
    Event begin(stream.device);
    Event end(stream.device);
    begin.record(stream);
    work();
    end.record(stream);
    const double seconds = end.seconds_since(begin);
    least = i <= 1 ? seconds : std::min(least, seconds);  // the first one loads what it needs
  }
  return least;
}

// Values that are not zeros: of how many bits flip depends how fast a GPU at its power limit is.
void fill(const TensorView& view, Stream stream) {
  constexpr std::size_t kTile = 1 << 16;
  std::mt19937 random(1);  // NOLINT: the same on each rank
  std::normal_distribution<float> normal;
  std::vector<float> values(kTile);
  std::generate(values.begin(), values.end(), [&] { return normal(random); });
  const std::vector<bf16> narrow(values.begin(), values.end());
  const auto* const tile = view.dtype == DType::bf16
                               ? reinterpret_cast<const std::byte*>(narrow.data())
                               : reinterpret_cast<const std::byte*>(values.data());
  const std::size_t tile_bytes = kTile * size_of(view.dtype);
  for (std::size_t at = 0; at < view.bytes(); at += tile_bytes) {
    device_copy(static_cast<std::byte*>(view.data) + at,
                tile,
                std::min(tile_bytes, view.bytes() - at),
                stream);
  }
  synchronize(stream);
}

double measure_product(Device device) {
  // A few milliseconds on a processor. On a GPU many in a row, in which its clocks settle.
  const std::int64_t edge = device == Device::cpu ? 512 : is_gpu(device) ? 4096 : 64;
  const DType dtype = device == Device::cpu ? DType::f32 : DType::bf16;
  const TensorSpec spec({edge, edge}, dtype);
  const OwnedStream stream(device);
  Arena arena("doctor's product", 3 * arena_bytes(spec), device);
  const kernels::MatmulForward product{.y_TN = arena.allocate(spec),
                                       .x_TK = arena.allocate(spec),
                                       .weight_NK = arena.allocate(spec)};
  fill(product.x_TK, stream.view());
  fill(product.weight_NK, stream.view());
  const auto seconds_of = [&](int in_a_row) {
    return least_seconds(stream.view(),
                         [&] {
                           for (int i = 0; i < in_a_row; ++i) {
                             kernels::matmul_forward(product, stream.view());
                           }
                         }) /
           in_a_row;
  };
  double seconds = seconds_of(1);
  if (is_gpu(device)) {
    constexpr double kSettled = 0.05;
    constexpr double kMost = 1000;
    seconds = seconds_of(static_cast<int>(std::clamp(kSettled / seconds, 1.0, kMost)));
  }
  const auto size = static_cast<double>(edge);
  constexpr double kTera = 1e12;
  return 2 * size * size * size / seconds / kTera;
}

double measure_copy(Device device) {
  // Beyond caches, of which a GPU has up to 126 MB, and long beside what it takes to start.
  // No more than an eighth of what is free, on one that others use.
  std::size_t bytes = std::size_t{32} << 20;
  if (is_gpu(device)) {
    bytes = std::min(std::size_t{1} << 30, device_info(device).free_bytes / 8);
  }
  const TensorSpec spec({static_cast<std::int64_t>(bytes / sizeof(std::int32_t))}, DType::i32);
  const OwnedStream stream(device);
  Arena arena("doctor's copy", 2 * arena_bytes(spec), device);
  const TensorView y = arena.allocate(spec);
  const TensorView x = arena.allocate(spec);
  device_zero(x.data, x.bytes(), stream.view());
  const double seconds =
      least_seconds(stream.view(), [&] { device_copy(y.data, x.data, x.bytes(), stream.view()); });
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
          .rates_are_shared = !is_gpu(device),
          .write_mb_per_second = measure_write};
}

}  // namespace memphis::doctor
