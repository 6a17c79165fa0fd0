// SPDX-License-Identifier: Apache-2.0
//
// What stands for cuBLASLt on the simulated device: the CPU's product, let into the device's
// memory.
#include "csrc/core/device_simt.h"
#include "csrc/core/simt_memory.h"
#include "kernels/matmul/matmul.h"

namespace memphis::kernels::cuda {
namespace {

// The operand as the CPU sees it, for as long as this exists.
class HostOperand {
 public:
  explicit HostOperand(const TensorView& view)
      : access_(view.data, view.present() ? view.bytes() : 0), view_(view) {
    view_.device = Device::cpu;
  }
  operator TensorView() const { return view_; }

 private:
  simt_memory::HostAccess access_;
  TensorView view_;
};

}  // namespace

void matmul_forward(const MatmulForward& op, Stream stream) {
  count_enqueued();
  simt_stream::enqueue(stream.handle, [op] {
    const HostOperand y(op.y_TN);
    const HostOperand x(op.x_TK);
    const HostOperand weight(op.weight_NK);
    MatmulForward on_host = op;
    on_host.y_TN = y;
    on_host.x_TK = x;
    on_host.weight_NK = weight;
    kernels::matmul_forward(on_host, Stream{});
  });
}

void matmul_backward(const MatmulBackward& op, Stream stream) {
  count_enqueued();
  simt_stream::enqueue(stream.handle, [op] {
    const HostOperand dx(op.dx_TK);
    const HostOperand dweight(op.dweight_NK);
    const HostOperand dy(op.dy_TN);
    const HostOperand x(op.x_TK);
    const HostOperand weight(op.weight_NK);
    MatmulBackward on_host = op;
    on_host.dx_TK = dx;
    on_host.dweight_NK = dweight;
    on_host.dy_TN = dy;
    on_host.x_TK = x;
    on_host.weight_NK = weight;
    kernels::matmul_backward(on_host, Stream{});
  });
}

std::string matmul_library() {
  return "a simulated GPU, " + kernels::matmul_library(Device::cpu);
}

void open_matmul_library(std::int64_t /*held_multiprocessors*/) {}

std::vector<std::string> matmul_choices() {
  return {};
}

}  // namespace memphis::kernels::cuda
