// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/metrics.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <filesystem>
#include <limits>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include "csrc/core/device.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "csrc/plan/flops.h"
#include "csrc/train/metric_keys.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_directory.h"

namespace {

// Of a disk without room: the error of each write, behind so many bytes more; 0: it has room.
int g_no_room = 0;
std::size_t g_bytes_left = 0;

}  // namespace

// Takes the place of the system's in this program, and calls it.
extern "C" ssize_t write(int descriptor, const void* bytes, std::size_t count) {
  static auto* const real =
      reinterpret_cast<ssize_t (*)(int, const void*, std::size_t)>(::dlsym(RTLD_NEXT, "write"));
  if (g_no_room != 0 && descriptor > STDERR_FILENO) {
    if (g_bytes_left == 0) {
      errno = g_no_room;
      return -1;
    }
    count = std::min(count, g_bytes_left);
    g_bytes_left -= count;
  }
  return real(descriptor, bytes, count);
}

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
  const std::string kept =
      "{\"step\":19,\"loss\":2.0}\n"
      "{\"step\":20,\"loss\":1.5}\n"
      "{\"step\":20,\"validation_loss\":1.6}\n";
  const std::string text = read_text(path);
  EXPECT_EQ(text.substr(0, kept.size()), kept);
  const auto written = parse_json(text.substr(kept.size())).value();
  EXPECT_EQ(written.at("step"), 21);
  EXPECT_EQ(written.at("sample"), "a \xef\xbf\xbd b");
}

// A step of another type is none, as one that is missing.
TEST(MetricsFile, ReadsLinesOfAnyTypes) {
  const TemporaryDirectory directory;
  const std::string lines =
      "{\"step\":[]}\n{\"step\":\"x\",\"loss\":1}\n{\"step\":{}}\n{\"step\":null}\n";
  const std::string path = directory.write("metrics.jsonl", lines + "{\"step\":21,\"loss\":1}\n");
  EXPECT_TRUE(lines_of_step(path, 21).step);
  { const MetricsFile metrics(path, 20); }
  EXPECT_EQ(read_text(path), lines);
}

// Each kind of line has the keys that are documented, in their order, and no other.
TEST(MetricsFile, WritesTheKeysThatAreDocumented) {
  const TemporaryDirectory directory;
  const std::filesystem::path path = directory.path() / "metrics.jsonl";
  {
    MetricsFile metrics(path, 0);
    MetricsFile::StepRecord record;
    record.step = 1;
    record.seconds = 1;
    record.result.communication.emplace();
    record.result.context_imbalance = 1.02;
    record.result.skipped = true;
    metrics.write_step(record);
    MetricsFile::StartRecord start;
    start.peak_flops_per_second = 1e12;
    metrics.write_start(start);
    Routing routing;
    routing.num_experts = 2;
    routing.load_LE = {1, 1};
    metrics.write_routing(1, routing, {});
    metrics.write_gpus(1, {}, 0);
    metrics.write_validation(1, "held", 2.0, 3, 4.0);
    metrics.write_sample(1, "text");
    metrics.write_end(1, true, "done");
  }
  std::map<std::string_view, std::vector<std::string>> documented;
  for (const MetricKey& key : metric_keys()) {
    documented[key.line].emplace_back(key.key);
    EXPECT_FALSE(key.meaning.empty()) << key.key;
  }
  std::istringstream lines(read_text(path));
  for (const char* kind : {"step", "start", "routing", "gpus", "validation", "sample", "end"}) {
    std::string line;
    ASSERT_TRUE(std::getline(lines, line)) << kind;
    std::vector<std::string> keys;
    const auto object = nlohmann::ordered_json::parse(line);
    for (const auto& [key, value] : object.items()) {
      keys.push_back(key);
      if (key == "time") {
        std::string form = value.get<std::string>();
        std::replace_if(
            form.begin(), form.end(), [](unsigned char c) { return std::isdigit(c) != 0; }, '0');
        EXPECT_EQ(form, "0000-00-00T00:00:00.000Z") << value;
      }
    }
    EXPECT_EQ(keys, documented[kind]) << line;
  }
}

