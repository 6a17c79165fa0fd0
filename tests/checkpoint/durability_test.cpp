// SPDX-License-Identifier: Apache-2.0
//
// What a loss of power may take: nothing that a name leads to. The calls that put bytes and names on
// the disk are counted where they are made, in the order in which they are made.
#include <algorithm>
#include <array>
#include <cstdio>
#include <string>
#include <vector>

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "csrc/checkpoint/store.h"
#include "csrc/checkpoint/writer.h"
#include "tests/checkpoint/source.h"
#include "tests/support/temporary_directory.h"

namespace {

std::vector<std::string> g_events;

std::string path_of(int descriptor) {
  std::array<char, 4096> path{};
  const std::string link = "/proc/self/fd/" + std::to_string(descriptor);
  const ssize_t length = ::readlink(link.c_str(), path.data(), path.size() - 1);
  return length > 0 ? std::string(path.data(), static_cast<std::size_t>(length)) : std::string();
}

}  // namespace

// Take the place of the system's in this program, and call them.
extern "C" int fsync(int descriptor) {
  g_events.push_back("sync " + path_of(descriptor));
  const auto next = reinterpret_cast<int (*)(int)>(::dlsym(RTLD_NEXT, "fsync"));
  return next(descriptor);
}
extern "C" int rename(const char* from, const char* to) noexcept {
  g_events.push_back("name " + std::string(to));
  const auto next =
      reinterpret_cast<int (*)(const char*, const char*)>(::dlsym(RTLD_NEXT, "rename"));
  return next(from, to);
}

namespace memphis {
namespace {

TEST(Durability, BytesComeBeforeTheirNames) {
  const test::TemporaryDirectory directory;
  const std::string run = std::filesystem::canonical(directory.path()).string();
  const std::vector<float> values(1000, 1.5F);
  g_events.clear();
  {
    CheckpointWriter writer(run, 7);
    writer.add_tensors("weights.safetensors", std::vector{test::source("a", {1000}, values)});
    writer.commit({});
  }
  const std::string unfinished = unfinished_directory(run, 7).string();
  const std::string final_path = run + "/" + checkpoint_name(7);
  const auto at = [&](const std::string& event) {
    const auto found = std::find_if(g_events.begin(), g_events.end(), [&](const std::string& one) {
      return one.starts_with(event);
    });
    EXPECT_NE(found, g_events.end()) << event << " is not there";
    return found - g_events.begin();
  };
  const auto exactly = [&](const std::string& event) {
    const auto found = std::find(g_events.begin(), g_events.end(), event);
    EXPECT_NE(found, g_events.end()) << event << " is not there";
    return found - g_events.begin();
  };
  const auto weights = exactly("sync " + unfinished + "/weights.safetensors");
  const auto manifest = exactly("sync " + unfinished + "/" + std::string(kManifestName));
  const auto names = exactly("sync " + unfinished);
  const auto renamed = exactly("name " + final_path);
  const auto in_run = exactly("sync " + run);
  const auto marker_bytes = at("sync " + final_path + "/" + std::string(kMarkerName) + ".tmp");
  const auto marker = exactly("name " + final_path + "/" + std::string(kMarkerName));
  const auto marker_name = exactly("sync " + final_path);
  EXPECT_LT(weights, names);
  EXPECT_LT(manifest, names);
  EXPECT_LT(names, renamed);
  EXPECT_LT(renamed, in_run);
  EXPECT_LT(in_run, marker);
  EXPECT_LT(marker_bytes, marker);
  EXPECT_LT(marker, marker_name);
}

}  // namespace
}  // namespace memphis
