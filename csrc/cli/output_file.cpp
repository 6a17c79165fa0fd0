// SPDX-License-Identifier: Apache-2.0
#include "csrc/cli/output_file.h"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <system_error>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void refuse_output(const OutputFile& file,
                                std::string_view what,
                                std::string_view fix) {
  throw ConfigError(fmt::format("{} {} {}; {}", file.argument, file.path, what, fix));
}

}  // namespace

void require_may_write(const OutputFile& file) {
  std::error_code error;
  const fs::file_status status = fs::status(file.path, error);
  switch (status.type()) {
    case fs::file_type::not_found: {
      const fs::path folder = directory_of(file.path);
      // A link may lead to what is not there yet, in a folder of its own.
      if (!fs::is_symlink(file.path, error) && !fs::is_directory(folder, error)) {
        refuse_output(
            file,
            fmt::format("lies in {}, which is no folder (none is made for it)", folder.string()),
            "make it, or name a file elsewhere");
      }
      return;
    }
    case fs::file_type::fifo:
    case fs::file_type::character:
      return;
    case fs::file_type::regular:
      break;
    default:
      refuse_output(file,
                    status.type() == fs::file_type::none
                        ? fmt::format("cannot be looked at ({})", system_reason(error.value()))
                        : "is there and is no file (nothing else is overwritten)",
                    "name a file");
  }
  constexpr std::uint64_t kLooked = std::uint64_t{1} << 20U;  // it may be a model's weights
  const std::vector<std::byte> bytes = InputFile(file.path).beginning(kLooked);
  const std::string_view beginning(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (!beginning.empty() && !file.is_one(beginning)) {
    refuse_output(file,
                  fmt::format("is there and is no {} (nothing else is overwritten)", file.what),
                  "name another");
  }
}

void write_output(const std::function<void()>& write) {
  try {
    write();
  } catch (const CheckpointError& error) {
    throw PreflightError(error.what());
  }
}

}  // namespace memphis
