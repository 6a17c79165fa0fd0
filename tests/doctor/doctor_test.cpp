// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <future>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>

#include <dlfcn.h>
#include <gtest/gtest.h>

#include "csrc/comm/threads.h"
#include "csrc/core/error.h"
#include "csrc/doctor/diagnosis.h"
#include "csrc/doctor/gpu_survey.h"
#include "csrc/doctor/node_checks.h"
#include "csrc/doctor/within.h"
#include "csrc/train/run_lock.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

namespace fs = std::filesystem;
using doctor::Diagnosis;
using doctor::Finding;
using doctor::State;

// A machine's /sys with a port of InfiniBand, beside the first of two GPUs.
void make_sys(const TemporaryDirectory& directory,
              const std::string& state,
              const std::string& physical) {
  const fs::path sys = directory.path() / "sys";
  const fs::path root = sys / "devices/pci0000:3a/0000:3a:00.0";
  const fs::path far = sys / "devices/pci0000:ae/0000:ae:00.0/0000:af:00.0";
  const fs::path gpu = root / "0000:3b:00.0";
  const fs::path nic = root / "0000:3c:00.0";
  for (const fs::path& folder : {gpu, nic, far}) {
    fs::create_directories(folder);
  }
  const auto write = [&](const fs::path& path, const std::string& text) {
    fs::create_directories(path.parent_path());
    directory.write(fs::relative(path, directory.path()).string(), text + "\n");
  };
  write(gpu / "numa_node", "0");
  write(nic / "numa_node", "0");
  write(far / "numa_node", "1");
  fs::create_directories(sys / "bus/pci/devices");
  fs::create_directory_symlink(gpu, sys / "bus/pci/devices/0000:3b:00.0");
  fs::create_directory_symlink(far, sys / "bus/pci/devices/0000:af:00.0");
  const fs::path infiniband = sys / "class/infiniband/mlx5_0";
  fs::create_directories(infiniband);
  fs::create_directory_symlink(nic, infiniband / "device");
  write(infiniband / "ports/1/state", state);
  write(infiniband / "ports/1/phys_state", physical);
  write(infiniband / "ports/1/rate", "400 Gb/sec (4X NDR)");
  // One without a port, on the root of the other GPU.
  const fs::path other = sys / "devices/pci0000:ae/0000:ae:01.0";
  fs::create_directories(other);
  fs::create_directories(sys / "class/infiniband/mlx5_1");
  fs::create_directory_symlink(other, sys / "class/infiniband/mlx5_1/device");
  write(sys / "class/net/eth0/operstate", "up");
  write(sys / "class/net/eth0/speed", "25000");
}

// A job of four ranks on the nodes n0 to n3, all of them well but for what `plant` does.
class Doctor : public testing::Test {
 protected:
  Doctor() { make_sys(healthy_, "4: ACTIVE", "5: LinkUp"); }

  doctor::Instruments instruments() const {
    return {.node = "",
            .sys = healthy_.path() / "sys",
            .shared_memory = healthy_.path(),
            .nvml = "libof-no-gpu.so",
            .memlock_bytes = std::numeric_limits<std::uint64_t>::max(),
            .num_files = 131072,
            .patience_seconds = 1000,  // this machine may be slow
            .space =
                [](const fs::path&) {
                  return doctor::Space{.free_bytes = 1ULL << 40, .total_bytes = 1ULL << 41};
                },
            .wall_nanoseconds =
                [] {
                  return std::chrono::duration_cast<std::chrono::nanoseconds>(
                             std::chrono::system_clock::now().time_since_epoch())
                      .count();
                },
            .product_tflops = [] { return 700.0; },
            .copy_gb_per_second = [] { return 3000.0; },
            .write_mb_per_second = [](const fs::path&) { return 500.0; }};
  }

