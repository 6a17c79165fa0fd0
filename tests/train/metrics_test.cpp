// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/metrics.h"

#include <optional>
#include <string>

#include <gtest/gtest.h>

#include "csrc/core/device.h"
#include "csrc/core/file.h"
#include "csrc/plan/flops.h"
#include "tests/support/temporary_directory.h"

namespace memphis::test {
namespace {

TEST(MetricsFile, DropsWhatWillBeWrittenAgainAndATornLine) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("metrics.jsonl",
                                           "{\"step\":19,\"loss\":2.0}\n"
                                           "{\"step\":20,\"loss\":1.5}\n"
                                           "{\"step\":20,\"validation_loss\":1.6}\n"
                                           "{\"step\":21,\"loss\":1.4}\n"
                                           "{\"step\":22,\"lo");
  {
    MetricsFile metrics(path, 20);
    metrics.write_sample(21, "a \xff b");
  }
  EXPECT_EQ(read_text(path),
            "{\"step\":19,\"loss\":2.0}\n"
            "{\"step\":20,\"loss\":1.5}\n"
            "{\"step\":20,\"validation_loss\":1.6}\n"
            "{\"step\":21,\"sample\":\"a \xef\xbf\xbd b\"}\n");
}

// Utilisation is of all GPUs: tokens and their FLOPs are the job's.
TEST(PeakFlops, AreThoseOfAllRanks) {
  EXPECT_FALSE(peak_flops_per_second(Device::cpu, 4).has_value());
  if (!device_available(Device::cuda)) {
    GTEST_SKIP() << device_unavailable_reason();
  }
  const std::optional<double> one = peak_flops_per_second(Device::cuda, 1);
  if (!one) {
    GTEST_SKIP() << "the peak of this GPU is not known";
  }
  EXPECT_EQ(peak_flops_per_second(Device::cuda, 4), 4 * *one);
  const ModelFlops flops{.halved = *one / 8, .unhalved = *one / 4};
  MetricsFile::StepRecord record;
  record.result.tokens = 16;
  EXPECT_NE(progress_line(record, 10, 1.0, flops, peak_flops_per_second(Device::cuda, 4))
                .find("MFU 50.0% (100.0% un-halved)"),
            std::string::npos);
}

}  // namespace
}  // namespace memphis::test
