// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ostream>
#include <string_view>

namespace memphis::bench {

// `memphis bench kernels`: measures every registered benchmark whose op starts with `filter`
// (empty: all), on `device` ("cpu", "cuda" or "all"), and prints a line for each to `out`: a table,
// or with `json` one object a line.
//
// A time is the median of repeated single calls, each from cold caches, after a warm-up. GB/s and
// TFLOP/s are OpCost over that time. Beside them stands the share of what this machine measures for
// a plain copy (bytes read and written) and for a matrix product: OpenBLAS sgemm on the CPU,
// cuBLASLt bf16 on the GPU whatever the dtype of the case.
//
// `all` are the devices that this machine has. A case for which it has not enough memory is listed as
// not measured, with the reason. Throws ConfigError for a device or a filter that names nothing,
// PreflightError for a device that is absent and where nothing could be measured, and Error at the
// end if a case failed otherwise.
void run_op_benchmarks(std::string_view filter,
                       std::string_view device,
                       bool json,
                       std::ostream& out);

}  // namespace memphis::bench
