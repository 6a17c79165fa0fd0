// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/hf.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include "csrc/checkpoint/hf_names.h"
#include "csrc/checkpoint/json.h"
#include "csrc/checkpoint/manifest.h"
#include "csrc/checkpoint/tensor_names.h"
#include "csrc/core/error.h"
#include "csrc/core/log.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";
constexpr std::string_view kSuffix = ".safetensors";

using Names = std::vector<std::string>;

[[noreturn]] void fail(const fs::path& place, const std::string& problem, std::string_view why) {
  throw CheckpointError(fmt::format(
      "{}: {} ({}); copy the model again from its source", place.string(), problem, why));
}

// A link to nothing is there too: opening it says so.
bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(fs::symlink_status(path, error));
}

Names list_names(const fs::path& directory) {
  Names names;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    names.push_back(it->path().filename().string());
  }
  if (error) {
    throw CheckpointError(fmt::format(
        "cannot read {} ({}); name a model folder", directory.string(), error.message()));
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::optional<std::int64_t> parse_digits(std::string_view text, std::size_t num_digits) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.size() != num_digits || error != std::errc() || end != text.data() + text.size()) {
    return {};
  }
  return value;
}

// "STEM-TP-common.safetensors" or "STEM-TP-003.safetensors".
struct Presharded {
  std::string stem;
  std::int64_t rank = -1;  // -1: common
};
std::optional<Presharded> parse_presharded(std::string_view name) {
  constexpr std::string_view kMark = "-TP-";
  constexpr std::size_t kDigits = 3;
  const std::size_t mark = name.rfind(kMark);
  if (mark == std::string_view::npos || !name.ends_with(kSuffix)) {
    return {};
  }
  const std::string stem(name.substr(0, mark));
  name.remove_prefix(mark + kMark.size());
  name.remove_suffix(kSuffix.size());
  if (name == "common") {
    return Presharded{.stem = stem};
  }
  const auto rank = parse_digits(name, kDigits);
  return rank ? std::optional(Presharded{.stem = stem, .rank = *rank}) : std::nullopt;
}

// "STEM-00002-of-00005.safetensors".
struct Numbered {
  std::string stem;
  std::int64_t count = 0;
};
std::optional<Numbered> parse_numbered(std::string_view name) {
  constexpr std::size_t kDigits = 5;
  constexpr std::string_view kOf = "-of-";
  constexpr std::size_t kTail = 1 + kDigits + kOf.size() + kDigits;
  if (!name.ends_with(kSuffix) || name.size() < kTail + kSuffix.size()) {
    return {};
  }
  name.remove_suffix(kSuffix.size());
  const std::string_view tail = name.substr(name.size() - kTail);
  const auto count = parse_digits(tail.substr(1 + kDigits + kOf.size()), kDigits);
  if (tail[0] != '-' || tail.substr(1 + kDigits, kOf.size()) != kOf || !count ||
      !parse_digits(tail.substr(1, kDigits), kDigits)) {
    return {};
  }
  return Numbered{.stem = std::string(name.substr(0, name.size() - kTail)), .count = *count};
}

// What a folder without safetensors has instead, and what to do with it.
std::string instead(const Names& names) {
  const auto any = [&](const auto& matches) {
    return std::find_if(names.begin(), names.end(), matches);
  };
  const auto pickle = any([](const std::string& name) {
    return name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".pth");
  });
  if (pickle != names.end()) {
    return fmt::format(
        "it has {}: pickles are not read, they can run code); convert them: python3 -c \"import "
        "glob, torch, safetensors.torch as s; [s.save_file({{k: v.contiguous().clone() for k, v in "
        "torch.load(f, map_location='cpu', weights_only=True).items()}}, f.rsplit('.', 1)[0] + "
        "'.safetensors') for f in glob.glob('*{}')]\" in the folder",
        *pickle,
        fs::path(*pickle).extension().string());
  }
  const auto jax = any(
      [](const std::string& name) { return name == "ckpt-0" || name.starts_with("tensor00000_"); });
  if (jax != names.end()) {
    return fmt::format(
        "it has {}: a checkpoint of xai-org/grok-1, pickles of JAX arrays in 8 bits); use a "
        "conversion of it to safetensors, as hpcai-tech/grok-1",
        *jax);
  }
  const auto gguf = any([](const std::string& name) { return name.ends_with(".gguf"); });
  if (gguf != names.end()) {
    return fmt::format("it has {}: llama.cpp's format); use the model that it was made from",
                       *gguf);
  }
  return "weights are read from safetensors); name a model folder, or copy its weights there";
}

