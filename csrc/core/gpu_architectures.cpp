// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/gpu_architectures.h"

#include <charconv>

namespace memphis {
namespace {

// The least whose instructions the kernels use.
constexpr int kLeastCapability = 80;

// Of one architecture, as "90a", "80-real" or "80".
bool may_run(std::string_view architecture, int capability) {
  int compiled_for = 0;
  const char* const end = architecture.data() + architecture.size();
  const auto [rest, error] = std::from_chars(architecture.data(), end, compiled_for);
  if (error != std::errc()) {
    return true;  // "native", "all" or "all-major"
  }
  std::string_view suffix(rest, static_cast<std::size_t>(end - rest));
  if (suffix.starts_with('a')) {
    return capability == compiled_for;
  }
  const bool same_major = capability / 10 == compiled_for / 10;
  if (suffix.starts_with('f')) {
    return same_major && capability >= compiled_for;
  }
  // Machine code runs on later GPUs of its generation; PTX, which is compiled for the GPU when it
  // is loaded, on all later ones.
  const bool has_ptx = suffix != "-real";
  const bool has_code = suffix != "-virtual";
  return capability >= compiled_for && (has_ptx || (has_code && same_major));
}

}  // namespace

std::string no_kernels_reason(std::string_view architectures,
                              std::string_view gpu_name,
                              int compute_capability) {
  for (std::string_view rest = architectures; !rest.empty();) {
    const std::size_t end = rest.find_first_of(",;");
    if (may_run(rest.substr(0, end), compute_capability)) {
      return "";
    }
    rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + 1);
  }
  if (architectures.empty()) {
    return "";
  }
  const std::string capability =
      std::to_string(compute_capability / 10) + "." + std::to_string(compute_capability % 10);
  const std::string build_for =
      std::to_string(compute_capability) + (compute_capability == 90 ? "a" : "");
  return "the GPU, " + std::string(gpu_name) + ", has compute capability " + capability +
         " (this program's kernels are compiled for " + std::string(architectures) + "); " +
         (compute_capability < kLeastCapability
              ? std::string("use a GPU of compute capability 8.0 or newer, or run.device=cpu")
              : "build with `launch/build.sh cuda -DCMAKE_CUDA_ARCHITECTURES=" + build_for + "`");
}

}  // namespace memphis
