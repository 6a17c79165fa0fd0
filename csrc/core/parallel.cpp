// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/parallel.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <exception>
#include <limits>
#include <mutex>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <linux/futex.h>
#include <sched.h>
#include <strings.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "csrc/core/log.h"

namespace memphis::team {
namespace {

// See BENCHMARKS.md, "Beside other work".
constexpr std::int64_t kDefaultSpins = 1000;

// A word that threads sleep on until it changes. Who waits looks `spins` times first.
class Word {
 public:
  std::uint32_t get() const { return value_.load(std::memory_order_acquire); }

  // Wakes up to `num_sleepers` of those that sleep.
  void set(std::uint32_t value, int num_sleepers) {
    value_.store(value);
    if (num_sleeping_.load() > 0) {
      futex(FUTEX_WAKE_PRIVATE, static_cast<std::uint32_t>(num_sleepers));
    }
  }

  // Returns once the word is not `value`.
  void wait_while(std::uint32_t value, std::int64_t spins) {
    for (std::int64_t i = 0; i < spins; ++i) {
      if (get() != value) {
        return;
      }
      __builtin_ia32_pause();
    }
    // Counted before the system looks at the word: set() sees the sleeper, or it sees set()'s value.
    num_sleeping_.fetch_add(1);
    while (value_.load() == value) {
      futex(FUTEX_WAIT_PRIVATE, value);
    }
    num_sleeping_.fetch_sub(1);
  }

 private:
  static_assert(std::atomic<std::uint32_t>::is_always_lock_free);

  void futex(int operation, std::uint32_t value) {
    syscall(SYS_futex, &value_, operation, value, nullptr, nullptr, 0);
  }

  std::atomic<std::uint32_t> value_ = 0;
  std::atomic<int> num_sleeping_ = 0;
};

std::int64_t spins_of_environment() {
  static const std::int64_t spins =
      num_spins(std::getenv("OMP_WAIT_POLICY"), std::getenv("GOMP_SPINCOUNT"));
  return spins;
}

// The place of OpenMP's list that thread `index` of `count` belongs to, counted from its caller's.
int place_of(int index, int count, int num_places, omp_proc_bind_t bind) {
  switch (bind) {
    case omp_proc_bind_primary:
      return 0;
    case omp_proc_bind_spread:
      return static_cast<int>(std::int64_t{index} * num_places / count) % num_places;
    default:  // close, and true, where the choice is ours
      return count <= num_places ? index
                                 : static_cast<int>(std::int64_t{index} * num_places / count);
  }
}

// As OMP_PROC_BIND and OMP_PLACES ask; nothing where they do not.
void bind_to_place(int caller_place, int index, int count) {
  const omp_proc_bind_t bind = omp_get_proc_bind();
  const int num_places = omp_get_num_places();
  if (bind == omp_proc_bind_false || num_places == 0 || caller_place < 0) {
    return;
  }
  const int place = (caller_place + place_of(index, count, num_places, bind)) % num_places;
  std::vector<int> processors(static_cast<std::size_t>(omp_get_place_num_procs(place)));
  omp_get_place_proc_ids(place, processors.data());
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int processor : processors) {
    CPU_SET(static_cast<std::size_t>(processor), &set);
  }
  sched_setaffinity(0, sizeof(set), &set);
}

thread_local bool t_is_inside = false;
thread_local int t_thread_index = 0;

// The threads of one caller. Chunks of a region are claimed by counting `claim_` down, which also
// holds the region's number: who comes late claims nothing of a later one.
class Team {
 public:
  Team() = default;
  ~Team() {
    region_.set(kEnd, std::numeric_limits<int>::max());
    for (std::thread& worker : workers_) {
      worker.join();
    }
  }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  void run(std::int64_t num_chunks, Chunk chunk, const void* body) {
    constexpr std::int64_t kMaxChunks = std::numeric_limits<std::int32_t>::max();
    const int num_members = num_threads();
    start_workers(num_members);
    chunk_.store(chunk, std::memory_order_release);
    body_.store(body, std::memory_order_release);
    num_members_.store(num_members, std::memory_order_release);
    for (std::int64_t first = 0; first < num_chunks; first += kMaxChunks) {
      run_part(first, static_cast<std::uint32_t>(std::min(kMaxChunks, num_chunks - first)));
    }
    if (failure_) {
      std::rethrow_exception(std::exchange(failure_, nullptr));
    }
  }

 private:
  void run_part(std::int64_t first, std::uint32_t num_chunks) {
    first_.store(first, std::memory_order_release);
    num_chunks_.store(num_chunks, std::memory_order_release);
    num_left_.store(num_chunks, std::memory_order_release);
    all_done_.set(0, 0);
    const std::uint32_t region = (region_.get() + 1) % kEnd;
    claim_.store(std::uint64_t{region} << 32U | num_chunks, std::memory_order_release);
    // Sleepers are woken in no order of ours: all, where some are of no use.
    const std::int64_t num_members = num_members_.load(std::memory_order_relaxed);
    const bool all_are_members = static_cast<std::int64_t>(workers_.size()) < num_members;
    region_.set(region,
                all_are_members
                    ? static_cast<int>(std::min<std::int64_t>(num_chunks, num_members)) - 1
                    : std::numeric_limits<int>::max());
    t_is_inside = true;
    work(region);
    t_is_inside = false;
    all_done_.wait_while(0, spins_of_environment());
  }

