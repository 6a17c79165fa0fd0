// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <tuple>
#include <type_traits>
#include <vector>

#include <spdlog/fmt/fmt.h>
#include <spdlog/fmt/ranges.h>

#include "csrc/checkpoint/json.h"
#include "csrc/core/error.h"
#include "csrc/core/file_kind.h"

namespace memphis {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the format is little-endian and is read without swapping");

using Json = nlohmann::json;

constexpr std::string_view kHalf = "F16";

struct FormatType {
  std::string_view name;
  unsigned bits;
  std::optional<DType> dtype;
};

constexpr std::array<FormatType, 22> kFormatTypes{{
    {"F64", 64, DType::f64}, {"F32", 32, DType::f32}, {"BF16", 16, DType::bf16},
    {"I64", 64, DType::i64}, {"I32", 32, DType::i32}, {"U8", 8, DType::u8},
    {kHalf, 16, {}},         {"C64", 64, {}},         {"U64", 64, {}},
    {"U32", 32, {}},         {"I16", 16, {}},         {"U16", 16, {}},
    {"I8", 8, {}},           {"BOOL", 8, {}},         {"F8_E4M3", 8, {}},
    {"F8_E5M2", 8, {}},      {"F8_E8M0", 8, {}},      {"F8_E4M3FNUZ", 8, {}},
    {"F8_E5M2FNUZ", 8, {}},  {"F6_E2M3", 6, {}},      {"F6_E3M2", 6, {}},
    {"F4", 4, {}},
}};

[[noreturn]] void fail(const std::filesystem::path& path,
                       std::string_view problem,
                       std::string_view why) {
  throw CheckpointError(
      fmt::format("{}: {} ({}); copy the file again from its source", path.string(), problem, why));
}

// What a file of weights cannot do is an error of the checkpoint.
template <class Read>
auto as_checkpoint(const Read& read) {
  try {
    return read();
  } catch (const DataError& error) {
    throw CheckpointError(error.what());
  }
}

InputFile open_file(const std::filesystem::path& path) {
  std::error_code ignored;
  if (std::filesystem::is_symlink(path, ignored) && !std::filesystem::exists(path, ignored)) {
    throw CheckpointError(fmt::format(
        "{} is a link to {} (which is not there: what it pointed into was moved, deleted or not "
        "copied with it); copy the folder with `cp -rL`, or download the file again",
        path.string(),
        std::filesystem::read_symlink(path, ignored).string()));
  }
  return as_checkpoint([&] { return InputFile(path); });
}

void read_file(const InputFile& file, std::uint64_t offset, std::span<std::byte> out) {
  as_checkpoint([&] { file.read(offset, out); });
}

// A value for an error text: printable, and not longer than one reads.
std::string shown(const Json& value) {
  constexpr std::size_t kLongest = 200;
  constexpr bool kAsciiOnly = true;
  std::string text = value.dump(-1, ' ', kAsciiOnly);
  if (text.size() > kLongest) {
    text.replace(kLongest, std::string::npos, "...");
  }
  return text;
}

// A JSON number that is a whole number from 0 to 2^63 - 1. The library makes doubles of fractions,
// of exponents and of what is larger than 64 bits.
std::optional<std::uint64_t> as_count(const Json& value) {
  if (!value.is_number_unsigned()) {
    return {};
  }
  const auto count = value.get<std::uint64_t>();
  return count <= INT64_MAX ? std::optional(count) : std::nullopt;
}

struct Entry {
  std::string name;
  StoredTensor tensor;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

class HeaderReader {
 public:
  explicit HeaderReader(const InputFile& file) : path_(file.path()), file_(file) {}

  // The data section, once the header's length is known to be sound.
  std::uint64_t data_begin() const { return sizeof(std::uint64_t) + length_; }
  std::uint64_t data_size() const { return file_.size() - data_begin(); }

