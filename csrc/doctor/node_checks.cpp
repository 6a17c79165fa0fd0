// SPDX-License-Identifier: Apache-2.0
#include "csrc/doctor/node_checks.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>
#include <utility>

#include <spdlog/fmt/fmt.h>

namespace memphis::doctor {
namespace {

namespace fs = std::filesystem;

// The first line of a file of /sys; empty where it cannot be read.
std::string line_in(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// Sorted; none where there is no such folder.
std::vector<fs::path> entries_of(const fs::path& folder) {
  std::vector<fs::path> entries;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    entries.push_back(it->path());
  }
  std::sort(entries.begin(), entries.end());
  return entries;
}

std::optional<int> number_in(const fs::path& path) {
  const std::string line = line_in(path);
  int number = 0;
  const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), number);
  return error == std::errc{} && end != line.data() ? std::optional(number) : std::nullopt;
}

// From near to far.
enum class Distance : int { same_switch, same_root, same_numa_node, other_numa_node };
constexpr const char* kDistances[] = {"behind the same PCI switch",
                                      "on the same PCI root",
                                      "on the same NUMA node",
                                      "on another NUMA node"};

// Of two PCI devices' folders: how far their ways from the root are one.
Distance distance_of(const fs::path& a, const fs::path& b) {
  std::error_code error;
  const fs::path way_a = fs::canonical(a, error);
  const fs::path way_b = fs::canonical(b, error);
  // .../devices/pci0000:00/<bridge>/<bridge of the switch>/.../<device>
  auto at_a = way_a.begin();
  auto at_b = way_b.begin();
  int shared = -1;  // bridges below the root
  bool below_root = false;
  for (; at_a != way_a.end() && at_b != way_b.end() && *at_a == *at_b; ++at_a, ++at_b) {
    below_root = below_root || at_a->string().starts_with("pci");
    shared += below_root ? 1 : 0;
  }
  if (shared > 0) {
    return Distance::same_switch;
  }
  if (shared == 0) {
    return Distance::same_root;
  }
  const std::optional<int> node = number_in(a / "numa_node");
  return node && node == number_in(b / "numa_node") ? Distance::same_numa_node
                                                    : Distance::other_numa_node;
}

Finding check_memlock(std::uint64_t bytes, bool has_infiniband) {
  // What registers memory with a NIC: buffers of MPI and NCCL, a few hundred MiB a rank.
  constexpr std::uint64_t kNeeded = std::uint64_t{1} << 30;
  const std::string measured = bytes == std::numeric_limits<std::uint64_t>::max()
                                   ? std::string("unlimited")
                                   : bytes_text(static_cast<double>(bytes));
  if (has_infiniband && bytes < kNeeded) {
    return bad("memlock",
               measured + ", and InfiniBand pins memory",
               "set it to unlimited: in /etc/security/limits.conf, and LimitMEMLOCK=infinity for "
               "slurmd");
  }
  return good("memlock", has_infiniband ? measured : measured + ", without InfiniBand");
}

Finding check_shared_memory(const Instruments& instruments, int num_ranks_here) {
  // Open MPI's and NCCL's segments for the ranks of a machine.
  constexpr double kBytesOfRank = 32 << 20;
  const double needed = kBytesOfRank * num_ranks_here;
  try {
    const Space space = instruments.space(instruments.shared_memory);
    const auto free = static_cast<double>(space.free_bytes);
    const std::string measured = fmt::format("{} free of {}, {} needed",
                                             bytes_text(free),
                                             bytes_text(static_cast<double>(space.total_bytes)),
                                             bytes_text(needed));
    return free < needed ? bad("/dev/shm",
                               measured,
                               "remove what ended jobs left there, or enlarge it (docker "
                               "--shm-size, mount -o remount,size=)")
                         : good("/dev/shm", measured);
  } catch (const Error& error) {
    return bad("/dev/shm", error.what(), "mount a tmpfs there");
  }
}

