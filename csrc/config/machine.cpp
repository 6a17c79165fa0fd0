// SPDX-License-Identifier: Apache-2.0
#include "csrc/config/machine.h"

#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <unistd.h>

#include "csrc/core/error.h"
#include "csrc/core/path_pattern.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMaxCudaHeadDim = 128;   // kernels/attention: a head's tile in shared memory
constexpr std::int64_t kMaxCudaExperts = 128;   // kernels/router and kernels/permute
constexpr std::int64_t kCudaWidthMultiple = 8;  // bf16 elements in a load of 16 bytes

bool matches_something(const std::string& pattern, const std::string& place) {
  try {
    return !visit_matches(pattern, [](const fs::path&) { return false; });
  } catch (const DataError& error) {
    throw DataError(place + ": " + error.what());
  }
}

void check_entry(const std::string& path, const std::string& entry, const std::string& place) {
  const auto fail = [&](const std::string& why, const std::string& fix) {
    throw DataError(place + ": " + path + " is " + entry + " (" + why + "); " + fix);
  };
  std::error_code error;
  const fs::file_status status = fs::status(entry, error);
  switch (status.type()) {
    case fs::file_type::not_found:
      if (entry.find("://") != std::string::npos) {
        fail("an address is not read", "download what it leads to, and name the file");
      }
      if (!matches_something(entry, place)) {
        fail((is_path_pattern(entry) ? "nothing matches it, seen from "
                                     : "there is no such file, seen from ") +
                 fs::current_path().string(),
             "give a file, a directory or a pattern that exists");
      }
      return;
    case fs::file_type::regular:
      if (::access(entry.c_str(), R_OK) != 0) {
        fail("this user may not read it", "change its permissions");
      }
      return;
    case fs::file_type::directory:
      if (::access(entry.c_str(), R_OK | X_OK) != 0) {
        fail("this user may not list it", "change its permissions");
      }
      return;
    case fs::file_type::none:
      fail(error.message(), "check the path and its permissions");
      return;
    default:
      fail("it is neither a file nor a directory", "give one of these");
  }
}

void check_entries(std::string_view key,
                   const std::vector<std::string>& entries,
                   const Sources& sources) {
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const std::string path = std::string(key) + "[" + std::to_string(i) + "]";
    check_entry(path, entries[i], sources.place({path, key}));
  }
}

void check_run_dir(const std::string& dir, const Sources& sources) {
  // The directory may not exist yet, and then neither may those above it: a file among them is what
  // would stop it from being made.
  for (fs::path path = fs::absolute(dir); path != path.parent_path(); path = path.parent_path()) {
    std::error_code ignored;
    const fs::file_type type = fs::status(path, ignored).type();
    if (type != fs::file_type::not_found && type != fs::file_type::directory &&
        type != fs::file_type::none) {
      throw ConfigError(sources.place({"run.dir"}) + ": run.dir is " + dir + " (" + path.string() +
                        " is a file); name a directory, or a path that does not exist");
    }
  }
}

}  // namespace

void check_device_limits(const Config& config, Device device, const Sources& sources) {
  if (device == Device::cpu) {
    return;
  }
  const auto expect = [&](bool holds,
                          std::string_view path,
                          std::int64_t value,
                          const std::string& problem,
                          const std::string& fix) {
    if (!holds) {
      throw ConfigError(sources.place({path}) + ": " + std::string(path) + " " +
                        std::to_string(value) + " " + problem + "; " + fix + ", or run.device=cpu");
    }
  };
  const auto expect_at_most = [&](std::string_view path, std::int64_t value, std::int64_t limit) {
    expect(value <= limit,
           path,
           value,
           "is too large for the GPU (its kernels take at most " + std::to_string(limit) + ")",
           "use at most " + std::to_string(limit));
  };
  const auto expect_multiple = [&](std::string_view path, std::int64_t value) {
    const std::int64_t below = value / kCudaWidthMultiple * kCudaWidthMultiple;
    expect(below == value,
           path,
           value,
           "is not a multiple of 8 (the GPU reads 16 bytes at a time)",
           "use " + (below > 0 ? std::to_string(below) + " or " : std::string()) +
               std::to_string(below + kCudaWidthMultiple));
  };
  const ModelConfig& model = config.model;
  expect_multiple("model.head_dim", model.head_dim);
  expect_at_most("model.head_dim", model.head_dim, kMaxCudaHeadDim);
  expect_at_most("model.num_experts", model.num_experts, kMaxCudaExperts);
  if (resolve_compute(config.precision.compute, device) == DType::bf16) {
    expect_multiple("model.d_model", model.d_model);
    expect_multiple("model.ffn_dim", model.ffn_dim);
    expect_multiple("model.dense_ffn_dim", model.dense_ffn_dim);
  }
}

void check_machine(const Config& config, const Sources& sources) {
  check_run_dir(config.run.dir, sources);
  check_entries("data.train", config.data.train, sources);
  check_entries("data.validation", config.data.validation, sources);
  const bool receives_early = config.parallel.pipeline > 1;
  if (receives_early && config.run.device != DeviceChoice::cpu) {
    load_kernels_at_once();  // resolve_device() is the first to use the device
  }
  const Device device = resolve_device(config.run.device);
  if (receives_early && device == Device::cuda) {
    require_kernels_at_once();
  }
  check_device_limits(config, device, sources);
}

}  // namespace memphis
