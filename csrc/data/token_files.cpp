// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/token_files.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <system_error>
#include <type_traits>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/core/parallel.h"
#include "csrc/data/digest.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;
using Type = IdColumn::Type;

// Of a scan: a multiple of every type's size.
constexpr std::uint64_t kScanBytes = std::uint64_t{4} << 20U;

[[noreturn]] void refuse(const fs::path& path, const std::string& why, const std::string& fix) {
  throw DataError(fmt::format("cannot train on {} ({}); {}", path.string(), why, fix));
}

constexpr std::string_view kAgain = "copy or write it again, whole";

template <class T>
T load(const std::byte* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

template <class T>
T read_one(const InputFile& file, std::uint64_t offset) {
  std::array<std::byte, sizeof(T)> bytes;
  file.read(offset, bytes);
  return load<T>(bytes.data());
}

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

// Reads every id, for the largest and for a digest. Chunks are digested apart, so that threads share
// them out, and their digests together.
FileRecords::Record scan(const IdColumn& ids, std::int64_t vocab_size, FileRecords& records) {
  const std::string what = fmt::format("ids {}", static_cast<int>(ids.type));
  if (const auto known = records.find(ids.file, what); known && known->largest_id < vocab_size) {
    return *known;
  }
  const std::uint64_t per_chunk = kScanBytes / ids.item_bytes();
  const std::uint64_t num_chunks = (ids.count + per_chunk - 1) / per_chunk;
  std::vector<std::string> digests(num_chunks);
  std::vector<std::int32_t> largest(num_chunks, -1);
  std::vector<std::string> problems(num_chunks);
  parallel_chunks(static_cast<std::int64_t>(num_chunks), [&](std::int64_t index) {
    const auto chunk = static_cast<std::uint64_t>(index);
    const std::uint64_t begin = chunk * per_chunk;
    const std::uint64_t count = std::min(per_chunk, ids.count - begin);
    std::vector<std::byte> bytes(count * ids.item_bytes());
    std::vector<std::int32_t> values(count);
    const std::uint64_t offset = ids.offset + begin * ids.item_bytes();
    ids.file.read(offset, bytes);
    const std::int64_t wrong = convert(ids.type, bytes, values, vocab_size);
    if (wrong >= 0) {
      const std::uint64_t at = static_cast<std::uint64_t>(wrong) * ids.item_bytes();
      problems[chunk] = fmt::format("its token {}, at byte {}, is {}, and model.vocab_size is {}",
                                    begin + static_cast<std::uint64_t>(wrong),
                                    offset + at,
                                    shown(ids.type, bytes.data() + at),
                                    vocab_size);
      return;
    }
    largest[chunk] = *std::max_element(values.begin(), values.end());
    Digest digest;
    digest.update(std::span<const std::byte>(bytes));
    digests[chunk] = digest.hex();
  });
  Digest all;
  FileRecords::Record record;
  for (std::uint64_t chunk = 0; chunk < num_chunks; ++chunk) {
    if (!problems[chunk].empty()) {
      refuse(ids.file.path(),
             problems[chunk],
             "set model.vocab_size to that of the tokenizer that made it, or give other data");
    }
    all.update(digests[chunk]);
    record.largest_id = std::max<std::int64_t>(record.largest_id, largest[chunk]);
  }
  record.digest = all.hex();
  records.put(ids.file, what, record);
  return record;
}

// Positions from `first` on.
void count_up(std::span<std::int32_t> position, std::uint64_t first) {
  constexpr std::uint64_t kLast = TokenStream::kFarPosition;
  for (std::size_t i = 0; i < position.size(); ++i) {
    position[i] = static_cast<std::int32_t>(std::min(first + i, kLast));
  }
}

// A byte a token, behind 16 of magic.
std::optional<InputFile> open_mask(const fs::path& path, std::uint64_t num_tokens) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) {
    return {};
  }
  InputFile file(path);
  const std::vector<std::byte> head = file.beginning(kMaskMagic.size());
  if (head.size() < kMaskMagic.size() ||
      std::memcmp(head.data(), kMaskMagic.data(), kMaskMagic.size()) != 0) {
    refuse(
        path, "it does not begin as a mask of memphis's does", "move it away, or write it again");
  }
  if (file.size() != kMaskMagic.size() + num_tokens) {
    refuse(path,
           fmt::format("it has {} bytes, and of {} tokens {}",
                       file.size(),
                       num_tokens,
                       kMaskMagic.size() + num_tokens),
           std::string(kAgain));
  }
  return file;
}

