// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/simt_nccl/meeting.h"

#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <system_error>

#include <fcntl.h>
#include <spdlog/fmt/fmt.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "csrc/comm/activity.h"

namespace memphis::simt_nccl {
namespace {

constexpr std::uint64_t kMagic = 0x6d656d7068697331;
constexpr std::size_t kAlignment = 4096;
constexpr std::size_t kNumStages = 3;

// What an id says.
struct Place {
  std::uint64_t magic;
  std::int32_t process;
  std::int32_t file;
  std::uint64_t number;  // drawn: another file may have the same descriptor later
};
static_assert(sizeof(Place) <= kNcclUniqueIdBytes);

Place place_of(const ncclUniqueId& id) {
  Place place;
  std::memcpy(&place, id.internal, sizeof(place));
  return place;
}

std::uint64_t draw() {
  std::random_device random;
  return (std::uint64_t{random()} << 32U) | random();
}

std::string system_text() {
  return std::system_category().message(errno);
}

[[noreturn]] void throw_system(const char* call) {
  throw Failure{ncclSystemError,
                fmt::format("{}: {} (ranks meet in shared memory); see its limits in `ulimit -a` "
                            "and `df /dev/shm`",
                            call,
                            system_text())};
}

std::size_t round_up(std::size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

std::byte* map(int file, std::size_t bytes) {
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) {
    throw_system("mmap");
  }
  return static_cast<std::byte*>(memory);
}

// FNV-1a: whether ranks hold the same ids.
std::uint64_t hash_of(std::span<const ncclUniqueId> ids) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const ncclUniqueId& id : ids) {
    for (const char c : id.internal) {
      hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
    }
  }
  return hash;
}

}  // namespace

struct Meeting::Header {
  std::uint64_t number;
  pthread_mutex_t mutex;
  // Under the mutex: set by the first to enter.
  std::int32_t num_ranks;
  std::uint64_t ids_hash;
  ncclResult_t status;
  std::array<char, 2048> text;

  std::atomic<std::int32_t> num_here;
  std::atomic<bool> has_failed;
};

namespace {

// The order in memory: header, boards of ranks, boards of pairs, stages.
std::size_t pairs_offset(std::size_t num_ranks) {
  return kAlignment + round_up(num_ranks * sizeof(RankBoard));
}

std::size_t stages_offset(std::size_t num_ranks) {
  return pairs_offset(num_ranks) + round_up(num_ranks * num_ranks * sizeof(PairBoard));
}

std::size_t bytes_of_meeting(std::size_t num_ranks) {
  return stages_offset(num_ranks) + num_ranks * kNumStages * Meeting::kStageBytes;
}

// The place of one entry in memory.
template <class T>
T& at(std::byte* memory, std::size_t offset, std::size_t index) {
  return reinterpret_cast<T*>(memory + offset)[index];
}

// Of this process's ids that are not closed yet.
class OwnFiles {
 public:
  static OwnFiles& instance() {
    static OwnFiles& files = *new OwnFiles;
    return files;
  }

  void add(std::uint64_t number, int file) {
    const std::lock_guard lock(mutex_);
    files_[number] = file;
  }

  void close(std::uint64_t number) noexcept {
    const std::lock_guard lock(mutex_);
    if (const auto found = files_.find(number); found != files_.end()) {
      ::close(found->second);
      files_.erase(found);
    }
  }

 private:
  std::mutex mutex_;
  std::map<std::uint64_t, int> files_;
};

// A lock of one byte, of an open file and not of a process: ranks may be threads.
struct flock byte_lock(int rank) {
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = rank;
  lock.l_len = 1;
  return lock;
}

int open_place(const Place& place) {
  if (place.magic != kMagic) {
    throw Failure{ncclInvalidArgument,
                  "the id is none (its bytes are not those that ncclGetUniqueId gave); pass it on "
                  "whole"};
  }
  const std::string path = fmt::format("/proc/{}/fd/{}", place.process, place.file);
  const int file = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) {
    throw Failure{ncclInvalidUsage,
                  fmt::format("the id of process {} is not there: {} (the process has ended, is on "
                              "another machine, or its ranks have met already); make an id for "
                              "each communicator, in a process that lives",
                              place.process,
                              system_text())};
  }
  return file;
}

}  // namespace

ncclUniqueId Meeting::make_id() {
  const int file = memfd_create("memphis-simt-nccl", MFD_CLOEXEC);
  if (file < 0) {
    throw_system("memfd_create");
  }
  const Place place{.magic = kMagic, .process = getpid(), .file = file, .number = draw()};
  OwnFiles::instance().add(place.number, file);
  if (ftruncate(file, kAlignment) != 0) {
    throw_system("ftruncate");
  }
  std::byte* const memory = map(file, kAlignment);
  auto& header = at<Header>(memory, 0, 0);
  header.number = place.number;
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&header.mutex, &attributes);
  pthread_mutexattr_destroy(&attributes);
  munmap(memory, kAlignment);
  ncclUniqueId id = {};
  std::memcpy(id.internal, &place, sizeof(place));
  return id;
}

void Meeting::close_ids(std::span<const ncclUniqueId> ids) noexcept {
  for (const ncclUniqueId& id : ids) {
    if (const Place place = place_of(id); place.process == getpid()) {
      OwnFiles::instance().close(place.number);
    }
  }
}

