// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <tuple>
#include <utility>

#include "csrc/core/device_simt.h"
#include "kernels/device/simt/executor.h"
#include "kernels/device/simt/words.h"
#include "kernels/launch.h"

namespace memphis::kernels {
namespace simt {

// A kernel with its arguments, as each thread calls it.
template <class... Parameters>
class BoundKernel {
 public:
  BoundKernel(void (*kernel)(Parameters...), Parameters... arguments)
      : kernel_(kernel), arguments_(arguments...) {}

  static void invoke(const void* bound) {
    call(*static_cast<const BoundKernel*>(bound), std::index_sequence_for<Parameters...>{});
  }

 private:
  // Not instrumented: it reads the arguments, which lie on the host.
  template <std::size_t... kIndices>
  [[gnu::no_sanitize("thread")]] static void call(const BoundKernel& self,
                                                  std::index_sequence<kIndices...> /*indices*/) {
    self.kernel_(std::get<kIndices>(self.arguments_)...);
  }

  void (*kernel_)(Parameters...);
  std::tuple<Parameters...> arguments_;
};

}  // namespace simt

// The simulated device's launch: waits for what is pending on the stream, and returns when all blocks
// have run; where the stream is captured, that is the launch of the graph. Throws simt::KernelFault
// for what a kernel does wrong.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& shape, const Arguments&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "one argument a parameter");
  if (!check_launch(shape)) {
    return;
  }
  const auto dim = [](const Dim3& d) {
    return simt::Index3{
        static_cast<unsigned>(d.x), static_cast<unsigned>(d.y), static_cast<unsigned>(d.z)};
  };
  using Bound = simt::BoundKernel<Parameters...>;
  const Bound bound(kernel, static_cast<Parameters>(arguments)...);
  const simt::KernelCall call{.kernel = reinterpret_cast<const void*>(kernel),
                              .grid = dim(shape.grid),
                              .block = dim(shape.block),
                              .dynamic_shared_bytes = shape.shared_bytes,
                              .cluster = static_cast<int>(shape.cluster),
                              .invoke = &Bound::invoke};
  simt::check(call);
  simt_stream::enqueue(shape.stream.handle, [call, bound] {
    simt::KernelCall bound_call = call;
    bound_call.arguments = &bound;
    simt::run(bound_call);
  });
}

}  // namespace memphis::kernels
