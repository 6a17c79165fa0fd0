// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/openblas.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <limits>
#include <string_view>
#include <vector>

#include <cblas.h>

// OpenBLAS's own choice of kernels. A build of it for one CPU alone has no such choice: weak.
extern "C" {
[[gnu::weak]] void gotoblas_dynamic_init();
[[gnu::weak]] void gotoblas_dynamic_quit();
}

namespace memphis::kernels::cpu {
namespace {

// The kernels for this CPU where OpenBLAS has fallen back to its oldest (SSE3), which it does on
// any model number newer than itself; null where its own choice is a good one. Measured with 0.3.21
// on an Emerald Rapids core, sgemm of 1024^3: Prescott 33 GFLOP/s, SkylakeX 156.
const char* better_core() {
  if (gotoblas_dynamic_init == nullptr || gotoblas_dynamic_quit == nullptr ||
      std::string_view(openblas_get_corename()) != "Prescott") {
    return nullptr;
  }
  if (__builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
      __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0) {
    return "SkylakeX";
  }
  if (__builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0) {
    return "Haswell";
  }
  return nullptr;
}

bool configure_openblas() {
  constexpr const char* kVariable =
      "OPENBLAS_CORETYPE";  // OpenBLAS's; what the user sets there holds
  const char* core = std::getenv(kVariable) == nullptr ? better_core() : nullptr;
  if (core != nullptr) {
    // The library chooses once, when it is loaded; asked again, it follows the variable.
    setenv(kVariable, core, 1);
    gotoblas_dynamic_quit();
    gotoblas_dynamic_init();
    unsetenv(kVariable);
  }
  return true;
}

// Before main: no other thread can be inside OpenBLAS or reading the environment.
[[maybe_unused]] const bool configured = configure_openblas();

}  // namespace

double measure_openblas_sgemm(std::int64_t n, int num_threads, int repeats) {
  const auto count = static_cast<std::size_t>(n * n);
  std::vector<float> a(count);
  std::vector<float> b(count);
  std::vector<float> c(count);
  for (std::size_t i = 0; i < count; ++i) {
    a[i] = static_cast<float>(i % 251) / 251.0F;
    b[i] = static_cast<float>(i % 241) / 241.0F;
  }
  const auto size = static_cast<blasint>(n);
  openblas_set_num_threads(num_threads);
  double best_seconds = std::numeric_limits<double>::infinity();
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    cblas_sgemm(CblasRowMajor,
                CblasNoTrans,
                CblasNoTrans,
                size,
                size,
                size,
                1.0F,
                a.data(),
                size,
                b.data(),
                size,
                0.0F,
                c.data(),
                size);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best_seconds = std::min(best_seconds, seconds.count());
  }
  return 2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n) /
         best_seconds;
}

}  // namespace memphis::kernels::cpu
