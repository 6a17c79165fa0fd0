// SPDX-License-Identifier: Apache-2.0
//
// What a system may do that the disks of this machine do not: take a write in pieces, be interrupted,
// and say of a failed write no sooner than when the file is closed.
#include "csrc/core/file_calls.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <string>
#include <vector>

#include <dlfcn.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "tests/support/error_text.h"
#include "tests/support/temporary_directory.h"

namespace {

// What the next calls do: an error, or 0 for the system's own answer, to a write of one byte.
std::vector<int> g_writes;
int g_close = 0;
int g_flush = 0;
std::vector<std::string> g_flushed;

bool fails_now(std::size_t& count) {
  if (g_writes.empty()) {
    return false;
  }
  const int error = g_writes.front();
  g_writes.erase(g_writes.begin());
  if (error != 0) {
    errno = error;
    return true;
  }
  count = std::min<std::size_t>(count, 1);
  return false;
}

template <class Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

}  // namespace

// Take the place of the system's in this program, and call them.
extern "C" ssize_t write(int descriptor, const void* bytes, std::size_t count) {
  static auto* const real = next<ssize_t(int, const void*, std::size_t)>("write");
  return fails_now(count) ? -1 : real(descriptor, bytes, count);
}
extern "C" ssize_t pwrite(int descriptor, const void* bytes, std::size_t count, off_t offset) {
  static auto* const real = next<ssize_t(int, const void*, std::size_t, off_t)>("pwrite");
  return fails_now(count) ? -1 : real(descriptor, bytes, count, offset);
}
extern "C" int close(int descriptor) {
  static auto* const real = next<int(int)>("close");
  const int status = real(descriptor);
  if (g_close != 0) {
    errno = std::exchange(g_close, 0);
    return -1;
  }
  return status;
}
extern "C" int fsync(int descriptor) {
  g_flushed.push_back(std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(descriptor)));
  if (g_flush != 0) {
    errno = std::exchange(g_flush, 0);
    return -1;
  }
  static auto* const real = next<int(int)>("fsync");
  return real(descriptor);
}

namespace memphis {
namespace {

TEST(WriteAll, GoesOnAfterSignalsAndPieces) {
  const test::TemporaryDirectory directory;
  const std::filesystem::path path = directory.path() / "file";
  const Descriptor file = open_path(path, O_RDWR | O_CREAT, 0600);
  g_writes = {EINTR, 0, EINTR, 0, 0};
  EXPECT_EQ(write_all(file.number(), "0123456789"), 0);
  g_writes = {0, EINTR, 0};
  const std::string text = "abcd";
  EXPECT_EQ(write_all_at(file.number(), std::as_bytes(std::span(text)), 3), 0);
  EXPECT_EQ(read_text(path), "012abcd789");
  g_writes = {0, ENOSPC};
  EXPECT_EQ(write_all(file.number(), "xyz"), ENOSPC);
  EXPECT_EQ(read_text(path), "012abcd789x");
}

TEST(Descriptor, SaysWhatAFileFailedToWriteWhenItIsClosed) {
  const test::TemporaryDirectory directory;
  {
    DurableWriter writer(directory.path() / "file");
    writer.write("text");
    g_close = EDQUOT;
    const std::string text = test::error_text<CheckpointError>([&] { writer.close(); });
    EXPECT_NE(text.find("quota"), std::string::npos) << text;
  }
  {
    DurableWriter writer(directory.path() / "flushed");
    g_flush = EIO;
    EXPECT_THROW(writer.close(), CheckpointError);
  }
  // On Linux the file is closed then: a second time might close another's.
  Descriptor file = open_path(directory.path() / "other", O_WRONLY | O_CREAT, 0600);
  g_close = EINTR;
  EXPECT_EQ(file.close_checked(), 0);
  EXPECT_FALSE(file.is_open());
}

TEST(Descriptor, IsClosedByTheLastThatHasIt) {
  const test::TemporaryDirectory directory;
  int number = -1;
  {
    Descriptor first = open_path(directory.path() / "file", O_WRONLY | O_CREAT, 0600);
    number = first.number();
    const Descriptor second(std::move(first));
    EXPECT_EQ(second.number(), number);
    EXPECT_GE(::fcntl(number, F_GETFD), 0);
  }
  EXPECT_LT(::fcntl(number, F_GETFD), 0);
}

TEST(FlushDirectory, AFileSystemThatSyncsNoneIsNoFailure) {
  const test::TemporaryDirectory directory;
  g_flush = EINVAL;
  EXPECT_EQ(flush_directory(directory.path()), 0);
  g_flush = EIO;
  EXPECT_EQ(flush_directory(directory.path()), EIO);
}

// A new directory whose name is lost with the power takes all with it that is in it.
TEST(MakeDirectories, EachIsDurableInTheOneAbove) {
  const test::TemporaryDirectory directory;
  const std::filesystem::path here = std::filesystem::canonical(directory.path());
  g_flushed.clear();
  EXPECT_EQ(make_directories(here / "a/b"), 0);
  EXPECT_EQ(g_flushed, (std::vector<std::string>{here, here / "a"}));
  g_flushed.clear();
  EXPECT_EQ(make_directories(here / "a/b"), 0);
  EXPECT_TRUE(g_flushed.empty());
}

}  // namespace
}  // namespace memphis
