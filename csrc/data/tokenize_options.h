// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

namespace memphis {

struct TokenizeOptions {
  std::string field = "text";  // of a line of JSON
  std::string prompt_field;    // in its place: read and not learnt
  std::string response_field;  // behind the prompt, learnt
  // Whose words messages use for these three: --field, or data.field.
  bool named_as_options = false;
  bool bos = true;  // in front of each document, if the tokenizer has one
  bool eos = true;  // behind it
  // Of a document, and about as much of a batch, which is what is in memory.
  std::uint64_t max_document_bytes = std::uint64_t{256} << 20U;
  std::uint64_t batch_bytes = std::uint64_t{8} << 20U;
  std::uint64_t noted_bytes = std::uint64_t{64} << 20U;  // read again after a kill, at most
};

// What a corpus has become so far.
struct TokenizeCounts {
  std::uint64_t documents = 0;
  std::uint64_t tokens = 0;
  std::uint64_t text_bytes = 0;       // of documents, unpacked
  std::uint64_t empty_documents = 0;  // which are left out
  std::uint64_t blank_lines = 0;      // so are they
  std::uint64_t replaced = 0;         // places that are not UTF-8, read as U+FFFD
};

}  // namespace memphis
