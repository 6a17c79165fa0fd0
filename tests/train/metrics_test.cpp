// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/metrics.h"

#include <gtest/gtest.h>

#include "csrc/core/file.h"
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

}  // namespace
}  // namespace memphis::test
