// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace memphis {

// Tells a loss that has exploded from one that is merely high.
//
// It has once it is above both
//   ln(vocab_size)   what a model that knows nothing has, who guesses every token alike
//   twice the lowest level that the run has held, the median of 16 losses, or its first loss
// so the weights are worse than untrained ones, and it is no matter of noise: a run that starts
// above ln(vocab_size), from odd weights, has its own first loss to be measured by. It is over when
// 8 losses in a row are below: a model that swings around the limit is not well.
//
// The loss of a step is that of the weights before its update. So if the loss explodes in step n, the
// weights that step n - 1 left have.
//
// No allocation while losses are observed.
class LossWatch {
 public:
  static constexpr std::size_t kWindow = 16;
  static constexpr std::int64_t kCalm = 8;

  // What a checkpoint keeps of it: all of it, so that a run that is started again judges as one that
  // never stopped.
  struct State {
    double reference = 0;          // the lowest level held; 0: no loss was seen
    std::int64_t exploded_at = 0;  // the step that it exploded in; 0: it has not
    std::int64_t num_calm = 0;     // losses below the limit since, in a row
    // The last losses while it had not exploded, of which there were so many, a ring: the next one
    // takes the place num_recent % kWindow.
    std::array<double, kWindow> recent = {};
    std::size_t num_recent = 0;

    // The last of them, kWindow at most, the oldest first; and the state that has these.
    std::vector<double> window() const;
    void set_window(std::span<const double> losses);
  };
  LossWatch(std::int64_t vocab_size, const State& state);

  enum class News : std::uint8_t { none, exploded, recovered };
  // The loss of each step in turn.
  News observe(std::int64_t step, double loss);

  // Whether a loss, of any text, is above the limit, or not a number.
  bool exceeds(double loss) const;

  bool exploded() const { return state_.exploded_at > 0; }
  const State& state() const { return state_; }
  double limit() const;
  // "5.56, what a guess among 259 tokens has": where the limit comes from.
  std::string describe_limit() const;

 private:
  double chance() const;
  double median() const;

  std::int64_t vocab_size_;
  State state_;
};

}  // namespace memphis
