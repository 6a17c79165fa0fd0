// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include <nccl.h>

#include "csrc/core/device.h"
#include "csrc/core/device_simt.h"
#include "tests/support/error_text.h"

// Ranks of the simulated NCCL that are threads of the test.
namespace memphis::test {

constexpr Stream kStream{Device::cuda, nullptr};

// Long enough for any machine; what never ends fails here.
constexpr std::chrono::seconds kLimit{600};

template <class T>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& values)
      : count_(values.size()), data_(device_allocate(count_ * sizeof(T), Device::cuda)) {
    device_copy(data_.get(), values.data(), count_ * sizeof(T), kStream);
  }
  explicit OnDevice(std::size_t count) : OnDevice(std::vector<T>(count)) {}

  T* data() const { return static_cast<T*>(data_.get()); }
  std::vector<T> values() const {
    std::vector<T> result(count_);
    device_copy(result.data(), data_.get(), count_ * sizeof(T), kStream);
    return result;
  }

 private:
  struct Free {
    void operator()(void* memory) const { device_free(memory, Device::cuda); }
  };
  std::size_t count_;
  std::unique_ptr<void, Free> data_;
};

// What a call of a communicator came to.
struct Result {
  ncclResult_t status = ncclSuccess;
  std::string text;
};

inline Result result_of(ncclResult_t status) {
  return {status, status == ncclSuccess ? "" : ncclGetLastError(nullptr)};
}

// One rank.
class Rank {
 public:
  Rank(std::vector<ncclUniqueId> ids, int rank, int num_ranks) : rank_(rank) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.commName = "test";
    const ncclResult_t status = ncclCommInitRankScalable(
        &comm_, num_ranks, rank, static_cast<int>(ids.size()), ids.data(), &config);
    connected_ = settle(status);
  }
  ~Rank() {
    if (comm_ != nullptr) {
      ncclCommAbort(comm_);
    }
  }
  Rank(const Rank&) = delete;
  Rank& operator=(const Rank&) = delete;

  int rank() const { return rank_; }
  ncclComm_t comm() const { return comm_; }
  // Of its own: ranks that shared one would each lie behind the others' calls.
  cudaStream_t stream() const { return static_cast<cudaStream_t>(stream_.view().handle); }
  Stream view() const { return stream_.view(); }
  const Result& connected() const { return connected_; }

  // Until what a call, which returned `status`, has enqueued lies on the stream.
  Result enqueued(ncclResult_t status) const {
    return until(status, [] { return true; });
  }

  // Until it is done.
  Result settle(ncclResult_t status) const {
    const Result result = enqueued(status);
    if (result.status != ncclSuccess) {
      return result;
    }
    Event done(Device::cuda, Event::Use::ordering);
    done.record(stream_.view());
    return until(ncclSuccess, [&] { return done.is_done(); });
  }

  Result group(const std::function<void()>& calls) const {
    ncclGroupStart();
    calls();
    return settle(ncclGroupEnd());
  }

  Result sum(const float* send, float* receive, std::size_t count) const {
    return settle(ncclAllReduce(send, receive, count, ncclFloat32, ncclSum, comm_, stream()));
  }

  ncclResult_t broadcast(float* data, std::size_t count, int root) const {
    return ncclBroadcast(data, data, count, ncclFloat32, root, comm_, stream());
  }

  Result part() {
    const Result result = settle(ncclCommFinalize(comm_));
    if (result.status == ncclSuccess) {
      EXPECT_EQ(ncclCommDestroy(comm_), ncclSuccess);
      comm_ = nullptr;
    }
    return result;
  }

 private:
  // It is no longer in progress, and `done` besides.
  Result until(ncclResult_t status, const std::function<bool()>& done) const {
    const auto end = std::chrono::steady_clock::now() + kLimit;
    while ((status == ncclSuccess || status == ncclInProgress) &&
           std::chrono::steady_clock::now() < end) {
      EXPECT_EQ(ncclCommGetAsyncError(comm_, &status), ncclSuccess);
      if (status == ncclSuccess && done()) {
        return {};
      }
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    return status == ncclSuccess ? Result{ncclInProgress, "it does not end"} : result_of(status);
  }

  int rank_;
  OwnedStream stream_{Device::cuda};
  ncclComm_t comm_ = nullptr;
  Result connected_;
};

inline std::vector<ncclUniqueId> make_ids(int num_ids) {
  std::vector<ncclUniqueId> ids(static_cast<std::size_t>(num_ids));
  for (ncclUniqueId& id : ids) {
    EXPECT_EQ(ncclGetUniqueId(&id), ncclSuccess);
  }
  return ids;
}

// As long as it lives, ranks take memory as if each had a GPU: the simulated device is one a process.
struct GpuEach {
  GpuEach() { simt_device::set_memory_waits(false); }
  ~GpuEach() { simt_device::set_memory_waits(true); }
  GpuEach(const GpuEach&) = delete;
  GpuEach& operator=(const GpuEach&) = delete;
};

// What `body` returns, of each rank. No rank goes before the others have it.
inline std::vector<Result> on_ranks(int num_ranks, const std::function<Result(Rank&)>& body) {
  const GpuEach gpus;
  const std::vector<ncclUniqueId> ids = make_ids(1);
  std::vector<Result> results(static_cast<std::size_t>(num_ranks));
  std::vector<std::unique_ptr<Rank>> ranks(results.size());
  std::vector<std::thread> threads;
  for (int r = 0; r < num_ranks; ++r) {
    threads.emplace_back([&, r] {
      const auto i = static_cast<std::size_t>(r);
      ranks[i] = std::make_unique<Rank>(ids, r, num_ranks);
      results[i] = ranks[i]->connected();
      if (results[i].status == ncclSuccess) {
        results[i] = body(*ranks[i]);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  return results;
}

inline void expect_on_all(const std::vector<Result>& results,
                          ncclResult_t status,
                          const std::string& text) {
  for (const Result& result : results) {
    EXPECT_EQ(result.status, status) << result.text;
    EXPECT_EQ(result.text, text);
    EXPECT_TRUE(status == ncclSuccess || test::follows_grammar(result.text)) << result.text;
  }
}

}  // namespace memphis::test
