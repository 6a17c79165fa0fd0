// SPDX-License-Identifier: Apache-2.0
#include "csrc/doctor/gpu_survey.h"

#include <algorithm>
#include <array>
#include <cctype>

#include <dlfcn.h>
#include <spdlog/fmt/fmt.h>

#include "csrc/train/gpu_telemetry.h"

namespace memphis::doctor {
namespace {

// NVML's C interface, as far as it is asked here: NVIDIA Management Library API reference.
constexpr int kSuccess = 0;
constexpr int kSmClock = 1;      // NVML_CLOCK_SM
constexpr int kUncorrected = 1;  // NVML_MEMORY_ERROR_TYPE_UNCORRECTED
constexpr int kVolatile = 0;     // NVML_VOLATILE_ECC
constexpr int kPeerRead = 0;     // NVML_P2P_CAPS_INDEX_READ
constexpr unsigned kMostLinks = 18;
using Handle = void*;

// nvmlPciInfo_t of nvmlDeviceGetPciInfo_v3.
struct PciInfo {
  char legacy_address[16];
  unsigned domain;
  unsigned bus;
  unsigned device;
  unsigned device_id;
  unsigned subsystem_id;
  char address[32];
};

class Nvml {
 public:
  explicit Nvml(const std::string& name) : library_(::dlopen(name.c_str(), RTLD_NOW)) {}
  ~Nvml() {
    if (library_ != nullptr) {
      ::dlclose(library_);
    }
  }
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  bool there() const { return library_ != nullptr; }
  // Whether the library has such a function and it succeeds.
  template <class... Parameters, class... Arguments>
  bool call(int (*)(Parameters...), const char* name, Arguments... arguments) const {
    using Function = int(Parameters...);
    auto* const function = reinterpret_cast<Function*>(::dlsym(library_, name));
    return function != nullptr && function(arguments...) == kSuccess;
  }

 private:
  void* library_;
};

// A type to choose a signature by.
template <class... Parameters>
constexpr int (*kTakes)(Parameters...) = nullptr;

// "00000000:3B:00.0" as the system's folders have it.
std::string sys_address(const char* nvml) {
  std::string text = nvml;
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) {
    return static_cast<char>(std::tolower(c));
  });
  constexpr std::size_t kLongDomain = 8;
  return text.find(':') == kLongDomain ? text.substr(kLongDomain / 2) : text;
}

GpuState state_of(const Nvml& nvml, Handle gpu) {
  GpuState state;
  PciInfo pci{};
  if (nvml.call(kTakes<Handle, PciInfo*>, "nvmlDeviceGetPciInfo_v3", gpu, &pci)) {
    state.pci_address = sys_address(pci.address);
  }
  nvml.call(kTakes<Handle, int, unsigned*>, "nvmlDeviceGetClockInfo", gpu, kSmClock, &state.sm_mhz);
  nvml.call(kTakes<Handle, int, unsigned*>,
            "nvmlDeviceGetMaxClockInfo",
            gpu,
            kSmClock,
            &state.max_sm_mhz);
  unsigned long long number = 0;
  if (nvml.call(kTakes<Handle, unsigned long long*>,
                "nvmlDeviceGetCurrentClocksThrottleReasons",
                gpu,
                &number)) {
    state.throttle_reasons = number;
  }
  if (nvml.call(kTakes<Handle, int, int, unsigned long long*>,
                "nvmlDeviceGetTotalEccErrors",
                gpu,
                kUncorrected,
                kVolatile,
                &number)) {
    state.uncorrected_errors = number;
  }
  for (unsigned link = 0; link < kMostLinks; ++link) {
    int active = 0;
    if (nvml.call(kTakes<Handle, unsigned, int*>, "nvmlDeviceGetNvLinkState", gpu, link, &active)) {
      ++state.links;
      state.links_down += active == 0 ? 1 : 0;
    }
  }
  return state;
}

}  // namespace

