// SPDX-License-Identifier: Apache-2.0
//
// A disk that lets a program down, for tests: preloaded (LD_PRELOAD), it stands before the system's
// calls that open, write, flush, name, close and remove what lies under one directory, counts them, and
// lets one of them fail. The product has nothing of it: what is tested is the program as it is shipped.
//
//   FILE_FAULTS_UNDER    the directory, as the system names it; without it nothing is done
//   FILE_FAULTS_LOG      a file that gets a line for each call: its number, its name, its path
//   FILE_FAULTS_RANK     only in the process of this rank of Open MPI
//   FILE_FAULTS_AT       the number of the call that fails, from 1 on
//   FILE_FAULTS_HOW      in which way:
//     EIO ENOSPC EDQUOT    with this error
//     short                a write takes half of its bytes, and says so
//     slow                 each call, from that one on, takes a while longer
//     full                 the disk is full from then on: no file grows, and none is made
//     kill                 the process is killed before it
//   FILE_FAULTS_SHADOW   a directory where what is durable is kept: of each file its bytes as they were
//                        when it was last flushed, and of each directory its entries likewise. From it
//                        tests/campaign/disk.py makes the disk as it is after a loss of power.
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <string_view>

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

template <class Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

enum class How : std::uint8_t { nothing, error, cut_short, slow, full, kill };
enum class Effect : std::uint8_t { none, fails, half };

constexpr std::size_t kDescriptors = 65536;

struct State {
  std::string under;
  std::string log;
  std::string shadow;
  long at = 0;
  How how = How::nothing;
  int error = 0;
  std::atomic<long> count{0};
  std::atomic<bool> first_full_write{true};
  std::array<std::atomic<bool>, kDescriptors> followed{};
  std::mutex shadow_mutex;

  State() {
    const auto text = [](const char* name) {
      const char* const value = std::getenv(name);
      return std::string(value == nullptr ? "" : value);
    };
    const std::string rank = text("FILE_FAULTS_RANK");
    under = text("FILE_FAULTS_UNDER");
    log = text("FILE_FAULTS_LOG");
    shadow = text("FILE_FAULTS_SHADOW");
    if (!rank.empty() && rank != text("OMPI_COMM_WORLD_RANK")) {
      return;
    }
    at = std::atol(text("FILE_FAULTS_AT").c_str());
    const std::string way = text("FILE_FAULTS_HOW");
    if (way == "EIO" || way == "ENOSPC" || way == "EDQUOT") {
      how = How::error;
      error = way == "EIO" ? EIO : way == "ENOSPC" ? ENOSPC : EDQUOT;
    } else if (way == "short") {
      how = How::cut_short;
    } else if (way == "slow") {
      how = How::slow;
    } else if (way == "full") {
      how = How::full;
      error = ENOSPC;
    } else if (way == "kill") {
      how = How::kill;
    }
  }
};

// Never destroyed: files are written to the very end.
State& state() {
  static State* const one = new State;
  return *one;
}

std::string path_of(int descriptor) {
  std::array<char, 4096> path{};
  const std::string link = "/proc/self/fd/" + std::to_string(descriptor);
  const ssize_t length = ::readlink(link.c_str(), path.data(), path.size() - 1);
  return length > 0 ? std::string(path.data(), static_cast<std::size_t>(length)) : std::string();
}

std::string absolute(int directory, const char* path) {
  if (path[0] == '/') {
    return path;
  }
  std::array<char, 4096> here{};
  std::string base;
  if (directory == AT_FDCWD) {
    const char* const found = ::getcwd(here.data(), here.size());
    base = found == nullptr ? "" : found;
  } else {
    base = path_of(directory);
  }
  return base + "/" + path;
}

bool is_under(const std::string& path) {
  const std::string& root = state().under;
  return !root.empty() && path.size() >= root.size() && path.compare(0, root.size(), root) == 0 &&
         (path.size() == root.size() || path[root.size()] == '/');
}

bool is_empty(const std::string& directory) {
  DIR* const entries = ::opendir(directory.c_str());
  int count = 0;
  while (entries != nullptr && ::readdir(entries) != nullptr) {
    ++count;
  }
  if (entries != nullptr) {
    ::closedir(entries);
  }
  return count == 2;  // itself and the one above
}

int raw_open(const std::string& path, int flags) {
  return static_cast<int>(::syscall(SYS_openat, AT_FDCWD, path.c_str(), flags | O_CLOEXEC, 0600));
}

void raw_write(int descriptor, std::string_view text) {
  while (!text.empty()) {
    const long count = ::syscall(SYS_write, descriptor, text.data(), text.size());
    if (count <= 0) {
      return;
    }
    text.remove_prefix(static_cast<std::size_t>(count));
  }
}

void raw_close(int descriptor) {
  ::syscall(SYS_close, descriptor);
}