struct DtypeOfMegatron {
  std::uint8_t code;
  Type type;
};
constexpr std::array kMegatronTypes = {DtypeOfMegatron{1, Type::u8},
                                       DtypeOfMegatron{2, Type::i8},
                                       DtypeOfMegatron{3, Type::i16},
                                       DtypeOfMegatron{4, Type::i32},
                                       DtypeOfMegatron{5, Type::i64},
                                       DtypeOfMegatron{6, Type::f64},
                                       DtypeOfMegatron{7, Type::f32},
                                       DtypeOfMegatron{8, Type::u16}};

class MegatronStream final : public TokenStream {
 public:
  MegatronStream(const fs::path& index,
                 const fs::path& tokens,
                 std::int64_t vocab_size,
                 FileRecords& records)
      : index_(index), ids_{.file = InputFile(tokens)}, vocab_size_(vocab_size) {
    read_header();
    const std::string index_digest = check_index(records);
    const FileRecords::Record record = scan(ids_, vocab_size, records);
    fs::path mask = tokens;
    mask.replace_extension(".mask");
    mask_ = open_mask(mask, ids_.count);
    Digest digest;
    digest.update("megatron " + index_digest + " " + record.digest);
    if (mask_) {
      digest.update(digest_of_mask(records));
    }
    fingerprint_ = digest.hex();
  }

  std::uint64_t num_tokens() const override { return ids_.count; }
  const std::string& fingerprint() const override { return fingerprint_; }
  bool has_mask() const override { return mask_.has_value(); }

  void read(std::uint64_t begin,
            std::span<std::int32_t> tokens,
            std::span<std::int32_t> position) const override {
    require_within(begin, tokens.size(), position.size());
    ids_.read(begin, tokens, vocab_size_);
    if (tokens.empty()) {
      return;
    }
    std::uint64_t document = document_of(begin);
    for (std::size_t done = 0; done < tokens.size(); ++document) {
      const std::uint64_t first = start_of(document);
      const std::uint64_t after = start_of(document + 1);
      const std::uint64_t at = begin + done;
      const std::size_t count =
          static_cast<std::size_t>(std::min<std::uint64_t>(tokens.size() - done, after - at));
      count_up(position.subspan(done, count), at - first);
      done += count;
    }
  }

  void read_mask(std::uint64_t begin, std::span<std::uint8_t> learnt) const override {
    if (!mask_) {
      TokenStream::read_mask(begin, learnt);
      return;
    }
    require_within(begin, learnt.size(), learnt.size());
    mask_->read(kMaskMagic.size() + begin, std::as_writable_bytes(learnt));
  }

 private:
  static constexpr std::uint64_t kHeaderBytes = 34;