GpuSurvey survey_gpus(const std::string& name) {
  GpuSurvey survey;
  const Nvml nvml(name);
  if (!nvml.there()) {
    survey.unavailable = fmt::format("there is no {}", name);
    return survey;
  }
  unsigned count = 0;
  if (!nvml.call(kTakes<>, "nvmlInit_v2") ||
      !nvml.call(kTakes<unsigned*>, "nvmlDeviceGetCount_v2", &count)) {
    survey.unavailable = fmt::format("{} does not start", name);
    return survey;
  }
  std::vector<Handle> handles(count);
  for (unsigned i = 0; i < count; ++i) {
    if (!nvml.call(kTakes<unsigned, Handle*>, "nvmlDeviceGetHandleByIndex_v2", i, &handles[i])) {
      survey.unavailable = fmt::format("GPU {} does not answer", i);
      nvml.call(kTakes<>, "nvmlShutdown");
      return survey;
    }
    survey.gpus.push_back(state_of(nvml, handles[i]));
  }
  for (unsigned i = 0; i < count; ++i) {
    for (unsigned j = 0; j < count; ++j) {
      int status = 0;  // NVML_P2P_STATUS_OK
      if (i != j &&
          nvml.call(kTakes<Handle, Handle, int, int*>,
                    "nvmlDeviceGetP2PStatus",
                    handles[i],
                    handles[j],
                    kPeerRead,
                    &status) &&
          status != 0) {
        survey.gpus[i].no_peers.push_back(static_cast<int>(j));
      }
    }
  }
  nvml.call(kTakes<>, "nvmlShutdown");
  return survey;
}

std::vector<Finding> findings_of(const GpuSurvey& survey, int num_needed) {
  if (!survey.unavailable.empty()) {
    if (num_needed > 0) {
      return {bad("GPUs",
                  survey.unavailable,
                  "see what nvidia-smi says, and load the driver or take the node out")};
    }
    return {unchecked("GPUs", survey.unavailable)};
  }
  std::vector<Finding> findings;
  const auto count = static_cast<int>(survey.gpus.size());
  const std::string found = fmt::format("{} of {} that ranks need", count, num_needed);
  findings.push_back(
      count < num_needed
          ? bad("GPUs", found, "one has fallen off the bus, or is hidden: see nvidia-smi and dmesg")
          : good("GPUs", fmt::format("{}", count)));
  const auto add = [&](const std::string& what,
                       const std::string& measured,
                       bool is_bad,
                       const std::string& advice) {
    findings.push_back(is_bad ? bad(what, measured, advice) : good(what, measured));
    findings.back().code = ExitCode::bad_hardware;
  };
  for (int i = 0; i < count; ++i) {
    const GpuState& gpu = survey.gpus[static_cast<std::size_t>(i)];
    // All but the limit of power, which GPUs that work hard reach.
    constexpr std::uint64_t kSlowed = 0x08 | 0x20 | 0x40 | 0x80;
    const std::string slowed = describe_throttle(gpu.throttle_reasons & kSlowed);
    add(fmt::format("GPU {} clock", i),
        fmt::format("{} of {} MHz{}{}",
                    gpu.sm_mhz,
                    gpu.max_sm_mhz,
                    slowed.empty() ? "" : ", slowed by ",
                    slowed),
        !slowed.empty(),
        "look at its cooling and power supply");
    add(fmt::format("GPU {} ECC", i),
        fmt::format("{} uncorrected errors", gpu.uncorrected_errors),
        gpu.uncorrected_errors > 0,
        "reset the GPU, and replace it if they come again");
    add(fmt::format("GPU {} NVLink", i),
        gpu.links == 0 ? std::string("none")
                       : fmt::format("{} of {} links up", gpu.links - gpu.links_down, gpu.links),
        gpu.links_down > 0 && count > 1,  // one that is seen alone has nobody to link to
        "see `nvidia-smi nvlink -s` and whether the fabric manager runs");
    add(fmt::format("GPU {} peers", i),
        gpu.no_peers.empty()
            ? std::string("reads all others")
            : fmt::format("cannot read GPU {}{}",
                          gpu.no_peers.front(),
                          gpu.no_peers.size() > 1
                              ? fmt::format(" and {} more", gpu.no_peers.size() - 1)
                              : ""),
        !gpu.no_peers.empty(),
        "see `nvidia-smi topo -p2p r`; PCI access control (ACS) hinders it outside of virtual "
        "machines");
  }
  return findings;
}

}  // namespace memphis::doctor
