// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "csrc/data/file_records.h"
#include "csrc/data/id_column.h"
#include "csrc/data/token_stream.h"

namespace memphis {

// A stream whose tokens are a column of a file. What else the file says of them is left to those who
// know its kind: where documents begin, and what is learnt.
class IdStream : public TokenStream {
 public:
  std::uint64_t num_tokens() const final { return ids_.count; }
  const std::string& fingerprint() const final { return fingerprint_; }
  void read(std::uint64_t begin,
            std::span<std::int32_t> tokens,
            std::span<std::int32_t> position) const final;
  // Which a stream of a header alone gives away.
  IdColumn ids() && { return std::move(ids_); }

 protected:
  IdStream(InputFile file, std::int64_t vocab_size)
      : ids_{.file = std::move(file)}, vocab_size_(vocab_size) {}

  // Of `tokens`, at least one, which have been read from `begin` on.
  virtual void read_positions(std::uint64_t begin,
                              std::span<const std::int32_t> tokens,
                              std::span<std::int32_t> position) const = 0;

  IdColumn ids_;
  std::int64_t vocab_size_;
  std::string fingerprint_;
};

// The digest of `head` and of a file's bytes from `begin` on: from `records`, where it is called
// `what`, or by reading them, and then it is put there. So of a job's ranks the first reads them, and
// the others find what it has kept.
std::string digest_of_rest(std::string_view head,
                           const InputFile& file,
                           std::uint64_t begin,
                           const std::string& what,
                           FileRecords& records);

}  // namespace memphis
