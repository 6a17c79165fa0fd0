// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
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
// The sequence is computed when it is read; the files are mapped (one mapping each, of which Linux
// allows a process vm.max_map_count, 65530 unless raised) and must not shrink while the stream
// lives.
//
// Reading is const and without state: any number of threads may read.
class TokenStream {
 public:
  // Reads every file once, for the fingerprint. A file that is not text (it is empty or holds a NUL
  // byte) is passed over, or a DataError if it is `named`. DataError on a file that cannot be read.
  explicit TokenStream(const std::vector<TextFile>& files);

  std::uint64_t num_tokens() const { return starts_.back(); }
  std::size_t num_documents() const { return documents_.size(); }
  std::int64_t num_not_text() const { return num_not_text_; }

  // Hexadecimal xxh3, 128 bits, of the tokenizer's name and of each document's size and content, in
  // order. Paths do not enter: a corpus that moved is the same corpus.
  const std::string& fingerprint() const { return fingerprint_; }

  // Tokens [begin, begin + tokens.size()), and the index of each within its document (bos has 0),
  // which stays at 2^31 - 1 from there on. Does not allocate. ContractError beyond the last token
  // or where the spans differ in size.
  void read(std::uint64_t begin,
            std::span<std::int32_t> tokens,
            std::span<std::int32_t> position) const;

 private:
  std::vector<MappedFile> documents_;
  std::vector<std::uint64_t> starts_{0};  // first token of each document, then the number of tokens
  std::int64_t num_not_text_ = 0;
  std::string fingerprint_;
};

}  // namespace memphis