// Whole or not at all: the process may be killed at any time.
void keep(const std::string& name, std::string_view content) {
  State& disk = state();
  const std::string path = disk.shadow + "/" + name;
  const std::string part = path + ".part-" + std::to_string(::getpid());
  const int file = raw_open(part, O_WRONLY | O_CREAT | O_TRUNC);
  raw_write(file, content);
  raw_close(file);
  ::syscall(SYS_rename, part.c_str(), path.c_str());
}

std::string inode_of(const struct stat& status) {
  return std::to_string(status.st_ino);
}

// A new file or directory, whose number may have been another's.
void keep_as_new(const std::string& path) {
  struct stat status {};
  if (state().shadow.empty() || ::lstat(path.c_str(), &status) != 0) {
    return;
  }
  const std::scoped_lock lock(state().shadow_mutex);
  keep((S_ISDIR(status.st_mode) ? "d" : "f") + inode_of(status), "");
}

// What is removed, or about to be replaced, stays in the shadow: else its number would be given to a
// new file, and two would be known by one name. Whether it has gone there.
bool keep_removed(const std::string& path, bool replaced) {
  struct stat status {};
  if (state().shadow.empty() || ::lstat(path.c_str(), &status) != 0) {
    return false;
  }
  const std::string to = state().shadow + "/removed-" + inode_of(status);
  return ::syscall(replaced ? SYS_link : SYS_rename, path.c_str(), to.c_str()) == 0;
}

void keep_as_flushed(int descriptor) {
  struct stat status {};
  if (state().shadow.empty() || ::fstat(descriptor, &status) != 0) {
    return;
  }
  const std::scoped_lock lock(state().shadow_mutex);
  std::string content;
  const std::string path = path_of(descriptor);
  if (S_ISDIR(status.st_mode)) {
    DIR* const entries = ::opendir(path.c_str());
    while (const dirent* const entry = entries == nullptr ? nullptr : ::readdir(entries)) {
      const std::string_view name(entry->d_name);
      if (name != "." && name != "..") {
        content += std::to_string(entry->d_ino) + " ";
        content += entry->d_type == DT_DIR ? "d " : "f ";
        content.append(name).append("\n");
      }
    }
    if (entries != nullptr) {
      ::closedir(entries);
    }
    keep("d" + inode_of(status), content);
    return;
  }
  const int file = raw_open("/proc/self/fd/" + std::to_string(descriptor), O_RDONLY);
  std::array<char, 65536> piece{};
  for (long count = 0; (count = ::syscall(SYS_read, file, piece.data(), piece.size())) > 0;) {
    content.append(piece.data(), static_cast<std::size_t>(count));
  }
  raw_close(file);
  keep("f" + inode_of(status), content);
}

// What becomes of a call. `grows` is one that takes room on the disk.
Effect meet(const char* call, const std::string& path, bool grows, bool writes = false) {
  State& disk = state();
  const long number = ++disk.count;
  if (!disk.log.empty()) {
    const int file = raw_open(disk.log, O_WRONLY | O_CREAT | O_APPEND);
    raw_write(file,
              std::to_string(number) + " " + call + " " + path.substr(disk.under.size()) + "\n");
    raw_close(file);
  }
  if (disk.at == 0 || number < disk.at) {
    return Effect::none;
  }
  if (disk.how == How::slow) {
    ::usleep(1'000);
    return Effect::none;
  }
  if (disk.how == How::full) {
    if (writes && disk.first_full_write.exchange(false)) {
      return Effect::half;
    }
    return grows ? Effect::fails : Effect::none;
  }
  if (number > disk.at) {
    return Effect::none;
  }
  switch (disk.how) {
    case How::error:
      return Effect::fails;
    case How::cut_short:
      return writes ? Effect::half : Effect::none;
    case How::kill:
      ::kill(::getpid(), SIGKILL);
      return Effect::none;
    default:
      return Effect::none;
  }
}

int fail() {
  errno = state().error;
  return -1;
}

bool follows(int descriptor) {
  return descriptor >= 0 && static_cast<std::size_t>(descriptor) < kDescriptors &&
         state().followed[static_cast<std::size_t>(descriptor)];
}

void follow(int descriptor, bool on) {
  if (descriptor >= 0 && static_cast<std::size_t>(descriptor) < kDescriptors) {
    state().followed[static_cast<std::size_t>(descriptor)] = on;
  }
}

template <class Open>
int open_any(int directory, const char* path, int flags, const Open& open) {
  const std::string whole = absolute(directory, path);
  if (!is_under(whole)) {
    const int descriptor = open();
    follow(descriptor, false);
    return descriptor;
  }
  const bool writes = (flags & O_ACCMODE) != O_RDONLY;
  struct stat status {};
  const bool makes = (flags & O_CREAT) != 0 && ::lstat(whole.c_str(), &status) != 0;
  if (meet(writes ? "open" : "open-to-read", whole, makes) == Effect::fails) {
    return fail();
  }
  const int descriptor = open();
  if (descriptor >= 0 && makes) {
    keep_as_new(whole);
  }
  // What is read is closed without anything that could go wrong, but for a directory's flush.
  follow(descriptor, writes || (flags & O_DIRECTORY) != 0);
  return descriptor;
}

mode_t mode_of(int flags, va_list& arguments) {
  return (flags & (O_CREAT | O_TMPFILE)) != 0 ? static_cast<mode_t>(va_arg(arguments, int)) : 0;
}

}  // namespace