nlohmann::json weight_map_of(const fs::path& index) {
  nlohmann::json root = read_json_object(index);
  const auto map = root.find("weight_map");
  if (map == root.end() || !map->is_object() || map->empty()) {
    fail(index,
         "'weight_map' is missing, empty or not an object",
         "it maps each tensor to its file");
  }
  return std::move(*map);
}

}  // namespace

HfTensors::HfTensors(const fs::path& directory) : directory_(directory) {
  // A folder with several is read as transformers reads it: the single file first.
  if (is_there(directory / kSingleFile)) {
    add(open(std::string(kSingleFile)));
    return;
  }
  const Names names = list_names(directory);
  const bool is_presharded = std::any_of(names.begin(), names.end(), [](const std::string& name) {
    return parse_presharded(name).has_value();
  });
  // An index names one file of a tensor, of which such a folder has a part in each.
  if (is_there(directory / kIndexFile) && !is_presharded) {
    open_index(directory / kIndexFile);
    return;
  }
  Names presharded;
  Names others;
  for (const std::string& name : names) {
    if (parse_presharded(name)) {
      presharded.push_back(name);
    } else if (name.ends_with(kSuffix)) {
      others.push_back(name);
    }
  }
  if (!presharded.empty()) {
    if (!others.empty()) {
      log_warning("not read: {} (the weights of {} are those of -TP- files)",
                  list_names(others),
                  directory.string());
    }
    open_presharded(presharded);
    if (is_there(directory / kIndexFile)) {
      require_all_of_index(directory / kIndexFile);
    }
  } else if (!others.empty()) {
    open_series(others);
  } else {
    throw CheckpointError(fmt::format("{} has neither {} nor {} nor other safetensors ({}",
                                      directory.string(),
                                      kSingleFile,
                                      kIndexFile,
                                      instead(names)));
  }
}

const SafetensorsFile& HfTensors::open(const std::string& file_name) {
  return files_.try_emplace(file_name, directory_ / file_name).first->second;
}

void HfTensors::add(const SafetensorsFile& file) {
  for (const auto& [name, tensor] : file.tensors()) {
    std::vector<Part>& parts = tensors_[form_b_name(name)];
    if (!parts.empty()) {
      fail(directory_,
           fmt::format("tensor '{}' is in {} and, as '{}', in {}",
                       printable(parts.front().name),
                       parts.front().file->path().filename().string(),
                       printable(name),
                       file.path().filename().string()),
           "which of them is meant nobody says");
    }
    parts.push_back({.file = &file, .name = name});
  }
}

void HfTensors::open_index(const fs::path& index) {
  const nlohmann::json map = weight_map_of(index);
  std::map<std::string, Names> names_of;  // by file
  for (const auto& [name, value] : map.items()) {
    if (!value.is_string() || !is_bare_name(value.get_ref<const std::string&>())) {
      fail(index,
           fmt::format("tensor '{}' lies in '{}'",
                       printable(name),
                       printable(value.is_string() ? value.get<std::string>() : value.dump())),
           "a shard is named by a bare file name, in the folder");
    }
    names_of[value.get<std::string>()].push_back(name);
  }

  Names missing_files;
  Names homeless;
  for (const auto& [file_name, names] : names_of) {
    if (!is_there(directory_ / file_name)) {
      missing_files.push_back(file_name);
      homeless.insert(homeless.end(), names.begin(), names.end());
    }
  }
  if (!missing_files.empty()) {
    fail(index,
         fmt::format("of its {} files {} missing: {}",
                     names_of.size(),
                     missing_files.size() == 1 ? "one is" : "these are",
                     list_names(missing_files)),
         fmt::format("in them are {} tensors: {}", homeless.size(), list_names(homeless)));
  }

  for (const auto& [file_name, names] : names_of) {
    const SafetensorsFile& file = open(file_name);
    Names absent;
    for (const std::string& name : names) {
      if (!file.tensors().contains(name)) {
        absent.push_back(name);
      }
    }
    if (!absent.empty()) {
      fail(index,
           fmt::format("not in '{}' are {} of its tensors: {}",
                       file_name,
                       absent.size(),
                       list_names(absent)),
           "the index places them there");
    }
    Names unmapped;
    for (const auto& [name, tensor] : file.tensors()) {
      const auto place = map.find(name);
      if (place == map.end()) {
        unmapped.push_back(name);
      } else if (*place != file_name) {
        fail(index,
             fmt::format("tensor '{}' is in '{}' and in '{}'",
                         printable(name),
                         place->get<std::string>(),
                         file_name),
             "a tensor is in one file, the one of the index");
      }
    }
    if (!unmapped.empty()) {
      fail(index,
           fmt::format("'{}' holds {} tensors that the index does not name: {}",
                       file_name,
                       unmapped.size(),
                       list_names(unmapped)),
           "index and files are of two models or versions");
    }
    add(file);
  }

  // A file of the same series is a part of the model that would be left out; others are somebody
  // else's.
  std::set<std::string> stems;
  for (const auto& [file_name, names] : names_of) {
    const auto numbered = parse_numbered(file_name);
    stems.insert(numbered ? numbered->stem : "");
  }
  Names left_out;
  Names others;
  for (const std::string& name : list_names(directory_)) {
    if (name.ends_with(kSuffix) && !names_of.contains(name)) {
      const auto numbered = parse_numbered(name);
      (numbered && stems.contains(numbered->stem) ? left_out : others).push_back(name);
    }
  }
  if (!left_out.empty()) {
    fail(index,
         fmt::format("beside its files there are others of their kind: {}", list_names(left_out)),
         "the index does not name them, so it or they are of another model");
  }
  if (!others.empty()) {
    log_warning("not read: {} (the index of {} does not name them)",
                list_names(others),
                directory_.string());
  }
}

