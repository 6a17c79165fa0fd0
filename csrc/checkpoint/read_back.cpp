// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/read_back.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <vector>

#include "csrc/comm/together.h"
#include "csrc/core/error.h"
#include "csrc/plan/share.h"

namespace memphis {
namespace {

constexpr const char* kCollective = "checkpoint.read_back";

// No file system has longer names.
constexpr std::size_t kNameBytes = 256;

// A FileRecord as it travels.
struct Row {
  std::array<std::int64_t, kRecordWords> record{};
  std::array<char, kNameBytes> name{};  // the rest is zeros
};
constexpr std::int64_t kRowWords = sizeof(Row) / sizeof(std::int64_t);
static_assert(sizeof(Row) == kRowWords * sizeof(std::int64_t));

TensorView view_of(std::vector<Row>& rows) {
  return {reinterpret_cast<std::int64_t*>(rows.data()),
          {static_cast<std::int64_t>(rows.size()), kRowWords},
          DType::i64,
          Device::cpu};
}

bool names_fit(const std::vector<FileRecord>& files) {
  return std::all_of(files.begin(), files.end(), [](const FileRecord& file) {
    return file.name.size() < kNameBytes;
  });
}

// From rank 0, which has them all, to each rank its share.
std::vector<FileRecord> share_out(Communicator& all,
                                  const std::vector<FileRecord>& files,
                                  std::int64_t num_files) {
  const bool leads = all.rank() == 0;
  std::vector<std::int64_t> send_rows(static_cast<std::size_t>(all.size()));
  std::vector<std::int64_t> recv_rows(send_rows.size());
  for (int rank = 0; leads && rank < all.size(); ++rank) {
    send_rows[static_cast<std::size_t>(rank)] =
        Piece{.index = rank, .count = all.size()}.of(num_files).count;
  }
  recv_rows[0] = Piece{.index = all.rank(), .count = all.size()}.of(num_files).count;
  std::vector<Row> rows(std::max<std::size_t>(files.size(), 1));
  for (std::size_t i = 0; i < files.size(); ++i) {
    encode(files[i], rows[i].record);
    std::copy(files[i].name.begin(), files[i].name.end(), rows[i].name.begin());
  }
  std::vector<Row> own(std::max<std::size_t>(static_cast<std::size_t>(recv_rows[0]), 1));
  all.run(
      AllToAll{
          .y = view_of(own), .x = view_of(rows), .send_rows = send_rows, .recv_rows = recv_rows},
      kCollective,
      {});
  own.resize(static_cast<std::size_t>(recv_rows[0]));
  std::vector<FileRecord> records;
  for (const Row& row : own) {
    records.push_back(decode_record(row.name.data(), row.record));
  }
  return records;
}

// What each rank does of one checkpoint. Leaves why it is not valid in `verdict`, on every rank.
void read_share(Communicator& all,
                const std::filesystem::path& path,
                const std::vector<FileRecord>& files,
                std::int64_t num_files,
                Verdict& verdict) {
  const std::filesystem::path directory = text_of_rank(all, 0, path.string(), kCollective);
  Verdict own;
  verify_files(directory, share_out(all, files, num_files), own);
  // The first rank that found damage tells, or else the first that may not read its share.
  const std::int64_t size = all.size();
  const std::int64_t first = size - all.rank();
  const std::int64_t found =
      largest_of_all(all, own.reason.empty() ? 0 : first + (own.denied ? 0 : size), kCollective);
  if (found > 0) {
    verdict.denied = found <= size;
    const std::int64_t teller = verdict.denied ? size - found : 2 * size - found;
    verdict.reason = text_of_rank(all, static_cast<int>(teller), own.reason, kCollective);
  }
}

// How many files the first rank asks the others to read; -1: it is done.
constexpr std::int64_t kDone = -1;
std::int64_t ask(Communicator& all, std::int64_t num_files) {
  const TensorView view(&num_files, {1}, DType::i64, Device::cpu);
  all.run(Broadcast{.x = view}, kCollective, {});
  return num_files;
}

}  // namespace

void with_all_reading_back(Communicator& all,
                           std::string_view name,
                           const std::function<void(const Verify& verify)>& action) {
  const Verify verify = [&](const std::filesystem::path& path) {
    Verdict verdict = verify_manifest(path);
    if (verdict.manifest && !names_fit(verdict.manifest->files)) {
      return Verdict{.manifest = {}, .reason = "it lists a file whose name is too long"};
    }
    if (verdict.manifest) {
      const auto num_files = static_cast<std::int64_t>(verdict.manifest->files.size());
      ask(all, num_files);
      read_share(all, path, verdict.manifest->files, num_files, verdict);
      if (!verdict.reason.empty()) {
        verdict.manifest.reset();
      }
    }
    return verdict;
  };
  together(all, name, [&] {
    if (all.rank() != 0) {
      for (std::int64_t num_files = 0; (num_files = ask(all, 0)) != kDone;) {
        Verdict ignored;  // the first rank has it too
        read_share(all, {}, {}, num_files, ignored);
      }
      return;
    }
    try {
      action(verify);
    } catch (const CommunicationError&) {
      throw;  // the others cannot be told
    } catch (...) {
      ask(all, kDone);
      throw;
    }
    ask(all, kDone);
  });
}

}  // namespace memphis
