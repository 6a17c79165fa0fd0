// SPDX-License-Identifier: Apache-2.0
#include "kernels/op_profile.h"

#include <algorithm>

#include "csrc/core/error.h"

namespace memphis::kernels {
namespace {

thread_local OpProfile* active_profile = nullptr;

}  // namespace

OpProfile* OpProfile::active() {
  return active_profile;
}

OpProfile::OpProfile(Stream stream, std::size_t max_calls)
    : stream_(stream), max_calls_(max_calls) {
  require(
      active_profile == nullptr,
      "a second profile of ops is started in a thread (each call belongs to one); end the first");
  calls_.reserve(max_calls);
  events_.reserve(2 * max_calls);
  for (std::size_t i = 0; i < 2 * max_calls; ++i) {
    events_.emplace_back(stream.device);
  }
  active_profile = this;
}

OpProfile::~OpProfile() {
  active_profile = nullptr;
}

std::size_t OpProfile::begin(std::string_view op, Stream stream) {
  if (stream.device != stream_.device || stream.handle != stream_.handle) {
    return kLeftOut;
  }
  if (calls_.size() == max_calls_) {
    ++num_left_out_;
    return kLeftOut;
  }
  const std::size_t call = calls_.size();
  calls_.push_back({.op = op, .caller = innermost_, .bytes = 0, .flops = 0, .ended = false});
  innermost_ = call;
  events_[2 * call].record(stream_);
  return call;
}

void OpProfile::add_bytes(std::size_t call, double bytes) {
  calls_[call].bytes += bytes;
}
void OpProfile::add_flops(std::size_t call, double flops) {
  calls_[call].flops += flops;
}

void OpProfile::end(std::size_t call) {
  events_[2 * call + 1].record(stream_);
  calls_[call].ended = true;
  innermost_ = calls_[call].caller;
}

std::vector<OpTotals> OpProfile::totals() const {
  std::vector<OpTotals> totals;
  const auto total_of = [&](std::string_view op) -> OpTotals& {
    const auto found = std::find_if(
        totals.begin(), totals.end(), [&](const OpTotals& each) { return each.op == op; });
    return found != totals.end() ? *found : totals.emplace_back(OpTotals{.op = op});
  };
  for (std::size_t i = 0; i < calls_.size(); ++i) {
    const Call& call = calls_[i];
    if (!call.ended) {
      continue;
    }
    const double seconds = events_[2 * i + 1].seconds_since(events_[2 * i]);
    OpTotals& own = total_of(call.op);
    own.calls += 1;
    own.seconds += seconds;
    own.bytes += call.bytes;
    own.flops += call.flops;
    if (call.caller != kLeftOut && calls_[call.caller].ended) {
      OpTotals& caller = total_of(calls_[call.caller].op);
      caller.seconds -= seconds;
      caller.flops -= std::min(call.flops, calls_[call.caller].flops);
    }
  }
  std::sort(totals.begin(), totals.end(), [](const OpTotals& a, const OpTotals& b) {
    return a.seconds > b.seconds;
  });
  return totals;
}

double OpProfile::seconds_between() const {
  double seconds = 0;
  const Event* end = nullptr;  // of the call before, of those that no op has made
  for (std::size_t i = 0; i < calls_.size(); ++i) {
    if (calls_[i].caller != kLeftOut || !calls_[i].ended) {
      continue;
    }
    if (end != nullptr) {
      seconds += events_[2 * i].seconds_since(*end);
    }
    end = &events_[2 * i + 1];
  }
  return seconds;
}

}  // namespace memphis::kernels
