// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/text_stream.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "csrc/core/error.h"
#include "csrc/core/parallel.h"
#include "csrc/core/progress.h"
#include "csrc/data/digest.h"
#include "csrc/data/text_format.h"
#include "csrc/data/tokenizer.h"
#include "csrc/data/utf8.h"

namespace memphis {
namespace {

constexpr std::uint64_t kMarkers = 2;  // bos in front of a document's bytes, eos behind

// In pieces that stay in the cache between the search and the hash: one pass over memory.
constexpr std::size_t kPieceBytes = std::size_t{128} * 1024;
static_assert(kPieceBytes >= kFormatBytes);

// Reading less than this again costs less than keeping it in mind.
constexpr std::uint64_t kRecordedBytes = std::uint64_t{1} << 20U;

// What reading a file has shown.
struct Examined {
  std::string digest;    // of a text
  std::string not_text;  // why it is none: "it holds a Parquet table"
  std::string advice;
  bool begins_with_mark = false;
  double share_outside_utf8 = 0;
};

bool is_text(const TextFile& file, const TextFormat& format) {
  return format.kind == TextFormat::Kind::json_document && file.origin == TextFile::Origin::walked;
}

Examined examine(const TextFile& listed, const InputFile& file, FileRecords* records) {
  Examined result;
  if (file.size() == 0) {
    result.not_text = "it is empty";
    result.advice = "leave it out, or name one with text";
    return result;
  }
  Digest digest;
  std::vector<std::byte> buffer(std::min<std::uint64_t>(kPieceBytes, file.size()));
  for (std::uint64_t begin = 0; begin < file.size();) {
    const std::span<std::byte> piece(buffer.data(),
                                     std::min<std::uint64_t>(buffer.size(), file.size() - begin));
    file.read(begin, piece);
    if (begin == 0) {
      const auto head = piece.first(std::min(piece.size(), kFormatBytes));
      const auto format = recognise_format(listed.path, head, head.size() == file.size());
      if (format && !is_text(listed, *format)) {
        result.not_text = "it holds " + format->name;
        result.advice = format->advice;
        return result;
      }
      result.begins_with_mark = head.size() >= kUtf8Mark.size() &&
                                std::memcmp(head.data(), kUtf8Mark.data(), kUtf8Mark.size()) == 0;
      result.share_outside_utf8 =
          static_cast<double>(count_bytes_outside_utf8(head)) / static_cast<double>(head.size());
      const auto known = records != nullptr && file.size() >= kRecordedBytes
                             ? records->find(file, "text")
                             : std::nullopt;
      if (known) {
        result.digest = known->digest;
        return result;
      }
    }
    if (const void* nul = std::memchr(piece.data(), 0, piece.size())) {
      const auto at = static_cast<std::uint64_t>(static_cast<const std::byte*>(nul) - piece.data());
      result.not_text = "its byte " + std::to_string(begin + at) + " is NUL, so it is not text";
      result.advice = "leave it out, or remove such bytes, as in `tr -d '\\0' < " +
                      shell_word(listed.path.string()) + " > text.txt`";
      return result;
    }
    digest.update(piece);
    begin += piece.size();
  }
  result.digest = digest.hex();
  if (records != nullptr && file.size() >= kRecordedBytes) {
    records->put(file, "text", {.digest = result.digest, .largest_id = -1});
  }
  return result;
}

[[noreturn]] void refuse(const TextFile& file, const Examined& examined) {
  throw DataError("cannot use " + file.path.string() + " (" + examined.not_text + "); " +
                  examined.advice +
                  (file.origin == TextFile::Origin::named
                       ? ""
                       : "; or name the folder in place of the pattern, and what is not text is "
                         "passed over"));
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

std::size_t TextStream::default_max_held_files() {
  constexpr std::uint64_t kPart = 4;         // of a process's files, for training or validation
  constexpr std::uint64_t kMost = 1U << 14;  // the kernel keeps about 1 KiB for each
  return static_cast<std::size_t>(std::min(open_file_limit() / kPart, kMost));
}

TextStream::TextStream(const std::vector<TextFile>& files,
                       std::size_t max_held_files,
                       FileRecords* records) {
  std::vector<Examined> examined(files.size());
  std::vector<std::uint64_t> sizes(files.size());
  std::vector<Source> sources(files.size());
  Progress progress("read text", static_cast<std::int64_t>(files.size()), "files");
  std::atomic<std::int64_t> num_read = 0;
  parallel_chunks(static_cast<std::int64_t>(files.size()), [&](std::int64_t chunk) {
    const auto i = static_cast<std::size_t>(chunk);
    InputFile file(files[i].path);
    examined[i] = examine(files[i], file, records);
    sizes[i] = file.size();
    sources[i].modified_ns = file.modified_ns();
    if (examined[i].not_text.empty() && i < max_held_files) {
      sources[i].held.emplace(std::move(file));
    }
    progress.update(++num_read);
  });

  std::string summary(ByteTokenizer::kName);
  for (std::size_t i = 0; i < files.size(); ++i) {
    Examined& each = examined[i];
    if (!each.not_text.empty()) {
      if (files[i].origin == TextFile::Origin::named ||
          (files[i].origin == TextFile::Origin::matched && sizes[i] > 0)) {
        refuse(files[i], each);
      }
      passed_over_.push_back(
          {.path = files[i].path, .reason = std::move(each.not_text), .num_bytes = sizes[i]});
      continue;
    }
    summary.append("\n").append(std::to_string(sizes[i])).append(" ").append(each.digest);
    starts_.push_back(starts_.back() + sizes[i] + kMarkers);
    documents_.push_back({.path = files[i].path,
                          .num_bytes = sizes[i],
                          .digest = std::move(each.digest),
                          .begins_with_mark = each.begins_with_mark,
                          .share_outside_utf8 = each.share_outside_utf8});
    sources_.push_back(std::move(sources[i]));
  }
  fingerprint_ = digest_of(summary);
}

// Tokens of one document from its `begin`-th on; all of them lie within it.
void TextStream::read_document(std::size_t index,
                               std::uint64_t begin,
                               std::span<std::int32_t> tokens,
                               std::span<std::int32_t> position) const {
  const Document& document = documents_[index];
  const Source& source = sources_[index];
  const std::uint64_t end = begin + tokens.size();
  auto token = tokens.begin();
  if (begin == 0) {
    *token++ = ByteTokenizer::kBos;
  }
  std::optional<InputFile> opened;
  if (!source.held) {
    opened.emplace(open_again(document.path, document.num_bytes, source.modified_ns));
  }
  const InputFile& file = source.held ? *source.held : *opened;
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

void TextStream::read(std::uint64_t begin,
                      std::span<std::int32_t> tokens,
                      std::span<std::int32_t> position) const {
  require_within(begin, tokens.size(), position.size());
  const auto after = std::upper_bound(starts_.begin(), starts_.end(), begin);
  auto document = static_cast<std::size_t>(after - starts_.begin()) - 1;
  for (std::size_t done = 0; done < tokens.size(); ++document) {
    const std::uint64_t index = begin + done - starts_[document];
    const std::uint64_t left = starts_[document + 1] - starts_[document] - index;
    const std::size_t count = std::min<std::size_t>(tokens.size() - done, left);
    read_document(document, index, tokens.subspan(done, count), position.subspan(done, count));
    done += count;
  }
}

}  // namespace memphis
