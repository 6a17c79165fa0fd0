// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/arena.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "tests/support/error_text.h"

namespace memphis {
namespace {

const char* address(const TensorView& view) {
  return static_cast<const char*>(view.data);
}

TEST(Arena, HandsOutAlignedZeroedPiecesThatDoNotOverlap) {
  const TensorSpec first_spec({3}, DType::u8);
  const TensorSpec second_spec({65}, DType::f32);
  Arena arena("weights", arena_bytes(first_spec) + arena_bytes(second_spec), Device::cpu);
  const TensorView first = arena.allocate(first_spec);
  const TensorView second = arena.allocate(second_spec);
  for (const TensorView& view : {first, second}) {
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(view.data) % kArenaAlignment, 0U);
    EXPECT_TRUE(std::all_of(
        address(view), address(view) + view.bytes(), [](char byte) { return byte == 0; }));
  }
  EXPECT_GE(address(second), address(first) + first.bytes());
  EXPECT_EQ(arena.used_bytes(), arena.capacity_bytes());
}

TEST(Arena, ExceedingThePlanIsAnErrorWithTheNumbers) {
  Arena arena("gradients", 512, Device::cpu);
  arena.allocate({{300}, DType::u8});
  const std::string text = test::error_text<ContractError>([&] {
    arena.allocate({{1}, DType::u8});
  });
  EXPECT_NE(text.find("gradients of 512 bytes"), std::string::npos) << text;
  EXPECT_NE(text.find("u8[1]"), std::string::npos) << text;
  EXPECT_EQ(arena.used_bytes(), 512U) << "a refused request takes nothing";
}

TEST(Arena, AnAbsentSpecTakesNothing) {
  Arena arena("workspace", 0, Device::cpu);
  EXPECT_FALSE(arena.allocate(TensorSpec()).present());
  EXPECT_TRUE(arena.allocate({{0, 5}, DType::f32}).present()) << "empty is not absent";
  EXPECT_EQ(arena.used_bytes(), 0U);
}

TEST(Arena, IsOneAllocation) {
  const std::uint64_t before = allocation_count();
  Arena arena("activations", 4096, Device::cpu);
  arena.allocate({{16}, DType::f32});
  arena.allocate({{16}, DType::f32});
  EXPECT_EQ(allocation_count(), before + 1);
}

TEST(Arena, ViewsSurviveAMove) {
  Arena arena("weights", 256, Device::cpu);
  const TensorView view = arena.allocate({{4}, DType::f32});
  view.as<float>()[3] = 5.0F;
  Arena moved(std::move(arena));
  EXPECT_EQ(view.as<float>()[3], 5.0F);
  EXPECT_EQ(moved.used_bytes(), 256U);
  EXPECT_EQ(moved.name(), "weights");
}

}  // namespace
}  // namespace memphis
