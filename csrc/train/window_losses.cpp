// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/window_losses.h"

#include <numeric>

#include "csrc/core/error.h"

namespace memphis {
namespace {

template <class T>
std::vector<double> sums(const TensorView& loss_T, std::int64_t sequence_length) {
  std::vector<double> result;
  const T* const values = loss_T.as<T>();
  for (std::int64_t t = 0; t < loss_T.num_elements(); t += sequence_length) {
    result.push_back(std::accumulate(values + t, values + t + sequence_length, 0.0));
  }
  return result;
}

}  // namespace

std::vector<double> sum_windows(const TensorView& loss_T, std::int64_t sequence_length) {
  require(loss_T.device == Device::cpu && sequence_length > 0 &&
              loss_T.num_elements() % sequence_length == 0,
          "losses of whole windows are summed on the host");
  require(loss_T.dtype == DType::f32 || loss_T.dtype == DType::f64, "losses are f32 or f64");
  return loss_T.dtype == DType::f64 ? sums<double>(loss_T, sequence_length)
                                    : sums<float>(loss_T, sequence_length);
}

}  // namespace memphis