// What is done again is counted, and that there were starts and ends stays.
TEST(MetricsFile, RemembersThatARunWasRestarted) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("metrics.jsonl",
                                           "{\"step\":0,\"steps_again\":0}\n"
                                           "{\"step\":1,\"loss\":2.0}\n"
                                           "{\"step\":2,\"loss\":1.5}\n"
                                           "{\"step\":3,\"loss\":1.4}\n"
                                           "{\"step\":3,\"validation_loss\":1.4}\n"
                                           "{\"step\":3,\"end\":\"stopped\",\"done\":false}\n");
  {
    MetricsFile metrics(path, 1);
    MetricsFile::StartRecord start;
    start.step = 1;
    metrics.write_start(start);
  }
  std::istringstream lines(read_text(path));
  std::vector<nlohmann::json> objects;
  for (std::string line; std::getline(lines, line);) {
    objects.push_back(parse_json(line).value());
  }
  ASSERT_EQ(objects.size(), 4U);
  EXPECT_EQ(objects[2].at("end"), "stopped");
  EXPECT_EQ(objects[3].at("steps_again"), 2);
}

// JSON has no word for what is no number, and readers of the file know none.
TEST(MetricsFile, LeavesOutWhatOfASkippedStepIsNoNumber) {
  const TemporaryDirectory directory;
  const std::filesystem::path path = directory.path() / "metrics.jsonl";
  {
    MetricsFile metrics(path, 0);
    MetricsFile::StepRecord record;
    record.step = 1;
    record.seconds = 1;
    record.result.loss = std::numeric_limits<double>::quiet_NaN();
    record.result.balance = 1.5;
    record.result.grad_norm = std::numeric_limits<double>::infinity();
    record.result.skipped = true;
    metrics.write_step(record);
  }
  const auto line = parse_json(read_text(path)).value();
  EXPECT_EQ(line.at("skipped"), true);
  EXPECT_EQ(line.at("balance_loss"), 1.5);
  EXPECT_FALSE(line.contains("loss"));
  EXPECT_FALSE(line.contains("grad_norm"));
}

TEST(RouterWatch, NamesALayerThatCollapsesAndOneThatComesBack) {
  RouterWatch watch(2, 8, 2);
  EXPECT_EQ(watch.limit(), 3.5);
  Routing routing;
  routing.effective_experts = {7.5, 3.4};
  EXPECT_TRUE(watch.observe(routing).empty());
  EXPECT_TRUE(watch.observe(routing).empty());
  const auto news = watch.observe(routing);
  ASSERT_EQ(news.size(), 1U);
  EXPECT_EQ(news[0].layer, 1);
  EXPECT_TRUE(news[0].collapsed);
  EXPECT_TRUE(watch.observe(routing).empty()) << "said once";
  routing.effective_experts[1] = 3.5;
  const auto back = watch.observe(routing);
  ASSERT_EQ(back.size(), 1U);
  EXPECT_FALSE(back[0].collapsed);
  routing.effective_experts[1] = 3.4;
  EXPECT_TRUE(watch.observe(routing).empty()) << "counted anew";
}

TEST(RouterWatch, CountsExpertsByTheEvennessOfTheirLoad) {
  const std::vector<std::int64_t> even = {5, 5, 5, 5};
  const std::vector<std::int64_t> two = {0, 8, 8, 0};
  const std::vector<std::int64_t> none = {0, 0, 0, 0};
  EXPECT_DOUBLE_EQ(effective_number(even.data(), 4), 4);
  EXPECT_DOUBLE_EQ(effective_number(two.data(), 4), 2);
  EXPECT_EQ(effective_number(none.data(), 4), 0);
}

