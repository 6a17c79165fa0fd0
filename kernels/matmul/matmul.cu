// SPDX-License-Identifier: Apache-2.0
//
// Host code only: cuBLASLt computes the products. It sees matrices column by column, so a row-major
// [R, C] is to it a [C, R] with stride C, and each product is asked for transposed: y^T = weight
// x^T.
#include "kernels/matmul/matmul.h"

#include <algorithm>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <cublasLt.h>

#include "csrc/core/error.h"
#include "kernels/launch.h"
#include "kernels/matmul/cublas_lt.h"

namespace memphis::kernels::cuda {
namespace {

constexpr std::size_t kWorkspaceBytes = matmul_workspace_bytes(Device::cuda);

void cublas_check(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    throw Error(
        ExitCode::internal,
        std::string(call) + " failed with " + cublas_lt().status_string(status) +
            " (cuBLASLt refuses the product or cannot run on this device); check the driver "
            "with nvidia-smi");
  }
}

struct Destroy {
  void operator()(cublasLtMatmulDescOpaque_t* handle) const {
    cublas_lt().destroy_description(handle);
  }
  void operator()(cublasLtMatrixLayoutOpaque_t* handle) const {
    cublas_lt().destroy_layout(handle);
  }
  void operator()(cublasLtMatmulPreferenceOpaque_t* handle) const {
    cublas_lt().destroy_preference(handle);
  }
};
using MatmulDesc = std::unique_ptr<cublasLtMatmulDescOpaque_t, Destroy>;
using Layout = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, Destroy>;
using Preference = std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, Destroy>;

// c [m, n] = a b + beta c, column-major; a and b as stored are [m, k] and [k, n], or transposed.
// All that the choice of an algorithm depends on.
struct Shape {
  cublasOperation_t transpose_a;
  cublasOperation_t transpose_b;
  std::int64_t m;
  std::int64_t n;
  std::int64_t k;
  DType in;
  DType out;
  bool accumulate;
  // Products of one a, each with a b and a c of its own, which lie so many columns apart.
  std::int64_t count = 1;
  std::int64_t b_step = 0;
  std::int64_t c_step = 0;

