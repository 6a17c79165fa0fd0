// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/control_groups.h"

#include <string>

#include <gtest/gtest.h>

#include "tests/support/temporary_directory.h"

namespace memphis::test {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20U;

std::string mib(std::size_t count) {
  return std::to_string(count * kMiB) + "\n";
}

// A machine's files, as far as they are looked at.
class ControlGroups : public testing::Test {
 protected:
  void second_version(const std::string& group, const std::string& root_of_mount = "/") const {
    files_.write("proc/self/cgroup", "0::" + group + "\n");
    files_.write("proc/self/mountinfo",
                 "24 30 0:22 / /proc rw - proc proc rw\n"
                 "35 24 0:30 " +
                     root_of_mount + " /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n");
  }
  void write(const std::string& name, const std::string& content) const {
    files_.write("sys/fs/cgroup/" + name, content);
  }
  ControlGroupLimits limits() const { return read_control_group_limits(files_.path()); }

  TemporaryDirectory files_;
};

TEST_F(ControlGroups, AreNoneWhereThereAreNone) {
  EXPECT_FALSE(limits().memory.has_value());
  EXPECT_FALSE(limits().cores.has_value());
  second_version("/user.slice/run");
  write("user.slice/run/memory.max", "max\n");
  write("user.slice/run/cpu.max", "max 100000\n");
  EXPECT_FALSE(limits().memory.has_value());
  EXPECT_FALSE(limits().cores.has_value());
}

TEST_F(ControlGroups, LimitWhatTheirOwnPathSays) {
  second_version("/user.slice/run");
  write("user.slice/run/memory.max", mib(512));
  write("user.slice/run/memory.current", mib(200));
  write("user.slice/run/cpu.max", "150000 100000\n");
  write("other/memory.max", mib(2));
  ASSERT_TRUE(limits().memory.has_value());
  EXPECT_EQ(limits().memory->limit_bytes, 512 * kMiB);
  EXPECT_EQ(limits().memory->free_bytes, 312 * kMiB);
  EXPECT_TRUE(limits().memory->file.ends_with("/user.slice/run/memory.max"));
  ASSERT_TRUE(limits().cores.has_value());
  EXPECT_EQ(*limits().cores, 1.5);
}

TEST_F(ControlGroups, CountThoseAroundToo) {
  second_version("/job/step/task");
  write("job/step/task/memory.max", mib(900));
  write("job/step/task/memory.current", mib(100));
  write("job/memory.max", mib(1000));
  write("job/memory.current", mib(700));
  write("job/cpu.max", "400000 100000\n");
  write("job/step/cpu.max", "200000 100000\n");
  ASSERT_TRUE(limits().memory.has_value());
  EXPECT_EQ(limits().memory->free_bytes, 300 * kMiB) << "the task's own has 800";
  EXPECT_TRUE(limits().memory->file.ends_with("/job/memory.max"));
  EXPECT_EQ(limits().cores, 2.0);
}

TEST_F(ControlGroups, DoNotCountTheCacheOfFilesAsUsed) {
  second_version("/run");
  write("run/memory.max", mib(100));
  write("run/memory.current", mib(90));
  write("run/memory.stat",
        "anon " + mib(20) + "inactive_file " + mib(30) + "active_file " + mib(25));
  EXPECT_EQ(limits().memory->free_bytes, 65 * kMiB);
}

TEST_F(ControlGroups, AreFullWhereMoreIsUsedThanAllowed) {
  second_version("/run");
  write("run/memory.max", mib(100));
  write("run/memory.current", mib(130));
  EXPECT_EQ(limits().memory->free_bytes, 0U);
}

TEST_F(ControlGroups, ThrottleBelowTheirLimit) {
  second_version("/run");
  write("run/memory.max", mib(100));
  write("run/memory.high", mib(60));
  write("run/memory.current", mib(10));
  EXPECT_EQ(limits().memory->free_bytes, 50 * kMiB);
  EXPECT_TRUE(limits().memory->file.ends_with("/run/memory.high"));
}

// A container whose path is its host's, and one that sees itself as the root.
TEST_F(ControlGroups, OfAContainerLieWhereItsMountIs) {
  for (const char* root_of_mount : {"/", "/docker/1f"}) {
    SCOPED_TRACE(root_of_mount);
    second_version(root_of_mount == std::string("/") ? "/" : "/docker/1f", root_of_mount);
    write("memory.max", mib(64));
    write("memory.current", mib(4));
    ASSERT_TRUE(limits().memory.has_value());
    EXPECT_EQ(limits().memory->free_bytes, 60 * kMiB);
  }
  second_version("/../../other", "/docker/1f");
  ASSERT_TRUE(limits().memory.has_value()) << "a path that it does not see";
}

TEST_F(ControlGroups, OfTheFirstVersionAreMountedOneByOne) {
  files_.write(
      "proc/self/cgroup",
      "8:pids:/\n5:memory:/slurm/job_7\n3:cpu,cpuacct:/slurm/job_7\n1:name=systemd:/\n0::/\n");
  files_.write("proc/self/mountinfo",
               "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
               "36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
               "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n");
  write("memory/slurm/job_7/memory.limit_in_bytes", mib(256));
  write("memory/slurm/job_7/memory.usage_in_bytes", mib(100));
  write("memory/slurm/job_7/memory.stat",
        "inactive_file 5\ntotal_inactive_file " + mib(40) + "total_active_file " + mib(10));
  write("memory/memory.limit_in_bytes", "9223372036854771712\n");
  write("cpu,cpuacct/slurm/job_7/cpu.cfs_quota_us", "50000\n");
  write("cpu,cpuacct/slurm/job_7/cpu.cfs_period_us", "100000\n");
  write("cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
  write("cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  ASSERT_TRUE(limits().memory.has_value());
  EXPECT_EQ(limits().memory->free_bytes, 206 * kMiB);
  EXPECT_EQ(limits().cores, 0.5);
}

}  // namespace
}  // namespace memphis::test
