// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/comm/communicator.h"

namespace memphis {

// Something that a rank with more to say has reported, or will: nothing to print.
class FailedElsewhere : public Error {
 public:
  using Error::Error;
};

// Every rank of the job. Every rank calls.
std::unique_ptr<Communicator> create_group_of_all(World& world,
                                                  std::string axis = "world",
                                                  Device device = Device::cpu);

// Replaces each of `values`, of which all ranks of the group have as many, by the ranks' sum.
void sum_over_ranks(Communicator& host, std::span<std::int64_t> values, std::string_view name);

// The largest of all ranks' values, on every rank.
std::int64_t largest_of_all(Communicator& all_host, std::int64_t value, std::string_view name);

// The text of rank `root`, on every rank.
std::string text_of_rank(Communicator& all_host,
                         int root,
                         std::string_view text,
                         std::string_view name);

// An error with `code`, on every rank, unless all have the same text; it names the first line that
// differs from rank 0's, and the rank. `what` is what the text is: "the config".
void require_same(Communicator& all_host,
                  std::string_view what,
                  const std::string& text,
                  ExitCode code = ExitCode::config);

// Calls `action`, on every rank, and returns when all have done it. What it throws is thrown once
// all are through it, by the first rank that failed; the others throw FailedElsewhere with the same
// exit code: no rank goes on as if nothing had happened, and none waits for one that has left.
void together(Communicator& all_host, std::string_view name, const std::function<void()>& action);

// The same, where each rank has numbers for all others besides: one collective for both.
class RollCall {
 public:
  // Each rank has `num_words`. `all_host` outlives this.
  RollCall(Communicator& all_host, std::size_t num_words);

  // What this rank says. To be set before take(), or by its action.
  std::span<std::int64_t> own();
  // Every rank calls; throws as together() does. Allocates nothing on the host.
  void take(std::string_view name, const std::function<void()>& action);
  // Of the last take().
  std::int64_t said(int rank, std::size_t word) const;
  std::int64_t largest(std::size_t word) const;

 private:
  Communicator& all_host_;
  std::size_t num_words_;
  std::vector<std::int64_t> own_;  // how the action ended, and the words
  std::vector<std::int64_t> all_;  // of each rank
};

}  // namespace memphis
