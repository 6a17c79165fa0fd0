// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "csrc/data/document_reader.h"
#include "csrc/data/tokenize_options.h"
#include "csrc/data/tokenizer.h"

namespace memphis {

// Text to a Megatron dataset, PREFIX.bin and PREFIX.idx: one sequence a document. Where prompts are
// not learnt, PREFIX.mask says so (megatron_stream.h). PREFIX.meta.json says what it was made of
// and with.
//
// All threads of the team encode; the files are the same for any number of them. A job that was
// stopped goes on, in any later process, behind the last batch that it had noted, if text,
// tokenizer and options are the same; where they are not it begins anew. Half-written files are
// PREFIX.*.partial.
class TokenizeJob {
 public:
  using Counts = TokenizeCounts;

  // PreflightError where the output cannot be written or another process writes it. DataError where
  // a file of the corpus cannot be read.
  TokenizeJob(std::vector<CorpusFile> files,
              std::shared_ptr<const Tokenizer> tokenizer,
              TokenizeOptions options,
              std::filesystem::path prefix);
  ~TokenizeJob();
  TokenizeJob(const TokenizeJob&) = delete;
  TokenizeJob& operator=(const TokenizeJob&) = delete;

  // Hexadecimal, of the files by name, size and time, the tokenizer and the options.
  static std::string fingerprint(const std::vector<CorpusFile>& files,
                                 const Tokenizer& tokenizer,
                                 const TokenizeOptions& options);
  // Whether a job of this fingerprint has written `prefix`.
  static bool is_done(const std::filesystem::path& prefix, const std::string& fingerprint);
  // Whether it has, or was stopped while it put the files in place: they are its own to write
  // again.
  static bool is_begun(const std::filesystem::path& prefix, const std::string& fingerprint);

  // One batch, with its progress shown. False once all is written. DataError, with file, line and
  // byte, on a line that is not JSON or lacks the field.
  bool step();

  const Counts& counts() const;
  std::uint64_t bytes_total() const;  // of the files, packed as they are
  std::uint64_t resumed_at() const;   // bytes that an earlier process had done

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// What `prefix` holds and what is made while it is not complete.
constexpr std::string_view kTokensMetaSuffix = ".meta.json";

}  // namespace memphis
