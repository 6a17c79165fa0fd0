// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "csrc/comm/communicator.h"

namespace memphis::test {

// Another group, but for what a test does before each call. One thread at a time calls it.
class CommunicatorDecorator : public Communicator {
 public:
  explicit CommunicatorDecorator(std::unique_ptr<Communicator> real) : real_(std::move(real)) {}

  int rank() const override { return real_->rank(); }
  int size() const override { return real_->size(); }
  std::unique_ptr<Work> start(const Collective& collective,
                              std::string_view name,
                              Stream stream) override {
    before(collective, name);
    return real_->start(collective, name, stream);
  }
  void run(const Collective& collective, std::string_view name, Stream stream) override {
    before(collective, name);
    real_->run(collective, name, stream);
  }

 private:
  virtual void before(const Collective& collective, std::string_view name) = 0;

  std::unique_ptr<Communicator> real_;
};

// Another world, but for what a test overrides.
class WorldDecorator : public World {
 public:
  explicit WorldDecorator(World& real) : real_(real) {}

  int rank() const override { return real_.rank(); }
  int size() const override { return real_.size(); }
  int local_rank() const override { return real_.local_rank(); }
  Activity& activity() override { return real_.activity(); }
  std::unique_ptr<Communicator> create_group(std::string axis,
                                             std::span<const int> ranks,
                                             Device device,
                                             int num_channels) override {
    return real_.create_group(std::move(axis), ranks, device, num_channels);
  }
  void abort(ExitCode code, std::string_view reason) noexcept override {
    real_.abort(code, reason);
  }
  void close() override { real_.close(); }

 protected:
  World& real() { return real_; }

 private:
  World& real_;
};

}  // namespace memphis::test
