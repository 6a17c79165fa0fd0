// SPDX-License-Identifier: Apache-2.0
//
// main() of tests that are also run by mpirun: GoogleTest's, with one report and one status for all
// ranks. Rank 0 reports as ever, the others only what fails on them.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/comm/together.h"
#include "csrc/comm/world.h"
#include "tests/support/ranks.h"

namespace memphis::test {
namespace {

class FailuresOfRank final : public testing::EmptyTestEventListener {
 public:
  explicit FailuresOfRank(int rank) : rank_(rank) {}

  // The name is kept: GoogleTest holds a lock where it tells of results, and asking takes it again.
  void OnTestStart(const testing::TestInfo& info) override {
    test_ = std::string(info.test_suite_name()) + "." + info.name();
  }

  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (result.failed()) {
      std::fprintf(stderr,
                   "rank %d: %s: %s:%d: %s\n",
                   rank_,
                   test_.c_str(),
                   result.file_name() != nullptr ? result.file_name() : "",
                   result.line_number(),
                   result.message());
    }
  }

 private:
  int rank_;
  std::string test_;
};

// A report in a folder gets the name of CTest's entry, by which results are counted. Before
// InitGoogleTest, which makes what writes it.
void name_report(const World& world, const std::string& program) {
  std::string& output = testing::GTEST_FLAG(output);
  if (world.size() > 1 && !output.empty() && output.back() == '/') {
    output += std::filesystem::path(program).filename().string() + "_ranks_" +
              std::to_string(world.size()) + ".xml";
  }
}

// After it.
void report_failures_alone(int rank) {
  testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
  delete listeners.Release(listeners.default_result_printer());
  delete listeners.Release(listeners.default_xml_generator());
  listeners.Append(new FailuresOfRank(rank));
}

int worst_of(World& world, int status) {
  std::int32_t worst = status;
  const TensorView view(&worst, {1}, DType::i32, Device::cpu);
  create_group_of_all(world)->run(AllReduce{view, view, Reduce::max}, "test.status", Stream{});
  return worst;
}

}  // namespace
}  // namespace memphis::test

int main(int argc, char** argv) {
  using namespace memphis;
  World* world = nullptr;
  try {
    test::set_process_world(make_world());
    world = &test::process_world();
    test::name_report(*world, argv[0]);
    testing::InitGoogleTest(&argc, argv);
    if (world->rank() != 0) {
      test::report_failures_alone(world->rank());
    }
    const int status = test::worst_of(*world, RUN_ALL_TESTS());
    world->close();
    test::set_process_world(nullptr);
    return status;
  } catch (const FailedElsewhere& error) {
    std::this_thread::sleep_for(std::chrono::seconds(5));  // the rank that knows more ends the job
    return static_cast<int>(error.code());
  } catch (const Error& error) {
    if (world != nullptr && world->size() > 1) {
      world->abort(error.code(), error.what());
    } else {
      std::fprintf(stderr, "error: %s\n", error.what());
    }
    return static_cast<int>(error.code());
  }
}