extern "C" {

int open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = mode_of(flags, arguments);
  va_end(arguments);
  static auto* const real = next<int(const char*, int, ...)>("open");
  return open_any(AT_FDCWD, path, flags, [&] { return real(path, flags, mode); });
}

int open64(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = mode_of(flags, arguments);
  va_end(arguments);
  static auto* const real = next<int(const char*, int, ...)>("open64");
  return open_any(AT_FDCWD, path, flags, [&] { return real(path, flags, mode); });
}

int openat(int directory, const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = mode_of(flags, arguments);
  va_end(arguments);
  static auto* const real = next<int(int, const char*, int, ...)>("openat");
  return open_any(directory, path, flags, [&] { return real(directory, path, flags, mode); });
}

ssize_t write(int descriptor, const void* bytes, std::size_t count) {
  static auto* const real = next<ssize_t(int, const void*, std::size_t)>("write");
  if (follows(descriptor)) {
    switch (meet("write", path_of(descriptor), true, true)) {
      case Effect::fails:
        return fail();
      case Effect::half:
        return real(descriptor, bytes, count > 1 ? count / 2 : count);
      case Effect::none:
        break;
    }
  }
  return real(descriptor, bytes, count);
}

ssize_t pwrite(int descriptor, const void* bytes, std::size_t count, off_t offset) {
  static auto* const real = next<ssize_t(int, const void*, std::size_t, off_t)>("pwrite");
  if (follows(descriptor)) {
    switch (meet("pwrite", path_of(descriptor), true, true)) {
      case Effect::fails:
        return fail();
      case Effect::half:
        return real(descriptor, bytes, count > 1 ? count / 2 : count, offset);
      case Effect::none:
        break;
    }
  }
  return real(descriptor, bytes, count, offset);
}

int fsync(int descriptor) {
  static auto* const real = next<int(int)>("fsync");
  if (!follows(descriptor)) {
    return real(descriptor);
  }
  if (meet("fsync", path_of(descriptor), false) == Effect::fails) {
    return fail();
  }
  const int status = real(descriptor);
  if (status == 0) {
    keep_as_flushed(descriptor);
  }
  return status;
}

int close(int descriptor) {
  static auto* const real = next<int(int)>("close");
  if (!follows(descriptor)) {
    return real(descriptor);
  }
  const Effect effect = meet("close", path_of(descriptor), false);
  follow(descriptor, false);
  const int status = real(descriptor);
  return effect == Effect::fails ? fail() : status;
}

int ftruncate(int descriptor, off_t bytes) noexcept {
  static auto* const real = next<int(int, off_t)>("ftruncate");
  if (follows(descriptor) && meet("ftruncate", path_of(descriptor), false) == Effect::fails) {
    return fail();
  }
  return real(descriptor, bytes);
}

int rename(const char* from, const char* to) noexcept {
  static auto* const real = next<int(const char*, const char*)>("rename");
  const std::string whole = absolute(AT_FDCWD, to);
  if (is_under(whole)) {
    if (meet("rename", whole, true) == Effect::fails) {
      return fail();
    }
    keep_removed(whole, true);
  }
  return real(from, to);
}

int unlink(const char* path) noexcept {
  static auto* const real = next<int(const char*)>("unlink");
  const std::string whole = absolute(AT_FDCWD, path);
  if (is_under(whole)) {
    if (meet("unlink", whole, false) == Effect::fails) {
      return fail();
    }
    if (keep_removed(whole, false)) {
      return 0;
    }
  }
  return real(path);
}

int unlinkat(int directory, const char* path, int flags) noexcept {
  static auto* const real = next<int(int, const char*, int)>("unlinkat");
  const std::string whole = absolute(directory, path);
  if (is_under(whole)) {
    if (meet("unlinkat", whole, false) == Effect::fails) {
      return fail();
    }
    // A directory that is not empty must say so.
    if (((flags & AT_REMOVEDIR) == 0 || is_empty(whole)) && keep_removed(whole, false)) {
      return 0;
    }
  }
  return real(directory, path, flags);
}

int mkdir(const char* path, mode_t mode) noexcept {
  static auto* const real = next<int(const char*, mode_t)>("mkdir");
  const std::string whole = absolute(AT_FDCWD, path);
  if (!is_under(whole)) {
    return real(path, mode);
  }
  if (meet("mkdir", whole, true) == Effect::fails) {
    return fail();
  }
  const int status = real(path, mode);
  if (status == 0) {
    keep_as_new(whole);
  }
  return status;
}

}  // extern "C"