Finding check_files(std::uint64_t limit, int num_ranks) {
  // Shards of data and checkpoints, and a connection to each rank.
  const std::uint64_t needed = 1024 + 8 * static_cast<std::uint64_t>(num_ranks);
  const std::string measured = fmt::format("{} may be open, {} needed", limit, needed);
  return limit < needed
             ? bad("nofile", measured, "raise `ulimit -Hn`, in /etc/security/limits.conf")
             : good("nofile", measured);
}

void check_port(const fs::path& device, const fs::path& port, std::vector<Finding>& findings) {
  const std::string name =
      fmt::format("{} port {}", device.filename().string(), port.filename().string());
  const std::string state = line_in(port / "state");          // "4: ACTIVE"
  const std::string physical = line_in(port / "phys_state");  // "5: LinkUp"
  const std::string measured = fmt::format("{}, {}, {}", state, physical, line_in(port / "rate"));
  const bool active = state.find("ACTIVE") != std::string::npos;
  findings.push_back(
      active ? good(name, measured)
             : bad(name, measured, "look at its cable, its switch port and the subnet manager"));
  findings.back().code = ExitCode::bad_hardware;
  // One that nobody cabled, as the second of many a card, is down on all nodes. Where it has a link, it
  // lacks its subnet manager.
  findings.back().beside_others = active || physical.find("LinkUp") == std::string::npos;
}

}  // namespace

std::vector<Finding> check_network(const fs::path& sys, const std::vector<GpuState>& gpus) {
  std::vector<Finding> findings;
  const std::vector<fs::path> devices = entries_of(sys / "class/infiniband");
  for (const fs::path& device : devices) {
    for (const fs::path& port : entries_of(device / "ports")) {
      check_port(device, port, findings);
    }
  }
  if (devices.empty()) {
    findings.push_back(unchecked("InfiniBand", "this machine has none in /sys/class/infiniband"));
  }
  std::string others;
  for (const fs::path& nic : entries_of(sys / "class/net")) {
    if (nic.filename() == "lo") {
      continue;
    }
    const std::string speed = line_in(nic / "speed");  // in Mb/s; -1 or nothing: not known
    const bool known = !speed.empty() && speed.front() != '-';
    others += fmt::format("{}{} {}{}",
                          others.empty() ? "" : ", ",
                          nic.filename().string(),
                          line_in(nic / "operstate"),
                          known ? " at " + speed + " Mb/s" : "");
  }
  findings.push_back(others.empty() ? unchecked("NICs", "this machine shows none in /sys/class/net")
                                    : good("NICs", others));
  for (std::size_t i = 0; i < gpus.size() && !devices.empty(); ++i) {
    const fs::path gpu = sys / "bus/pci/devices" / gpus[i].pci_address;
    std::optional<std::pair<Distance, std::string>> nearest;
    for (const fs::path& device : devices) {
      const std::pair found{distance_of(gpu, device / "device"), device.filename().string()};
      nearest = nearest ? std::min(*nearest, found) : found;
    }
    findings.push_back(good(
        fmt::format("GPU {} NIC", i),
        fmt::format(
            "{} is nearest, {}", nearest->second, kDistances[static_cast<int>(nearest->first)])));
  }
  if (gpus.empty()) {
    findings.push_back(unchecked("GPU to NIC", "no GPU"));
  }
  return findings;
}

std::vector<Finding> check_node(const Instruments& instruments, const NodeQuestion& question) {
  std::error_code ignored;
  const bool has_infiniband = !entries_of(instruments.sys / "class/infiniband").empty();
  std::vector<Finding> findings = {
      check_memlock(instruments.memlock_bytes, has_infiniband),
      check_shared_memory(instruments, question.num_ranks_here),
      check_files(instruments.num_files, question.num_ranks),
  };
  const GpuSurvey survey = survey_gpus(instruments.nvml);
  for (std::vector<Finding> more : {findings_of(survey, question.num_gpus_needed),
                                    check_network(instruments.sys, survey.gpus)}) {
    findings.insert(findings.end(), more.begin(), more.end());
  }
  return findings;
}

}  // namespace memphis::doctor