  auto operator<=>(const Shape&) const = default;
};

cudaDataType_t cuda_type(DType dtype) {
  return dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F;
}

Layout make_layout(DType dtype, std::int64_t rows, std::int64_t columns) {
  cublasLtMatrixLayout_t layout = nullptr;
  cublas_check(cublas_lt().create_layout(&layout,
                                         cuda_type(dtype),
                                         static_cast<std::uint64_t>(rows),
                                         static_cast<std::uint64_t>(columns),
                                         rows),
               "cublasLtMatrixLayoutCreate");
  return Layout(layout);
}

// There are `count` of them, `step` elements apart.
void repeat(const Layout& layout, std::int64_t count, std::int64_t step) {
  const auto batch_count = static_cast<std::int32_t>(count);
  cublas_check(
      cublas_lt().set_layout(
          layout.get(), CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch_count, sizeof(batch_count)),
      "cublasLtMatrixLayoutSetAttribute");
  cublas_check(cublas_lt().set_layout(
                   layout.get(), CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step, sizeof(step)),
               "cublasLtMatrixLayoutSetAttribute");
}

Layout make_operand(DType dtype,
                    cublasOperation_t transpose,
                    std::int64_t rows,
                    std::int64_t cols) {
  return transpose == CUBLAS_OP_T ? make_layout(dtype, cols, rows) : make_layout(dtype, rows, cols);
}

void set_transpose(const MatmulDesc& desc,
                   cublasLtMatmulDescAttributes_t attribute,
                   cublasOperation_t transpose) {
  cublas_check(cublas_lt().set_description(desc.get(), attribute, &transpose, sizeof(transpose)),
               "cublasLtMatmulDescSetAttribute");
}

template <class T>
void set_preference(const Preference& preference,
                    cublasLtMatmulPreferenceAttributes_t attribute,
                    T value) {
  cublas_check(cublas_lt().set_preference(preference.get(), attribute, &value, sizeof(value)),
               "cublasLtMatmulPreferenceSetAttribute");
}

Preference make_preference() {
  cublasLtMatmulPreference_t handle = nullptr;
  cublas_check(cublas_lt().create_preference(&handle), "cublasLtMatmulPreferenceCreate");
  Preference preference(handle);
  set_preference(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
  // Of the split-K schemes only the one that keeps the partial sums in f32 and adds them up in a
  // second pass: in place, the order of the sum is that in which blocks end, so the bits would
  // differ from run to run; in the output's type, a bf16 result would be rounded more than once.
  set_preference(preference,
                 CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                 std::uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  // The default promises 256 bytes; the contract of ops promises 16.
  for (const auto attribute : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                               CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                               CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                               CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    set_preference(preference, attribute, std::uint32_t{16});
  }
  return preference;
}

// A product that cuBLASLt has been asked about.
struct Plan {
  MatmulDesc desc;
  Layout a;
  Layout b;
  Layout c;
  cublasLtMatmulAlgo_t algorithm;
};

// `multiprocessors`: for how many a product is laid out; 0 for all.
Plan make_plan(cublasLtHandle_t handle, const Shape& shape, std::int32_t multiprocessors) {
  cublasLtMatmulDesc_t desc = nullptr;
  // COMPUTE_32F keeps f32 operands f32: TF32 would need COMPUTE_32F_FAST_TF32.
  cublas_check(cublas_lt().create_description(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F),
               "cublasLtMatmulDescCreate");
  Plan plan{.desc = MatmulDesc(desc),
            .a = make_operand(shape.in, shape.transpose_a, shape.m, shape.k),
            .b = make_operand(shape.in, shape.transpose_b, shape.k, shape.n),
            .c = make_layout(shape.out, shape.m, shape.n),
            .algorithm = {}};
  if (shape.count > 1) {
    repeat(plan.a, shape.count, 0);
    repeat(plan.b, shape.count, shape.b_step * shape.k);
    repeat(plan.c, shape.count, shape.c_step * shape.m);
  }
  set_transpose(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, shape.transpose_a);
  set_transpose(plan.desc, CUBLASLT_MATMUL_DESC_TRANSB, shape.transpose_b);
  if (multiprocessors > 0) {
    cublas_check(cublas_lt().set_description(plan.desc.get(),
                                             CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET,
                                             &multiprocessors,
                                             sizeof(multiprocessors)),
                 "cublasLtMatmulDescSetAttribute");
  }
  const Preference preference = make_preference();
  cublasLtMatmulHeuristicResult_t result{};
  int num_results = 0;
  cublas_check(cublas_lt().heuristic(handle,
                                     plan.desc.get(),
                                     plan.a.get(),
                                     plan.b.get(),
                                     plan.c.get(),
                                     plan.c.get(),
                                     preference.get(),
                                     1,
                                     &result,
                                     &num_results),
               "cublasLtMatmulAlgoGetHeuristic");
  require(num_results == 1 && result.state == CUBLAS_STATUS_SUCCESS,
          "cuBLASLt has no algorithm for m " + std::to_string(shape.m) + ", n " +
              std::to_string(shape.n) + ", k " + std::to_string(shape.k) + " in " +
              std::string(name_of(shape.in)) + " (within " + std::to_string(kWorkspaceBytes) +
              " bytes of workspace and with a deterministic sum); change the widths");
  plan.algorithm = result.algo;
  return plan;
}

// As cuBLASLt's own log has it: column-major, t for a transposed operand.
std::string describe(const Shape& shape) {
  const auto letter = [](cublasOperation_t transpose) {
    return transpose == CUBLAS_OP_T ? "t" : "n";
  };
  std::string text = std::string(letter(shape.transpose_a)) + letter(shape.transpose_b) + " " +
                     std::to_string(shape.m) + "x" + std::to_string(shape.n) + "x" +
                     std::to_string(shape.k) + " " + std::string(name_of(shape.in)) + " to " +
                     std::string(name_of(shape.out));
  if (shape.count > 1) {
    text += ", " + std::to_string(shape.count) + " of them";
  }
  return text + (shape.accumulate ? ", added" : "");
}

std::string describe(const cublasLtMatmulAlgo_t& algorithm) {
  // The order in which a product is summed follows from these; numbers are those of cublasLt.h.
  struct Attribute {
    cublasLtMatmulAlgoConfigAttributes_t name;
    const char* label;
    std::size_t bytes = sizeof(std::uint32_t);  // which cuBLASLt insists on
  };
  constexpr Attribute kAttributes[] = {
      {CUBLASLT_ALGO_CONFIG_ID, "algorithm "},
      {CUBLASLT_ALGO_CONFIG_TILE_ID, ", tile "},
      {CUBLASLT_ALGO_CONFIG_STAGES_ID, ", stages "},
      {CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, ", inner shape ", sizeof(std::uint16_t)},
      {CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, ", cluster ", sizeof(std::uint16_t)},
      {CUBLASLT_ALGO_CONFIG_SPLITK_NUM, ", split "},
      {CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, ", reduction "},
      {CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, ", swizzling "},
      {CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, ", option "},
  };
  std::string text;
  for (const Attribute& attribute : kAttributes) {
    std::uint32_t value = 0;
    std::size_t written = 0;
    cublas_check(cublas_lt().algorithm_attribute(
                     &algorithm, attribute.name, &value, attribute.bytes, &written),
                 "cublasLtMatmulAlgoConfigGetAttribute");
    text += attribute.label + std::to_string(value);
  }
  return text;
}

// One a process, as one process drives one GPU. The workspace has one user at a time: products of a
// process go to one stream, or to streams that wait for each other.
class CublasLt {
 public:
  // Never destroyed: at exit the CUDA runtime may be gone before this.
  static CublasLt& instance() {
    static CublasLt& instance = *new CublasLt;
    return instance;
  }

  void multiply(const Shape& shape, const void* a, const void* b, void* c, Stream stream) {
    const Plan& plan = plan_of(shape);
    count_enqueued();
    const float alpha = 1;
    const float beta = shape.accumulate ? 1 : 0;
    cublas_check(cublas_lt().matmul(handle_,
                                    plan.desc.get(),
                                    &alpha,
                                    a,
                                    plan.a.get(),
                                    b,
                                    plan.b.get(),
                                    &beta,
                                    c,
                                    plan.c.get(),
                                    c,
                                    plan.c.get(),
                                    &plan.algorithm,
                                    workspace_,
                                    kWorkspaceBytes,
                                    static_cast<cudaStream_t>(stream.handle)),
                 "cublasLtMatmul");
  }

  // Products that were asked for before are asked for again.
  void hold(std::int64_t multiprocessors) {
    const std::lock_guard lock(mutex_);
    const auto left = multiprocessors > 0
                          ? static_cast<std::int32_t>(std::max<std::int64_t>(
                                this_device().num_multiprocessors - multiprocessors, 1))
                          : 0;
    if (left != multiprocessors_) {
      multiprocessors_ = left;
      plans_.clear();
    }
  }

  std::vector<std::string> choices() {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> lines;
    for (const auto& [shape, plan] : plans_) {
      lines.push_back(describe(shape) + ": " + describe(plan.algorithm));
    }
    return lines;
  }

 private:
  CublasLt() : workspace_(device_allocate(kWorkspaceBytes, Device::cuda)) {
    cublas_check(cublas_lt().create(&handle_), "cublasLtCreate");
  }

  // The heuristic costs tens of microseconds of host time, so a shape asks once. Entries of a map
  // stay where they are.
  const Plan& plan_of(const Shape& shape) {
    const std::lock_guard lock(mutex_);
    auto found = plans_.find(shape);
    if (found == plans_.end()) {
      found = plans_.emplace(shape, make_plan(handle_, shape, multiprocessors_)).first;
    }
    return found->second;
  }

  cublasLtHandle_t handle_ = nullptr;
  void* workspace_;
  std::int32_t multiprocessors_ = 0;  // for which products are laid out; 0 for all
  std::mutex mutex_;
  std::map<Shape, Plan> plans_;
};

void multiply(const Shape& shape,
              const TensorView& a,
              const TensorView& b,
              const TensorView& c,
              Stream stream) {
  if (c.num_elements() == 0) {
    return;
  }
  if (shape.k == 0) {  // a sum over nothing, which cuBLASLt does not take
    if (!shape.accumulate) {
      const std::size_t row_bytes = c.bytes() / static_cast<std::size_t>(c.dim(0));
      for (std::int64_t i = 0; i < shape.count; ++i) {
        device_zero(
            static_cast<char*>(c.data) + static_cast<std::size_t>(i * shape.c_step) * row_bytes,
            row_bytes * static_cast<std::size_t>(shape.n),
            stream);
      }
    }
    return;
  }
  CublasLt::instance().multiply(shape, a.data, b.data, c.data, stream);
}

}  // namespace

void matmul_forward(const MatmulForward& op, Stream stream) {
  // y^T [N, T] = weight [N, K] x^T [K, T]; weight is stored as [K, N] column-major.
  multiply({.transpose_a = CUBLAS_OP_T,
            .transpose_b = CUBLAS_OP_N,
            .m = op.y_TN.dim(1),
            .n = op.y_TN.dim(0) - (op.runs.count - 1) * op.runs.written_step,
            .k = op.x_TK.dim(1),
            .in = op.x_TK.dtype,
            .out = op.y_TN.dtype,
            .accumulate = false,
            .count = op.runs.count,
            .b_step = op.runs.read_step,
            .c_step = op.runs.written_step},
           op.weight_NK,
           op.x_TK,
           op.y_TN,
           stream);
}

void matmul_backward(const MatmulBackward& op, Stream stream) {
  if (op.dx_TK.present()) {
    // dx^T [K, T] = weight^T [K, N] dy^T [N, T].
    multiply({.transpose_a = CUBLAS_OP_N,
              .transpose_b = CUBLAS_OP_N,
              .m = op.dx_TK.dim(1),
              .n = op.dx_TK.dim(0) - (op.runs.count - 1) * op.runs.written_step,
              .k = op.dy_TN.dim(1),
              .in = op.dy_TN.dtype,
              .out = op.dx_TK.dtype,
              .accumulate = op.accumulate,
              .count = op.runs.count,
              .b_step = op.runs.read_step,
              .c_step = op.runs.written_step},
             op.weight_NK,
             op.dy_TN,
             op.dx_TK,
             stream);
  }
  if (op.dweight_NK.present()) {
    // dweight^T [K, N] = x^T [K, T] dy [T, N]; dy is stored as [N, T] column-major.
    multiply({.transpose_a = CUBLAS_OP_N,
              .transpose_b = CUBLAS_OP_T,
              .m = op.dweight_NK.dim(1),
              .n = op.dweight_NK.dim(0),
              .k = op.dy_TN.dim(0),
              .in = op.dy_TN.dtype,
              .out = op.dweight_NK.dtype,
              .accumulate = op.weight_gradient == WeightGradient::add},
             op.x_TK,
             op.dy_TN,
             op.dweight_NK,
             stream);
  }
}

std::string matmul_library() {
  const std::size_t version = cublas_lt().version();  // 120804 is 12.8.4
  return "cuBLASLt " + std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) +
         "." + std::to_string(version % 100) + " on " + device_info(Device::cuda).name;
}

void open_matmul_library(std::int64_t held_multiprocessors) {
  CublasLt::instance().hold(held_multiprocessors);
}

std::vector<std::string> matmul_choices() {
  return CublasLt::instance().choices();
}

}  // namespace memphis::kernels::cuda
