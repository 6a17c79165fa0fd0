// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/dtype.h"

// Compares an op's result with the exact one, within a tolerance that is computed and not chosen.
// This is the one place where the tolerance of floating-point results is made.
//
// The rule. `exact` is the result of naive code in a wider type, `naive` what the same code makes
// of the same inputs computing and storing in `dtype`, once or several times over.
//
//   bound of an element = 2 e + u |exact|
//   e = the largest |naive - exact| over the tensor and all naive results,
//       or half a unit in the last place of the tensor's largest element where that is more
//
// and the norm of each row's errors is held to twice the worst that naive has over the row's norm,
// or to twice u where that is more, plus u: one wrong row of small values cannot hide behind a
// large one. u is half the spacing of 1.0 in `dtype`. NaN never passes.
//
// Where sums may cancel in some rows and not in others, the norm is that of the sums of their terms'
// absolute values: the error of a row that cancels is no larger than others' beside its terms, but
// stands alone beside what is left of them, and one error alone tells nothing, as said below.
//
// So no bound is below one unit in the last place of the result, however lucky the naive code was:
// its store alone rounds by up to half of one, at the largest element as anywhere. What its sums
// round is another matter: it may be many units, or nothing by luck, and is known from many errors
// alone. Where errors are normal, one of 256 as good is more than twice the largest of the others
// once in 10^7; of a single one, three times in ten. A tensor of fewer elements therefore needs
// several naive results (`draws_for`), and close_to refuses those that come with too few.
//
// Source: the rule of FlashAttention-3's tests (at most twice the error of the naive version). That
// inputs moved by a rounding tell how a result rounds is Vignes 1993, "A stochastic arithmetic for
// reliable scientific computation".
namespace memphis::test {

// The unit of rounding of a dtype: half the spacing of 1.0.
double rounding_unit(DType dtype);

// The unit in the last place of `value`: the spacing of the numbers of `dtype` around it.
double ulp(DType dtype, double value);

// So many naive values, of elements or of draws, say how naive code rounds.
constexpr std::size_t kEnoughValues = 256;

// The exact result, and naive results that are as good as one another. All of one size.
struct Reference {
  std::vector<double> exact;
  std::vector<std::vector<double>> naive;
  std::vector<double> terms = {};  // sums of absolute values; empty where none cancels: `exact`

  // What an error of a row is large or small beside.
  const std::vector<double>& size() const { return terms.empty() ? exact : terms; }
};

// The bounds that follow from a reference.
class Tolerance {
 public:
  Tolerance(const Reference& reference, DType dtype, std::int64_t row_length);

  // On |actual - exact| of one element.
  double of_element(double exact) const;
  // On the norm of the errors of a row, from the norm of the row, or of its terms.
  double of_row(double norm) const;
  // Why nothing can be held to it; empty if something can.
  const std::string& fault() const { return fault_; }

 private:
  double unit_;
  double tiny_;  // stands for what underflows
  std::int64_t row_length_;
  double error_ = 0;     // the worst that naive has
  double relative_ = 0;  // of a row, over its norm
  std::string fault_;
};

// The message names the worst index, both values and the bound.
testing::AssertionResult close_to(const std::vector<double>& actual,
                                  const Reference& reference,
                                  DType dtype,
                                  std::int64_t row_length);
// For tensors of at least kEnoughValues elements, of which one naive result is enough.
testing::AssertionResult close_to(const std::vector<double>& actual,
                                  const std::vector<double>& exact,
                                  const std::vector<double>& naive,
                                  DType dtype,
                                  std::int64_t row_length);

// `values` moved by one rounding of sums over `dtype`, up or down as chance has it; another chance
// with every `draw`, and draw 0 leaves them. What naive code makes of them is as good a result as
// what it makes of the values themselves, and not lucky in the same places.
std::vector<double> perturbed(DType dtype, std::vector<double> values, int draw);

// As many naive results, at least `least`, as a tensor of `num_elements` needs: draw(0), draw(1)
// and so on, each made of inputs that are `perturbed` by that number.
template <class Draw>
auto draws_for(std::size_t num_elements, int least, const Draw& draw) {
  const std::size_t enough =
      num_elements == 0 ? 1 : (kEnoughValues + num_elements - 1) / num_elements;
  std::vector<decltype(draw(0))> results;
  for (int i = 0; i < std::max(least, static_cast<int>(enough)); ++i) {
    results.push_back(draw(i));
  }
  return results;
}

// The reference of one of the tensors that naive code makes together.
template <class Results>
Reference reference_of(const Results& exact,
                       const std::vector<Results>& naive,
                       std::vector<double> Results::*member) {
  Reference reference{.exact = exact.*member, .naive = {}};
  for (const Results& one : naive) {
    reference.naive.push_back(one.*member);
  }
  return reference;
}

}  // namespace memphis::test
