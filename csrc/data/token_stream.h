// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "csrc/core/file.h"
#include "csrc/data/text_files.h"

namespace memphis {

// Tokens [begin, end) of a stream.
struct TokenRange {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;

  std::uint64_t size() const { return end - begin; }
};

// The documents of a list of files as one sequence of tokens: for each file bos, its bytes, eos.
// The sequence is computed when it is read, from files that are held open: one that is deleted,
// replaced or appended to meanwhile is read on as it was. Of a corpus of more files than a process
// may open, those behind the first `max_held_files` are opened for each reading, and may be neither
// replaced nor changed.
//
// Reading is const and without state: any number of threads may read.
class TokenStream {
 public:
  // Leaves the better part of the system's limit to everything else.
  static std::size_t default_max_held_files();

  // Reads every file once, for the fingerprint. A file that is not text (it is empty or holds a NUL
  // byte) is passed over, or a DataError if it is `named`. DataError on a file that cannot be read.
  explicit TokenStream(const std::vector<TextFile>& files,
                       std::size_t max_held_files = default_max_held_files());

  std::uint64_t num_tokens() const { return starts_.back(); }
  std::size_t num_documents() const { return documents_.size(); }
  std::int64_t num_not_text() const { return num_not_text_; }

  // Hexadecimal xxh3, 128 bits, of the tokenizer's name and of each document's size and content, in
  // order. Paths do not enter: a corpus that moved is the same corpus.
  const std::string& fingerprint() const { return fingerprint_; }

  // Tokens [begin, begin + tokens.size()), and the index of each within its document (bos has 0),
  // which stays at 2^31 - 1 from there on. Does not allocate, but for a file that is not held open.
  // DataError, which names the file, if it has become shorter, is gone (unless held), cannot be read
  // or has a NUL byte, which it had not: it was written to. ContractError beyond the last token or
  // where the spans differ in size.
  void read(std::uint64_t begin,
            std::span<std::int32_t> tokens,
            std::span<std::int32_t> position) const;

 private:
  struct Document {
    std::filesystem::path path;
    std::uint64_t num_bytes = 0;
    std::int64_t modified_ns = 0;
    std::optional<InputFile> held;  // else it is opened for each reading
  };

  void read_document(const Document& document,
                     std::uint64_t begin,
                     std::span<std::int32_t> tokens,
                     std::span<std::int32_t> position) const;

  std::vector<Document> documents_;
  std::vector<std::uint64_t> starts_{0};  // first token of each document, then the number of tokens
  std::int64_t num_not_text_ = 0;
  std::string fingerprint_;
};

}  // namespace memphis
