// SPDX-License-Identifier: Apache-2.0
//
// Ends a program whose code has instructions that this processor lacks, with a line that says so, in
// the place of the SIGILL that it would meet somewhere. It runs before main and before all else of
// memphis that does (constructors without a priority come later). This file alone is compiled for any
// x86-64, and calls the C library only: a function of the C++ library that is compiled into several
// objects may come from one that is compiled for another processor.
#include <cstdio>
#include <cstring>

#include <processor_features.h>
#include <unistd.h>

namespace {

struct Feature {
  const char* name;
  bool is_there;
};

constexpr int kPreflight = 5;  // ExitCode::preflight of csrc/core/error.h

}  // namespace

// Named so that linkers are told to take this object along (csrc/core/CMakeLists.txt).
extern "C" [[gnu::constructor(101)]] void memphis_check_processor() {
  __builtin_cpu_init();
#define MEMPHIS_FEATURE(name) {name, __builtin_cpu_supports(name) != 0},
  const Feature features[] = {MEMPHIS_PROCESSOR_FEATURES(MEMPHIS_FEATURE){"", true}};
#undef MEMPHIS_FEATURE
  char missing[512] = "";
  for (const Feature& feature : features) {
    if (!feature.is_there && strlen(missing) + strlen(feature.name) + 3 < sizeof(missing)) {
      strcat(missing, missing[0] == '\0' ? "" : ", ");
      strcat(missing, feature.name);
    }
  }
  if (missing[0] == '\0') {
    return;
  }
  dprintf(
      STDERR_FILENO,
      "memphis: this processor has no %s (the program is built with -march=%s, for another one); "
      "build it here, or for both with `launch/build.sh --march x86-64-v3` (x86-64-v2 on "
      "processors before 2013)\n",
      missing,
      MEMPHIS_CPU_ARCH);
  _exit(kPreflight);
}
