// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/file.h"

#include <atomic>
#include <csignal>
#include <iterator>
#include <string>
#include <string_view>
#include <thread>

#include <gtest/gtest.h>
#include <sys/resource.h>

#include "csrc/core/error.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_directory.h"

namespace memphis {
namespace {

std::size_t count_entries(const std::filesystem::path& directory) {
  const std::filesystem::directory_iterator entries(directory);
  return static_cast<std::size_t>(std::distance(begin(entries), end(entries)));
}

TEST(MappedFile, HasTheBytesOfTheFile) {
  const test::TemporaryDirectory directory;
  const std::string content("a\0b\n", 4);
  const MappedFile file(directory.write("file", content));
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()),
            content);
  EXPECT_EQ(read_text(file.path()), content);
}

TEST(MappedFile, AnEmptyFileIsAnEmptySpan) {
  const test::TemporaryDirectory directory;
  const std::string path = directory.write("empty", "");
  EXPECT_TRUE(MappedFile(path).bytes().empty());
  EXPECT_EQ(read_text(path), "");
}

TEST(MappedFile, AMoveKeepsTheMapping) {
  const test::TemporaryDirectory directory;
  MappedFile file(directory.write("file", "text"));
  const std::byte* data = file.bytes().data();
  const MappedFile moved(std::move(file));
  EXPECT_EQ(moved.bytes().data(), data);
  EXPECT_EQ(moved.bytes()[3], std::byte{'t'});
}

void expect_unreadable(const std::filesystem::path& path, std::string_view reason) {
  const std::string text = test::error_text<DataError>([&] { const MappedFile file(path); });
  EXPECT_TRUE(test::follows_grammar(text));
  EXPECT_NE(text.find(path.string()), std::string::npos) << text;
  EXPECT_NE(text.find(reason), std::string::npos) << text;
}

TEST(MappedFile, SaysWhyItCannotRead) {
  const test::TemporaryDirectory directory;
  expect_unreadable(directory.path(), "it is not a regular file");
  expect_unreadable(directory.path() / "absent", "No such file or directory");
}

TEST(DurableWriter, WritesFrontToBack) {
  const test::TemporaryDirectory directory;
  const std::filesystem::path path = directory.path() / "shard";
  DurableWriter writer(path);
  writer.write("one ");
  writer.write("");
  writer.write(std::as_bytes(std::span<const char>("two", 3)));
  EXPECT_EQ(writer.bytes_written(), 7U);
  writer.close();
  EXPECT_EQ(read_text(path), "one two");
}

TEST(DurableWriter, RefusesAnExistingFileAndLeavesIt) {
  const test::TemporaryDirectory directory;
  const std::string path = directory.write("shard", "kept");
  const std::string text =
      test::error_text<CheckpointError>([&] { const DurableWriter writer(path); });
  EXPECT_TRUE(test::follows_grammar(text));
  EXPECT_NE(text.find("File exists"), std::string::npos) << text;
  EXPECT_EQ(read_text(path), "kept");
}

// A limit on the size of files fails a write half way, as a full disk does.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : signal_before_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{.rlim_cur = bytes, .rlim_max = before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, signal_before_);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  void (*signal_before_)(int);
  rlimit before_{};
};

TEST(DurableWriter, AWriteThatEndsHalfWayIsAnError) {
  const test::TemporaryDirectory directory;
  const std::string old = directory.write("state", "old");
  std::string writer_text;
  std::string atomic_text;
  {
    const FileSizeLimit limit(1000);
    DurableWriter writer(directory.path() / "shard");
    writer_text = test::error_text<CheckpointError>([&] { writer.write(std::string(4000, 'x')); });
    atomic_text = test::error_text<CheckpointError>(
        [&] { write_text_atomically(old, std::string(4000, 'x')); });
  }
  EXPECT_TRUE(test::follows_grammar(writer_text));
  EXPECT_NE(writer_text.find("File too large"), std::string::npos) << writer_text;
  EXPECT_TRUE(test::follows_grammar(atomic_text));
  EXPECT_EQ(read_text(old), "old");
}

TEST(WriteTextAtomically, ReplacesTheWholeFileAndLeavesNothingBeside) {
  const test::TemporaryDirectory directory;
  const std::string path = directory.write("state.json", std::string(1000, 'x'));
  write_text_atomically(path, "short");
  EXPECT_EQ(read_text(path), "short");
  write_text_atomically(directory.path() / "new.json", "new");
  EXPECT_EQ(read_text(directory.path() / "new.json"), "new");
  EXPECT_EQ(count_entries(directory.path()), 2U);
}

TEST(WriteTextAtomically, AReaderNeverSeesAPart) {
  const test::TemporaryDirectory directory;
  const std::string path = directory.write("state", std::string(5000, 'a'));
  std::atomic<bool> done = false;
  std::atomic<int> num_torn = 0;
  std::thread reader([&] {
    while (!done) {
      const std::string text = read_text(path);
      if (text != std::string(5000, text.empty() ? '?' : text[0])) {
        ++num_torn;
      }
    }
  });
  for (int i = 0; i < 50; ++i) {
    write_text_atomically(path, std::string(5000, static_cast<char>('a' + i % 26)));
  }
  done = true;
  reader.join();
  EXPECT_EQ(num_torn, 0);
}

TEST(WriteTextAtomically, AFailureLeavesTheOldFile) {
  const test::TemporaryDirectory directory;
  // A directory that is not empty cannot be replaced by a file.
  directory.write("state/inner", "kept");
  const std::string text = test::error_text<CheckpointError>(
      [&] { write_text_atomically(directory.path() / "state", "new"); });
  EXPECT_TRUE(test::follows_grammar(text));
  EXPECT_EQ(read_text(directory.path() / "state/inner"), "kept");
}

TEST(SyncDirectory, NamesADirectoryThatIsMissing) {
  const test::TemporaryDirectory directory;
  EXPECT_NO_THROW(sync_directory(directory.path()));
  const std::string text =
      test::error_text<CheckpointError>([&] { sync_directory(directory.path() / "absent"); });
  EXPECT_NE(text.find("absent"), std::string::npos) << text;
}

}  // namespace
}  // namespace memphis