  void read_header() {
    const fs::path& path = index_.path();
    if (index_.size() < kHeaderBytes) {
      refuse(path,
             fmt::format(
                 "it has {} bytes, and the header of an index has {}", index_.size(), kHeaderBytes),
             std::string(kAgain));
    }
    const auto version = read_one<std::uint64_t>(index_, 9);
    if (version != 1) {
      refuse(path,
             fmt::format("its version, at byte 9, is {}, and 1 is known", version),
             "write it with Megatron's indexed_dataset");
    }
    const auto code = read_one<std::uint8_t>(index_, 17);
    const auto* const known =
        std::find_if(kMegatronTypes.begin(), kMegatronTypes.end(), [&](const DtypeOfMegatron& t) {
          return t.code == code;
        });
    if (known == kMegatronTypes.end()) {
      refuse(path,
             fmt::format("its code of a type, at byte 17, is {}, and 1 to 8 are known", code),
             std::string(kAgain));
    }
    ids_.type = known->type;
    num_sequences_ = read_one<std::uint64_t>(index_, 18);
    const auto num_indices = read_one<std::uint64_t>(index_, 26);
    // Counts are bounded by the size before anything is made of them.
    const std::uint64_t room = index_.size() - kHeaderBytes;
    if (num_sequences_ > room / 12 || num_indices > room / 8 || num_indices == 0) {
      refuse(path,
             fmt::format("it has {} bytes, and names {} sequences and {} boundaries of documents",
                         index_.size(),
                         num_sequences_,
                         num_indices),
             std::string(kAgain));
    }
    const std::uint64_t size = kHeaderBytes + 12 * num_sequences_ + 8 * num_indices;
    if (index_.size() != size && index_.size() != size + num_sequences_) {
      refuse(path,
             fmt::format("it has {} bytes, and of {} sequences and {} boundaries of documents {}",
                         index_.size(),
                         num_sequences_,
                         num_indices,
                         size),
             std::string(kAgain));
    }
    num_documents_ = num_indices - 1;
    lengths_at_ = kHeaderBytes;
    pointers_at_ = lengths_at_ + 4 * num_sequences_;
    documents_at_ = pointers_at_ + 8 * num_sequences_;
    if (index_.size() != size) {
      check_modes(size);
    }
    const std::uint64_t bytes = ids_.file.size();
    if (bytes % ids_.item_bytes() != 0) {
      refuse(ids_.file.path(),
             fmt::format("it has {} bytes, no whole number of ids of {}", bytes, ids_.item_bytes()),
             std::string(kAgain));
    }
    ids_.count = bytes / ids_.item_bytes();
  }

  // Of several kinds of data in one dataset.
  void check_modes(std::uint64_t begin) const {
    for (std::uint64_t i = 0; i < num_sequences_; ++i) {
      if (const auto mode = read_one<std::int8_t>(index_, begin + i); mode != 0) {
        refuse(
            index_.path(),
            fmt::format("the mode of its sequence {}, at byte {}, is {}: it is not of text alone",
                        i,
                        begin + i,
                        mode),
            "give a dataset of text");
      }
    }
  }

  // Every number of it, and a digest. Keeps every so many starts of documents, which the search for
  // one begins with.
  std::string check_index(FileRecords& records) {
    const fs::path& path = index_.path();
    const std::uint64_t item = ids_.item_bytes();
    const auto known = records.find(index_, "index");
    constexpr std::uint64_t kMostCoarse = 1U << 14U;
    stride_ = std::max<std::uint64_t>(1, (num_documents_ + kMostCoarse) / kMostCoarse);
    if (!known) {
      Digest digest;
      std::uint64_t expected = 0;
      constexpr std::uint64_t kPiece = 1U << 16U;
      std::vector<std::byte> lengths(4 * kPiece);
      std::vector<std::byte> pointers(8 * kPiece);
      for (std::uint64_t first = 0; first < num_sequences_; first += kPiece) {
        const std::uint64_t count = std::min(kPiece, num_sequences_ - first);
        const auto length_bytes = std::span(lengths).first(4 * count);
        const auto pointer_bytes = std::span(pointers).first(8 * count);
        index_.read(lengths_at_ + 4 * first, length_bytes);
        index_.read(pointers_at_ + 8 * first, pointer_bytes);
        for (std::uint64_t i = 0; i < count; ++i) {
          const auto length = load<std::int32_t>(length_bytes.data() + 4 * i);
          const auto pointer = load<std::int64_t>(pointer_bytes.data() + 8 * i);
          if (length < 0) {
            refuse(path,
                   fmt::format("the length of its sequence {}, at byte {}, is {}",
                               first + i,
                               lengths_at_ + 4 * (first + i),
                               length),
                   std::string(kAgain));
          }
          if (pointer < 0 || static_cast<std::uint64_t>(pointer) != expected) {
            refuse(path,
                   fmt::format("its sequence {} begins at byte {} of {}, at byte {} of the index, "
                               "and those before it end at {}",
                               first + i,
                               pointer,
                               ids_.file.path().filename().string(),
                               pointers_at_ + 8 * (first + i),
                               expected),
                   std::string(kAgain));
          }
          expected += static_cast<std::uint64_t>(length) * item;
        }
        digest.update(std::span<const std::byte>(length_bytes));
      }
      if (expected != ids_.file.size()) {
        refuse(ids_.file.path(),
               fmt::format("it has {} bytes, and its index {} is of {}",
                           ids_.file.size(),
                           path.filename().string(),
                           expected),
               "copy both again, whole");
      }
      check_boundaries(digest);
      records.put(index_, "index", {.digest = digest.hex(), .largest_id = 0});
      keep_starts();
      return digest.hex();
    }
    // Its size and time are those that were checked; of the tokens their number is left to check.
    if (start_of(num_documents_) != ids_.count) {
      refuse(ids_.file.path(),
             fmt::format("it has {} tokens, and its index {} is of {}",
                         ids_.count,
                         path.filename().string(),
                         start_of(num_documents_)),
             "copy both again, whole");
    }
    keep_starts();
    return known->digest;
  }

