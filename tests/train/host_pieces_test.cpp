// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/host_pieces.h"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "bench/filled_tensor.h"
#include "tests/support/on_devices.h"

namespace memphis {
namespace {

// Tensors whose elements are in no piece twice and of which the last piece has fewer.
constexpr std::int64_t kNumElements = 1000;
constexpr std::size_t kPieceBytes = 200;
constexpr std::size_t kGrain = 64;

class HostPiecesTest : public test::OnDevices {
 protected:
  static bench::FilledTensor tensor(DType dtype, const char* name) {
    return {{{kNumElements}, dtype}, GetParam(), bench::random_normal(kNumElements, name)};
  }
  // Of a tensor in pieces of so many bytes; the CPU's is in one.
  static std::vector<std::size_t> sizes(std::size_t whole, std::size_t piece) {
    if (GetParam() == Device::cpu) {
      return {whole};
    }
    std::vector<std::size_t> expected(whole / piece, piece);
    expected.push_back(whole % piece);
    return expected;
  }
  HostPieces pieces() const {
    return {GetParam(), GetParam() == Device::cpu ? 0 : 2 * kPieceBytes, kGrain};
  }
};

INSTANTIATE_TEST_SUITE_P(,
                         HostPiecesTest,
                         testing::Values(Device::cpu, Device::cuda),
                         test::name_of_device);

// What a visit saw, front to back.
struct Seen {
  std::vector<std::byte> bytes;
  std::vector<std::size_t> sizes;

  void add(std::span<const std::byte> piece) {
    bytes.insert(bytes.end(), piece.begin(), piece.end());
    sizes.push_back(piece.size());
  }
};

TEST_P(HostPiecesTest, AreTheTensorFrontToBack) {
  const OwnedStream stream(GetParam());
  const bench::FilledTensor filled = tensor(DType::bf16, "pieces");
  const std::uint64_t pinned_before = pinned_bytes();
  HostPieces pieces = this->pieces();
  const std::uint64_t pinned = pinned_bytes();
  EXPECT_EQ(pinned - pinned_before, GetParam() == Device::cpu ? 0 : 2 * kPieceBytes);
  for (int repeat = 0; repeat < 2; ++repeat) {
    Seen seen;
    pieces.for_each(filled.view(), [&](std::span<const std::byte> piece) { seen.add(piece); });
    EXPECT_EQ(seen.bytes, filled.bytes(stream.view()));
    EXPECT_EQ(seen.sizes, sizes(filled.view().bytes(), 192));
  }
  EXPECT_EQ(pinned_bytes(), pinned) << "nothing is allocated later";
}

// A piece holds both: 128 bytes of the first tensor leave room for 64 of the one that is half as
// wide.
TEST_P(HostPiecesTest, OfTwoTensorsHaveTheSameElements) {
  const OwnedStream stream(GetParam());
  const bench::FilledTensor wide = tensor(DType::f32, "wide");
  const bench::FilledTensor narrow = tensor(DType::bf16, "narrow");
  HostPieces pieces = this->pieces();
  Seen first;
  Seen second;
  pieces.for_each_beside(wide.view(),
                         narrow.view(),
                         [&](std::span<const std::byte> piece, std::span<const std::byte> beside) {
                           first.add(piece);
                           second.add(beside);
                         });
  EXPECT_EQ(first.bytes, wide.bytes(stream.view()));
  EXPECT_EQ(second.bytes, narrow.bytes(stream.view()));
  EXPECT_EQ(first.sizes, sizes(wide.view().bytes(), 128));
  EXPECT_EQ(second.sizes, sizes(narrow.view().bytes(), 64));
}

TEST_P(HostPiecesTest, ATensorOfAGpuWantsMemoryToPassThrough) {
  if (GetParam() == Device::cpu) {
    GTEST_SKIP() << "the CPU's are read where they lie";
  }
  const bench::FilledTensor filled({{8}, DType::f32}, GetParam());
  HostPieces none(GetParam(), 0, kGrain);
  EXPECT_THROW(none.for_each(filled.view(), [](std::span<const std::byte>) {}), ContractError);
}

}  // namespace
}  // namespace memphis
