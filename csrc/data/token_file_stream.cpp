// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/token_file_stream.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <initializer_list>
#include <utility>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/data/id_scan.h"
#include "csrc/data/id_stream.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;
using Type = IdColumn::Type;

// One file with a header of 1024 bytes.
class TokenFileStream final : public IdStream {
 public:
  TokenFileStream(const fs::path& path,
                  Separator separator,
                  std::int64_t vocab_size,
                  FileRecords& records)
      : TokenFileStream(path, separator, vocab_size) {
    const FileRecords::Record record = scan(ids_, vocab_size, records);
    const std::string what = fmt::format("tokens {} {} {} {} {}",
                                         separator_.first,
                                         separator_.last,
                                         positions_at_ != 0,
                                         mask_at_ != 0,
                                         record.digest);
    // Positions and the mask, which lie behind the ids.
    fingerprint_ = digest_of_rest(
        what, ids_.file, ids_.offset + ids_.count * ids_.item_bytes(), what, records);
  }

  // Of its header alone.
  TokenFileStream(const fs::path& path, Separator separator, std::int64_t vocab_size)
      : IdStream(InputFile(path), vocab_size), separator_(separator) {
    if (ids_.file.size() < kHeaderBytes) {
      refuse_tokens(
          path,
          fmt::format("it has {} bytes, and its header {}", ids_.file.size(), kHeaderBytes),
          std::string(kCopyAgain));
    }
    ids_.offset = kHeaderBytes;
    std::array<std::byte, 8> magic;
    ids_.file.read(0, magic);
    if (std::memcmp(magic.data(), "BIN.TOK\n", magic.size()) == 0) {
      read_llmq_header(vocab_size);
    } else {
      read_llmc_header();
    }
  }
  bool has_mask() const override { return mask_at_ != 0; }

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

  void read_positions(std::uint64_t begin,
                      std::span<const std::int32_t> tokens,
                      std::span<std::int32_t> position) const override {
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

  std::int32_t header(std::uint64_t word) const {
    return read_one<std::int32_t>(ids_.file, 4 * word);
  }

  void require_size(std::uint64_t bytes) const {
    if (ids_.file.size() != bytes) {
      refuse_tokens(ids_.file.path(),
                    fmt::format("it has {} bytes, and of {} tokens, as its header says, {}",
                                ids_.file.size(),
                                ids_.count,
                                bytes),
                    std::string(kCopyAgain));
    }
  }

  void require_version(std::uint64_t word, std::initializer_list<std::int32_t> known) const {
    if (std::find(known.begin(), known.end(), header(word)) == known.end()) {
      refuse_tokens(ids_.file.path(),
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
      refuse_tokens(
          ids_.file.path(),
          fmt::format("its first number is {}, of no kind of tokens that is known", magic),
          std::string(kCopyAgain));
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
      refuse_tokens(
          ids_.file.path(),
          fmt::format("its bytes of a token, at byte 12, are {}, and 4 are known", header(3)),
          std::string(kCopyAgain));
    }
    ids_.type = Type::i32;
    ids_.count = read_one<std::uint32_t>(ids_.file, 16);
    if (header(5) > vocab_size) {
      refuse_tokens(ids_.file.path(),
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

  Separator separator_;
  std::uint64_t positions_at_ = 0;  // of llmq; 0: none
  std::uint64_t mask_at_ = 0;
};

}  // namespace

std::unique_ptr<const TokenStream> open_token_file(const fs::path& path,
                                                   Separator separator,
                                                   std::int64_t vocab_size,
                                                   FileRecords& records) {
  return std::make_unique<const TokenFileStream>(path, separator, vocab_size, records);
}

IdColumn token_file_ids(const fs::path& path, std::int64_t vocab_size) {
  return TokenFileStream(path, {}, vocab_size).ids();
}

}  // namespace memphis
