// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "csrc/data/file_records.h"
#include "csrc/data/id_column.h"

namespace memphis {

// The first look at every id of corpora of tokens: what takes long of opening them. It is shared
// out by chunks, over threads and over processes, each of which takes neighbouring ones; their
// results, one behind the other, are the records of the files. A chunk a thread is in memory.
class IdScan {
 public:
  // A column, as processes tell each other of it.
  struct Column {
    std::string path;
    std::uint64_t file_bytes = 0;
    std::uint64_t offset = 0;
    std::uint64_t count = 0;
    IdColumn::Type type = IdColumn::Type::i32;
    // Of tokens that this run has made, the vocabulary they are of, and else 0. What is wrong with
    // them is no error of the scan: they can be made again, once all ranks are through it.
    std::int64_t own_vocab_size = 0;
  };
  static Column describe(const IdColumn& ids);
  static std::string to_text(const std::vector<Column>& columns);
  static std::vector<Column> from_text(const std::string& text);

  // The largest id of a column of the run's own of which a part is no ids of its vocabulary.
  static constexpr std::int64_t kDamaged = std::numeric_limits<std::int64_t>::max();

  // Opens the files. DataError where one has another size here.
  IdScan(const std::vector<Column>& columns, std::int64_t vocab_size);

  std::uint64_t num_chunks() const { return starts_.back(); }
  void take(std::uint64_t begin, std::uint64_t end);

  // Reads for about so long; false once all that were taken are read. DataError, with the file and
  // the byte, for the first id that is outside [0, vocab_size).
  bool advance(double seconds);
  std::uint64_t num_read() const { return next_ - begin_; }

  // Of what was read.
  std::string result() const;
  // Puts what `results`, of all chunks in their order, say of the files.
  void keep(const std::string& results, FileRecords& records) const;

 private:
  std::vector<IdColumn> columns_;
  std::vector<std::int64_t> own_vocab_sizes_;  // of columns
  std::vector<std::uint64_t> starts_{0};       // of columns, in chunks
  std::int64_t vocab_size_;
  std::uint64_t begin_ = 0;
  std::uint64_t next_ = 0;
  std::uint64_t end_ = 0;
  std::vector<ScannedChunk> read_;
};

// Of one column, from `records`, or by this process alone, which puts it there.
FileRecords::Record scan(const IdColumn& ids, std::int64_t vocab_size, FileRecords& records);

}  // namespace memphis
