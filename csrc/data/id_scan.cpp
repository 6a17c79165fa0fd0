// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/id_scan.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <sstream>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/core/json.h"
#include "csrc/core/parallel.h"
#include "csrc/data/digest.h"

namespace memphis {

IdScan::Column IdScan::describe(const IdColumn& ids) {
  return {.path = ids.file.path().string(),
          .file_bytes = ids.file.size(),
          .offset = ids.offset,
          .count = ids.count,
          .type = ids.type};
}

std::string IdScan::to_text(const std::vector<Column>& columns) {
  nlohmann::json list = nlohmann::json::array();
  for (const Column& column : columns) {
    // A name may be of any bytes, and JSON's texts are UTF-8.
    list.push_back({std::vector<std::uint8_t>(column.path.begin(), column.path.end()),
                    column.file_bytes,
                    column.offset,
                    column.count,
                    static_cast<int>(column.type),
                    column.own_vocab_size});
  }
  return list.dump();
}

std::vector<IdScan::Column> IdScan::from_text(const std::string& text) {
  std::vector<Column> columns;
  const nlohmann::json list = parse_json(text).value();
  for (const nlohmann::json& each : list) {
    const auto path = each.at(0).get<std::vector<std::uint8_t>>();
    columns.push_back({.path = std::string(path.begin(), path.end()),
                       .file_bytes = each.at(1).get<std::uint64_t>(),
                       .offset = each.at(2).get<std::uint64_t>(),
                       .count = each.at(3).get<std::uint64_t>(),
                       .type = static_cast<IdColumn::Type>(each.at(4).get<int>()),
                       .own_vocab_size = each.at(5).get<std::int64_t>()});
  }
  return columns;
}

IdScan::IdScan(const std::vector<Column>& columns, std::int64_t vocab_size)
    : vocab_size_(vocab_size) {
  for (const Column& column : columns) {
    IdColumn& ids = columns_.emplace_back(IdColumn{.file = InputFile(column.path),
                                                   .offset = column.offset,
                                                   .count = column.count,
                                                   .type = column.type});
    if (ids.file.size() != column.file_bytes) {
      refuse_tokens(column.path,
                    fmt::format("it has {} bytes, and {} where the first rank reads it",
                                ids.file.size(),
                                column.file_bytes),
                    "give all machines the same files");
    }
    own_vocab_sizes_.push_back(column.own_vocab_size);
    starts_.push_back(starts_.back() + memphis::num_chunks(ids));
  }
}

void IdScan::take(std::uint64_t begin, std::uint64_t end) {
  require(begin <= end && end <= num_chunks(), "chunks that are taken are there");
  begin_ = begin;
  next_ = begin;
  end_ = end;
  read_.clear();
}

bool IdScan::advance(double seconds) {
  constexpr std::uint64_t kAtOnce = 32;  // enough for the threads of a process, and soon read
  const auto begin = std::chrono::steady_clock::now();
  while (next_ < end_) {
    const std::uint64_t count = std::min(kAtOnce, end_ - next_);
    std::vector<ScannedChunk> chunks(count);
    std::vector<std::string> problems(count);
    parallel_chunks(static_cast<std::int64_t>(count), [&](std::int64_t index) {
      const auto i = static_cast<std::size_t>(index);
      const std::uint64_t chunk = next_ + i;
      const auto after = std::upper_bound(starts_.begin(), starts_.end(), chunk);
      const auto column = static_cast<std::size_t>(after - starts_.begin()) - 1;
      const std::int64_t own = own_vocab_sizes_[column];
      try {
        chunks[i] =
            scan_chunk(columns_[column], chunk - starts_[column], own > 0 ? own : vocab_size_);
      } catch (const DataError& error) {
        if (own > 0) {
          chunks[i] = {.largest_id = kDamaged, .digest = "damaged"};
        } else {
          problems[i] = error.what();
        }
      }
    });
    for (const std::string& problem : problems) {  // the first, whichever thread met it
      if (!problem.empty()) {
        throw DataError(problem);
      }
    }
    read_.insert(read_.end(), chunks.begin(), chunks.end());
    next_ += count;
    if (std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() >=
        seconds) {
      break;
    }
  }
  return next_ < end_;
}

std::string IdScan::result() const {
  std::string text;
  for (const ScannedChunk& chunk : read_) {
    text += fmt::format("{} {}\n", chunk.largest_id, chunk.digest);
  }
  return text;
}

void IdScan::keep(const std::string& results, FileRecords& records) const {
  std::istringstream lines(results);
  for (std::size_t i = 0; i < columns_.size(); ++i) {
    Digest all;
    FileRecords::Record record;
    for (std::uint64_t chunk = starts_[i]; chunk < starts_[i + 1]; ++chunk) {
      std::int64_t largest = -1;
      std::string digest;
      lines >> largest >> digest;
      require(!digest.empty(), "every chunk has been read");
      all.update(digest);
      record.largest_id = std::max(record.largest_id, largest);
    }
    record.digest = all.hex();
    records.put(columns_[i].file, scan_name(columns_[i]), record);
  }
}

FileRecords::Record scan(const IdColumn& ids, std::int64_t vocab_size, FileRecords& records) {
  const auto known = records.find(ids.file, scan_name(ids));
  if (known && known->largest_id < vocab_size) {
    return *known;
  }
  IdScan whole({IdScan::describe(ids)}, vocab_size);
  whole.take(0, whole.num_chunks());
  (void)whole.advance(std::numeric_limits<double>::infinity());
  whole.keep(whole.result(), records);
  return records.find(ids.file, scan_name(ids)).value();
}

}  // namespace memphis
