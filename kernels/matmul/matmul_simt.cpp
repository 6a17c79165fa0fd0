// SPDX-License-Identifier: Apache-2.0
//
// What stands for cuBLASLt on the simulated device: the CPU's product, let into the device's
// memory.
#include <array>
#include <cstdint>
#include <mutex>
#include <set>

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

// A product as far as cuBLASLt's choice of a kernel depends on it.
struct Product {
  enum class Output : std::uint8_t { y, dx, dweight };
  Output output;
  std::array<std::int64_t, 3> sizes;
  DType in;
  DType out;
  bool accumulate = false;
  std::array<std::int64_t, 3> runs = {};

  auto operator<=>(const Product&) const = default;
};

std::array<std::int64_t, 3> sizes_of(const RowRuns& runs) {
  return {runs.count, runs.read_step, runs.written_step};
}

// cuBLASLt loads a kernel when the first product comes that takes it, at the worst one for each, and
// to load one may wait until nothing at all is on the GPU. A graph has it loaded.
void load_kernel(const Product& product, Stream stream) {
  static std::mutex mutex;
  static std::set<Product>& loaded = *new std::set<Product>;
  if (simt_stream::is_captured(stream.handle)) {
    return;
  }
  const std::lock_guard lock(mutex);
  if (loaded.insert(product).second) {
    simt_stream::wait_for_all_pending();
  }
}

}  // namespace

void matmul_forward(const MatmulForward& op, Stream stream) {
  load_kernel({.output = Product::Output::y,
               .sizes = {op.y_TN.dim(0), op.y_TN.dim(1), op.x_TK.dim(1)},
               .in = op.x_TK.dtype,
               .out = op.y_TN.dtype,
               .runs = sizes_of(op.runs)},
              stream);
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
  if (op.dx_TK.present()) {
    load_kernel({.output = Product::Output::dx,
                 .sizes = {op.dx_TK.dim(0), op.dy_TN.dim(1), op.dx_TK.dim(1)},
                 .in = op.dy_TN.dtype,
                 .out = op.dx_TK.dtype,
                 .accumulate = op.accumulate,
                 .runs = sizes_of(op.runs)},
                stream);
  }
  if (op.dweight_NK.present()) {
    load_kernel({.output = Product::Output::dweight,
                 .sizes = {op.dy_TN.dim(0), op.dweight_NK.dim(0), op.dweight_NK.dim(1)},
                 .in = op.dy_TN.dtype,
                 .out = op.dweight_NK.dtype,
                 .accumulate = op.weight_gradient == WeightGradient::add},
                stream);
  }
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