  void check_boundaries(Digest& digest) const {
    std::int64_t before = 0;
    constexpr std::uint64_t kPiece = 1U << 16U;
    std::vector<std::byte> bytes(8 * kPiece);
    for (std::uint64_t first = 0; first <= num_documents_; first += kPiece) {
      const std::uint64_t count = std::min(kPiece, num_documents_ + 1 - first);
      const auto piece = std::span(bytes).first(8 * count);
      index_.read(documents_at_ + 8 * first, piece);
      for (std::uint64_t i = 0; i < count; ++i) {
        const auto boundary = load<std::int64_t>(piece.data() + 8 * i);
        const bool is_first = first + i == 0;
        const bool is_last = first + i == num_documents_;
        if (boundary < before || (is_first && boundary != 0) ||
            static_cast<std::uint64_t>(boundary) > num_sequences_ ||
            (is_last && static_cast<std::uint64_t>(boundary) != num_sequences_)) {
          refuse(index_.path(),
                 fmt::format("its boundary {} of documents, at byte {}, is sequence {} of {}, and "
                             "they go up from 0 to the last",
                             first + i,
                             documents_at_ + 8 * (first + i),
                             boundary,
                             num_sequences_),
                 std::string(kAgain));
        }
        before = boundary;
      }
      digest.update(std::span<const std::byte>(piece));
    }
  }

  void keep_starts() {
    for (std::uint64_t document = 0; document < num_documents_; document += stride_) {
      coarse_.push_back(start_of(document));
    }
  }

  // The first token of a document; of the one behind the last, the number of tokens.
  std::uint64_t start_of(std::uint64_t document) const {
    const auto sequence =
        static_cast<std::uint64_t>(read_one<std::int64_t>(index_, documents_at_ + 8 * document));
    if (sequence < num_sequences_) {
      return static_cast<std::uint64_t>(
                 read_one<std::int64_t>(index_, pointers_at_ + 8 * sequence)) /
             ids_.item_bytes();
    }
    if (num_sequences_ == 0) {
      return 0;
    }
    const std::uint64_t last = num_sequences_ - 1;
    return static_cast<std::uint64_t>(read_one<std::int64_t>(index_, pointers_at_ + 8 * last)) /
               ids_.item_bytes() +
           static_cast<std::uint64_t>(read_one<std::int32_t>(index_, lengths_at_ + 4 * last));
  }

  // The one that has the token: of those that begin there, the last, as the others are empty.
  std::uint64_t document_of(std::uint64_t token) const {
    const auto block =
        std::upper_bound(coarse_.begin(), coarse_.end(), token) - coarse_.begin() - 1;
    std::uint64_t low = static_cast<std::uint64_t>(block) * stride_;  // begins at or before it
    std::uint64_t high = std::min(low + stride_, num_documents_);     // behind it, or the end
    while (high - low > 1) {
      const std::uint64_t middle = low + (high - low) / 2;
      (start_of(middle) <= token ? low : high) = middle;
    }
    return low;
  }

