// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/simt_nccl/stall.h"

#include <algorithm>
#include <vector>

#include <spdlog/fmt/fmt.h>

namespace memphis::simt_nccl {
namespace {

// A rank that does not have, up to the group that it is in, all that another one's group needs of
// it is waited for. Where each of a circle of ranks waits for the next, none of them ever goes on.
// That needs no guess about time: what a group holds is known as soon as it begins.
bool waits_for(const Meeting& meeting, int a, int b) {
  const RankBoard& one = meeting.of(a);
  const PairBoard& of_a = meeting.of(a, b);
  const PairBoard& of_b = meeting.of(b, a);
  return one.state == State::busy &&
         (one.num_collectives > meeting.of(b).num_collectives ||
          of_a.num_sends > of_b.num_receives || of_a.num_receives > of_b.num_sends);
}

// The ranks of a circle to which `path` leads, if it does.
std::vector<int> circle_from(const Meeting& meeting,
                             std::vector<int>& path,
                             std::vector<bool>& seen) {
  for (int r = 0; r < meeting.size(); ++r) {
    if (!waits_for(meeting, path.back(), r)) {
      continue;
    }
    if (const auto begin = std::find(path.begin(), path.end(), r); begin != path.end()) {
      return {begin, path.end()};
    }
    if (seen[static_cast<std::size_t>(r)]) {
      continue;
    }
    seen[static_cast<std::size_t>(r)] = true;
    path.push_back(r);
    if (std::vector<int> circle = circle_from(meeting, path, seen); !circle.empty()) {
      return circle;
    }
    path.pop_back();
  }
  return {};
}

// Under the lock. Empty if there is none.
std::string problem_of(const Meeting& meeting) {
  std::vector<int> path = {meeting.rank()};
  std::vector<bool> seen(static_cast<std::size_t>(meeting.size()));
  std::vector<int> circle = circle_from(meeting, path, seen);
  std::string problem;
  if (!circle.empty()) {
    // Every rank tells it from the same one on.
    std::rotate(circle.begin(), std::min_element(circle.begin(), circle.end()), circle.end());
    for (std::size_t i = 0; i < circle.size(); ++i) {
      problem += fmt::format("{}rank {} waits for rank {} in {}",
                             i == 0 ? "" : ", ",
                             circle[i],
                             circle[(i + 1) % circle.size()],
                             meeting.of(circle[i]).calls.data());
    }
    return problem + " (none makes the call that another waits for; on GPUs they would for ever)";
  }
  for (int r = 0; r < meeting.size(); ++r) {
    if (waits_for(meeting, meeting.rank(), r) && meeting.of(r).state == State::parting) {
      problem = fmt::format(
          "rank {} waits for rank {} in {}, and rank {} is in "
          "ncclCommFinalize (it will not make that call any more)",
          meeting.rank(),
          r,
          meeting.of(meeting.rank()).calls.data(),
          r);
    }
  }
  return problem;
}

}  // namespace

void look_for_a_circle(const std::string& name,
                       const Meeting& meeting,
                       const Meeting::Pause& yield) {
  std::string problem;
  meeting.locked(yield, [&] { problem = problem_of(meeting); });
  if (!problem.empty()) {
    throw Failure{ncclInvalidUsage,
                  fmt::format("{}: {}; let all ranks make the same calls", name, problem)};
  }
}

void look_for_the_lost(const std::string& name,
                       const Meeting& meeting,
                       const Meeting::Pause& yield) {
  for (int r = 0; r < meeting.size(); ++r) {
    if (!meeting.is_gone(r)) {
      continue;
    }
    bool lost = false;
    std::string calls;
    // Asked once more under the lock: a rank holds its byte before it is idle and parts before it
    // lets go, so one that is neither on its way in nor out is lost.
    meeting.locked(yield, [&] {
      const State state = meeting.of(r).state;
      lost = (state == State::idle || state == State::busy) && meeting.is_gone(r);
      calls = meeting.of(meeting.rank()).calls.data();
    });
    if (lost) {
      throw Failure{
          ncclRemoteError,
          fmt::format("{}: rank {} is gone while rank {} waits in {} (it has aborted, or its "
                      "process has ended); see what that rank says",
                      name,
                      r,
                      meeting.rank(),
                      calls.empty() ? "ncclCommInitRankScalable" : calls)};
    }
  }
}

}  // namespace memphis::simt_nccl
