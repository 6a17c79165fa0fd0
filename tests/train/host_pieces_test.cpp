// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/host_pieces.h"

#include <cstddef>
#include <vector>

#include <gtest/gtest.h>

#include "bench/filled_tensor.h"
#include "tests/support/on_devices.h"

namespace memphis {
namespace {

// A tensor whose elements, bf16, are in no piece twice and of which the last piece has fewer.
constexpr std::int64_t kNumElements = 1000;
constexpr std::size_t kPieceBytes = 192;

class HostPiecesTest : public test::OnDevices {};

INSTANTIATE_TEST_SUITE_P(,
                         HostPiecesTest,
                         testing::Values(Device::cpu, Device::cuda),
                         test::name_of_device);

TEST_P(HostPiecesTest, AreTheTensorFrontToBack) {
  const bench::FilledTensor tensor(
      {{kNumElements}, DType::bf16}, GetParam(), bench::random_normal(kNumElements, "pieces"));
  const OwnedStream stream(GetParam());
  const std::uint64_t pinned_before = pinned_bytes();
  HostPieces pieces(stream.view(), GetParam() == Device::cpu ? 0 : kPieceBytes);
  const std::uint64_t pinned = pinned_bytes();
  EXPECT_EQ(pinned - pinned_before, GetParam() == Device::cpu ? 0 : kPieceBytes);
  for (int repeat = 0; repeat < 2; ++repeat) {
    std::vector<std::byte> seen;
    std::vector<std::size_t> sizes;
    pieces.for_each(tensor.view(), [&](std::span<const std::byte> piece) {
      seen.insert(seen.end(), piece.begin(), piece.end());
      sizes.push_back(piece.size());
    });
    EXPECT_EQ(seen, tensor.bytes(stream.view()));
    const std::size_t whole = tensor.view().bytes();
    std::vector<std::size_t> expected = {whole};
    if (GetParam() != Device::cpu) {
      expected.assign(whole / kPieceBytes, kPieceBytes);
      expected.push_back(whole % kPieceBytes);
    }
    EXPECT_EQ(sizes, expected);
  }
  EXPECT_EQ(pinned_bytes(), pinned) << "nothing is allocated later";
}

TEST_P(HostPiecesTest, ATensorOfAGpuWantsMemoryToPassThrough) {
  if (GetParam() == Device::cpu) {
    GTEST_SKIP() << "the CPU's are read where they lie";
  }
  const bench::FilledTensor tensor({{8}, DType::f32}, GetParam());
  const OwnedStream stream(GetParam());
  HostPieces none(stream.view(), 0);
  EXPECT_THROW(none.for_each(tensor.view(), [](std::span<const std::byte>) {}), ContractError);
}

}  // namespace
}  // namespace memphis
