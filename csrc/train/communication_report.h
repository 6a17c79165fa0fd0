// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "csrc/comm/clock_offset.h"
#include "csrc/comm/communication_log.h"
#include "csrc/comm/communicator.h"

// What of each collective, and of what passes each boundary of a pipeline, is hidden behind the
// work.
namespace memphis {

// A step's share of one collective of an axis, or of the messages from one stage to its neighbour.
struct CommunicationRow {
  std::string axis;
  std::string name;
  std::int64_t from_stage = -1;  // of messages
  std::int64_t to_stage = -1;

  double calls = 0;
  double bytes = 0;  // payload_bytes()
  // Of collectives on the GPU calls and bytes alone are known.
  bool timed = true;
  double under_way_seconds = 0;
  double exposed_seconds = 0;  // the rank stands and waits
  double worst_exposed_seconds = 0;
  // Of messages: a rank waits for one that is not made yet, or that has no place to arrive in. This
  // is the schedule's bubble, and no communication.
  double bubble_seconds = 0;

  bool is_message() const { return from_stage >= 0; }
  // Where a rank waits for longer than anything moves nothing is hidden.
  double hidden() const;
  bool is_same_as(const CommunicationRow& other) const;
};

// A record of another rank of the job.
struct PeerRecord {
  int rank = -1;
  CommunicationRecord record;
};

// Of one rank, by axis and name in the order of their first calls, over `num_steps` steps.
//
// Collectives   under way from when a thread of the rank moves it until all has arrived: what it
//               waits there for ranks that come later counts too.
// Messages      a row of the sender's; the other end is found in `received`, whose times are of the
//               same clock as those of `own`. One is under way from the time when it is handed over
//               and has a place to arrive in until it has arrived; what either end waits before
//               that is bubble, and after that exposed.
std::vector<CommunicationRow> rows_of_rank(int rank,
                                           const std::vector<CommunicationRecord>& own,
                                           const std::vector<PeerRecord>& received,
                                           std::int64_t num_steps);

// Over ranks: calls and bytes of the rank that has most, the mean of times over those that call
// (senders, of messages), and of what is exposed the worst rank's too.
std::vector<CommunicationRow> merge_rows(const std::vector<std::vector<CommunicationRow>>& ranks);

// The rows of all ranks, on every rank. Every rank calls, with its own records and its clock before
// and after them.
std::vector<CommunicationRow> gather_rows(Communicator& all_host,
                                          std::vector<CommunicationRecord> own,
                                          const ClockOffset& before,
                                          const ClockOffset& after,
                                          std::int64_t num_steps);

}  // namespace memphis
