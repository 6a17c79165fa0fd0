// SPDX-License-Identifier: Apache-2.0
#include "csrc/checkpoint/npy.h"

#include <csignal>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <sys/resource.h>

#include "csrc/core/error.h"
#include "tests/checkpoint/source.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_directory.h"

namespace memphis {
namespace {

namespace fs = std::filesystem;
using test::ramp;
using test::TemporaryDirectory;

void write_npy(const fs::path& path,
               const std::vector<std::int64_t>& dims,
               const std::vector<float>& values) {
  NpyWriter writer(path, dims);
  for (const float value : values) {
    writer.write({&value, 1});
  }
  writer.close();
}

// What numpy.save writes of numpy.array([[1], [2]], dtype=numpy.float32).
const std::string kFromNumpy = std::string("\x93NUMPY\x01\x00\x76\x00", 10) +
                               "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }" +
                               std::string(58, ' ') + "\n" +
                               std::string("\x00\x00\x80\x3F\x00\x00\x00\x40", 8);

TEST(Npy, WritesTheBytesOfNumpy) {
  const TemporaryDirectory directory;
  write_npy(directory.path() / "x.npy", {2, 1}, {1.0F, 2.0F});
  EXPECT_EQ(read_text(directory.path() / "x.npy"), kFromNumpy);
}

TEST(Npy, SpellsTheShapeOfOneDimAsATuple) {
  const TemporaryDirectory directory;
  write_npy(directory.path() / "x.npy", {2}, ramp(2));
  EXPECT_NE(read_text(directory.path() / "x.npy").find("'shape': (2,), }"), std::string::npos);
}

TEST(Npy, RoundTripsEveryNumberOfDims) {
  const TemporaryDirectory directory;
  const fs::path path = directory.path() / "x.npy";
  const std::vector<std::vector<std::int64_t>> shapes{
      {}, {5}, {0}, {2, 3}, {3, 0, 2}, {1, 2, 3, 4, 5}};
  for (const auto& dims : shapes) {
    std::size_t count = 1;
    for (const std::int64_t dim : dims) {
      count *= static_cast<std::size_t>(dim);
    }
    write_npy(path, dims, ramp(count));
    const NpyArray array = read_npy(path);
    EXPECT_EQ(array.dims, dims);
    EXPECT_EQ(array.values, ramp(count));
    EXPECT_EQ((fs::file_size(path) - count * sizeof(float)) % 64, 0U);
  }
}

TEST(Npy, AnArrayThatIsNotClosedLeavesTheOldOne) {
  const TemporaryDirectory directory;
  const fs::path path = directory.path() / "x.npy";
  write_npy(path, std::vector<std::int64_t>{1}, {7.0F});
  {
    NpyWriter writer(path, std::vector<std::int64_t>{2});
    writer.write(ramp(1));
    EXPECT_THROW(writer.close(), ContractError);
    EXPECT_THROW(writer.write(ramp(2)), ContractError);
  }
  EXPECT_EQ(read_npy(path).values, std::vector<float>{7.0F});
  EXPECT_EQ(std::distance(fs::directory_iterator(directory.path()), fs::directory_iterator()), 1);
}

// Before there is a writer whose end could tidy up.
TEST(Npy, AHeaderThatCannotBeWrittenLeavesNothing) {
  const TemporaryDirectory directory;
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit none{.rlim_cur = 0, .rlim_max = before.rlim_max};
  auto* const handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &none), 0);
  EXPECT_THROW(NpyWriter(directory.path() / "x.npy", std::vector<std::int64_t>{2}),
               CheckpointError);
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_TRUE(fs::is_empty(directory.path()));
}

TEST(Npy, RefusesOtherArrays) {
  const TemporaryDirectory directory;
  const auto replaced = [](const std::string& from, const std::string& to) {
    std::string text = kFromNumpy;
    return text.replace(text.find(from), from.size(), to);
  };
  const std::vector<std::pair<std::string, const char*>> cases{
      {"", "it does not begin as one"},
      {kFromNumpy.substr(0, 9), "it does not begin as one"},
      {replaced("\x01", "\x02"), "it does not begin as one"},
      {kFromNumpy.substr(0, 100), "its header is truncated"},
      {kFromNumpy.substr(0, kFromNumpy.size() - 1), "it has 7 bytes of values for 2 values"},
      {kFromNumpy + "1234", "it has 12 bytes of values for 2 values"},
      {replaced("<f4", "<f8"), "its header is of another array type"},
      {replaced("False", "True "), "its header is of another array type"},
      {replaced("(2, 1)", "(-2,1)"), "its shape is not a list of sizes"},
      {replaced("(2, 1), }" + std::string(25, ' '), "(2, 1, 4294967296, 4294967296), }"),
       "its shape is not a list of sizes"},
  };
  for (const auto& [content, problem] : cases) {
    const std::string path = directory.write("x.npy", content);
    const std::string text = test::error_text<DataError>([&] { read_npy(path); });
    EXPECT_TRUE(text.starts_with(path + ": " + problem)) << text;
    EXPECT_TRUE(test::follows_grammar(text));
  }
}

}  // namespace
}  // namespace memphis
