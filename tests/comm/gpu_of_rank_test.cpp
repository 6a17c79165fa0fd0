// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/gpu_of_rank.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "tests/support/error_text.h"

namespace memphis {
namespace {

TEST(GpuOfRank, IsThatOfItsPlaceOnTheMachine) {
  EXPECT_EQ(gpu_of_rank(0, 1, false), 0);
  EXPECT_EQ(gpu_of_rank(7, 8, false), 7);
}

TEST(GpuOfRank, IsTheOnlyOneThatTheLauncherShows) {
  EXPECT_EQ(gpu_of_rank(3, 1, false), 0);
}

TEST(GpuOfRank, MayBeSharedForTests) {
  EXPECT_EQ(gpu_of_rank(3, 1, true), 0);
  EXPECT_EQ(gpu_of_rank(5, 2, true), 1);
}

TEST(GpuOfRank, IsRefusedWhereThereAreTooFew) {
  const std::string text = test::error_text<PreflightError>([] { gpu_of_rank(4, 4, false); });
  EXPECT_TRUE(test::follows_grammar(text));
  EXPECT_NE(text.find("number 4 of its machine"), std::string::npos) << text;
  EXPECT_NE(text.find("sees 4 GPUs"), std::string::npos) << text;
  EXPECT_NE(text.find("--ntasks-per-node=4"), std::string::npos) << text;
}

GpuClaim claim(std::int64_t local_rank, std::int64_t num_gpus, std::int64_t gpu) {
  return {.on_gpu = 1,
          .num_gpus = num_gpus,
          .local_rank = local_rank,
          .may_share = 0,
          .identity = {gpu, 1}};
}

TEST(GpuClaims, OfRanksWithTheirOwnAreGood) {
  check_claims(std::vector<GpuClaim>{claim(0, 2, 10), claim(1, 2, 11), claim(0, 1, 12)});
  check_claims(std::vector<GpuClaim>(3));  // no rank is on a GPU
}

TEST(GpuClaims, ToTheSameGpuAreRefused) {
  const std::vector<GpuClaim> claims{
      claim(0, 1, 10), claim(0, 1, 11), claim(1, 1, 10), claim(2, 1, 10)};
  const std::string text = test::error_text<PreflightError>([&] { check_claims(claims); });
  EXPECT_TRUE(test::follows_grammar(text));
  EXPECT_EQ(text.rfind("3 ranks, 0 and 2 among them, have the same GPU", 0), 0U) << text;
  EXPECT_NE(text.find("rank 2 sees 1)"), std::string::npos) << text;
}

TEST(GpuClaims, ToTheSameGpuAreGoodWhereRanksMayShare) {
  std::vector<GpuClaim> claims{claim(0, 1, 10), claim(1, 1, 10)};
  for (GpuClaim& each : claims) {
    each.may_share = 1;
  }
  check_claims(claims);
}

// A machine whose GPU is broken, and device: auto.
TEST(GpuClaims, OfSomeRanksAloneAreRefused) {
  std::vector<GpuClaim> claims{claim(0, 1, 10), {}, claim(0, 1, 12)};
  std::string text = test::error_text<PreflightError>([&] { check_claims(claims); });
  EXPECT_TRUE(test::follows_grammar(text));
  EXPECT_EQ(text.rfind("rank 0 is on a GPU and rank 1 is not", 0), 0U) << text;
  std::swap(claims[0], claims[1]);
  text = test::error_text<PreflightError>([&] { check_claims(claims); });
  EXPECT_EQ(text.rfind("rank 1 is on a GPU and rank 0 is not", 0), 0U) << text;
}

}  // namespace
}  // namespace memphis
