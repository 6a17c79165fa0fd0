// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <compare>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <omp.h>
#include <spdlog/fmt/fmt.h>

#include "csrc/comm/check.h"
#include "csrc/comm/host_communicator.h"
#include "csrc/comm/solo.h"

namespace memphis {
namespace {

// How long a rank sleeps before it looks whether the job has ended.
constexpr std::chrono::milliseconds kPoll{20};
// How often a rank lets others run before it sleeps. Ranks outnumber cores, so whoever is to come is
// often next, and to be woken costs both ends more. Layouts of 8 ranks that share out their weights, on
// two cores: 20.4 s of processor time without, 16.0 s with 3, no less with 32.
constexpr int kYields = 3;

// Why the job ends, once one rank has said so.
class Ending {
 public:
  void set(std::string_view reason) {
    const std::lock_guard lock(mutex_);
    if (reason_.empty()) {
      reason_ = reason.empty() ? "a rank gave no reason" : reason;
    }
  }
  // Throws if the job ends.
  void check(std::string_view name) const {
    const std::lock_guard lock(mutex_);
    if (!reason_.empty()) {
      throw CommunicationError(
          fmt::format("{} was given up ({}); see that rank's message", name, reason_));
    }
  }

 private:
  mutable std::mutex mutex_;
  std::string reason_;
};

// What the members of one group see of each other.
struct Meeting {
  explicit Meeting(const std::vector<int>& members)
      : ranks(members), offered(members.size()), present(members.size()) {}

  std::vector<int> ranks;  // of the job
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::span<const std::span<const std::byte>>> offered;
  std::vector<bool> present;
  std::size_t num_waiting = 0;
  std::atomic<std::uint64_t> generation = 0;  // of meetings; changes with the mutex held
};

class ThreadTransport final : public HostTransport {
 public:
  ThreadTransport(std::shared_ptr<Meeting> meeting,
                  const Ending& ending,
                  Activity& activity,
                  int rank)
      : meeting_(std::move(meeting)), ending_(ending), activity_(activity), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(meeting_->offered.size()); }
  int rank_in_job(int rank) const override {
    return meeting_->ranks[static_cast<std::size_t>(rank)];
  }

  // Pieces are the others' memory, so nobody goes on, not even to fail, while one of them reads:
  // once all have met, all meet again.
  void exchange(std::span<const std::span<const std::byte>> to,
                std::span<const std::span<std::byte>> from,
                std::string_view name) override {
    meeting_->offered[static_cast<std::size_t>(rank_)] = to;
    meet_unless_ending(name);  // all pieces are offered
    std::size_t num_sent = 0;
    std::size_t wrong = from.size();
    for (std::size_t r = 0; r < from.size(); ++r) {
      const std::span<const std::byte> piece =
          meeting_->offered[r][static_cast<std::size_t>(rank_)];
      if (piece.size() != from[r].size()) {
        wrong = r;
        num_sent = piece.size();
      } else if (!piece.empty() && piece.data() != from[r].data()) {
        std::memmove(from[r].data(), piece.data(), piece.size());
      }
    }
    meet();  // all pieces are read
    if (wrong < from.size()) {
      throw_sizes_differ(name, static_cast<int>(wrong), num_sent, rank_, from[wrong].size());
    }
  }

  void leave() noexcept override { leaving_ = true; }

 private:
  void meet_unless_ending(std::string_view name) {
    std::unique_lock lock(meeting_->mutex);
    check(name);
    const std::uint64_t generation = meeting_->generation;
    if (arrive(lock) || come_by_yielding(lock, generation)) {
      return;
    }
    while (!meeting_->changed.wait_for(
        lock, kPoll, [&] { return meeting_->generation != generation; })) {
      try {
        check(name);
        check_time(name);
      } catch (...) {
        --meeting_->num_waiting;  // the others must not go on without this rank
        meeting_->present[static_cast<std::size_t>(rank_)] = false;
        throw;
      }
    }
  }

  void check_time(std::string_view name) const {
    const double limit = activity_.limits().hang_seconds;
    const double idle = activity_.idle_seconds_in(this);
    if (limit == 0 || idle < limit) {
      return;
    }
    std::vector<int> missing;
    for (std::size_t r = 0; r < meeting_->ranks.size(); ++r) {
      if (!meeting_->present[r]) {
        missing.push_back(meeting_->ranks[r]);
      }
    }
    throw_hang(name, idle, missing);
  }

  void meet() {
    std::unique_lock lock(meeting_->mutex);
    const std::uint64_t generation = meeting_->generation;
    if (!arrive(lock) && !come_by_yielding(lock, generation)) {
      meeting_->changed.wait(lock, [&] { return meeting_->generation != generation; });
    }
  }

  // Whether the others have come while this rank let them run; `lock` is held again if not.
  bool come_by_yielding(std::unique_lock<std::mutex>& lock, std::uint64_t generation) {
    lock.unlock();
    for (int i = 0; i < kYields; ++i) {
      if (meeting_->generation != generation) {
        return true;
      }
      std::this_thread::yield();
    }
    lock.lock();
    return false;
  }