Meeting::Meeting(std::span<const ncclUniqueId> ids, int rank, int num_ranks, const Pause& pause)
    : rank_(rank), num_ranks_(num_ranks) {
  static_assert(sizeof(Header) <= kAlignment);
  try {
    enter(ids, pause);
  } catch (...) {
    leave();
    throw;
  }
}

Meeting::~Meeting() {
  leave();
}

// The lock of this rank's byte goes with the file.
void Meeting::leave() noexcept {
  if (memory_ != nullptr) {
    munmap(memory_, bytes_);
  }
  if (file_ >= 0) {
    ::close(file_);
  }
}

void Meeting::enter(std::span<const ncclUniqueId> ids, const Pause& pause) {
  const Place place = place_of(ids.front());
  file_ = open_place(place);
  bytes_ = bytes_of_meeting(static_cast<std::size_t>(num_ranks_));
  struct stat status = {};
  if (fstat(file_, &status) != 0) {
    throw_system("fstat");
  }
  // The header is there at once; the rest as soon as a rank has said how many there are. Pages are
  // memory only once they are written.
  if (status.st_size < static_cast<off_t>(kAlignment)) {
    throw Failure{ncclInvalidUsage, "the id's file is not a meeting of ranks; make a new id"};
  }
  memory_ = map(file_, bytes_);
  if (header().number != place.number) {
    throw Failure{ncclInvalidUsage,
                  "the id is used up (its ranks have met); make an id for each communicator"};
  }
  const std::uint64_t hash = hash_of(ids);
  struct flock lock = byte_lock(rank_);
  Failure failure;
  locked(pause, [&] {
    if (header().num_ranks == 0) {
      header().num_ranks = num_ranks_;
      header().ids_hash = hash;
    }
    if (header().num_ranks != num_ranks_) {
      failure = {ncclInvalidUsage,
                 fmt::format("rank {} says that there are {} ranks, and another rank {} (all say "
                             "the same); mend the caller",
                             rank_,
                             num_ranks_,
                             header().num_ranks)};
    } else if (header().ids_hash != hash) {
      failure = {ncclInvalidUsage,
                 fmt::format("rank {} has other ids than another rank (all have the same, in the "
                             "same order); mend the caller",
                             rank_)};
    } else if (fcntl(file_, F_OFD_SETLK, &lock) != 0) {
      failure = {ncclInvalidUsage,
                 fmt::format("two ranks are number {} (each number is one rank's); mend the caller",
                             rank_)};
    } else if (ftruncate(file_, static_cast<off_t>(bytes_)) != 0) {
      failure = {
          ncclSystemError,
          "ftruncate: " + system_text() + " (ranks meet in shared memory); see `df /dev/shm`"};
    }
  });
  if (failure.status != ncclSuccess) {
    fail(failure, pause);
    throw failure;
  }
  locked(pause, [&] { of(rank_).state = State::idle; });
  header().num_here.fetch_add(1, std::memory_order_acq_rel);
}

bool Meeting::all_are_here() const {
  return header().num_here.load(std::memory_order_acquire) == num_ranks_;
}

Meeting::Header& Meeting::header() const {
  return at<Header>(memory_, 0, 0);
}

RankBoard& Meeting::of(int rank) const {
  return at<RankBoard>(memory_, kAlignment, static_cast<std::size_t>(rank));
}

PairBoard& Meeting::of(int rank, int peer) const {
  const auto n = static_cast<std::size_t>(num_ranks_);
  return at<PairBoard>(memory_,
                       pairs_offset(n),
                       static_cast<std::size_t>(rank) * n + static_cast<std::size_t>(peer));
}

std::byte* Meeting::stage(int rank, std::size_t index) const {
  return memory_ + stages_offset(static_cast<std::size_t>(num_ranks_)) +
         (static_cast<std::size_t>(rank) * kNumStages + index) * kStageBytes;
}

void Meeting::locked(const Pause& pause, const std::function<void()>& body) const {
  // Tried and not waited for: a process that is stopped holds it for ever.
  int status = pthread_mutex_trylock(&header().mutex);
  while (status == EBUSY) {
    pause();
    status = pthread_mutex_trylock(&header().mutex);
  }
  if (status == EOWNERDEAD) {  // who had it is gone, which is found elsewhere
    pthread_mutex_consistent(&header().mutex);
  } else if (status != 0) {
    throw Failure{ncclSystemError,
                  fmt::format("pthread_mutex_trylock: {} (of shared memory)",
                              std::system_category().message(status))};
  }
  struct Unlock {
    ~Unlock() { pthread_mutex_unlock(&mutex); }
    pthread_mutex_t& mutex;
  };
  const Unlock unlock{header().mutex};
  body();
}

bool Meeting::is_gone(int rank) const {
  if (rank == rank_) {
    return false;
  }
  struct flock lock = byte_lock(rank);
  return fcntl(file_, F_OFD_GETLK, &lock) == 0 && lock.l_type == F_UNLCK;
}

void Meeting::fail(const Failure& failure, const Pause& pause) const {
  locked(pause, [&] {
    if (!header().has_failed.load(std::memory_order_relaxed)) {
      header().status = failure.status;
      copy_text(header().text, failure.text);
      header().has_failed.store(true, std::memory_order_release);
    }
  });
}

bool Meeting::has_failed() const {
  return header().has_failed.load(std::memory_order_acquire);
}

// What is kept never changes.
Failure Meeting::failure() const {
  return {header().status, header().text.data()};
}

}  // namespace memphis::simt_nccl