  using Plant = std::function<void(int rank, doctor::Instruments&, doctor::Question&)>;
  Diagnosis diagnose(const Plant& plant, int num_ranks = 4) {
    Diagnosis result;
    run_threads(num_ranks, [&](World& world) {
      doctor::Instruments own = instruments();
      own.node = "n" + std::to_string(world.rank());
      doctor::Question question{.config = tiny_config(run_, {"run.dir=" + run_dir()}),
                                .config_finding = doctor::good("config", "tiny.yaml"),
                                .device = Device::cpu,
                                .launched_by = "started by a test",
                                .default_roots = {}};
      plant(world.rank(), own, question);
      Diagnosis diagnosis = doctor::diagnose(world, question, own);
      if (world.rank() == 0) {
        result = std::move(diagnosis);
      }
    });
    return result;
  }
  std::string run_dir() const { return (run_.path() / "run").string(); }

  // The one bad finding, which must be there and be the only one, of that node; "": of the job.
  static Finding only_bad(const Diagnosis& diagnosis, const std::string& node) {
    std::vector<Finding> bad;
    for (const doctor::NodeReport& report : diagnosis.nodes) {
      for (const Finding& finding : report.findings) {
        if (finding.state == State::bad) {
          EXPECT_EQ(report.node, node) << line_of(finding);
          bad.push_back(finding);
        }
      }
    }
    for (const Finding& finding : diagnosis.job) {
      if (finding.state == State::bad) {
        EXPECT_EQ(node, "") << line_of(finding);
        bad.push_back(finding);
      }
    }
    EXPECT_EQ(bad.size(), 1U) << diagnosis.text();
    const std::vector<std::string> sick = diagnosis.nodes_that_are(false);
    EXPECT_EQ(sick, node.empty() ? std::vector<std::string>{} : std::vector<std::string>{node});
    return bad.empty() ? Finding{} : bad.front();
  }

  TemporaryDirectory healthy_;
  TemporaryDirectory run_;
};

TEST_F(Doctor, FindsNothingWrongWithAHealthyJobAndLeavesNothingBehind) {
  const Diagnosis diagnosis = diagnose([](int, doctor::Instruments&, doctor::Question&) {});
  EXPECT_EQ(diagnosis.code(), ExitCode::done) << diagnosis.text();
  EXPECT_EQ(diagnosis.nodes_that_are(true), (std::vector<std::string>{"n0", "n1", "n2", "n3"}));
  EXPECT_TRUE(diagnosis.nodes_that_are(false).empty());
  EXPECT_FALSE(fs::exists(run_dir()));
  const std::string text = diagnosis.text();
  for (const char* line : {"-     GPUs               not checked: there is no libof-no-gpu.so",
                           "good  mlx5_0 port 1      4: ACTIVE, 5: LinkUp, 400 Gb/sec (4X NDR)",
                           "good  NICs               eth0 up at 25000 Mb/s",
                           "good  run.dir shared     what rank 0 wrote is there",
                           "-     checkpoint         not checked: "}) {
    EXPECT_NE(text.find(line), std::string::npos) << line << " in\n" << text;
  }
}

TEST_F(Doctor, NamesANodeThatMayPinNoMemory) {
  const Finding found =
      only_bad(diagnose([](int rank, doctor::Instruments& own, doctor::Question&) {
                 own.memlock_bytes = rank == 2 ? 65536 : own.memlock_bytes;
               }),
               "n2");
  EXPECT_EQ(found.what, "memlock");
  EXPECT_EQ(found.code, ExitCode::preflight);
  EXPECT_NE(line_of(found).find("64.0 KiB"), std::string::npos) << line_of(found);
}

TEST_F(Doctor, NamesAPortThatIsDown) {
  const TemporaryDirectory sick;
  make_sys(sick, "1: DOWN", "3: Disabled");
  const Finding found =
      only_bad(diagnose([&](int rank, doctor::Instruments& own, doctor::Question&) {
                 own.sys = rank == 1 ? sick.path() / "sys" : own.sys;
               }),
               "n1");
  EXPECT_EQ(found.what, "mlx5_0 port 1");
  EXPECT_EQ(found.code, ExitCode::bad_hardware);
  EXPECT_NE(found.measured.find("1: DOWN, 3: Disabled"), std::string::npos) << found.measured;
}