  // Runs chunks of `region` until none is left to begin.
  void work(std::uint32_t region) {
    for (;;) {
      std::uint64_t claim = claim_.load(std::memory_order_acquire);
      const auto num_unclaimed = static_cast<std::uint32_t>(claim);
      if (claim >> 32U != region || num_unclaimed == 0) {
        return;
      }
      // Of this region if the claim below succeeds: they change only when all of it is claimed.
      const Chunk chunk = chunk_.load(std::memory_order_acquire);
      const void* const body = body_.load(std::memory_order_acquire);
      const std::int64_t index = first_.load(std::memory_order_acquire) +
                                 num_chunks_.load(std::memory_order_acquire) - num_unclaimed;
      if (!claim_.compare_exchange_weak(claim, claim - 1, std::memory_order_acq_rel)) {
        continue;
      }
      try {
        chunk(body, index);
      } catch (...) {
        const std::lock_guard lock(failure_mutex_);
        failure_ = failure_ ? failure_ : std::current_exception();
      }
      if (num_left_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        all_done_.set(1, 1);
      }
    }
  }

  void start_workers(int num_members) {
    const int caller_place = omp_get_place_num();
    while (!has_all_it_can_ && static_cast<int>(workers_.size()) + 1 < num_members) {
      const int index = static_cast<int>(workers_.size()) + 1;
      try {
        workers_.emplace_back([this, caller_place, index, num_members, seen = region_.get()] {
          bind_to_place(caller_place, index, num_members);
          serve(index, seen);
        });
      } catch (const std::system_error& error) {
        has_all_it_can_ = true;
        log_warning(
            "cannot start thread {} of {} ({}); going on with {} (see `ulimit -u` and pids.max of "
            "the container, or lower OMP_NUM_THREADS)",
            index + 1,
            num_members,
            error.code().message(),
            index);
      }
    }
  }

  // Until the team ends. `seen` is the last region that the worker has not to do with.
  void serve(int index, std::uint32_t seen) {
    t_is_inside = true;
    t_thread_index = index;
    for (;;) {
      region_.wait_while(seen, spins_of_environment());
      seen = region_.get();
      if (seen == kEnd) {
        return;
      }
      if (index < num_members_.load(std::memory_order_acquire)) {
        work(seen);
      }
    }
  }

  // In the place of a region's number, so that no worker reads one without the other: a flag beside
  // it could be set after a worker looked at it and before it took the number to wait for.
  static constexpr std::uint32_t kEnd = std::uint32_t{1} << 31U;

  std::vector<std::thread> workers_;
  bool has_all_it_can_ = false;
  Word region_;                           // its number, below kEnd, or kEnd
  Word all_done_;                         // 1 when the region's chunks are
  std::atomic<std::uint64_t> claim_ = 0;  // the region's number << 32 | chunks that none has begun
  std::atomic<std::uint32_t> num_left_ = 0;  // chunks that are not done
  std::atomic<std::uint32_t> num_chunks_ = 0;
  std::atomic<std::int64_t> first_ = 0;
  std::atomic<int> num_members_ = 0;
  std::atomic<Chunk> chunk_ = nullptr;
  std::atomic<const void*> body_ = nullptr;
  std::mutex failure_mutex_;
  std::exception_ptr failure_;
};

}  // namespace

void run(std::int64_t num_chunks, Chunk chunk, const void* body) {
  thread_local Team team;
  team.run(num_chunks, chunk, body);
}

int num_threads() {
  return std::min(omp_get_max_threads(), omp_get_thread_limit());
}

bool is_inside() {
  return t_is_inside;
}

int thread_index() {
  return t_thread_index;
}

std::int64_t num_spins(const char* wait_policy, const char* spin_count) {
  constexpr std::int64_t kForEver = std::numeric_limits<std::int64_t>::max();
  if (spin_count != nullptr) {
    if (strcasecmp(spin_count, "infinite") == 0 || strcasecmp(spin_count, "infinity") == 0) {
      return kForEver;
    }
    const std::string_view text = spin_count;
    std::int64_t count = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
    std::int64_t unit = 1;
    std::string_view suffix(end, static_cast<std::size_t>(text.data() + text.size() - end));
    for (const char letter : std::string_view("kmgt")) {
      unit *= 1000;
      if (suffix.size() == 1 && (suffix[0] | 0x20) == letter) {
        suffix = {};
        break;
      }
    }
    unit = end == text.data() + text.size() ? 1 : unit;
    if (error == std::errc() && suffix.empty() && count >= 0) {
      return __builtin_mul_overflow(count, unit, &count) ? kForEver : count;
    }
  }
  if (wait_policy != nullptr && strcasecmp(wait_policy, "active") == 0) {
    return kForEver;
  }
  if (wait_policy != nullptr && strcasecmp(wait_policy, "passive") == 0) {
    return 0;
  }
  return kDefaultSpins;
}

}  // namespace memphis::team
