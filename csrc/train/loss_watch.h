// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

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
// No allocation.
class LossWatch {
 public:
  // What a checkpoint keeps of it, so that a run that is started again judges alike.
  struct State {
    double reference = 0;          // the lowest level held; 0: no loss was seen
    std::int64_t exploded_at = 0;  // the step that it exploded in; 0: it has not
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
  static constexpr std::size_t kWindow = 16;
  static constexpr int kCalm = 8;

  double chance() const;
  double median() const;

  std::int64_t vocab_size_;
  State state_;
  std::array<double, kWindow> recent_{};  // losses while it had not exploded, a ring
  std::size_t num_recent_ = 0;
  int num_calm_ = 0;
};

}  // namespace memphis