// The second port of a card that nobody cabled.
TEST_F(Doctor, PassesOverAPortThatIsDownOnEveryNode) {
  const TemporaryDirectory down;
  make_sys(down, "1: DOWN", "3: Disabled");
  const auto all_down = [&](int, doctor::Instruments& own, doctor::Question&) {
    own.sys = down.path() / "sys";
  };
  const Diagnosis job = diagnose(all_down);
  EXPECT_EQ(job.code(), ExitCode::done) << job.text();
  EXPECT_NE(job.text().find("not checked: 1: DOWN, 3: Disabled, 400 Gb/sec (4X NDR), as on every"),
            std::string::npos)
      << job.text();
  // A port with a link lacks its subnet manager, which all of them lack then.
  const TemporaryDirectory unmanaged;
  make_sys(unmanaged, "2: INIT", "5: LinkUp");
  const Diagnosis without = diagnose([&](int, doctor::Instruments& own, doctor::Question&) {
    own.sys = unmanaged.path() / "sys";
  });
  EXPECT_EQ(without.code(), ExitCode::bad_hardware) << without.text();
  EXPECT_EQ(without.nodes_that_are(/*good=*/false).size(), 4U);
  const Diagnosis alone = diagnose(all_down, /*num_ranks=*/1);
  EXPECT_EQ(alone.code(), ExitCode::done) << alone.text();
  EXPECT_NE(alone.text().find("(4X NDR), with no other node to compare"), std::string::npos)
      << alone.text();
}

TEST_F(Doctor, NamesFullDisksAndTooFewFiles) {
  const auto full = [&](const fs::path& where) {
    return only_bad(diagnose([&](int rank, doctor::Instruments& own, doctor::Question&) {
                      if (rank == 3) {
                        own.space = [where](const fs::path& path) {
                          const bool is_it = path == where;
                          return doctor::Space{.free_bytes = is_it ? 1000U : 1ULL << 40,
                                               .total_bytes = 1ULL << 41};
                        };
                      }
                    }),
                    "n3");
  };
  EXPECT_EQ(full(healthy_.path()).what, "/dev/shm");
  EXPECT_EQ(full(run_.path()).what, "run.dir space");
  const Finding files =
      only_bad(diagnose([](int rank, doctor::Instruments& own, doctor::Question&) {
                 own.num_files = rank == 0 ? 256 : own.num_files;
               }),
               "n0");
  EXPECT_EQ(files.what, "nofile");
}

TEST_F(Doctor, NamesTheNodeWhoseClockIsOffAlsoIfItIsTheFirst) {
  for (const int sick : {0, 2}) {
    const Finding found =
        only_bad(diagnose([&](int rank, doctor::Instruments& own, doctor::Question&) {
                   if (rank == sick) {
                     own.wall_nanoseconds = [wall = own.wall_nanoseconds] {
                       return wall() - 90'000'000'000;
                     };
                   }
                 }),
                 "n" + std::to_string(sick));
    EXPECT_EQ(found.what, "clock");
    EXPECT_NE(found.measured.find("-90.0"), std::string::npos) << found.measured;
  }
}

TEST_F(Doctor, NamesASlowRankByTheRateOfItsOwnGpu) {
  const Finding products =
      only_bad(diagnose([](int rank, doctor::Instruments& own, doctor::Question&) {
                 own.node = rank < 3 ? "n0" : "n1";
                 own.product_tflops = [rank] { return rank == 1 ? 500.0 : 700.0 + rank; };
                 own.rates_are_shared = false;
               }),
               "n0");
  EXPECT_EQ(products.what, "products");
  EXPECT_EQ(products.code, ExitCode::bad_hardware);
  EXPECT_NE(products.measured.find("rank 1: 500 TFLOP/s"), std::string::npos) << products.measured;
  EXPECT_NE(products.measured.find("of all ranks is 701"), std::string::npos) << products.measured;
}

