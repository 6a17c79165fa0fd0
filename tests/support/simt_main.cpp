// SPDX-License-Identifier: Apache-2.0
//
// main() of the tests in the simt build: GoogleTest's, and how kernels are executed.
//   --simt_seed=N     the order of blocks, warps and lanes: 0 ascending (default), else a shuffle
//   --simt_races=0    do not look for races
//   --simt_traffic=1  print at the end what accesses asked of the memory system
//   --simt_blocks=N   blocks in flight: 1 for a debugger
//   --simt_capability=N  the GPU that is simulated: 90, or 80 for kernels that older ones take
//   --simt_multiprocessors=N  how many SMs it has: by default one for each core of this machine
#include <charconv>
#include <cstdio>
#include <string_view>

#include <gtest/gtest.h>

#include "csrc/core/device_simt.h"
#include "kernels/device/simt/options.h"
#include "kernels/device/simt/traffic.h"

namespace {

// Whether `argument` is `--name=NUMBER`; the number goes to `value`.
template <class T>
bool read(std::string_view argument, std::string_view name, T& value) {
  if (argument.substr(0, name.size()) != name) {
    return false;
  }
  const std::string_view text = argument.substr(name.size());
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  memphis::kernels::simt::Options& options = memphis::kernels::simt::options();
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    int races = 1;
    int capability = 0;
    int multiprocessors = 0;
    int traffic = 0;
    if (read(argument, "--simt_races=", races)) {
      options.check_races = races != 0;
    } else if (read(argument, "--simt_traffic=", traffic)) {
      options.count_traffic = traffic != 0;
    } else if (read(argument, "--simt_capability=", capability)) {
      memphis::simt_device::set_compute_capability(capability);
    } else if (read(argument, "--simt_multiprocessors=", multiprocessors)) {
      memphis::simt_device::set_num_multiprocessors(multiprocessors);
    } else if (!read(argument, "--simt_seed=", options.seed) &&
               !read(argument, "--simt_blocks=", options.num_blocks)) {
      std::fprintf(stderr,
                   "error: %s is not known here; use --simt_seed=N, --simt_races=0|1, "
                   "--simt_traffic=0|1, --simt_blocks=N, --simt_capability=N, "
                   "--simt_multiprocessors=N or GoogleTest's options\n",
                   argv[i]);
      return 2;
    }
  }
  const int result = RUN_ALL_TESTS();
  if (options.count_traffic) {
    std::fputs(describe(memphis::kernels::simt::traffic()).c_str(), stdout);
  }
  return result;
}
