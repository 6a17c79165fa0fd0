// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/tensor.h"

#include <numeric>
#include <vector>

#include <gtest/gtest.h>

namespace memphis {
namespace {

TEST(TensorSpec, CountsElementsAndBytes) {
  const TensorSpec spec({2, 3, 5}, DType::bf16);
  EXPECT_EQ(spec.num_elements(), 30);
  EXPECT_EQ(spec.bytes(), 60U);
  EXPECT_EQ(TensorSpec({4, 0}, DType::f32).num_elements(), 0);
  // More elements than 32 bits count.
  EXPECT_EQ(TensorSpec({131072, 65536}, DType::bf16).bytes(), std::size_t{1} << 34U);
}

TEST(TensorSpec, AbsentIsNotEmpty) {
  EXPECT_FALSE(TensorSpec().present());
  EXPECT_EQ(TensorSpec().bytes(), 0U);
  EXPECT_TRUE(TensorSpec({0}, DType::f32).present());
  EXPECT_FALSE(TensorView().present());
}

TEST(TensorSpec, RefusesWhatIsNoShape) {
  EXPECT_THROW(TensorSpec({}, DType::f32), ContractError);
  EXPECT_THROW(TensorSpec({1, 1, 1, 1, 1}, DType::f32), ContractError);
  EXPECT_THROW(TensorSpec({2, -1}, DType::f32), ContractError);
}

class TensorViewTest : public testing::Test {
 protected:
  TensorViewTest() { std::iota(values.begin(), values.end(), 0.0F); }

  std::vector<float> values = std::vector<float>(24);
  TensorView view{values.data(), {4, 3, 2}, DType::f32, Device::cpu};
};

TEST_F(TensorViewTest, RowsAreAWindowOnTheSameElements) {
  const TensorView rows = view.rows(1, 2);
  EXPECT_EQ(rows.as<float>()[0], 6.0F);
  EXPECT_EQ(rows.num_elements(), 12);
  EXPECT_EQ(describe(rows), "f32[2, 3, 2]");
  EXPECT_EQ(view.rows(4, 0).num_elements(), 0);
  EXPECT_EQ(view.rows(1, 3).rows(1, 1).as<float>()[0], 12.0F);
}

TEST_F(TensorViewTest, RowsBeyondTheEndAreRefused) {
  EXPECT_THROW(view.rows(3, 2), ContractError);
  EXPECT_THROW(view.rows(-1, 2), ContractError);
  EXPECT_THROW(view.rows(0, -1), ContractError);
  EXPECT_THROW(TensorView().rows(0, 0), ContractError);
}

TEST_F(TensorViewTest, ReshapeKeepsTheElements) {
  const TensorView flat = view.reshape({12, 2});
  EXPECT_EQ(flat.data, view.data);
  EXPECT_EQ(describe(flat), "f32[12, 2]");
  EXPECT_EQ(flat.dim(0), 12);
  EXPECT_THROW(view.reshape({5, 5}), ContractError);
}

TEST_F(TensorViewTest, IsReadAsItsOwnTypeOnly) {
  EXPECT_EQ(view.as<float>(), values.data());
  EXPECT_THROW(view.as<bf16>(), ContractError);
  EXPECT_THROW(view.as<std::int32_t>(), ContractError);
}

TEST_F(TensorViewTest, SpecAndViewDescribeTheSame) {
  EXPECT_EQ(describe(view.spec()), describe(view));
  EXPECT_EQ(view.bytes(), view.spec().bytes());
  EXPECT_EQ(describe(TensorView()), "absent");
}

}  // namespace
}  // namespace memphis
