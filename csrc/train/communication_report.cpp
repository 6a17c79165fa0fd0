// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/communication_report.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <string_view>
#include <tuple>

#include "csrc/comm/together.h"
#include "csrc/core/json.h"
#include "csrc/model/pipeline.h"

namespace memphis {
namespace {

using Record = CommunicationRecord;

double seconds_of(std::int64_t nanoseconds) {
  return static_cast<double>(nanoseconds) * 1e-9;
}

std::optional<MessageKind> message_kind(const Record& record) {
  for (const MessageKind kind : {MessageKind::activation, MessageKind::gradient}) {
    if (record.role != Record::Role::member &&
        std::string_view(record.name.data()) == name_of_message(kind)) {
      return kind;
    }
  }
  return std::nullopt;
}

std::int64_t direction(MessageKind kind) {
  return kind == MessageKind::activation ? 1 : -1;
}

// Which message: a rank sends another one micro-batch's activation of a stage once a step.
struct MessageKey {
  int to_rank = -1;
  std::int64_t step = 0;
  MessageKind kind = MessageKind::activation;
  std::int64_t to_stage = -1;
  std::int64_t micro_batch = -1;

  auto operator<=>(const MessageKey&) const = default;
};

void add_wait(const Record& end, std::int64_t ready, CommunicationRow& row) {
  const std::int64_t exposed =
      std::max<std::int64_t>(0, end.wait_end - std::max(end.wait_begin, ready));
  row.exposed_seconds += seconds_of(exposed);
  row.bubble_seconds += seconds_of(end.wait_end - end.wait_begin - exposed);
}

void add_message(const Record& sender, const Record* receiver, CommunicationRow& row) {
  // Without a wait of the receiver's nobody has seen it arrive.
  if (receiver == nullptr || receiver->ended == 0 || receiver->wait_end == 0) {
    row.timed = false;
    return;
  }
  const std::int64_t ready = std::max(sender.started, receiver->started);
  row.under_way_seconds += seconds_of(std::max<std::int64_t>(0, receiver->ended - ready));
  add_wait(*receiver, ready, row);
  add_wait(sender, ready, row);
}

void add_collective(const Record& record, CommunicationRow& row) {
  if (record.ended == 0) {
    row.timed = false;
    return;
  }
  row.under_way_seconds += seconds_of(record.ended - record.begun);
  row.exposed_seconds += seconds_of(record.wait_end - record.wait_begin);
}

CommunicationRow& find_or_add(std::vector<CommunicationRow>& rows, const CommunicationRow& like) {
  const auto found = std::find_if(
      rows.begin(), rows.end(), [&](const CommunicationRow& row) { return row.is_same_as(like); });
  if (found != rows.end()) {
    return *found;
  }
  return rows.emplace_back(CommunicationRow{.axis = like.axis,
                                            .name = like.name,
                                            .from_stage = like.from_stage,
                                            .to_stage = like.to_stage});
}

std::string text_of(const std::vector<CommunicationRow>& rows) {
  nlohmann::json list = nlohmann::json::array();
  for (const CommunicationRow& row : rows) {
    list.push_back({row.axis,
                    row.name,
                    row.from_stage,
                    row.to_stage,
                    row.calls,
                    row.bytes,
                    row.timed,
                    row.under_way_seconds,
                    row.exposed_seconds,
                    row.worst_exposed_seconds,
                    row.bubble_seconds});
  }
  return list.dump();
}

std::vector<CommunicationRow> rows_of(const std::string& text) {
  std::vector<CommunicationRow> rows;
  const nlohmann::json list = parse_json(text).value();
  for (const auto& row : list) {
    rows.push_back({.axis = row[0],
                    .name = row[1],
                    .from_stage = row[2],
                    .to_stage = row[3],
                    .calls = row[4],
                    .bytes = row[5],
                    .timed = row[6],
                    .under_way_seconds = row[7],
                    .exposed_seconds = row[8],
                    .worst_exposed_seconds = row[9],
                    .bubble_seconds = row[10]});
  }
  return rows;
}

}  // namespace

double CommunicationRow::hidden() const {
  return under_way_seconds > 0 ? std::max(0.0, 1 - exposed_seconds / under_way_seconds) : 0;
}

bool CommunicationRow::is_same_as(const CommunicationRow& other) const {
  return axis == other.axis && name == other.name && from_stage == other.from_stage &&
         to_stage == other.to_stage;
}

std::vector<CommunicationRow> rows_of_rank(int rank,
                                           const std::vector<CommunicationRecord>& own,
                                           const std::vector<PeerRecord>& received,
                                           std::int64_t num_steps) {
  std::map<MessageKey, const Record*> arrivals;
  for (const PeerRecord& peer : received) {
    const std::optional<MessageKind> kind = message_kind(peer.record);
    if (kind && peer.record.role == Record::Role::receiver && peer.record.peer == rank) {
      arrivals[{.to_rank = peer.rank,
                .step = peer.record.step,
                .kind = *kind,
                .to_stage = peer.record.waited_in.stage,
                .micro_batch = peer.record.waited_in.micro_batch}] = &peer.record;
    }
  }
  std::vector<CommunicationRow> rows;
  for (const Record& record : own) {
    const std::optional<MessageKind> kind = message_kind(record);
    if (kind && record.role == Record::Role::receiver) {
      continue;
    }
    CommunicationRow like{.axis = record.axis.data(), .name = record.name.data()};
    if (kind) {
      like.from_stage = record.started_in.stage;
      like.to_stage = like.from_stage + direction(*kind);
    }
    CommunicationRow& row = find_or_add(rows, like);
    row.calls += 1;
    row.bytes += static_cast<double>(record.bytes);
    if (kind) {
      const auto arrival = arrivals.find({.to_rank = record.peer,
                                          .step = record.step,
                                          .kind = *kind,
                                          .to_stage = like.to_stage,
                                          .micro_batch = record.started_in.micro_batch});
      add_message(record, arrival == arrivals.end() ? nullptr : arrival->second, row);
    } else {
      add_collective(record, row);
    }
  }
  const auto steps = static_cast<double>(num_steps);
  for (CommunicationRow& row : rows) {
    for (double* const figure : {&row.calls,
                                 &row.bytes,
                                 &row.under_way_seconds,
                                 &row.exposed_seconds,
                                 &row.bubble_seconds}) {
      *figure /= steps;
    }
    row.worst_exposed_seconds = row.exposed_seconds;
  }
  return rows;
}

std::vector<CommunicationRow> merge_rows(const std::vector<std::vector<CommunicationRow>>& ranks) {
  std::vector<CommunicationRow> all;
  std::vector<double> num_ranks;
  for (const std::vector<CommunicationRow>& rows : ranks) {
    for (const CommunicationRow& row : rows) {
      CommunicationRow& sum = find_or_add(all, row);
      num_ranks.resize(all.size());
      num_ranks[static_cast<std::size_t>(&sum - all.data())] += 1;
      sum.calls = std::max(sum.calls, row.calls);
      sum.bytes = std::max(sum.bytes, row.bytes);
      sum.timed = sum.timed && row.timed;
      sum.under_way_seconds += row.under_way_seconds;
      sum.exposed_seconds += row.exposed_seconds;
      sum.bubble_seconds += row.bubble_seconds;
      sum.worst_exposed_seconds = std::max(sum.worst_exposed_seconds, row.worst_exposed_seconds);
    }
  }
  for (std::size_t i = 0; i < all.size(); ++i) {
    all[i].under_way_seconds /= num_ranks[i];
    all[i].exposed_seconds /= num_ranks[i];
    all[i].bubble_seconds /= num_ranks[i];
  }
  // Boundaries in the order of the model, behind the collectives.
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) {
    const auto boundary = [](const CommunicationRow& row) {
      return std::tuple(std::min(row.from_stage, row.to_stage), row.from_stage > row.to_stage);
    };
    return boundary(a) < boundary(b);
  });
  return all;
}