TEST_F(Doctor, NamesASlowNodeByItsOwnRate) {
  const Finding products =
      only_bad(diagnose([](int rank, doctor::Instruments& own, doctor::Question&) {
                 own.product_tflops = [rank] { return rank == 3 ? 500.0 : 700.0 + rank; };
               }),
               "n3");
  EXPECT_EQ(products.what, "products");
  EXPECT_EQ(products.code, ExitCode::bad_hardware);
  EXPECT_NE(products.measured.find("500 TFLOP/s"), std::string::npos) << products.measured;
  EXPECT_NE(products.measured.find("of all nodes of 1 rank is 700.5"), std::string::npos)
      << products.measured;
}

TEST_F(Doctor, TakesAProcessorForAsFastAsTheFastestOfItsRanks) {
  // Three ranks a node, of which others that run there slow one or two.
  const auto place = [](const std::vector<double>& rates) {
    return [rates](int rank, doctor::Instruments& own, doctor::Question&) {
      own.node = "n" + std::to_string(rank / 3);
      own.copy_gb_per_second = [rate = rates[static_cast<std::size_t>(rank)]] { return rate; };
    };
  };
  const std::vector<double> busy = {20, 99, 100, 30, 101, 40, 100, 50, 40};
  const Diagnosis well = diagnose(place(busy), 9);
  EXPECT_EQ(well.code(), ExitCode::done) << well.text();
  EXPECT_NE(well.text().find("101 GB/s, where the median of all nodes of 3 ranks is 100 with"),
            std::string::npos)
      << well.text();
  const std::vector<double> slow = {20, 99, 100, 30, 61, 40, 100, 50, 40};
  const Finding copies = only_bad(diagnose(place(slow), 9), "n1");
  EXPECT_EQ(copies.what, "copies");
  EXPECT_EQ(copies.code, ExitCode::bad_hardware);
  EXPECT_NE(copies.measured.find("61 GB/s"), std::string::npos) << copies.measured;
  const Diagnosis alone = diagnose(place({100, 20, 100}), 3);
  EXPECT_EQ(alone.code(), ExitCode::done) << alone.text();
  EXPECT_NE(alone.text().find("100 GB/s, with no other node of 3 ranks to compare"),
            std::string::npos)
      << alone.text();
}

// Four ranks have a quarter of its cores each.
TEST_F(Doctor, ComparesANodeWithThoseOfAsManyRanks) {
  const Diagnosis uneven = diagnose(
      [](int rank, doctor::Instruments& own, doctor::Question&) {
        own.node = "n" + std::to_string(std::min(rank, 3));
        own.product_tflops = [rank] { return rank < 3 ? 100.0 : 25.0; };
      },
      7);
  EXPECT_EQ(uneven.code(), ExitCode::done) << uneven.text();
  EXPECT_NE(uneven.text().find("25 TFLOP/s, with no other node of 4 ranks to compare"),
            std::string::npos)
      << uneven.text();
}

TEST_F(Doctor, NamesTheNodeThatSeesAnotherRunDirectory) {
  const TemporaryDirectory other;
  const Finding found =
      only_bad(diagnose([&](int rank, doctor::Instruments&, doctor::Question& question) {
                 if (rank == 1) {
                   question.config->run.dir = (other.path() / "run").string();
                 }
               }),
               "n1");
  EXPECT_EQ(found.what, "run.dir shared");
  EXPECT_FALSE(fs::exists(other.path() / "run"));
}

TEST_F(Doctor, NamesACheckpointThatIsDamagedAndDataThatIsNone) {
  fs::create_directories(fs::path(run_dir()) / "step-00000010");
  run_.write("run/step-00000010/COMMIT", "0123456789abcdef\n");
  run_.write("run/step-00000010/manifest.json", "{}\n");
  const Finding checkpoint =
      only_bad(diagnose([](int, doctor::Instruments&, doctor::Question&) {}), "");
  EXPECT_EQ(checkpoint.what, "checkpoint");
  EXPECT_EQ(checkpoint.code, ExitCode::checkpoint);
  fs::remove_all(run_dir());
  const Finding data =
      only_bad(diagnose([&](int, doctor::Instruments&, doctor::Question& question) {
                 question.config->data.train = {"/no/such/text"};
               }),
               "");
  EXPECT_EQ(data.what, "data.train");
  EXPECT_EQ(data.code, ExitCode::data);
}

