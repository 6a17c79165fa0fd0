// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace memphis {

// How the last micro-batch of a step was routed, over all ranks: a value for each layer of the
// model.
struct Routing {
  std::int64_t num_experts = 0;
  std::vector<double> load_LE;            // over an equal share
  std::vector<double> effective_experts;  // exp of the entropy of the load: num_experts if even
  std::vector<double> entropy;            // of a token's probabilities, over ln(num_experts), mean
  std::vector<double> kept_probability;   // sum of the gates of a token, mean
};

// exp of the entropy of `counts`: how many experts would, used alike, be as uneven. 0 of no counts.
double effective_number(const std::int64_t* counts, std::int64_t num_experts);

// Tells a router that has collapsed, one that sends tokens to hardly more experts than each token
// takes: effective_experts below K + (E - K) / 4, in three looks in a row, so that the swings of the
// first steps and of small batches are none.
class RouterWatch {
 public:
  RouterWatch(std::int64_t num_layers, std::int64_t num_experts, std::int64_t experts_per_token);

  struct News {
    std::int64_t layer;
    double effective_experts;
    bool collapsed;  // or has come back
  };
  std::vector<News> observe(const Routing& routing);
  double limit() const { return limit_; }

 private:
  static constexpr int kLooks = 3;

  double limit_;
  std::vector<int> looks_L_;  // below the limit, in a row
};

// Of the ranks' own work in a step, without what they stood and waited for others.
struct RankTimes {
  std::int64_t slowest_rank = 0;
  double slowest_seconds = 0;
  double median_seconds = 0;
  std::vector<double> seconds;  // by rank
};

}  // namespace memphis
