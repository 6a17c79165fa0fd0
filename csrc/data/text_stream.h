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
#include "csrc/data/file_records.h"
#include "csrc/data/text_files.h"
#include "csrc/data/token_stream.h"

namespace memphis {

// One file of a stream.
struct Document {
  std::filesystem::path path;
  std::uint64_t num_bytes = 0;
  std::string digest;  // of its bytes
  // Of its beginning: a mark of UTF-8, three bytes that are trained on as any others, and the share
  // of bytes that are not UTF-8, as in Latin-1.
  bool begins_with_mark = false;
  double share_outside_utf8 = 0;
};

// The documents of a list of files as one sequence of tokens: for each file bos, its bytes, eos.
// The sequence is computed when it is read, from files that are held open: one that is deleted,
// replaced or appended to meanwhile is read on as it was. Of a corpus of more files than a process
// may open, those behind the first `max_held_files` are opened for each reading, and may be neither
// replaced nor changed.
class TextStream final : public TokenStream {
 public:
  // Leaves the better part of the system's limit to everything else.
  static std::size_t default_max_held_files();

  // Reads every file once, for the fingerprint. One that is not text (it is empty, is of a format of
  // text_format.h, or holds a NUL byte) is passed over if it was walked to, and DataError otherwise;
  // an empty file is an error only if it is named, and a JSON document that was walked to is text,
  // as the sources around it are. DataError on a file that cannot be read. A large file that
  // `records` knows is not read again, but for its beginning.
  explicit TextStream(const std::vector<TextFile>& files,
                      std::size_t max_held_files = default_max_held_files(),
                      FileRecords* records = nullptr);

  std::uint64_t num_tokens() const override { return starts_.back(); }
  std::size_t num_documents() const { return documents_.size(); }
  const std::vector<Document>& documents() const { return documents_; }
  const std::vector<PassedOver>& passed_over() const { return passed_over_; }

  // Hexadecimal xxh3, 128 bits, of the tokenizer's name and of each document's size and content, in
  // order.
  const std::string& fingerprint() const override { return fingerprint_; }

  // DataError also where a file has become shorter, is gone (unless held), cannot be read or has a
  // NUL byte, which it had not: it was written to.
  void read(std::uint64_t begin,
            std::span<std::int32_t> tokens,
            std::span<std::int32_t> position) const override;

 private:
  // Where a document is read from.
  struct Source {
    std::int64_t modified_ns = 0;
    std::optional<InputFile> held;  // else it is opened for each reading
  };

  void read_document(std::size_t index,
                     std::uint64_t begin,
                     std::span<std::int32_t> tokens,
                     std::span<std::int32_t> position) const;

  std::vector<Document> documents_;
  std::vector<Source> sources_;           // one a document
  std::vector<std::uint64_t> starts_{0};  // first token of each document, then the number of tokens
  std::vector<PassedOver> passed_over_;
  std::string fingerprint_;
};

}  // namespace memphis
