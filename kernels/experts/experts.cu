// SPDX-License-Identifier: Apache-2.0
//
// On the GPU the products and what lies between them follow one another. Where Hopper's products are
// taken, GeGLU and its derivative are done at the end of the product before.
#include "kernels/experts/experts.h"

#include "kernels/experts/experts_hopper.h"
#include "kernels/geglu/geglu.h"
#include "kernels/grouped_matmul/grouped_matmul.h"
#include "kernels/grouped_matmul/grouped_matmul_hopper.h"

namespace memphis::kernels::cuda {
namespace {

bool takes_hopper(const TensorView& x_RD, const TensorView& down_weight_EDF) {
  constexpr std::int64_t kMultiple = 8;  // gate and up begin where TMA can
  const std::int64_t D = down_weight_EDF.dim(1);
  const std::int64_t F = down_weight_EDF.dim(2);
  return x_RD.dtype == DType::bf16 && D % kMultiple == 0 && F % kMultiple == 0 &&
         hopper_takes_grouped_matmul(x_RD.dim(0), down_weight_EDF.dim(0), 2 * F, D);
}

}  // namespace

void experts_forward(const ExpertsForward& op, Stream stream) {
  if (takes_hopper(op.x_RD, op.down_weight_EDF)) {
    launch_gate_up_forward_hopper(op, stream);
  } else {
    kernels::grouped_matmul_forward({.y_RN = op.gate_up_R2F,
                                     .x_RK = op.x_RD,
                                     .weight_ENK = op.gate_up_weight_EFD,
                                     .offsets_E1 = op.offsets_E1},
                                    stream);
    kernels::geglu_forward({.y_RF = op.hidden_RF,
                            .gate_up_R2F = op.gate_up_R2F,
                            .gates_TK = op.gates_TK,
                            .source_R = op.source_R},
                           stream);
  }
  if (op.y_RD.present()) {
    kernels::grouped_matmul_forward({.y_RN = op.y_RD,
                                     .x_RK = op.hidden_RF,
                                     .weight_ENK = op.down_weight_EDF,
                                     .offsets_E1 = op.offsets_E1},
                                    stream);
  }
}

void experts_backward(const ExpertsBackward& op, Stream stream) {
  const bool hopper = takes_hopper(op.x_RD, op.down_weight_EDF);
  kernels::grouped_matmul_backward({.dx_RK = hopper ? TensorView{} : op.dhidden_RF,
                                    .dweight_ENK = op.ddown_weight_EDF,
                                    .dy_RN = op.dy_RD,
                                    .x_RK = op.hidden_RF,
                                    .weight_ENK = op.down_weight_EDF,
                                    .offsets_E1 = op.offsets_E1,
                                    .weight_gradient = op.weight_gradient},
                                   stream);
  if (hopper) {
    launch_gate_up_backward_hopper(op, stream);
  } else {
    kernels::geglu_backward({.dgate_up_R2F = op.gate_up_R2F,
                             .dgates_TK = op.dgates_TK,
                             .dy_RF = op.dhidden_RF,
                             .gate_up_R2F = op.gate_up_R2F,
                             .gates_TK = op.gates_TK,
                             .source_R = op.source_R},
                            stream);
  }
  kernels::grouped_matmul_backward({.dx_RK = op.dx_RD,
                                    .dweight_ENK = op.dgate_up_weight_EFD,
                                    .dy_RN = op.gate_up_R2F,
                                    .x_RK = op.x_RD,
                                    .weight_ENK = op.gate_up_weight_EFD,
                                    .offsets_E1 = op.offsets_E1,
                                    .weight_gradient = op.weight_gradient},
                                   stream);
}

void experts_backward_weights(const ExpertsBackwardWeights& op, Stream stream) {
  kernels::grouped_matmul_backward({.dweight_ENK = op.ddown_weight_EDF,
                                    .dy_RN = op.dy_RD,
                                    .x_RK = op.hidden_RF,
                                    .offsets_E1 = op.offsets_E1,
                                    .weight_gradient = op.weight_gradient},
                                   stream);
  kernels::grouped_matmul_backward({.dweight_ENK = op.dgate_up_weight_EFD,
                                    .dy_RN = op.dgate_up_R2F,
                                    .x_RK = op.x_RD,
                                    .offsets_E1 = op.offsets_E1,
                                    .weight_gradient = op.weight_gradient},
                                   stream);
}

}  // namespace memphis::kernels::cuda
