// SPDX-License-Identifier: Apache-2.0
//
// Gradients are the same bits in whatever order blocks, warps and lanes run.
#include <cstddef>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "bench/attention/attention_cases.h"
#include "kernels/attention/attention.h"
#include "kernels/device/simt/options.h"
#include "tests/kernels/attention/attention_naive.h"
#include "tests/support/test_tensor.h"

namespace memphis::kernels {
namespace {

using test::AttentionCase;
using test::TestTensor;

class AttentionOrder : public testing::TestWithParam<AttentionCase> {
 protected:
  void TearDown() override { simt::options() = before_; }

 private:
  simt::Options before_ = simt::options();
};

TEST_P(AttentionOrder, GradientsAreTheSameBits) {
  const AttentionCase& c = GetParam();
  constexpr Device kDevice = Device::cuda;
  constexpr DType kDType = DType::bf16;
  const OwnedStream stream(kDevice);
  const TestTensor qkv({{c.T(), c.C(), c.H}, kDType}, kDevice, c.qkv());
  const TestTensor dout({{c.T(), c.N, c.H}, kDType}, kDevice, c.dout());
  const TestTensor position({{c.T()}, DType::i32}, kDevice, c.positions());
  const TestTensor out({{c.T(), c.N, c.H}, kDType}, kDevice);
  const TestTensor lse({{c.B, c.N, c.S}, DType::f32}, kDevice);
  const TestTensor delta({{c.B, c.N, c.S}, DType::f32}, kDevice);
  attention_forward({.out_TNH = out,
                     .lse_BNS = lse,
                     .q_TNH = c.queries(qkv),
                     .k_UGH = c.keys(qkv),
                     .v_UGH = c.values(qkv),
                     .position_T = position,
                     .score = c.score()},
                    stream.view());
  const auto gradients = [&] {
    const TestTensor dqkv({{c.T(), c.C(), c.H}, kDType}, kDevice);
    AttentionBackward op = {.dq_TNH = c.queries(dqkv),
                            .dk_UGH = c.keys(dqkv),
                            .dv_UGH = c.values(dqkv),
                            .dout_TNH = dout,
                            .out_TNH = out,
                            .lse_BNS = lse,
                            .q_TNH = c.queries(qkv),
                            .k_UGH = c.keys(qkv),
                            .v_UGH = c.values(qkv),
                            .position_T = position,
                            .delta_BNS = delta,
                            .score = c.score()};
    const TestTensor workspace = test::attention_workspace(op, kDevice);
    op.workspace_W = workspace;
    attention_backward(op, stream.view());
    return dqkv.bytes(stream.view());
  };
  simt::options().seed = 0;
  simt::options().num_blocks = 1;
  const std::vector<std::byte> expected = gradients();
  for (const std::uint64_t seed : {1, 2}) {
    for (const int num_blocks : {1, 2}) {
      simt::options().seed = seed;
      simt::options().num_blocks = num_blocks;
      EXPECT_EQ(gradients(), expected) << "seed " << seed << ", " << num_blocks << " in flight";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    All,
    AttentionOrder,
    testing::Values(
        AttentionCase{.name = "portable", .B = 1, .S = 70, .N = 2, .G = 1, .H = 16},
        // Several tiles of keys add to dq, and nothing else is shared.
        AttentionCase{.name = "key_tiles", .B = 1, .S = 300, .N = 1, .G = 1, .H = 128},
        // Slices of a tile of keys add to dk and dv as well.
        AttentionCase{.name = "slices", .B = 1, .S = 140, .N = 6, .G = 1, .H = 128},
        AttentionCase{
            .name = "documents", .B = 2, .S = 270, .N = 2, .G = 1, .H = 128, .document = 100}),
    [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace memphis::kernels
