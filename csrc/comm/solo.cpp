// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/solo.h"

#include "csrc/comm/check.h"

namespace memphis {
namespace {

class Done final : public Communicator::Work {
 public:
  void wait(Stream /*stream*/) override {}
};

class SoloCommunicator final : public Communicator {
 public:
  explicit SoloCommunicator(Device device) : device_(device) {}

  int rank() const override { return 0; }
  int size() const override { return 1; }

  std::unique_ptr<Work> start(const Collective& collective,
                              std::string_view name,
                              Stream stream) override {
    run(collective, name, stream);
    return std::make_unique<Done>();
  }

  void run(const Collective& collective, std::string_view name, Stream stream) override {
    require(stream.device == device_, "a group serves the device that it was made for");
    check_collective(collective, name, "solo", 0, 1, stream);
    std::visit([&](const auto& op) { copy(op, stream); }, collective);
  }

 private:
  template <class Op>
  static void copy(const Op& op, Stream stream) {
    if (op.y.data != op.x.data) {
      device_copy(op.y.data, op.x.data, op.x.bytes(), stream);
    }
  }
  static void copy(const AllToAll& op, Stream stream) {
    if (op.y.data != op.x.data) {
      const auto rows = static_cast<std::size_t>(op.send_rows.front());
      device_copy(op.y.data, op.x.data, rows * row_bytes_of(op.x), stream);
    }
  }
  static void copy(const Broadcast& /*op*/, Stream /*stream*/) {}
  static void copy(const Sums& op, Stream stream) {
    for (const Sum& part : op.parts) {
      std::visit([&](const auto& sum) { copy(sum, stream); }, part);
    }
  }

  Device device_;
};

class SoloWorld final : public World {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  int local_rank() const override { return 0; }
  Activity& activity() override { return activity_; }

  std::unique_ptr<Communicator> create_group(std::string axis,
                                             std::span<const int> ranks,
                                             Device device,
                                             int /*num_channels*/) override {
    require(ranks.size() == 1 && ranks.front() == 0, "the group " + axis + " has the only rank");
    return make_solo(device);
  }

  void abort(ExitCode /*code*/, std::string_view /*reason*/) noexcept override {}
  void close() override {}

 private:
  Activity activity_;
};

}  // namespace

std::unique_ptr<Communicator> make_solo(Device device) {
  return std::make_unique<SoloCommunicator>(device);
}

std::unique_ptr<World> make_solo_world() {
  return std::make_unique<SoloWorld>();
}

}  // namespace memphis
