// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/id_column.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/data/digest.h"
#include "csrc/data/token_stream.h"

namespace memphis {
namespace {

using Type = IdColumn::Type;

// Ids of one type, into `out`. Returns the index of the first that is none, or -1.
template <class T>
std::int64_t convert(std::span<const std::byte> bytes,
                     std::span<std::int32_t> out,
                     std::int64_t vocab_size) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    const T value = load<T>(bytes.data() + i * sizeof(T));
    bool valid = false;
    if constexpr (std::is_floating_point_v<T>) {
      valid = value >= 0 && value < static_cast<T>(vocab_size) && std::trunc(value) == value;
    } else if constexpr (std::is_unsigned_v<T>) {
      valid = value < static_cast<std::uint64_t>(vocab_size);
    } else {
      valid = value >= 0 && static_cast<std::int64_t>(value) < vocab_size;
    }
    if (!valid) {
      return static_cast<std::int64_t>(i);
    }
    out[i] = static_cast<std::int32_t>(value);
  }
  return -1;
}

std::int64_t convert(Type type,
                     std::span<const std::byte> bytes,
                     std::span<std::int32_t> out,
                     std::int64_t vocab_size) {
  switch (type) {
    case Type::u8:
      return convert<std::uint8_t>(bytes, out, vocab_size);
    case Type::i8:
      return convert<std::int8_t>(bytes, out, vocab_size);
    case Type::i16:
      return convert<std::int16_t>(bytes, out, vocab_size);
    case Type::i32:
      return convert<std::int32_t>(bytes, out, vocab_size);
    case Type::i64:
      return convert<std::int64_t>(bytes, out, vocab_size);
    case Type::f64:
      return convert<double>(bytes, out, vocab_size);
    case Type::f32:
      return convert<float>(bytes, out, vocab_size);
    case Type::u16:
      return convert<std::uint16_t>(bytes, out, vocab_size);
    case Type::u32:
      return convert<std::uint32_t>(bytes, out, vocab_size);
  }
  return 0;
}

std::string shown(Type type, const std::byte* bytes) {
  switch (type) {
    case Type::u8:
      return fmt::format("{}", load<std::uint8_t>(bytes));
    case Type::i8:
      return fmt::format("{}", load<std::int8_t>(bytes));
    case Type::i16:
      return fmt::format("{}", load<std::int16_t>(bytes));
    case Type::i32:
      return fmt::format("{}", load<std::int32_t>(bytes));
    case Type::i64:
      return fmt::format("{}", load<std::int64_t>(bytes));
    case Type::f64:
      return fmt::format("{}", load<double>(bytes));
    case Type::f32:
      return fmt::format("{}", load<float>(bytes));
    case Type::u16:
      return fmt::format("{}", load<std::uint16_t>(bytes));
    case Type::u32:
      return fmt::format("{}", load<std::uint32_t>(bytes));
  }
  return {};
}
}  // namespace

std::uint64_t IdColumn::item_bytes() const {
  switch (type) {
    case Type::u8:
    case Type::i8:
      return 1;
    case Type::i16:
    case Type::u16:
      return 2;
    case Type::i32:
    case Type::u32:
    case Type::f32:
      return 4;
    case Type::i64:
    case Type::f64:
      return 8;
  }
  return 1;
}

void IdColumn::read(std::uint64_t begin,
                    std::span<std::int32_t> out,
                    std::int64_t vocab_size) const {
  std::array<std::byte, 16384> buffer;
  const std::uint64_t most = buffer.size() / item_bytes();
  for (std::size_t done = 0; done < out.size();) {
    const std::size_t some = std::min<std::size_t>(most, out.size() - done);
    const auto bytes = std::span(buffer).first(some * item_bytes());
    const std::uint64_t at = offset + (begin + done) * item_bytes();
    file.read(at, bytes);
    const std::int64_t wrong = convert(type, bytes, out.subspan(done, some), vocab_size);
    if (wrong >= 0) {
      const auto place = static_cast<std::uint64_t>(wrong) * item_bytes();
      throw DataError(fmt::format(
          "{} has the id {} at byte {} (model.vocab_size is {}, and when the run began its ids "
          "were "
          "below: it was written to since); restore it, leave it as it is during a run, and start "
          "again",
          file.path().string(),
          shown(type, bytes.data() + place),
          at + place,
          vocab_size));
    }
    done += some;
  }
}
std::uint64_t num_chunks(const IdColumn& ids) {
  const std::uint64_t per_chunk = kScanBytes / ids.item_bytes();
  return (ids.count + per_chunk - 1) / per_chunk;
}

ScannedChunk scan_chunk(const IdColumn& ids, std::uint64_t chunk, std::int64_t vocab_size) {
  const std::uint64_t per_chunk = kScanBytes / ids.item_bytes();
  const std::uint64_t begin = chunk * per_chunk;
  const std::uint64_t count = std::min(per_chunk, ids.count - begin);
  std::vector<std::byte> bytes(count * ids.item_bytes());
  std::vector<std::int32_t> values(count);
  const std::uint64_t offset = ids.offset + begin * ids.item_bytes();
  ids.file.read(offset, bytes);
  const std::int64_t wrong = convert(ids.type, bytes, values, vocab_size);
  if (wrong >= 0) {
    const std::uint64_t at = static_cast<std::uint64_t>(wrong) * ids.item_bytes();
    refuse_tokens(ids.file.path(),
                  fmt::format("its token {}, at byte {}, is {}, and model.vocab_size is {}",
                              begin + static_cast<std::uint64_t>(wrong),
                              offset + at,
                              shown(ids.type, bytes.data() + at),
                              vocab_size),
                  "set model.vocab_size to that of the tokenizer that made it, or give other data");
  }
  Digest digest;
  digest.update(std::span<const std::byte>(bytes));
  return {.largest_id = *std::max_element(values.begin(), values.end()), .digest = digest.hex()};
}

std::string scan_name(const IdColumn& ids) {
  return fmt::format("ids {}", static_cast<int>(ids.type));
}

void refuse_tokens(const std::filesystem::path& path,
                   const std::string& why,
                   const std::string& fix) {
  throw DataError(fmt::format("cannot train on {} ({}); {}", path.string(), why, fix));
}

void count_up(std::span<std::int32_t> position, std::uint64_t first) {
  constexpr std::uint64_t kLast = TokenStream::kFarPosition;
  for (std::size_t i = 0; i < position.size(); ++i) {
    position[i] = static_cast<std::int32_t>(std::min(first + i, kLast));
  }
}
}  // namespace memphis