  // Whether this rank is the last to come, which lets the others go on, and `lock`.
  bool arrive(std::unique_lock<std::mutex>& lock) {
    activity_.progress();
    meeting_->present[static_cast<std::size_t>(rank_)] = true;
    if (++meeting_->num_waiting < meeting_->offered.size()) {
      return false;
    }
    meeting_->num_waiting = 0;
    meeting_->present.assign(meeting_->present.size(), false);
    ++meeting_->generation;
    lock.unlock();  // who is woken would wait for it
    meeting_->changed.notify_all();
    return true;
  }

  void check(std::string_view name) const {
    ending_.check(name);
    if (leaving_) {
      throw CommunicationError(
          fmt::format("{} was given up (rank {} failed); see its message", name, rank_));
    }
  }

  std::shared_ptr<Meeting> meeting_;
  const Ending& ending_;
  Activity& activity_;
  int rank_;
  std::atomic<bool> leaving_ = false;
};

// What the members of a group call it. Groups of the same ranks are told apart by their number.
struct GroupKey {
  std::string axis;
  std::vector<int> ranks;
  int number = 0;

  auto operator<=>(const GroupKey&) const = default;
};

// The ranks' common ground.
class Hub {
 public:
  Ending& ending() { return ending_; }

  // The meeting of a group: made by the member that comes first, forgotten when the last has come.
  std::shared_ptr<Meeting> join(const GroupKey& key) {
    const std::lock_guard lock(mutex_);
    Joining& joining = joining_[key];
    if (!joining.meeting) {
      joining.meeting = std::make_shared<Meeting>(key.ranks);
    }
    std::shared_ptr<Meeting> meeting = joining.meeting;
    if (++joining.num_members == key.ranks.size()) {
      joining_.erase(key);
    }
    return meeting;
  }

 private:
  struct Joining {
    std::shared_ptr<Meeting> meeting;
    std::size_t num_members = 0;
  };

  Ending ending_;
  std::mutex mutex_;
  std::map<GroupKey, Joining> joining_;
};

class ThreadWorld final : public World {
 public:
  ThreadWorld(Hub& hub, int rank, int size)
      : hub_(hub), rank_(rank), size_(size), activity_(rank, size) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_rank() const override { return rank_; }
  Activity& activity() override { return activity_; }

  std::unique_ptr<Communicator> create_group(std::string axis,
                                             std::span<const int> ranks,
                                             Device device,
                                             int /*num_channels*/) override {
    const auto place = std::find(ranks.begin(), ranks.end(), rank_);
    require(place != ranks.end(), "a rank creates groups that it is in");
    if (ranks.size() == 1) {
      return make_solo(device);
    }
    if (device != Device::cpu) {
      throw PreflightError(
          "ranks that are threads share no memory of the GPU (they stand for the "
          "processes of a job on the CPU); use run.device cpu");
    }
    GroupKey key{axis, {ranks.begin(), ranks.end()}};
    key.number = num_groups_[key]++;
    auto transport = std::make_unique<ThreadTransport>(
        hub_.join(key), hub_.ending(), activity_, static_cast<int>(place - ranks.begin()));
    return std::make_unique<HostCommunicator>(std::move(axis), std::move(transport), activity_);
  }

  void abort(ExitCode /*code*/, std::string_view reason) noexcept override {
    hub_.ending().set(reason);
  }
  void close() override {}

 private:
  Hub& hub_;
  int rank_;
  int size_;
  Activity activity_;
  std::map<GroupKey, int> num_groups_;  // created by this rank, by their key of number 0
};

}  // namespace

void run_threads(int num_ranks, const std::function<void(World&)>& body) {
  require(num_ranks >= 1, "a job has at least one rank");
  Hub hub;
  const int cores_each = std::max(1, omp_get_num_procs() / num_ranks);
  std::mutex mutex;
  std::exception_ptr first_error;
  const auto end = [&](World& world, const std::exception& error) {
    {
      const std::lock_guard lock(mutex);
      if (!first_error) {
        first_error = std::current_exception();
      }
    }
    world.abort(ExitCode::rank_lost,
                fmt::format("{}: {}", world.activity().describe(), error.what()));
  };
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(num_ranks));  // nothing fails beside threads that run
  for (int rank = 0; rank < num_ranks; ++rank) {
    const auto run = [&, rank] {
      omp_set_num_threads(cores_each);  // of this thread's teams
      ThreadWorld world(hub, rank, num_ranks);
      try {
        body(world);
      } catch (const std::exception& error) {
        end(world, error);
      }
    };
    try {
      threads.emplace_back(run);
    } catch (const std::system_error& error) {  // the machine has no room for it
      ThreadWorld missing(hub, rank, num_ranks);
      end(missing, error);
      break;
    }
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  if (first_error) {
    std::rethrow_exception(first_error);
  }
}

}  // namespace memphis
