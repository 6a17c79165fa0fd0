// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/machine.h"

#include <string>
#include <string_view>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "tests/support/error_text.h"

namespace memphis {
namespace {

using test::error_text;
using test::follows_grammar;

constexpr const char* kFolder = "configs/machines";

std::string shipped(const std::string& name) {
  return read_text(std::string(kFolder) + "/" + name + ".yaml", 1 << 20);
}

std::string with(std::string text, std::string_view from, std::string_view to) {
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(Machine, ShippedFilesAreRead) {
  for (const char* name : {"h100_sxm", "h200_sxm", "h100_500w"}) {
    const Machine machine = load_machine(find_machine(name, {kFolder}));
    EXPECT_EQ(machine.peak_bf16_tflops, 989) << name;
    EXPECT_EQ(machine.node.ranks, 8) << name;
    EXPECT_GT(machine.node.gb_per_second, machine.pod.gb_per_second) << name;
  }
  const Machine h200 = load_machine(find_machine("h200_sxm", {kFolder}));
  EXPECT_NEAR(h200.bytes_per_second(), 4.3e12, 0.03e12);  // as a copy measures
  EXPECT_EQ(load_machine(find_machine("cpu", {kFolder})).peak_bf16_tflops, 0);
  EXPECT_EQ(load_machine(find_machine("configs/machines/cpu.yaml", {})).node.ranks, 8);
}

TEST(Machine, IsPrintedAsItIsRead) {
  for (const char* name : {"h100_sxm", "h100_500w", "cpu"}) {
    Machine machine = load_machine(find_machine(name, {kFolder}));
    machine.measured_gflop = {2, 17};
    machine.measured_per_mille = {810, 1000};
    EXPECT_EQ(parse_machine(to_yaml(machine), "printed"), machine) << name;
  }
}

// Each with its place, and with what to do.
TEST(Machine, RefusesWhatIsNotAMachine) {
  const std::string good = shipped("h100_sxm");
  struct Case {
    std::string text;
    std::string expected;
  };
  for (const Case& tested : {
           Case{with(good, "rank_hours", "rank_hour"), "did you mean rank_hours?"},
           Case{with(good, "power:", "powr:"), "did you mean power?"},
           Case{with(good, "latency_us: 3.4, ", ""), "node.latency_us is missing"},
           Case{with(good, "latency_us: 3.4", "latency_us: -1"), "node.latency_us is -1"},
           Case{with(good, "latency_us: 3.4", "latency_us: 3.4, latency_us: 3"), "is given twice"},
           Case{with(good, "copy_share: 0.9", "copy_share: 1.1"), "memory.copy_share is 1.1"},
           Case{with(good, "large_bf16_tflops: 794.5", "large_bf16_tflops: 1200"),
                "use a value up to 989"},
           Case{with(good, "large_fp8_tflops: 1403", "large_fp8_tflops: 0"),
                "products.large_fp8_tflops is 0"},
           Case{with(good, "pod: {ranks: 512", "pod: {ranks: 12"), "use a multiple of 8"},
           Case{with(good, "multiprocessors: 132", "multiprocessors: 132, measured_gflop: [1, 2]"),
                "give as many of both"},
           Case{with(good,
                     "multiprocessors: 132",
                     "multiprocessors: 132, measured_gflop: [2, 1], measured_per_mille: [1, 2]"),
                "by ascending size"},
           Case{with(good, "idle_watts: 400", "idle_watts: 4000"), "use a value up to 1050"},
           Case{"[1]", "it is a map of keys"},
           Case{"power: 3", "it is a map of keys"},
       }) {
    const std::string text = error_text<ConfigError>([&] { parse_machine(tested.text, "m.yaml"); });
    EXPECT_NE(text.find(tested.expected), std::string::npos) << text;
    EXPECT_TRUE(text.starts_with("m.yaml")) << text;
    EXPECT_TRUE(follows_grammar(text)) << text;
  }
  const std::string no_products =
      with(with(shipped("cpu"), "peak_f32_tflops: 0.4", "peak_f32_tflops: 0"),
           "large_f32_tflops: 0.318",
           "large_f32_tflops: 0");
  EXPECT_NE(error_text<ConfigError>([&] { parse_machine(no_products, "m.yaml"); }).find("give one"),
            std::string::npos);
  EXPECT_TRUE(follows_grammar(error_text<ConfigError>([] { parse_machine("", "m.yaml"); })));
}

TEST(Machine, AnUnknownNameSaysWhichThereAre) {
  const auto text_of = [](const std::string& name) {
    return error_text<ConfigError>([&] { find_machine(name, {kFolder}); });
  };
  EXPECT_NE(text_of("h100_sxn").find("did you mean h100_sxm?"), std::string::npos);
  EXPECT_NE(text_of("gaudi").find("there are cpu, h100_500w, h100_sxm and h200_sxm"),
            std::string::npos);
  EXPECT_NE(text_of("gone/h100_sxm.yaml").find("did you mean h100_sxm?"), std::string::npos);
  EXPECT_TRUE(follows_grammar(text_of("")));
}

}  // namespace
}  // namespace memphis
