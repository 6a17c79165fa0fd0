// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/megatron_stream.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/file.h"
#include "csrc/data/digest.h"
#include "csrc/data/id_scan.h"
#include "csrc/data/id_stream.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;
using Type = IdColumn::Type;

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
    refuse_tokens(
        path, "it does not begin as a mask of memphis's does", "move it away, or write it again");
  }
  if (file.size() != kMaskMagic.size() + num_tokens) {
    refuse_tokens(path,
                  fmt::format("it has {} bytes, and of {} tokens {}",
                              file.size(),
                              num_tokens,
                              kMaskMagic.size() + num_tokens),
                  std::string(kCopyAgain));
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

class MegatronStream final : public IdStream {
 public:
  MegatronStream(const fs::path& index,
                 const fs::path& tokens,
                 std::int64_t vocab_size,
                 FileRecords& records)
      : IdStream(InputFile(tokens), vocab_size), index_(index) {
    read_header();
    const std::string index_digest = check_index(records);
    const FileRecords::Record record = scan(ids_, vocab_size, records);
    fs::path mask = tokens;
    mask.replace_extension(".mask");
    mask_ = open_mask(mask, ids_.count);
    Digest digest;
    digest.update("megatron " + index_digest + " " + record.digest);
    if (mask_) {
      digest.update(digest_of_rest("", *mask_, 0, "mask", records));
    }
    fingerprint_ = digest.hex();
  }

  // Of its header alone.
  MegatronStream(const fs::path& index, const fs::path& tokens)
      : IdStream(InputFile(tokens), 0), index_(index) {
    read_header();
  }
  bool has_mask() const override { return mask_.has_value(); }

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

  void read_positions(std::uint64_t begin,
                      std::span<const std::int32_t> tokens,
                      std::span<std::int32_t> position) const override {
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

  void read_header() {
    const fs::path& path = index_.path();
    if (index_.size() < kHeaderBytes) {
      refuse_tokens(
          path,
          fmt::format(
              "it has {} bytes, and the header of an index has {}", index_.size(), kHeaderBytes),
          std::string(kCopyAgain));
    }
    const auto version = read_one<std::uint64_t>(index_, 9);
    if (version != 1) {
      refuse_tokens(path,
                    fmt::format("its version, at byte 9, is {}, and 1 is known", version),
                    "write it with Megatron's indexed_dataset");
    }
    const auto code = read_one<std::uint8_t>(index_, 17);
    const auto* const known =
        std::find_if(kMegatronTypes.begin(), kMegatronTypes.end(), [&](const DtypeOfMegatron& t) {
          return t.code == code;
        });
    if (known == kMegatronTypes.end()) {
      refuse_tokens(
          path,
          fmt::format("its code of a type, at byte 17, is {}, and 1 to 8 are known", code),
          std::string(kCopyAgain));
    }
    ids_.type = known->type;
    num_sequences_ = read_one<std::uint64_t>(index_, 18);
    const auto num_indices = read_one<std::uint64_t>(index_, 26);
    // Counts are bounded by the size before anything is made of them.
    const std::uint64_t room = index_.size() - kHeaderBytes;
    if (num_sequences_ > room / 12 || num_indices > room / 8 || num_indices == 0) {
      refuse_tokens(
          path,
          fmt::format("it has {} bytes, and names {} sequences and {} boundaries of documents",
                      index_.size(),
                      num_sequences_,
                      num_indices),
          std::string(kCopyAgain));
    }
    const std::uint64_t size = kHeaderBytes + 12 * num_sequences_ + 8 * num_indices;
    if (index_.size() != size && index_.size() != size + num_sequences_) {
      refuse_tokens(
          path,
          fmt::format("it has {} bytes, and of {} sequences and {} boundaries of documents {}",
                      index_.size(),
                      num_sequences_,
                      num_indices,
                      size),
          std::string(kCopyAgain));
    }
    num_documents_ = num_indices - 1;
    lengths_at_ = kHeaderBytes;
    pointers_at_ = lengths_at_ + 4 * num_sequences_;
    documents_at_ = pointers_at_ + 8 * num_sequences_;
    modes_at_ = index_.size() == size ? 0 : size;
    const std::uint64_t bytes = ids_.file.size();
    if (bytes % ids_.item_bytes() != 0) {
      refuse_tokens(
          ids_.file.path(),
          fmt::format("it has {} bytes, no whole number of ids of {}", bytes, ids_.item_bytes()),
          std::string(kCopyAgain));
    }
    ids_.count = bytes / ids_.item_bytes();
  }

  // Of several kinds of data in one dataset.
  void check_modes() const {
    std::vector<std::byte> modes(kScanBytes);
    for (std::uint64_t first = 0; first < num_sequences_; first += modes.size()) {
      const auto piece =
          std::span(modes).first(std::min<std::uint64_t>(modes.size(), num_sequences_ - first));
      index_.read(modes_at_ + first, piece);
      const auto found = std::find_if(
          piece.begin(), piece.end(), [](std::byte mode) { return mode != std::byte{}; });
      if (found != piece.end()) {
        const std::uint64_t sequence = first + static_cast<std::uint64_t>(found - piece.begin());
        refuse_tokens(
            index_.path(),
            fmt::format("the mode of its sequence {}, at byte {}, is {}: it is not of text alone",
                        sequence,
                        modes_at_ + sequence,
                        static_cast<std::int8_t>(*found)),
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
      if (modes_at_ != 0) {
        check_modes();
      }
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
            refuse_tokens(path,
                          fmt::format("the length of its sequence {}, at byte {}, is {}",
                                      first + i,
                                      lengths_at_ + 4 * (first + i),
                                      length),
                          std::string(kCopyAgain));
          }
          if (pointer < 0 || static_cast<std::uint64_t>(pointer) != expected) {
            refuse_tokens(
                path,
                fmt::format("its sequence {} begins at byte {} of {}, at byte {} of the index, "
                            "and those before it end at {}",
                            first + i,
                            pointer,
                            ids_.file.path().filename().string(),
                            pointers_at_ + 8 * (first + i),
                            expected),
                std::string(kCopyAgain));
          }
          expected += static_cast<std::uint64_t>(length) * item;
        }
        digest.update(std::span<const std::byte>(length_bytes));
      }
      if (expected != ids_.file.size()) {
        refuse_tokens(ids_.file.path(),
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
      refuse_tokens(ids_.file.path(),
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
          refuse_tokens(
              index_.path(),
              fmt::format("its boundary {} of documents, at byte {}, is sequence {} of {}, and "
                          "they go up from 0 to the last",
                          first + i,
                          documents_at_ + 8 * (first + i),
                          boundary,
                          num_sequences_),
              std::string(kCopyAgain));
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

  InputFile index_;
  std::uint64_t num_sequences_ = 0;
  std::uint64_t num_documents_ = 0;
  std::uint64_t lengths_at_ = 0;
  std::uint64_t pointers_at_ = 0;
  std::uint64_t documents_at_ = 0;
  std::uint64_t modes_at_ = 0;         // 0: none
  std::uint64_t stride_ = 1;           // documents
  std::vector<std::uint64_t> coarse_;  // first token of every stride_-th document
  std::optional<InputFile> mask_;
};

struct Halves {
  fs::path index;
  fs::path tokens;
};

Halves halves_of(const fs::path& path) {
  Halves halves{.index = path, .tokens = path};
  halves.index.replace_extension(".idx");
  halves.tokens.replace_extension(".bin");
  std::error_code ignored;
  for (const fs::path& part : {halves.index, halves.tokens}) {
    if (!fs::exists(part, ignored)) {
      refuse_tokens(path,
                    fmt::format("it is one half of a Megatron dataset, and {} is not beside it",
                                part.filename().string()),
                    "copy both into one folder");
    }
  }
  return halves;
}

}  // namespace

std::unique_ptr<const TokenStream> open_megatron(const fs::path& path,
                                                 std::int64_t vocab_size,
                                                 FileRecords& records) {
  const Halves halves = halves_of(path);
  return std::make_unique<const MegatronStream>(halves.index, halves.tokens, vocab_size, records);
}

IdColumn megatron_ids(const fs::path& path) {
  const Halves halves = halves_of(path);
  return MegatronStream(halves.index, halves.tokens).ids();
}

}  // namespace memphis