std::vector<CommunicationRow> gather_rows(Communicator& all_host,
                                          std::vector<CommunicationRecord> own,
                                          const ClockOffset& before,
                                          const ClockOffset& after,
                                          std::int64_t num_steps) {
  std::string told;  // arrivals, for those who sent
  for (Record& record : own) {
    for (std::int64_t* const time :
         {&record.started, &record.begun, &record.ended, &record.wait_begin, &record.wait_end}) {
      *time = on_first_clock(*time, before, after);
    }
    if (message_kind(record) && record.role == Record::Role::receiver) {
      told.append(reinterpret_cast<const char*>(&record), sizeof(Record));
    }
  }
  std::vector<PeerRecord> received;
  for (int rank = 0; rank < all_host.size(); ++rank) {
    const std::string text = text_of_rank(all_host, rank, told, "communication.records");
    for (std::size_t at = 0; at < text.size(); at += sizeof(Record)) {
      Record record;
      std::memcpy(&record, text.data() + at, sizeof(Record));
      if (record.peer == all_host.rank()) {
        received.push_back({.rank = rank, .record = record});
      }
    }
  }
  const std::string rows = text_of(rows_of_rank(all_host.rank(), own, received, num_steps));
  std::vector<std::vector<CommunicationRow>> of_ranks;
  for (int rank = 0; rank < all_host.size(); ++rank) {
    of_ranks.push_back(rows_of(text_of_rank(all_host, rank, rows, "communication.rows")));
  }
  return merge_rows(of_ranks);
}

}  // namespace memphis