// What the index of a presharded folder can tell: which tensors there are.
void HfTensors::require_all_of_index(const fs::path& index) const {
  Names missing;
  const nlohmann::json map = weight_map_of(index);
  for (const auto& [name, value] : map.items()) {
    if (!tensors_.contains(form_b_name(name))) {
      missing.push_back(name);
    }
  }
  if (!missing.empty()) {
    fail(index,
         fmt::format("in none of the -TP- files are {} of its tensors: {}",
                     missing.size(),
                     list_names(missing)),
         "index and files are of two models or versions, or a file is missing");
  }
}

void HfTensors::open_presharded(const Names& names) {
  std::int64_t num_ranks = 0;
  std::set<std::string> cut_stems;
  for (const std::string& name : names) {
    const Presharded file = *parse_presharded(name);
    num_ranks = std::max(num_ranks, file.rank + 1);
    if (file.rank >= 0) {
      cut_stems.insert(file.stem);
    }
  }
  const std::set<std::string> there(names.begin(), names.end());
  const auto name_of_rank = [](const std::string& stem, std::int64_t rank) {
    return fmt::format("{}-TP-{:03}{}", stem, rank, kSuffix);
  };
  Names missing;
  for (const std::string& stem : cut_stems) {
    for (std::int64_t rank = 0; rank < num_ranks; ++rank) {
      const std::string name = name_of_rank(stem, rank);
      if (!there.contains(name)) {
        missing.push_back(name);
      }
    }
  }
  if (!missing.empty()) {
    fail(directory_,
         fmt::format("{} of its files are missing: {}", missing.size(), list_names(missing)),
         fmt::format("its tensors are cut into {} parts each", num_ranks));
  }
  for (const std::string& name : names) {
    if (parse_presharded(name)->rank < 0) {
      add(open(name));
    }
  }
  for (const std::string& stem : cut_stems) {
    const SafetensorsFile& first = open(name_of_rank(stem, 0));
    add(first);
    for (std::int64_t rank = 1; rank < num_ranks; ++rank) {
      const SafetensorsFile& file = open(name_of_rank(stem, rank));
      const auto same_name = [](const auto& a, const auto& b) { return a.first == b.first; };
      if (!std::equal(first.tensors().begin(),
                      first.tensors().end(),
                      file.tensors().begin(),
                      file.tensors().end(),
                      same_name)) {
        fail(directory_,
             fmt::format("{} and {} hold tensors of other names",
                         first.path().filename().string(),
                         file.path().filename().string()),
             "each has a part of the same tensors");
      }
      for (const auto& [name, tensor] : file.tensors()) {
        tensors_[form_b_name(name)].push_back({.file = &file, .name = name});
      }
    }
  }
}

void HfTensors::open_series(const Names& names) {
  const std::set<std::string> there(names.begin(), names.end());
  Names missing;
  for (const std::string& name : names) {
    const auto numbered = parse_numbered(name);
    for (std::int64_t i = 1; numbered && i <= numbered->count; ++i) {
      const std::string sibling =
          fmt::format("{}-{:05}-of-{:05}{}", numbered->stem, i, numbered->count, kSuffix);
      if (!there.contains(sibling)) {
        missing.push_back(sibling);
      }
    }
    if (!missing.empty()) {
      fail(directory_,
           fmt::format("of the {} files of its series {} are missing: {}",
                       numbered->count,
                       missing.size(),
                       list_names(missing)),
           "their names say how many there are");
    }
  }
  for (const std::string& name : names) {
    add(open(name));
  }
}

}  // namespace memphis