TEST(MetricsFile, TellsWhatItHasOfAStep) {
  const TemporaryDirectory directory;
  const std::string path = directory.write("metrics.jsonl",
                                           "{\"step\":20,\"loss\":1.5}\n"
                                           "{\"step\":20,\"validation_loss\":1.6}\n"
                                           "{\"step\":21,\"loss\":1.4}\n"
                                           "{\"step\":21,\"sample\":\"x\"}\n"
                                           "{\"step\":22,\"lo");
  const StepLines twenty = lines_of_step(path, 20);
  EXPECT_TRUE(twenty.step && twenty.validation && !twenty.sample);
  const StepLines next = lines_of_step(path, 21);
  EXPECT_TRUE(next.step && !next.validation && next.sample);
  EXPECT_FALSE(lines_of_step(path, 22).step) << "it is cut short";
  EXPECT_FALSE(lines_of_step(path + ".missing", 20).step);
}

// No file of this process may grow beyond it, as with a disk that is full there.
class LimitOfFiles {
 public:
  explicit LimitOfFiles(rlim_t bytes) : before_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &limit_);
    const rlimit lower{bytes, limit_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &lower);
  }
  ~LimitOfFiles() {
    setrlimit(RLIMIT_FSIZE, &limit_);
    std::signal(SIGXFSZ, before_);
  }
  LimitOfFiles(const LimitOfFiles&) = delete;
  LimitOfFiles& operator=(const LimitOfFiles&) = delete;

 private:
  rlimit limit_{};
  void (*before_)(int);
};

class NoRoom {
 public:
  NoRoom(int error, std::size_t bytes_left) {
    g_no_room = error;
    g_bytes_left = bytes_left;
  }
  ~NoRoom() { g_no_room = 0; }
  NoRoom(const NoRoom&) = delete;
  NoRoom& operator=(const NoRoom&) = delete;
};

TEST(Report, KeepsWhatIsWrongAndHalfOfNoLine) {
  const TemporaryDirectory directory;
  const std::filesystem::path path = directory.path() / "metrics.jsonl";
  Report report;
  report.open(path, 0);
  report.write([](MetricsFile& metrics) { metrics.write_sample(1, "first"); });
  const std::string whole = read_text(path);
  {
    const LimitOfFiles limit(whole.size() + 10);
    report.write([](MetricsFile& metrics) { metrics.write_sample(2, "does not fit"); });
  }
  EXPECT_TRUE(report.failed());
  report.write([](MetricsFile&) { ADD_FAILURE() << "one line is missing already"; });
  EXPECT_EQ(read_text(path), whole);
  try {
    report.rethrow();
    ADD_FAILURE() << "threw nothing";
  } catch (const PreflightError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("metrics.jsonl (File too large)"), std::string::npos) << text;
    EXPECT_NE(text.find("ulimit -f"), std::string::npos) << text;
  }
}

// A disk may be full for as long as a save may fail: what belongs in the file waits in memory, and
// comes there whole and in order.
TEST(Report, KeepsLinesUntilThereIsRoom) {
  for (const int error : {ENOSPC, EDQUOT}) {
    const TemporaryDirectory directory;
    const std::filesystem::path path = directory.path() / "metrics.jsonl";
    Report report;
    report.open(path, 0, RecordFile::WithoutRoom::is_kept);
    const auto write = [&](std::int64_t step, const std::string& text) {
      report.write([&](MetricsFile& metrics) { metrics.write_sample(step, text); });
    };
    write(1, "first");
    {
      const NoRoom no_room(error, 7);  // bytes, which a line is not
      write(2, "second");
      write(3, "third");
      EXPECT_FALSE(report.failed());
    }
    const std::string whole = read_text(path);
    EXPECT_EQ(std::count(whole.begin(), whole.end(), '\n'), 1) << whole;
    write(4, "fourth");
    EXPECT_FALSE(report.failed());
    std::istringstream lines(read_text(path));
    std::int64_t step = 0;
    for (std::string line; std::getline(lines, line);) {
      EXPECT_EQ(nlohmann::json::parse(line).at("step"), ++step) << line;
    }
    EXPECT_EQ(step, 4);
  }
}

