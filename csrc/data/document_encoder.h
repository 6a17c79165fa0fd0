// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/data/document_reader.h"
#include "csrc/data/tokenize_options.h"
#include "csrc/data/tokenizer.h"

namespace memphis {

// A document as it was read.
struct RawDocument {
  std::string bytes;
  std::size_t file = 0;    // of the corpus
  std::uint64_t line = 0;  // counted from 1; 0: the whole file
  std::uint64_t offset = 0;
};

// What documents have become.
struct EncodedDocuments {
  std::vector<std::int32_t> ids;
  std::vector<std::uint8_t> learnt;   // of each id, where there are prompts
  std::vector<std::int32_t> lengths;  // of each document that is not empty
  TokenizeCounts counts;              // but for the tokens
  std::string problem;                // with the one that is none; nothing behind it is meant
};

// Documents to ids: the text of a file, or the fields of a line of JSON, between bos and eos. Const
// calls may come from any number of threads.
class DocumentEncoder {
 public:
  // `files` outlive it.
  DocumentEncoder(const std::vector<CorpusFile>& files,
                  std::shared_ptr<const Tokenizer> tokenizer,
                  TokenizeOptions options);

  // Whether some ids are not to be learnt.
  bool is_masked() const { return !options_.prompt_field.empty(); }

  // Behind what `out` has. Sets out.problem, with file and place, where the document is none.
  void append(const RawDocument& raw, EncodedDocuments& out) const;

 private:
  void put(std::string_view text, bool learnt, EncodedDocuments& out) const;
  std::string name_of(std::string_view field) const;
  void put_special(std::int32_t id, bool learnt, EncodedDocuments& out) const;

  const std::vector<CorpusFile>& files_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  TokenizeOptions options_;
};

}  // namespace memphis
