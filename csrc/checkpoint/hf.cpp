// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/hf.h"

#include <utility>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/checkpoint/json.h"
#include "csrc/checkpoint/manifest.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";

std::string read_model_text(const fs::path& path) {
  try {
    return read_text(path);
  } catch (const DataError& error) {
    throw CheckpointError(error.what());
  }
}

}  // namespace

HfTensors::HfTensors(const fs::path& directory) : directory_(directory) {
  // A folder with both is read as transformers reads it: the single file first.
  if (fs::exists(directory / kSingleFile)) {
    const auto [file, inserted] =
        files_.emplace(std::string(kSingleFile), SafetensorsFile(directory / kSingleFile));
    for (const auto& [name, tensor] : file->second.tensors()) {
      homes_.emplace(name, &file->second);
    }
  } else if (fs::exists(directory / kIndexFile)) {
    open_index(directory / kIndexFile);
  } else {
    throw CheckpointError(
        fmt::format("{} has neither {} nor {} (pickled weights, .bin and .pt, are not read: they "
                    "can run code); "
                    "name a model folder, or convert its weights to safetensors",
                    directory.string(),
                    kSingleFile,
                    kIndexFile));
  }
}

void HfTensors::open_index(const fs::path& index) {
  const auto fail = [&](const std::string& problem, std::string_view why) {
    throw CheckpointError(fmt::format(
        "{}: {} ({}); copy the model again from its source", index.string(), problem, why));
  };
  const nlohmann::json root = parse_json_object(read_model_text(index), index);
  const auto map = root.find("weight_map");
  if (map == root.end() || !map->is_object()) {
    fail("'weight_map' is missing or not an object", "it maps each tensor to its file");
  }
  for (const auto& [name, value] : map->items()) {
    if (!value.is_string() || !is_bare_name(value.get_ref<const std::string&>())) {
      fail(fmt::format("tensor '{}' lies in '{}'",
                       printable(name),
                       printable(value.is_string() ? value.get<std::string>() : value.dump())),
           "a shard is named by a bare file name");
    }
    const auto file_name = value.get<std::string>();
    auto file = files_.find(file_name);
    if (file == files_.end()) {
      if (!fs::exists(directory_ / file_name)) {
        fail(fmt::format("shard '{}' is missing", file_name),
             fmt::format("tensor '{}' lies in it", printable(name)));
      }
      file = files_.emplace(file_name, SafetensorsFile(directory_ / file_name)).first;
    }
    if (!file->second.tensors().contains(name)) {
      fail(fmt::format("tensor '{}' is not in '{}'", printable(name), file_name),
           "the index places it there");
    }
    homes_.emplace(name, &file->second);
  }
}

const SafetensorsFile& HfTensors::file_of(std::string_view name) const {
  const auto found = homes_.find(name);
  if (found == homes_.end()) {
    throw CheckpointError(fmt::format(
        "{}: there is no tensor '{}' (the folder has {} others); use the config.json that "
        "belongs to these weights",
        directory_.string(),
        name,
        homes_.size()));
  }
  return *found->second;
}

void HfTensors::read(std::string_view name, const TensorView& out) const {
  require(out.device == Device::cpu, "tensors are read into host memory");
  const std::vector<std::int64_t> shape(out.dims.begin(), out.dims.begin() + out.num_dims);
  file_of(name).read(name, shape, 0, out.num_elements(), out.dtype, out.data);
}

}  // namespace memphis
