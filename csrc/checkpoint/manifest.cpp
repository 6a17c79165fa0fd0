// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/manifest.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <iterator>
#include <optional>
#include <set>

#include <spdlog/fmt/fmt.h>

#include "csrc/checkpoint/json.h"
#include "csrc/core/error.h"

namespace memphis {
namespace {

// Goes up when a reader of the old version would misread the new one.
constexpr std::int64_t kFormatVersion = 1;

constexpr std::size_t kChecksumDigits = 16;
constexpr std::size_t kBlockDigits = 8;

std::optional<std::uint64_t> hexadecimal(std::string_view digits) {
  std::uint64_t value = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
  return error == std::errc() && end == digits.data() + digits.size() ? std::optional(value)
                                                                      : std::nullopt;
}

std::string blocks_text(const std::vector<std::uint32_t>& blocks) {
  std::string text;
  text.reserve(kBlockDigits * blocks.size());
  for (const std::uint32_t block : blocks) {
    fmt::format_to(std::back_inserter(text), "{:08x}", block);
  }
  return text;
}

// Reads fields of one JSON object, and holds it to having no others.
class Fields {
 public:
  Fields(const nlohmann::json& object, const std::filesystem::path& path)
      : object_(object), path_(path) {
    if (!object.is_object()) {
      fail("an entry of 'files' is not an object");
    }
  }

  [[noreturn]] void fail(const std::string& problem) const {
    throw CheckpointError(fmt::format(
        "{}: {} (it was not written by this version of memphis); use the version that wrote it, or "
        "another checkpoint",
        path_.string(),
        problem));
  }

  std::int64_t count(const char* key) const {
    const nlohmann::json& value = at(key);
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > INT64_MAX) {
      fail(fmt::format("'{}' is {}, not a whole number from 0 to 2^63 - 1", key, value.dump()));
    }
    return value.get<std::int64_t>();
  }

  std::int64_t integer(const char* key) const {
    const nlohmann::json& value = at(key);
    if (!value.is_number_integer()) {
      fail(fmt::format("'{}' is {}, not a whole number", key, value.dump()));
    }
    return value.get<std::int64_t>();
  }

  double number(const char* key) const {
    const nlohmann::json& value = at(key);
    if (!value.is_number()) {
      fail(fmt::format("'{}' is {}, not a number", key, value.dump()));
    }
    return value.get<double>();
  }

  std::vector<double> numbers(const char* key) const {
    std::vector<double> values;
    for (const nlohmann::json& value : list(key)) {
      if (!value.is_number()) {
        fail(fmt::format("'{}' has {}, not a number", key, value.dump()));
      }
      values.push_back(value.get<double>());
    }
    return values;
  }

  bool contains(const char* key) const { return object_.contains(key); }

  std::string text(const char* key) const {
    const nlohmann::json& value = at(key);
    if (!value.is_string()) {
      fail(fmt::format("'{}' is {}, not a text", key, value.dump()));
    }
    return value.get<std::string>();
  }

  const nlohmann::json& list(const char* key) const {
    const nlohmann::json& value = at(key);
    if (!value.is_array()) {
      fail(fmt::format("'{}' is not a list", key));
    }
    return value;
  }

  std::uint64_t checksum(const char* key) const {
    const std::string digits = text(key);
    const std::optional<std::uint64_t> value = hexadecimal(digits);
    if (!value || digits.size() != kChecksumDigits) {
      fail(fmt::format(
          "'{}' is '{}', not {} hexadecimal digits", key, printable(digits), kChecksumDigits));
    }
    return *value;
  }

  std::vector<std::uint32_t> blocks(const char* key, std::size_t count) const {
    const nlohmann::json& value = at(key);
    const std::string none;
    const std::string& digits = value.is_string() ? value.get_ref<const std::string&>() : none;
    std::vector<std::uint32_t> values;
    values.reserve(count);
    for (std::size_t at = 0; at < digits.size() && digits.size() == count * kBlockDigits;
         at += kBlockDigits) {
      const auto block = hexadecimal(std::string_view(digits).substr(at, kBlockDigits));
      if (!block) {
        break;
      }
      values.push_back(static_cast<std::uint32_t>(*block));
    }
    if (values.size() != count || count == 0) {
      fail(fmt::format("'{}' has not {} times {} hexadecimal digits", key, count, kBlockDigits));
    }
    return values;
  }

  // All fields have been read by then, so equal numbers mean that there are no others.
  void expect_only(std::size_t num_fields) const {
    if (object_.size() != num_fields) {
      fail(fmt::format("there are {} fields where {} are known", object_.size(), num_fields));
    }
  }