  Json header() {
    const std::vector<std::byte> beginning =
        as_checkpoint([&] { return file_.beginning(kKindBytes); });
    constexpr std::size_t kBrace = sizeof(std::uint64_t);
    if (beginning.size() <= kBrace || beginning[kBrace] != std::byte{'{'}) {
      if (const auto kind = recognise_binary(beginning)) {
        throw CheckpointError(describe(path_, *kind));
      }
    }
    if (file_.size() < sizeof(std::uint64_t)) {
      fail(path_,
           fmt::format("it has {} bytes", file_.size()),
           "a safetensors file has at least the 8 bytes of its header's length");
    }
    std::uint64_t length = 0;
    read_file(file_, 0, std::as_writable_bytes(std::span(&length, 1)));
    if (length > kMaxHeaderBytes) {
      fail(path_,
           fmt::format("its header is said to have {} bytes", length),
           fmt::format("the format's limit is {}", kMaxHeaderBytes));
    }
    if (length > file_.size() - sizeof(length)) {
      fail(
          path_,
          fmt::format("its header is said to have {} bytes, the file has {}", length, file_.size()),
          "the file is truncated or is not safetensors");
    }
    length_ = length;
    std::string text(static_cast<std::size_t>(length), ' ');
    read_file(file_, sizeof(length), std::as_writable_bytes(std::span(text)));
    const std::size_t last = text.find_last_not_of(' ');
    if (text.empty() || text.front() != '{' || text[last] != '}') {
      fail(
          path_, "its header is not a JSON object", "it begins with '{' and is padded with spaces");
    }
    return parse_json_object(text, path_);
  }

  std::map<std::string, std::string> metadata(const Json& value) const {
    std::map<std::string, std::string> result;
    if (!value.is_object()) {
      fail(path_, "__metadata__ is not an object", "it maps texts to texts");
    }
    for (const auto& [key, text] : value.items()) {
      if (!text.is_string()) {
        fail(path_,
             fmt::format("__metadata__ '{}' is not a text", printable(key)),
             "it maps texts to texts");
      }
      result.emplace(key, text.get<std::string>());
    }
    return result;
  }

  Entry entry(const std::string& name, const Json& fields) const {
    const auto fail_here = [&](std::string_view problem, std::string_view why) {
      fail(path_, fmt::format("tensor '{}' {}", printable(name), problem), why);
    };
    if (!fields.is_object()) {
      fail_here("is not an object", "it has dtype, shape and data_offsets");
    }
    for (const auto& [key, value] : fields.items()) {
      if (key != "dtype" && key != "shape" && key != "data_offsets") {
        fail_here(fmt::format("has the unknown field '{}'", printable(key)),
                  "it has dtype, shape and data_offsets");
      }
    }
    if (fields.size() != 3) {
      fail_here("lacks a field", "it has dtype, shape and data_offsets");
    }
    Entry result;
    result.name = name;

    const Json& dtype = fields.at("dtype");
    const auto* type =
        std::find_if(kFormatTypes.begin(), kFormatTypes.end(), [&](const FormatType& candidate) {
          return dtype.is_string() && dtype.get_ref<const std::string&>() == candidate.name;
        });
    if (type == kFormatTypes.end()) {
      fail_here(fmt::format("has dtype {}", shown(dtype)), "the format has no such type");
    }
    result.tensor.dtype_name = type->name;
    result.tensor.dtype = type->dtype;
    result.tensor.is_f16 = type->name == kHalf;

    const Json& shape = fields.at("shape");
    if (!shape.is_array()) {
      fail_here("has a shape that is not a list", "a shape is a list of whole numbers");
    }
    std::uint64_t bits = type->bits;
    for (const Json& dim : shape) {
      const auto count = as_count(dim);
      if (!count) {
        fail_here(fmt::format("has a dim of {}", shown(dim)),
                  "a dim is a whole number from 0 to 2^63 - 1");
      }
      if (__builtin_mul_overflow(bits, *count, &bits)) {
        fail_here(fmt::format("has shape {}", shown(shape)), "its size overflows 64 bits");
      }
      result.tensor.shape.push_back(static_cast<std::int64_t>(*count));
    }
    if (bits % 8 != 0) {
      fail_here(fmt::format("has {} bits", bits), "a tensor ends at a whole byte");
    }

    const Json& offsets = fields.at("data_offsets");
    const bool is_pair = offsets.is_array() && offsets.size() == 2;
    const auto begin = is_pair ? as_count(offsets[0]) : std::nullopt;
    const auto end = is_pair ? as_count(offsets[1]) : std::nullopt;
    if (!begin || !end || *begin > *end) {
      fail_here(fmt::format("has data_offsets {}", shown(offsets)),
                "they are two whole numbers, begin and end, begin not after end");
    }
    if (*end > data_size()) {
      fail_here(fmt::format("ends at byte {} of the data", *end),
                fmt::format("the file has {} bytes of data, it is truncated", data_size()));
    }
    if (*end - *begin != bits / 8) {
      fail_here(fmt::format("has {} bytes", *end - *begin),
                fmt::format("{} of shape {} takes {}", type->name, shown(shape), bits / 8));
    }
    result.begin = *begin;
    result.end = *end;
    result.tensor.offset = data_begin() + *begin;
    result.tensor.num_bytes = *end - *begin;
    return result;
  }