// What a run would refuse at its start.
TEST_F(Doctor, NamesWhatTheConfigAsksForAndIsNone) {
  const auto bad_with = [&](const std::function<void(Config&)>& change) {
    return only_bad(diagnose([&](int, doctor::Instruments&, doctor::Question& question) {
                      change(*question.config);
                    }),
                    "");
  };
  const std::string words = run_.write("words.txt", "words, and no JSON\n");
  std::string packed = "\x1F\x8B\x08" + std::string(7, '\0');  // and no more
  const std::string cut = run_.write("cut.gz", packed);
  struct Case {
    std::function<void(Config&)> change;
    std::string what;
    ExitCode code;
    std::string measured;
  };
  const std::vector<Case> cases = {
      {[](Config& config) { config.data.tokenizer = "/no/tokenizer"; },
       "data.tokenizer",
       ExitCode::data,
       "/no/tokenizer"},
      {[&](Config& config) { config.data.tokenizer = words; },
       "data.tokenizer",
       ExitCode::data,
       "words.txt"},
      {[](Config& config) { config.data.evaluate = {"/no/questions"}; },
       "data.evaluate",
       ExitCode::data,
       "/no/questions"},
      {[&](Config& config) { config.data.evaluate = {words}; },
       "data.evaluate",
       ExitCode::data,
       "words.txt:1: it is no JSON object"},
      {[](Config& config) { config.run.init_from = "/no/model"; },
       "run.init_from",
       ExitCode::checkpoint,
       "/no/model holds no model"},
      {[&](Config& config) { config.data.train = {cut}; }, "data.train", ExitCode::data, "cut.gz"},
      {[](Config& config) { config.data.field = "body"; },
       "data.field",
       ExitCode::config,
       "no file of data.train or data.validation is lines"},
      {[](Config& config) { config.run.resume = Resume::required; },
       "checkpoint",
       ExitCode::checkpoint,
       "has no valid checkpoint"}};
  for (const Case& each : cases) {
    const Finding found = bad_with(each.change);
    EXPECT_EQ(found.what, each.what);
    EXPECT_EQ(found.code, each.code) << found.measured;
    EXPECT_NE(found.measured.find(each.measured), std::string::npos) << found.measured;
  }
}

// A file that breaks off shows it far behind its beginning.
TEST_F(Doctor, NamesACompressedFileThatIsCutShort) {
  std::string lines;
  for (int i = 0; i < 100000; ++i) {
    lines += "{\"text\": \"document " + std::to_string(i * 7919 % 100003) + "\"}\n";
  }
  const std::string plain = run_.write("a.jsonl", lines);
  ASSERT_EQ(std::system(("gzip " + plain).c_str()), 0);
  const std::string packed = plain + ".gz";
  const auto change = [&](int, doctor::Instruments&, doctor::Question& question) {
    question.config->data.train = {packed};
  };
  EXPECT_EQ(diagnose(change).code(), ExitCode::done);
  fs::resize_file(packed, fs::file_size(packed) - 100);
  const Finding found = only_bad(diagnose(change), "");
  EXPECT_EQ(found.what, "data.train");
  EXPECT_EQ(found.code, ExitCode::data);
}

TEST_F(Doctor, CountsTheRoomThatTrainAsksFor) {
  const Finding found =
      only_bad(diagnose([&](int rank, doctor::Instruments& own, doctor::Question&) {
                 own.space = [rank, where = run_.path()](const fs::path& path) {
                   const bool is_it = rank == 1 && path == where;
                   return doctor::Space{.free_bytes = is_it ? 60ULL << 20U : 1ULL << 40U,
                                        .total_bytes = 1ULL << 41U};
                 };
               }),
               "n1");
  EXPECT_EQ(found.what, "run.dir space");
}

