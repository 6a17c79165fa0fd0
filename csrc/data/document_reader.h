// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "csrc/data/unpacked_file.h"

namespace memphis {

enum class Framing : std::uint8_t { whole, lines };  // a document is the file, or a line of JSON

// A file of text that is to be tokenized.
struct CorpusFile {
  std::filesystem::path path;
  Packing packing = Packing::none;
  Framing framing = Framing::whole;
};

// Documents one after another, as they lie in the file, with no more than one in memory.
//
// DataError, with file and byte, where the file cannot be read, a compressed one is damaged or breaks
// off, a document is larger than `max_bytes`, or the file has changed since it was opened.
class DocumentReader {
 public:
  // Goes on `offset` bytes into the unpacked text, which has `line` lines before.
  DocumentReader(const CorpusFile& file,
                 std::uint64_t max_bytes,
                 std::uint64_t offset = 0,
                 std::uint64_t line = 0);
  ~DocumentReader();
  DocumentReader(DocumentReader&& other) noexcept;
  DocumentReader& operator=(DocumentReader&& other) noexcept;
  DocumentReader(const DocumentReader&) = delete;
  DocumentReader& operator=(const DocumentReader&) = delete;

  // The next document's bytes: of a line those before its end. False behind the last. A mark of
  // UTF-8 in front of lines is none of the first.
  bool next(std::string& document);

  std::uint64_t offset() const;      // of unpacked bytes, behind the last document
  std::uint64_t line() const;        // lines so far
  std::uint64_t bytes_read() const;  // of the file, packed as it is
  std::uint64_t num_bytes() const;   // of the file

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The first bytes of what is packed in `file`, at most `most`. DataError as above.
std::vector<std::byte> unpacked_beginning(const CorpusFile& file, std::size_t most);

}  // namespace memphis