TEST(Report, LeavesOutWhatMemoryIsNotSparedFor) {
  const TemporaryDirectory directory;
  const std::filesystem::path path = directory.path() / "metrics.jsonl";
  Report report;
  report.open(path, 0, RecordFile::WithoutRoom::is_kept);
  const std::string text(RecordFile::kMostKept / 3, 'x');
  const auto write = [&](std::int64_t step) {
    report.write([&](MetricsFile& metrics) { metrics.write_sample(step, text); });
  };
  {
    const NoRoom no_room(ENOSPC, 0);
    for (std::int64_t step = 1; step <= 5; ++step) {
      write(step);
    }
  }
  EXPECT_FALSE(report.failed());
  write(6);
  std::istringstream lines(read_text(path));
  std::vector<std::int64_t> steps;
  for (std::string line; std::getline(lines, line);) {
    steps.push_back(nlohmann::json::parse(line).at("step").get<std::int64_t>());
  }
  EXPECT_EQ(steps, (std::vector<std::int64_t>{1, 2, 6}));
}

// At the end nothing is waited for; and where a save may not fail, a line may not either.
TEST(Report, SaysWhatIsMissingForWantOfRoom) {
  const TemporaryDirectory directory;
  const std::filesystem::path path = directory.path() / "metrics.jsonl";
  for (const auto without_room :
       {RecordFile::WithoutRoom::is_kept, RecordFile::WithoutRoom::fails}) {
    Report report;
    report.open(path, 0, without_room);
    const NoRoom no_room(ENOSPC, 0);
    report.write([](MetricsFile& metrics) {
      metrics.write_end(1, true, "done");
      metrics.require_written();
    });
    ASSERT_TRUE(report.failed());
    const std::string text = error_text<PreflightError>([&] { report.rethrow(); });
    EXPECT_NE(text.find("metrics.jsonl (No space left on device)"), std::string::npos) << text;
  }
}

// Of a run whose directory is another's by now nothing is written.
TEST(Report, WritesNothingWhereItsCheckThrows) {
  const TemporaryDirectory directory;
  const std::filesystem::path path = directory.path() / "metrics.jsonl";
  Report report;
  report.open(
      path, 0, RecordFile::WithoutRoom::fails, [] { throw PreflightError("it is another's"); });
  report.write([](MetricsFile& metrics) { metrics.write_sample(1, "text"); });
  EXPECT_TRUE(report.failed());
  EXPECT_EQ(read_text(path), "");
}

TEST(Report, IsNothingOnTheOtherRanks) {
  Report report;
  report.write([](MetricsFile&) { ADD_FAILURE() << "it was not opened"; });
  EXPECT_FALSE(report.failed());
  report.rethrow();
}

// What is left of the run, at the rate that is shown.
TEST(ProgressLine, ShowsWhatTheStepDidAndWhatIsLeft) {
  MetricsFile::StepRecord record;
  record.step = 70;
  record.result.loss = 1.83421;
  record.result.grad_norm = 0.71;
  record.result.expert_load_max = 1.24;
  record.result.tokens = 6000;
  record.learning_rate = 3.1e-3;
  const ModelFlops flops{.halved = 1e6, .unhalved = 2e6};
  const auto line = [&](std::int64_t last_step) {
    return progress_line(record, last_step, 0.5, flops, std::nullopt);
  };
  EXPECT_EQ(line(320),
            "step 70/320  loss 1.8342  grad 0.710  lr 3.10e-03  busiest expert 1.24x  12000 tok/s  "
            "12.0 GFLOP/s  eta 2m05s");
  const std::vector<std::pair<std::int64_t, std::string>> left = {{70, "0s"},
                                                                  {188, "59s"},
                                                                  {190, "1m00s"},
                                                                  {70 + 2 * 3599, "59m59s"},
                                                                  {70 + 2 * 3600, "1h00m"},
                                                                  {70 + 2 * 90061, "1d01h"}};
  for (const auto& [last_step, text] : left) {
    EXPECT_TRUE(line(last_step).ends_with("eta " + text)) << line(last_step);
  }
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