  std::string digest_of_mask(FileRecords& records) const {
    if (const auto known = records.find(*mask_, "mask")) {
      return known->digest;
    }
    Digest digest;
    std::vector<std::byte> piece(kScanBytes);
    for (std::uint64_t begin = 0; begin < mask_->size(); begin += piece.size()) {
      const auto part =
          std::span(piece).first(std::min<std::uint64_t>(piece.size(), mask_->size() - begin));
      mask_->read(begin, part);
      digest.update(std::span<const std::byte>(part));
    }
    records.put(*mask_, "mask", {.digest = digest.hex(), .largest_id = 0});
    return digest.hex();
  }

  InputFile index_;
  IdColumn ids_;
  std::int64_t vocab_size_;
  std::uint64_t num_sequences_ = 0;
  std::uint64_t num_documents_ = 0;
  std::uint64_t lengths_at_ = 0;
  std::uint64_t pointers_at_ = 0;
  std::uint64_t documents_at_ = 0;
  std::uint64_t stride_ = 1;           // documents
  std::vector<std::uint64_t> coarse_;  // first token of every stride_-th document
  std::optional<InputFile> mask_;
  std::string fingerprint_;
};

// One file with a header of 1024 bytes.
class TokenFileStream final : public TokenStream {
 public:
  TokenFileStream(const fs::path& path,
                  Separator separator,
                  std::int64_t vocab_size,
                  FileRecords& records)
      : ids_{.file = InputFile(path)}, separator_(separator), vocab_size_(vocab_size) {
    if (ids_.file.size() < kHeaderBytes) {
      refuse(path,
             fmt::format("it has {} bytes, and its header {}", ids_.file.size(), kHeaderBytes),
             std::string(kAgain));
    }
    ids_.offset = kHeaderBytes;
    std::array<std::byte, 8> magic;
    ids_.file.read(0, magic);
    if (std::memcmp(magic.data(), "BIN.TOK\n", magic.size()) == 0) {
      read_llmq_header(vocab_size);
    } else {
      read_llmc_header();
    }
    const FileRecords::Record record = scan(ids_, vocab_size, records);
    Digest digest;
    digest.update(fmt::format("tokens {} {} {} {} {}",
                              separator_.first,
                              separator_.last,
                              positions_at_ != 0,
                              mask_at_ != 0,
                              record.digest));
    for (const auto& [begin, end] : {std::pair{positions_at_, positions_at_ + 4 * ids_.count},
                                     std::pair{mask_at_, mask_at_ + (ids_.count + 7) / 8}}) {
      std::vector<std::byte> piece(kScanBytes);
      for (std::uint64_t at = begin; begin != 0 && at < end; at += piece.size()) {
        const auto part = std::span(piece).first(std::min<std::uint64_t>(piece.size(), end - at));
        ids_.file.read(at, part);
        digest.update(std::span<const std::byte>(part));
      }
    }
    fingerprint_ = digest.hex();
  }

  std::uint64_t num_tokens() const override { return ids_.count; }
  const std::string& fingerprint() const override { return fingerprint_; }
  bool has_mask() const override { return mask_at_ != 0; }