// What a run at work has half done, and what one that was killed has left, is no damage.
TEST_F(Doctor, LeavesARunAtWorkAndItsLeftoversAlone) {
  const auto nothing = [](int, doctor::Instruments&, doctor::Question&) {};
  run_.write("run/nothing-saved-yet", "");
  run_.write("run/step-00000010.tmp/config.json", "{");
  Diagnosis diagnosis = diagnose(nothing);
  EXPECT_EQ(diagnosis.code(), ExitCode::done) << diagnosis.text();
  run_.write("run/step-00000005/COMMIT", "");  // as it is deleted
  {
    const RunLock lock(run_dir());
    diagnosis = diagnose(nothing);
    EXPECT_EQ(diagnosis.code(), ExitCode::done) << diagnosis.text();
    EXPECT_NE(diagnosis.text().find("is in use by process"), std::string::npos) << diagnosis.text();
  }
  EXPECT_EQ(diagnose(nothing).code(), ExitCode::checkpoint);
}

TEST_F(Doctor, GoesOnWithoutWhatDoesNotAnswer) {
  std::promise<void> end;  // a thread that waits owns its end, as it outlives the test
  const std::shared_future<void> ended = end.get_future().share();
  const Diagnosis diagnosis = diagnose([&](int rank, doctor::Instruments& own, doctor::Question&) {
    if (rank == 2) {
      own.patience_seconds = 0.05;
      own.write_mb_per_second = [ended](const fs::path&) {
        ended.wait();
        return 0.0;
      };
    }
  });
  end.set_value();
  // On a machine that is slow other things of the node may take as long.
  EXPECT_EQ(diagnosis.nodes_that_are(/*good=*/false), std::vector<std::string>{"n2"});
  EXPECT_EQ(diagnosis.code(), ExitCode::preflight);
  const std::string text = diagnosis.text();
  EXPECT_NE(text.find("bad   run.dir            no answer within 0.05 s"), std::string::npos)
      << text;
  for (const Finding& finding : diagnosis.nodes[2].findings) {
    EXPECT_TRUE(finding.state != State::bad ||
                finding.measured.find("no answer within") != std::string::npos ||
                finding.what == "run.dir shared")
        << line_of(finding);
  }
  EXPECT_NE(text.find("good  all-reduce "), std::string::npos) << "what comes behind it\n" << text;
}

// A file server that answers too late would leave what the doctor wrote.
TEST(Within, WhatIsFoundTooLateIsUndone) {
  std::promise<void> end;
  const auto undone = std::make_shared<std::promise<int>>();  // the thread's too
  const auto found = doctor::within(
      0.01,
      [ended = end.get_future().share()] {
        ended.wait();
        return 7;
      },
      [undone](int late) { undone->set_value(late); });
  EXPECT_FALSE(found.has_value());
  end.set_value();
  EXPECT_EQ(undone->get_future().get(), 7);
  const auto in_time = doctor::within(
      1000, [] { return 8; }, [](int) { FAIL(); });
  EXPECT_EQ(in_time, std::optional<int>(8));
}

TEST_F(Doctor, SaysWhatOneRankCannotCompare) {
  const Diagnosis diagnosis =
      diagnose([](int, doctor::Instruments&, doctor::Question&) {}, /*num_ranks=*/1);
  EXPECT_EQ(diagnosis.code(), ExitCode::done);
  EXPECT_NE(diagnosis.text().find("-     clock              not checked: one rank"),
            std::string::npos)
      << diagnosis.text();
}