  // Every byte of the data belongs to exactly one tensor.
  void check_layout(std::vector<Entry>& entries) const {
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
      return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
    });
    std::uint64_t end = 0;
    for (const Entry& entry : entries) {
      if (entry.begin != end) {
        fail(path_,
             fmt::format("tensor '{}' begins at byte {} of the data, not at {}",
                         printable(entry.name),
                         entry.begin,
                         end),
             "tensors lie one behind the other, without overlap or hole");
      }
      end = entry.end;
    }
    if (end != data_size()) {
      fail(path_,
           fmt::format("{} bytes follow the last tensor", data_size() - end),
           "every byte of the data belongs to a tensor");
    }
  }

 private:
  const std::filesystem::path& path_;
  const InputFile& file_;
  std::uint64_t length_ = 0;
};

// IEEE half precision, as it is stored. Every value is one of f32's.
struct Half {
  std::uint16_t bits;

  explicit operator float() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16U;
    const std::uint32_t exponent = (bits >> 10U) & 0x1FU;
    const std::uint32_t fraction = bits & 0x3FFU;
    if (exponent == 0) {  // zero, or subnormal: fraction * 2^-24
      const float magnitude = static_cast<float>(fraction) * 0x1p-24F;
      return sign != 0 ? -magnitude : magnitude;
    }
    constexpr std::uint32_t kAllOnes = 0x1F;
    constexpr std::uint32_t kBiases = 127 - 15;
    const std::uint32_t wide = exponent == kAllOnes ? 0xFFU : exponent + kBiases;
    return std::bit_cast<float>(sign | (wide << 23U) | (fraction << 13U));
  }
  explicit operator double() const { return static_cast<double>(static_cast<float>(*this)); }
};

// An f32 that rounds to the bf16 that `value` rounds to. To the nearest f32 it would be rounded
// twice, which is another bf16 where the first rounding ends at a tie; rounded to odd, the last bit
// says on which side of the tie the value lies.
float round_to_odd(double value) {
  const auto nearest = static_cast<float>(value);
  if (static_cast<double>(nearest) == value || !std::isfinite(nearest)) {
    return nearest;
  }
  auto bits = std::bit_cast<std::uint32_t>(nearest);
  if (std::abs(static_cast<double>(nearest)) > std::abs(value)) {
    --bits;  // toward zero
  }
  return std::bit_cast<float>(bits | 1U);
}

template <class To, class From>
To converted(const From& value) {
  if constexpr (std::is_same_v<To, bf16> && std::is_same_v<From, double>) {
    return bf16(round_to_odd(value));
  } else if constexpr (std::is_same_v<From, double>) {
    return static_cast<To>(value);
  } else {
    return To(static_cast<float>(value));
  }
}

// Where elements of another type are read to, before they are converted: few enough to stay in the
// cache, and a call of the system for each is nothing beside them.
constexpr std::size_t kConvertedElements = std::size_t{64} << 10U;

// Elements of one tensor, to be converted.
struct StoredElements {
  const SafetensorsFile& file;
  const StoredTensor& tensor;
  std::uint64_t begin;
  std::uint64_t count;
};

template <class From, class To>
void convert(const StoredElements& from, To* to) {
  std::vector<From> values(std::min<std::uint64_t>(from.count, kConvertedElements));
  for (std::uint64_t done = 0; done < from.count;) {
    const std::span<From> piece(values.data(),
                                std::min<std::uint64_t>(from.count - done, values.size()));
    from.file.read_bytes(
        from.tensor, (from.begin + done) * sizeof(From), std::as_writable_bytes(piece));
    std::transform(piece.begin(), piece.end(), to + done, [](const From& value) {
      return converted<To>(value);
    });
    done += piece.size();
  }
}

template <class From>
bool convert_to(const StoredElements& from, DType dtype, void* out) {
  switch (dtype) {
    case DType::f64:
      convert<From>(from, static_cast<double*>(out));
      return true;
    case DType::f32:
      convert<From>(from, static_cast<float*>(out));
      return true;
    case DType::bf16:
      convert<From>(from, static_cast<bf16*>(out));
      return true;
    default:
      return false;
  }
}

