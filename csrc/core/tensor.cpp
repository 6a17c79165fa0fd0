// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/tensor.h"

#include <algorithm>

namespace memphis {
namespace {

template <class Shaped>
void set_dims(Shaped& shaped, std::initializer_list<std::int64_t> dims) {
  require(dims.size() >= 1 && dims.size() <= kMaxDims, "a tensor has 1 to 4 dims");
  shaped.num_dims = static_cast<int>(dims.size());
  std::copy(dims.begin(), dims.end(), shaped.dims.begin());
  for (const std::int64_t dim : dims) {
    require(dim >= 0, "a dim of a tensor is not negative");
  }
}

template <class Shaped>
std::int64_t count_elements(const Shaped& shaped) {
  std::int64_t count = shaped.num_dims == 0 ? 0 : 1;
  for (int i = 0; i < shaped.num_dims; ++i) {
    count *= shaped.dims[static_cast<std::size_t>(i)];
  }
  return count;
}

}  // namespace

TensorSpec::TensorSpec(std::initializer_list<std::int64_t> dims_, DType dtype_) : dtype(dtype_) {
  set_dims(*this, dims_);
}

std::int64_t TensorSpec::num_elements() const {
  return count_elements(*this);
}

TensorView::TensorView(void* data_, const TensorSpec& spec, Device device_)
    : data(data_), dims(spec.dims), num_dims(spec.num_dims), dtype(spec.dtype), device(device_) {}

TensorView::TensorView(void* data_,
                       std::initializer_list<std::int64_t> dims_,
                       DType dtype_,
                       Device device_)
    : data(data_), dtype(dtype_), device(device_) {
  set_dims(*this, dims_);
}

std::int64_t TensorView::num_elements() const {
  return count_elements(*this);
}

TensorSpec TensorView::spec() const {
  TensorSpec result;
  result.dims = dims;
  result.num_dims = num_dims;
  result.dtype = dtype;
  return result;
}

TensorView TensorView::rows(std::int64_t begin, std::int64_t count) const {
  require(num_dims >= 1 && begin >= 0 && count >= 0 && begin + count <= dims[0],
          "rows of a tensor lie within its first dim");
  TensorView result = *this;
  const std::int64_t row_elements = dims[0] == 0 ? 0 : num_elements() / dims[0];
  const std::size_t offset_bytes = static_cast<std::size_t>(begin * row_elements) * size_of(dtype);
  result.data = static_cast<char*>(data) + offset_bytes;
  result.dims[0] = count;
  return result;
}

TensorView TensorView::reshape(std::initializer_list<std::int64_t> new_dims) const {
  TensorView result = *this;
  result.dims = {};
  set_dims(result, new_dims);
  require(result.num_elements() == num_elements(), "a reshape keeps the number of elements");
  return result;
}

std::string describe(const TensorSpec& spec) {
  if (!spec.present()) {
    return "absent";
  }
  std::string text = std::string(name_of(spec.dtype)) + "[";
  for (int i = 0; i < spec.num_dims; ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(spec.dims[static_cast<std::size_t>(i)]);
  }
  return text + "]";
}

std::string describe(const TensorView& view) {
  return describe(view.spec());
}

}  // namespace memphis