  void read(std::uint64_t begin,
            std::span<std::int32_t> tokens,
            std::span<std::int32_t> position) const override {
    require_within(begin, tokens.size(), position.size());
    ids_.read(begin, tokens, vocab_size_);
    if (tokens.empty()) {
      return;
    }
    if (positions_at_ != 0) {
      ids_.file.read(positions_at_ + 4 * begin, std::as_writable_bytes(position));
      for (std::int32_t& each : position) {
        each = std::max(each, 0);
      }
      return;
    }
    std::int32_t before = -1;
    if (begin > 0 && separator_.last >= 0) {
      ids_.read(begin - 1, {&before, 1}, vocab_size_);
    }
    std::uint64_t at = begin == 0 ? 0 : kFarPosition;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const bool begins = begin + i == 0 ||
                          (separator_.first >= 0 && tokens[i] == separator_.first) ||
                          (separator_.last >= 0 && before == separator_.last);
      at = begins ? 0 : at;
      position[i] = static_cast<std::int32_t>(std::min<std::uint64_t>(at, kFarPosition));
      ++at;
      before = tokens[i];
    }
  }

  void read_mask(std::uint64_t begin, std::span<std::uint8_t> learnt) const override {
    if (mask_at_ == 0) {
      TokenStream::read_mask(begin, learnt);
      return;
    }
    require_within(begin, learnt.size(), learnt.size());
    // The bit of the token before says it, and nothing comes before the first.
    std::array<std::byte, 512> bits;
    for (std::size_t done = 0; done < learnt.size();) {
      const std::uint64_t from = begin + done == 0 ? 0 : begin + done - 1;
      const std::uint64_t count =
          std::min<std::uint64_t>(learnt.size() - done, 8 * (bits.size() - 1));
      const std::uint64_t first = from / 8;
      const std::uint64_t last = (begin + done + count - 1) / 8;
      ids_.file.read(mask_at_ + first, std::span(bits).first(last - first + 1));
      for (std::uint64_t i = 0; i < count; ++i) {
        const std::uint64_t token = begin + done + i;
        const std::uint64_t bit = token == 0 ? 0 : token - 1;
        const auto byte = std::to_integer<unsigned>(bits[bit / 8 - first]);
        learnt[done + i] = static_cast<std::uint8_t>(token == 0 ? 1U : (byte >> (bit % 8)) & 1U);
      }
      done += count;
    }
  }

 private:
  static constexpr std::uint64_t kHeaderBytes = 1024;

  std::int32_t header(std::uint64_t word) const {
    return read_one<std::int32_t>(ids_.file, 4 * word);
  }

  void require_size(std::uint64_t bytes) const {
    if (ids_.file.size() != bytes) {
      refuse(ids_.file.path(),
             fmt::format("it has {} bytes, and of {} tokens, as its header says, {}",
                         ids_.file.size(),
                         ids_.count,
                         bytes),
             std::string(kAgain));
    }
  }

  void require_version(std::uint64_t word, std::initializer_list<std::int32_t> known) const {
    if (std::find(known.begin(), known.end(), header(word)) == known.end()) {
      refuse(ids_.file.path(),
             fmt::format("its version, at byte {}, is {}, and {} is known",
                         4 * word,
                         header(word),
                         *known.begin()),
             "write it with the version that is known");
    }
  }

  void read_llmc_header() {
    constexpr std::int32_t kGpt2 = 20240520;
    constexpr std::int32_t kLlama3 = 20240801;
    const std::int32_t magic = header(0);
    if (magic != kGpt2 && magic != kLlama3) {
      refuse(ids_.file.path(),
             fmt::format("its first number is {}, of no kind of tokens that is known", magic),
             std::string(kAgain));
    }
    require_version(1, {magic == kGpt2 ? 1 : 7});
    ids_.type = magic == kGpt2 ? Type::u16 : Type::u32;
    ids_.count = read_one<std::uint32_t>(ids_.file, 8);
    require_size(kHeaderBytes + ids_.count * ids_.item_bytes());
    if (separator_.first < 0 && separator_.last < 0) {
      separator_.first = magic == kGpt2 ? 50256 : 128000;
    }
  }

  void read_llmq_header(std::int64_t vocab_size) {
    require_version(2, {2, 3});
    const bool has_positions = header(2) == 3;
    if (header(3) != 4) {
      refuse(ids_.file.path(),
             fmt::format("its bytes of a token, at byte 12, are {}, and 4 are known", header(3)),
             std::string(kAgain));
    }
    ids_.type = Type::i32;
    ids_.count = read_one<std::uint32_t>(ids_.file, 16);
    if (header(5) > vocab_size) {
      refuse(ids_.file.path(),
             fmt::format("its vocabulary, at byte 20, is {}, and model.vocab_size is {}",
                         header(5),
                         vocab_size),
             fmt::format("set model.vocab_size to at least {}", header(5)));
    }
    const std::uint64_t tokens_end = kHeaderBytes + 4 * ids_.count;
    const std::uint64_t positions_end = tokens_end + (has_positions ? 4 * ids_.count : 0);
    positions_at_ = has_positions ? tokens_end : 0;
    mask_at_ = header(6) != 0 ? positions_end : 0;
    require_size(positions_end + (mask_at_ != 0 ? (ids_.count + 7) / 8 : 0));
    if (separator_.first >= 0 && separator_.last >= 0) {
      separator_.first = -1;  // its documents end with eos, and begin with bos or not
    }
  }

  IdColumn ids_;
  Separator separator_;
  std::int64_t vocab_size_;
  std::uint64_t positions_at_ = 0;  // of llmq; 0: none
  std::uint64_t mask_at_ = 0;
  std::string fingerprint_;
};

