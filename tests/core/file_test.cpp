// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/file.h"

#include <atomic>
#include <cerrno>
#include <csignal>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "csrc/core/error.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_directory.h"

namespace memphis {
namespace {

std::size_t count_entries(const std::filesystem::path& directory) {
  const std::filesystem::directory_iterator entries(directory);
  return static_cast<std::size_t>(std::distance(begin(entries), end(entries)));
}

std::string bytes_of(const InputFile& file, std::uint64_t begin, std::size_t count) {
  std::string bytes(count, '?');
  file.read(begin, std::as_writable_bytes(std::span(bytes)));
  return bytes;
}

TEST(InputFile, ReadsAnyPartOfTheFile) {
  const test::TemporaryDirectory directory;
  const InputFile file(directory.write("file", std::string("a\0b\n", 4)));
  EXPECT_EQ(file.size(), 4U);
  EXPECT_EQ(bytes_of(file, 0, 4), std::string("a\0b\n", 4));
  EXPECT_EQ(bytes_of(file, 2, 1), "b");
  EXPECT_EQ(bytes_of(file, 4, 0), "");
  EXPECT_THROW(bytes_of(file, 3, 2), ContractError);
  EXPECT_EQ(InputFile(directory.write("empty", "")).size(), 0U);
}

TEST(InputFile, AMoveKeepsTheFileOpen) {
  const test::TemporaryDirectory directory;
  InputFile file(directory.write("file", "text"));
  const InputFile moved(std::move(file));
  EXPECT_EQ(bytes_of(moved, 0, 4), "text");
}

// Where a mapping would end the process by SIGBUS.
TEST(InputFile, AFileThatIsCutShortIsAnErrorWithItsName) {
  const test::TemporaryDirectory directory;
  const std::string path = directory.write("file", std::string(100'000, 'x'));
  const InputFile file(path);
  std::filesystem::resize_file(path, 70'000);
  EXPECT_EQ(bytes_of(file, 60'000, 10'000), std::string(10'000, 'x')) << "what is left is there";
  const std::string text = test::error_text<DataError>([&] { bytes_of(file, 60'000, 10'001); });
  EXPECT_TRUE(test::follows_grammar(text));
  EXPECT_EQ(text.rfind(path + " has no byte 70000 any more (it had 100000 bytes", 0), 0U) << text;
}

TEST(InputFile, AFileThatIsDeletedReplacedOrAppendedToIsReadOn) {
  const test::TemporaryDirectory directory;
  const InputFile deleted(directory.write("deleted", "old text"));
  const InputFile replaced(directory.write("replaced", "old text"));
  const InputFile longer(directory.write("longer", "old text"));
  std::filesystem::remove(deleted.path());
  std::filesystem::rename(directory.write("other", "new"), replaced.path());
  std::ofstream(longer.path(), std::ios::app) << " and more";
  for (const InputFile* file : {&deleted, &replaced, &longer}) {
    EXPECT_EQ(file->size(), 8U);
    EXPECT_EQ(bytes_of(*file, 0, 8), "old text");
  }
}

void expect_unreadable(const std::filesystem::path& path, std::string_view reason) {
  const std::string text = test::error_text<DataError>([&] { const InputFile file(path); });
  EXPECT_TRUE(test::follows_grammar(text));
  EXPECT_NE(text.find(path.string()), std::string::npos) << text;
  EXPECT_NE(text.find(reason), std::string::npos) << text;
}

TEST(InputFile, SaysWhyItCannotRead) {
  const test::TemporaryDirectory directory;
  expect_unreadable(directory.path(), "it is not a regular file");
  expect_unreadable(directory.path() / "absent", "No such file or directory");
  const std::filesystem::path pipe = directory.path() / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  expect_unreadable(pipe, "it is not a regular file");
}

// The limit that a shell sets is low for the sake of programs that memphis is not one of.
TEST(InputFile, MoreFilesAreOpenedThanTheSoftLimit) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  constexpr rlim_t kLow = 64;
  if (before.rlim_max <= 2 * kLow) {
    GTEST_SKIP() << "the hard limit of open files is " << before.rlim_max;
  }
  const rlimit low{.rlim_cur = kLow, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  const test::TemporaryDirectory directory;
  const std::string path = directory.write("file", "text");
  std::vector<InputFile> files;
  EXPECT_NO_THROW({
    for (rlim_t i = 0; i < 2 * kLow; ++i) {
      files.emplace_back(path);
    }
  });
  EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
}

TEST(ReadText, HasTheWholeFile) {
  const test::TemporaryDirectory directory;
  const std::string content = std::string("a\0b\n", 4) + std::string(200'000, 'x');
  const std::string path = directory.write("file", content);
  EXPECT_EQ(read_text(path), content);
  EXPECT_EQ(read_text(path, content.size()), content);
  EXPECT_EQ(read_text(directory.write("empty", "")), "");
  const std::string text =
      test::error_text<DataError>([&] { read_text(path, content.size() - 1); });
  EXPECT_TRUE(test::follows_grammar(text));
}

TEST(ReadText, ReadsAPipeToItsEnd) {
  const test::TemporaryDirectory directory;
  const std::filesystem::path pipe = directory.path() / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  std::thread writer([&] {
    std::ofstream file(pipe);
    file << "first " << std::flush << "second";
  });
  EXPECT_EQ(read_text(pipe), "first second");
  writer.join();
}

TEST(ReadText, SaysThatADirectoryIsNoFile) {
  const test::TemporaryDirectory directory;
  const std::string text = test::error_text<DataError>([&] { read_text(directory.path()); });
  EXPECT_TRUE(test::follows_grammar(text));
  EXPECT_NE(text.find("it is a directory"), std::string::npos) << text;
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

TEST(WriteTextAtomically, AFailureLeavesNothingBeside) {
  const test::TemporaryDirectory directory;
  directory.write("state/inner", "kept");
  EXPECT_THROW(write_text_atomically(directory.path() / "state", "new"), CheckpointError);
  {
    const FileSizeLimit limit(1000);
    EXPECT_THROW(write_text_atomically(directory.path() / "large", std::string(4000, 'x')),
                 CheckpointError);
  }
  EXPECT_EQ(count_entries(directory.path()), 1U);
}

TEST(WriteTextAtomically, ALinkStaysAndWhatItLeadsToIsReplaced) {
  const test::TemporaryDirectory directory;
  const std::filesystem::path& here = directory.path();
  directory.write("elsewhere/page", "old");
  std::filesystem::create_symlink("elsewhere/page", here / "second");
  std::filesystem::create_symlink(here / "second", here / "first");
  write_text_atomically(here / "first", "new");
  EXPECT_TRUE(std::filesystem::is_symlink(here / "first"));
  EXPECT_TRUE(std::filesystem::is_symlink(here / "second"));
  EXPECT_EQ(read_text(here / "elsewhere/page"), "new");
  // Of a name that is not there yet.
  std::filesystem::create_symlink("elsewhere/later", here / "dangling");
  write_text_atomically(here / "dangling", "text");
  EXPECT_TRUE(std::filesystem::is_symlink(here / "dangling"));
  EXPECT_EQ(read_text(here / "elsewhere/later"), "text");
  EXPECT_EQ(count_entries(here / "elsewhere"), 2U);
  std::filesystem::create_symlink("loop", here / "loop");
  const std::string text =
      test::error_text<CheckpointError>([&] { write_text_atomically(here / "loop", "text"); });
  EXPECT_TRUE(test::follows_grammar(text));
}

// As root a rename over /dev/null would take the device away from the whole machine.
TEST(WriteTextAtomically, APipeStaysOne) {
  const test::TemporaryDirectory directory;
  const std::filesystem::path pipe = directory.path() / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  std::string read;
  std::thread reader([&] { read = read_text(pipe); });
  write_text_atomically(pipe, "text");
  if (!std::filesystem::is_fifo(pipe)) {
    std::filesystem::remove(pipe);  // else the reader would wait for ever
    ADD_FAILURE() << "the pipe is a file now";
    reader.detach();
    return;
  }
  reader.join();
  EXPECT_EQ(read, "text");
  EXPECT_EQ(count_entries(directory.path()), 1U);
}

// What a link of /dev/fd leads to has no name that it could be opened by.
TEST(WriteTextAtomically, APipeWithoutANameIsWrittenTo) {
  int ends[2] = {-1, -1};
  ASSERT_EQ(::pipe(ends), 0);
  write_text_atomically("/proc/self/fd/" + std::to_string(ends[1]), "text");
  std::string read(4, '?');
  EXPECT_EQ(::read(ends[0], read.data(), read.size()), 4);
  EXPECT_EQ(read, "text");
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST(ReplacingWriter, LeavesTheOldFileUntilItIsClosed) {
  const test::TemporaryDirectory directory;
  const std::string path = directory.write("file", "old");
  {
    ReplacingWriter given_up(path);
    given_up.write("half");
  }
  EXPECT_EQ(read_text(path), "old");
  ReplacingWriter writer(path);
  writer.write("ne");
  writer.write("w");
  EXPECT_EQ(read_text(path), "old");
  writer.close();
  EXPECT_EQ(read_text(path), "new");
  EXPECT_EQ(count_entries(directory.path()), 1U);
}

TEST(RemoveLeftSiblings, TakesThoseOfKilledWritersAlone) {
  const test::TemporaryDirectory directory;
  directory.write("file", "whole");
  directory.write("file.tmp-12", "half");
  directory.write("file.tmp-345", "half");
  for (const char* name :
       {"file.tmp-", "file.tmp-1a", "file.tmp", "other.tmp-12", "a.file.tmp-1"}) {
    directory.write(name, "mine");
  }
  EXPECT_EQ(remove_left_siblings(directory.path() / "file").size(), 2U);
  EXPECT_EQ(count_entries(directory.path()), 6U);
  EXPECT_FALSE(std::filesystem::exists(directory.path() / "file.tmp-345"));
  EXPECT_TRUE(remove_left_siblings(directory.path() / "none" / "file").empty());
}

TEST(MakeDirectories, MakesAllThatAreMissing) {
  const test::TemporaryDirectory directory;
  EXPECT_EQ(make_directories(directory.path() / "a/b/c/"), 0);
  EXPECT_TRUE(std::filesystem::is_directory(directory.path() / "a/b/c"));
  EXPECT_EQ(make_directories(directory.path() / "a/b"), 0);
  directory.write("file", "");
  EXPECT_EQ(make_directories(directory.path() / "file/below"), ENOTDIR);
  EXPECT_EQ(make_directories(directory.path() / "file"), ENOTDIR);
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