 private:
  const nlohmann::json& at(const char* key) const {
    const auto found = object_.find(key);
    if (found == object_.end()) {
      fail(fmt::format("'{}' is missing", key));
    }
    return *found;
  }

  const nlohmann::json& object_;
  const std::filesystem::path& path_;
};

}  // namespace

bool is_bare_name(std::string_view name) {
  const auto is_allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  };
  return !name.empty() && name.front() != '.' && std::all_of(name.begin(), name.end(), is_allowed);
}

std::string write_manifest(const Manifest& manifest) {
  require(manifest.step >= 0 && manifest.samples >= 0, "step and samples count from 0");
  nlohmann::ordered_json root;
  root["format_version"] = kFormatVersion;
  root["step"] = manifest.step;
  root["samples"] = manifest.samples;
  root["seed"] = manifest.seed;
  root["dataset_fingerprint"] = manifest.dataset_fingerprint;
  root["validation_fingerprint"] = manifest.validation_fingerprint;
  root["tokenizer_fingerprint"] = manifest.tokenizer_fingerprint;
  root["loss_reference"] = manifest.loss_reference;
  root["loss_window"] = manifest.loss_window;
  root["exploded_at"] = manifest.exploded_at;
  root["calm_steps"] = manifest.calm_steps;
  root["skipped_steps"] = manifest.skipped_steps;
  root["skipped_in_a_row"] = manifest.skipped_in_a_row;
  root["products"] = manifest.products;
  root["files"] = nlohmann::ordered_json::array();
  for (const FileRecord& file : manifest.files) {
    nlohmann::ordered_json entry;
    entry["name"] = file.name;
    entry["bytes"] = file.bytes;
    entry["xxh3"] = checksum_text(file.xxh3);
    if (!file.blocks.empty()) {
      entry["blocks"] = blocks_text(file.blocks);
    }
    root["files"].push_back(std::move(entry));
  }
  root["config"] = manifest.config;
  return root.dump(1) + "\n";
}

Manifest read_manifest(std::string_view text, const std::filesystem::path& path) {
  const nlohmann::json root = parse_json_object(text, path);
  const Fields fields(root, path);
  const std::int64_t version = fields.count("format_version");
  if (version != kFormatVersion) {
    fields.fail(fmt::format("format_version is {}, not {}", version, kFormatVersion));
  }
  Manifest manifest{
      .step = fields.count("step"),
      .samples = fields.count("samples"),
      .seed = fields.integer("seed"),
      .dataset_fingerprint = fields.text("dataset_fingerprint"),
      .config = fields.text("config"),
      .files = {},
  };
  std::set<std::string> names;
  for (const nlohmann::json& entry : fields.list("files")) {
    const Fields file(entry, path);
    manifest.files.push_back({
        .name = file.text("name"),
        .bytes = static_cast<std::uint64_t>(file.count("bytes")),
        .xxh3 = file.checksum("xxh3"),
    });
    std::size_t num_fields = 3;
    if (file.contains("blocks")) {  // later versions of the format added them
      FileRecord& record = manifest.files.back();
      record.blocks = file.blocks("blocks", num_blocks(record.bytes));
      ++num_fields;
    }
    file.expect_only(num_fields);
    const std::string& name = manifest.files.back().name;
    if (!is_bare_name(name)) {
      fields.fail(fmt::format("the file name '{}' is not a bare name", printable(name)));
    }
    if (!names.insert(name).second) {
      fields.fail(fmt::format("the file '{}' is listed twice", name));
    }
  }
  std::size_t num_fields = 7;
  // Later versions of the format added these.
  const auto later = [&](const char* key, auto& value, auto(Fields::*read)(const char*) const) {
    if (fields.contains(key)) {
      value = (fields.*read)(key);
      ++num_fields;
    }
  };
  later("tokenizer_fingerprint", manifest.tokenizer_fingerprint, &Fields::text);
  later("validation_fingerprint", manifest.validation_fingerprint, &Fields::text);
  later("loss_reference", manifest.loss_reference, &Fields::number);
  later("loss_window", manifest.loss_window, &Fields::numbers);
  later("calm_steps", manifest.calm_steps, &Fields::count);
  later("exploded_at", manifest.exploded_at, &Fields::count);
  later("skipped_steps", manifest.skipped_steps, &Fields::count);
  later("skipped_in_a_row", manifest.skipped_in_a_row, &Fields::count);
  later("products", manifest.products, &Fields::text);
  fields.expect_only(num_fields);
  return manifest;
}

}  // namespace memphis
