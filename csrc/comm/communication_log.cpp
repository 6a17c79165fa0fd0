// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/communication_log.h"

namespace memphis {

CommunicationLog::CommunicationLog(std::size_t max_records) {
  records_.reserve(max_records);
}

std::int64_t CommunicationLog::start(const CommunicationRecord& record) {
  const std::lock_guard lock(mutex_);
  if (records_.size() == records_.capacity()) {
    ++num_left_out_;
    return kNotKept;
  }
  records_.push_back(record);
  return static_cast<std::int64_t>(records_.size()) - 1;
}

void CommunicationLog::move(std::int64_t number, std::int64_t begin, std::int64_t end) {
  const std::lock_guard lock(mutex_);
  CommunicationRecord& record = records_[static_cast<std::size_t>(number)];
  record.begun = begin;
  record.ended = end;
}

void CommunicationLog::wait(std::int64_t number,
                            const CommunicationRecord::Place& place,
                            std::int64_t begin,
                            std::int64_t end) {
  const std::lock_guard lock(mutex_);
  CommunicationRecord& record = records_[static_cast<std::size_t>(number)];
  record.waited_in = place;
  record.wait_begin = begin;
  record.wait_end = end;
}

std::vector<CommunicationRecord> CommunicationLog::records() const {
  const std::lock_guard lock(mutex_);
  return records_;
}

std::size_t CommunicationLog::num_left_out() const {
  const std::lock_guard lock(mutex_);
  return num_left_out_;
}

}  // namespace memphis
