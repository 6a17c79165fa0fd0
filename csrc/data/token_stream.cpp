// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/token_stream.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include <xxhash.h>

#include "csrc/core/error.h"
#include "csrc/core/parallel.h"
#include "csrc/data/tokenizer.h"

namespace memphis {
namespace {

constexpr std::uint64_t kMarkers = 2;  // bos in front of a document's bytes, eos behind

std::string hex(XXH128_hash_t hash) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const unsigned char byte : canonical.digest) {
    text += kDigits[byte >> 4U];
    text += kDigits[byte & 15U];
  }
  return text;
}

// In pieces that stay in the cache between the search and the hash: one pass over memory.
constexpr std::size_t kPieceBytes = std::size_t{128} * 1024;

// The hash of a text's bytes; nothing if they are not text.
std::optional<std::string> digest_of_text(const InputFile& file) {
  if (file.size() == 0) {
    return std::nullopt;
  }
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                              XXH3_freeState);
  XXH3_128bits_reset(state.get());
  std::vector<std::byte> buffer(std::min<std::uint64_t>(kPieceBytes, file.size()));
  for (std::uint64_t begin = 0; begin < file.size();) {
    const std::span<std::byte> piece(buffer.data(),
                                     std::min<std::uint64_t>(buffer.size(), file.size() - begin));
    file.read(begin, piece);
    if (std::memchr(piece.data(), 0, piece.size()) != nullptr) {
      return std::nullopt;
    }
    XXH3_128bits_update(state.get(), piece.data(), piece.size());
    begin += piece.size();
  }
  return hex(XXH3_128bits_digest(state.get()));
}

// A file that is not held must still be the one whose digest was taken.
InputFile open_again(const std::filesystem::path& path,
                     std::uint64_t num_bytes,
                     std::int64_t modified_ns) {
  InputFile file(path);
  if (file.size() != num_bytes || file.modified_ns() != modified_ns) {
    throw DataError(path.string() + " has changed since the run began (it has " +
                    std::to_string(file.size()) + " bytes and had " + std::to_string(num_bytes) +
                    ", or was written to); restore it, leave it as it is during a run, and start "
                    "again");
  }
  return file;
}

}  // namespace

std::size_t TokenStream::default_max_held_files() {
  constexpr std::uint64_t kPart = 4;         // of a process's files, for training or validation
  constexpr std::uint64_t kMost = 1U << 14;  // the kernel keeps about 1 KiB for each
  return static_cast<std::size_t>(std::min(open_file_limit() / kPart, kMost));
}

TokenStream::TokenStream(const std::vector<TextFile>& files, std::size_t max_held_files) {
  std::vector<Document> documents(files.size());
  std::vector<std::optional<std::string>> digests(files.size());
  parallel_chunks(static_cast<std::int64_t>(files.size()), [&](std::int64_t chunk) {
    const auto i = static_cast<std::size_t>(chunk);
    InputFile file(files[i].path);
    digests[i] = digest_of_text(file);
    documents[i] = {.path = files[i].path,
                    .num_bytes = file.size(),
                    .modified_ns = file.modified_ns(),
                    .held = {}};
    if (digests[i] && i < max_held_files) {
      documents[i].held.emplace(std::move(file));
    }
  });

  std::string summary(ByteTokenizer::kName);
  for (std::size_t i = 0; i < files.size(); ++i) {
    const std::uint64_t num_bytes = documents[i].num_bytes;
    if (!digests[i]) {
      if (files[i].named) {
        throw DataError("cannot train on " + files[i].path.string() + " (it " +
                        (num_bytes == 0 ? "is empty" : "holds a NUL byte, so it is not text") +
                        "); remove it from the config or give a text file");
      }
      ++num_not_text_;
      continue;
    }
    summary.append("\n").append(std::to_string(num_bytes)).append(" ").append(*digests[i]);
    starts_.push_back(starts_.back() + num_bytes + kMarkers);
    documents_.push_back(std::move(documents[i]));
  }
  fingerprint_ = hex(XXH3_128bits(summary.data(), summary.size()));
}

// Tokens of one document from its `begin`-th on; all of them lie within it.
void TokenStream::read_document(const Document& document,
                                std::uint64_t begin,
                                std::span<std::int32_t> tokens,
                                std::span<std::int32_t> position) const {
  const std::uint64_t end = begin + tokens.size();
  auto token = tokens.begin();
  if (begin == 0) {
    *token++ = ByteTokenizer::kBos;
  }
  std::optional<InputFile> opened;
  if (!document.held) {
    opened.emplace(open_again(document.path, document.num_bytes, document.modified_ns));
  }
  const InputFile& file = document.held ? *document.held : *opened;
  std::array<std::byte, 16384> buffer;  // several samples, on the stack
  const std::uint64_t last_byte = std::min<std::uint64_t>(end - 1, document.num_bytes);
  for (std::uint64_t byte = std::max<std::uint64_t>(begin, 1) - 1; byte < last_byte;) {
    const std::span<std::byte> piece(buffer.data(),
                                     std::min<std::uint64_t>(buffer.size(), last_byte - byte));
    file.read(byte, piece);
    const auto nul = std::find(piece.begin(), piece.end(), std::byte{0});
    if (nul != piece.end()) {
      throw DataError(
          document.path.string() + " has a NUL byte at " +
          std::to_string(byte + static_cast<std::uint64_t>(nul - piece.begin())) +
          " (it was text when the run began, and was written to since); restore it, leave it as it "
          "is during a run, and start again");
    }
    token = std::transform(piece.begin(), piece.end(), token, ByteTokenizer::token_of);
    byte += piece.size();
  }
  if (end == document.num_bytes + kMarkers) {
    *token = ByteTokenizer::kEos;
  }
  constexpr std::uint64_t kLast = std::numeric_limits<std::int32_t>::max();
  for (std::size_t i = 0; i < position.size(); ++i) {
    position[i] = static_cast<std::int32_t>(std::min(begin + i, kLast));
  }
}

void TokenStream::read(std::uint64_t begin,
                       std::span<std::int32_t> tokens,
                       std::span<std::int32_t> position) const {
  require(position.size() == tokens.size(), "each token that is read has room for its position");
  require(begin <= num_tokens() && tokens.size() <= num_tokens() - begin,
          "tokens are read from within the stream");
  const auto after = std::upper_bound(starts_.begin(), starts_.end(), begin);
  auto document = static_cast<std::size_t>(after - starts_.begin()) - 1;
  for (std::size_t done = 0; done < tokens.size(); ++document) {
    const std::uint64_t index = begin + done - starts_[document];
    const std::uint64_t left = starts_[document + 1] - starts_[document] - index;
    const std::size_t count = std::min<std::size_t>(tokens.size() - done, left);
    read_document(
        documents_[document], index, tokens.subspan(done, count), position.subspan(done, count));
    done += count;
  }
}

}  // namespace memphis