class DoctorGpus : public Doctor {
 protected:
  DoctorGpus() : library_(dlopen(MEMPHIS_FAKE_NVML, RTLD_NOW)) {
    set<unsigned>("fake_gpus", 2);
    set<unsigned>("fake_mhz", 1755);
    set<unsigned long long>("fake_errors", 0);
    set<int>("fake_link_down", -1);
    set<int>("fake_peer_status", 0);
  }
  ~DoctorGpus() override { dlclose(library_); }
  template <class T>
  void set(const char* name, T value) {
    *static_cast<T*>(dlsym(library_, name)) = value;
  }
  static std::vector<std::string> bad_of(int needed) {
    std::vector<std::string> bad;
    for (const Finding& finding :
         doctor::findings_of(doctor::survey_gpus(MEMPHIS_FAKE_NVML), needed)) {
      if (finding.state == State::bad) {
        bad.push_back(finding.what + ": " + finding.measured);
      }
    }
    return bad;
  }

  void* library_;
};

using Texts = std::vector<std::string>;

TEST_F(DoctorGpus, AreWellOrNamedWithWhatTheySayOfThemselves) {
  EXPECT_EQ(bad_of(2), Texts{});
  EXPECT_EQ(bad_of(3), Texts{"GPUs: 2 of 3 that ranks need"});
  set<unsigned long long>("fake_errors", 7);
  EXPECT_EQ(bad_of(2), Texts{"GPU 1 ECC: 7 uncorrected errors"});
  set<unsigned long long>("fake_errors", 0);
  set<int>("fake_link_down", 3);
  EXPECT_EQ(bad_of(2), Texts{"GPU 0 NVLink: 3 of 4 links up"});
  set<int>("fake_link_down", -1);
  set<int>("fake_peer_status", 5);
  EXPECT_EQ(bad_of(2), (Texts{"GPU 0 peers: cannot read GPU 1", "GPU 1 peers: cannot read GPU 0"}));
}

TEST_F(DoctorGpus, ThatAreSlowedDownSayByWhat) {
  doctor::GpuSurvey survey;
  survey.gpus = {{.sm_mhz = 1980, .max_sm_mhz = 1980, .throttle_reasons = 0x4},
                 {.sm_mhz = 900, .max_sm_mhz = 1980, .throttle_reasons = 0x44}};
  const std::vector<Finding> findings = doctor::findings_of(survey, 2);
  EXPECT_EQ(findings[1].state, State::good) << "its power limit is what a GPU at work reaches";
  EXPECT_EQ(findings[5].state, State::bad);
  EXPECT_EQ(findings[5].measured, "900 of 1980 MHz, slowed by heat, by hardware");
}

TEST_F(DoctorGpus, ThatAreAloneNeedNoLinks) {
  doctor::GpuSurvey survey;
  survey.gpus = {{.links = 18, .links_down = 18}};
  for (const Finding& finding : doctor::findings_of(survey, 1)) {
    EXPECT_NE(finding.state, State::bad) << finding.what;
  }
}

TEST_F(DoctorGpus, AreToldHowFarTheirNicIs) {
  doctor::GpuSurvey survey = doctor::survey_gpus(MEMPHIS_FAKE_NVML);
  survey.gpus.push_back({.pci_address = "0000:ff:00.0"});  // which /sys does not show
  Texts nics;
  for (const Finding& finding : doctor::check_network(healthy_.path() / "sys", survey.gpus)) {
    if (finding.what.ends_with(" NIC")) {
      nics.push_back(finding.what + ": " + finding.measured);
    }
  }
  EXPECT_EQ(nics,
            (Texts{"GPU 0 NIC: mlx5_0 is nearest, behind the same PCI switch",
                   "GPU 1 NIC: mlx5_1 is nearest, on the same PCI root",
                   "GPU 2 NIC: mlx5_0 is nearest, on another NUMA node"}));
}

TEST_F(DoctorGpus, AreMissedWhereRanksNeedThem) {
  const doctor::GpuSurvey none = doctor::survey_gpus("libof-no-gpu.so");
  EXPECT_EQ(doctor::findings_of(none, 0).front().state, State::unchecked);
  EXPECT_EQ(doctor::findings_of(none, 1).front().state, State::bad);
}

}  // namespace
}  // namespace memphis::test