class JoinedStream final : public TokenStream {
 public:
  explicit JoinedStream(std::vector<std::shared_ptr<const TokenStream>> streams)
      : streams_(std::move(streams)) {
    Digest digest;
    for (const auto& stream : streams_) {
      starts_.push_back(starts_.back() + stream->num_tokens());
      digest.update(stream->fingerprint());
    }
    fingerprint_ = digest.hex();
  }

  std::uint64_t num_tokens() const override { return starts_.back(); }
  const std::string& fingerprint() const override { return fingerprint_; }
  bool has_mask() const override {
    return std::any_of(
        streams_.begin(), streams_.end(), [](const auto& each) { return each->has_mask(); });
  }

  void read(std::uint64_t begin,
            std::span<std::int32_t> tokens,
            std::span<std::int32_t> position) const override {
    require_within(begin, tokens.size(), position.size());
    for_parts(
        begin,
        tokens.size(),
        [&](const TokenStream& stream, std::uint64_t at, std::size_t done, std::size_t count) {
          stream.read(at, tokens.subspan(done, count), position.subspan(done, count));
        });
  }

  void read_mask(std::uint64_t begin, std::span<std::uint8_t> learnt) const override {
    require_within(begin, learnt.size(), learnt.size());
    for_parts(
        begin,
        learnt.size(),
        [&](const TokenStream& stream, std::uint64_t at, std::size_t done, std::size_t count) {
          stream.read_mask(at, learnt.subspan(done, count));
        });
  }

 private:
  template <class Body>
  void for_parts(std::uint64_t begin, std::size_t size, const Body& body) const {
    const auto after = std::upper_bound(starts_.begin(), starts_.end(), begin);
    auto index = static_cast<std::size_t>(after - starts_.begin()) - 1;
    for (std::size_t done = 0; done < size; ++index) {
      const std::uint64_t at = begin + done - starts_[index];
      const std::size_t count =
          std::min<std::size_t>(size - done, streams_[index]->num_tokens() - at);
      if (count > 0) {
        body(*streams_[index], at, done, count);
      }
      done += count;
    }
  }

  std::vector<std::shared_ptr<const TokenStream>> streams_;
  std::vector<std::uint64_t> starts_{0};
  std::string fingerprint_;
};

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

std::unique_ptr<const TokenStream> open_megatron(const fs::path& path,
                                                 std::int64_t vocab_size,
                                                 FileRecords& records) {
  fs::path index = path;
  fs::path tokens = path;
  index.replace_extension(".idx");
  tokens.replace_extension(".bin");
  std::error_code ignored;
  for (const fs::path& part : {index, tokens}) {
    if (!fs::exists(part, ignored)) {
      refuse(path,
             fmt::format("it is one half of a Megatron dataset, and {} is not beside it",
                         part.filename().string()),
             "copy both into one folder");
    }
  }
  return std::make_unique<const MegatronStream>(index, tokens, vocab_size, records);
}

std::unique_ptr<const TokenStream> open_token_file(const fs::path& path,
                                                   Separator separator,
                                                   std::int64_t vocab_size,
                                                   FileRecords& records) {
  return std::make_unique<const TokenFileStream>(path, separator, vocab_size, records);
}

std::shared_ptr<const TokenStream> join(std::vector<std::shared_ptr<const TokenStream>> streams) {
  require(!streams.empty(), "there is a stream to join");
  return streams.size() == 1 ? std::move(streams.front())
                             : std::make_shared<const JoinedStream>(std::move(streams));
}

}  // namespace memphis