bool convert_from(const StoredElements& from, DType dtype, void* out) {
  if (from.tensor.is_f16) {
    return convert_to<Half>(from, dtype, out);
  }
  switch (*from.tensor.dtype) {
    case DType::f64:
      return convert_to<double>(from, dtype, out);
    case DType::f32:
      return convert_to<float>(from, dtype, out);
    case DType::bf16:
      return convert_to<bf16>(from, dtype, out);
    default:
      return false;
  }
}

}  // namespace

bool holds_floats(const StoredTensor& tensor) {
  return tensor.is_f16 || tensor.dtype == DType::f64 || tensor.dtype == DType::f32 ||
         tensor.dtype == DType::bf16;
}

std::string why_not_read(std::string_view dtype_name) {
  const bool is_small_float =
      dtype_name.starts_with("F8") || dtype_name.starts_with("F6") || dtype_name.starts_with("F4");
  const bool is_small_integer = dtype_name == "I8" || dtype_name == "U8" || dtype_name == "I32";
  if (is_small_float || is_small_integer) {
    return " (weights are quantised so: a value means nothing without the scales beside it, which "
           "differ from program to program); convert the model to BF16 with the program that "
           "quantised it, or use the one that was not quantised";
  }
  return " (weights are read from F64, F32, F16 and BF16); convert the file to one of them";
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(open_file(path)) {
  HeaderReader reader(file_);
  const Json header = reader.header();
  std::vector<Entry> entries;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      metadata_ = reader.metadata(value);
    } else {
      entries.push_back(reader.entry(name, value));
    }
  }
  reader.check_layout(entries);
  for (Entry& entry : entries) {
    tensors_.emplace(std::move(entry.name), std::move(entry.tensor));
  }
}

const StoredTensor& SafetensorsFile::find(std::string_view name,
                                          std::span<const std::int64_t> shape) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    fail(path(),
         fmt::format("there is no tensor '{}'", name),
         fmt::format("the file has {} others", tensors_.size()));
  }
  const StoredTensor& tensor = found->second;
  if (!tensor.dtype && !tensor.is_f16) {
    throw CheckpointError(fmt::format("{}: tensor '{}' has dtype {}{}",
                                      path().string(),
                                      name,
                                      tensor.dtype_name,
                                      why_not_read(tensor.dtype_name)));
  }
  if (!std::equal(shape.begin(), shape.end(), tensor.shape.begin(), tensor.shape.end())) {
    throw CheckpointError(fmt::format(
        "{}: tensor '{}' has shape [{}] (the model's config makes it [{}]); use the config that "
        "belongs to these weights",
        path().string(),
        name,
        fmt::join(tensor.shape, ", "),
        fmt::join(shape, ", ")));
  }
  return tensor;
}

void SafetensorsFile::read(std::string_view name,
                           std::span<const std::int64_t> shape,
                           std::int64_t begin,
                           std::int64_t count,
                           DType dtype,
                           void* out) const {
  const StoredTensor& tensor = find(name, shape);
  const std::size_t element_bytes = tensor.is_f16 ? sizeof(Half) : size_of(*tensor.dtype);
  const auto num_elements = static_cast<std::int64_t>(tensor.num_bytes / element_bytes);
  require(begin >= 0 && count >= 0 && begin <= num_elements && count <= num_elements - begin,
          "the elements to read lie within the tensor");
  if (count == 0) {
    return;
  }
  if (tensor.dtype == dtype) {
    read_bytes(tensor,
               static_cast<std::uint64_t>(begin) * element_bytes,
               {static_cast<std::byte*>(out), static_cast<std::size_t>(count) * element_bytes});
    return;
  }
  const StoredElements elements{.file = *this,
                                .tensor = tensor,
                                .begin = static_cast<std::uint64_t>(begin),
                                .count = static_cast<std::uint64_t>(count)};
  if (!convert_from(elements, dtype, out)) {
    throw CheckpointError(fmt::format("{}: tensor '{}' has dtype {}, wanted is {}{}",
                                      path().string(),
                                      name,
                                      tensor.dtype_name,
                                      name_of(dtype),
                                      why_not_read(tensor.dtype_name)));
  }
}

void SafetensorsFile::read_bytes(const StoredTensor& tensor,
                                 std::uint64_t begin,
                                 std::span<std::byte> out) const {
  require(begin <= tensor.num_bytes && out.size() <= tensor.num_bytes - begin,
          "the bytes to read lie within the tensor");
  read_file(file_, tensor.offset + begin, out);
}

}  // namespace memphis
