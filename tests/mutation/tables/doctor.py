# SPDX-License-Identifier: Apache-2.0
"""Faults in csrc/doctor."""
from table import planter

plant = planter("csrc")

DIAGNOSIS = "doctor/diagnosis.cpp"
NODE = "doctor/node_checks.cpp"
GPU = "doctor/gpu_survey.cpp"
JOB = "doctor/job_checks.cpp"

plant("doctor.clock_of_first", DIAGNOSIS, "missing term",
      "ahead[static_cast<std::size_t>(all_->rank())] - spread_of(ahead).median",
      "ahead[static_cast<std::size_t>(all_->rank())]",
      "where the first rank's clock is off, all the others are blamed")
plant("doctor.clock_is_late", DIAGNOSIS, "condition",
      "std::abs(own) > kMostSeconds", "own > kMostSeconds",
      "a clock that is behind is well")
plant("doctor.slow_is_fast", DIAGNOSIS, "comparison",
      "outliers(rates, Side::below, kWorthAWord)", "outliers(rates, Side::above, kWorthAWord)",
      "the fastest rank is called slow")
plant("doctor.slow_share", DIAGNOSIS, "comparison",
      "of_node = std::max(of_node, of_ranks[rank]);", "of_node = of_ranks[rank];",
      "a machine is called slow because something else runs beside one of its ranks")
plant("doctor.slow_gpu_beside_a_fast_one", DIAGNOSIS, "condition",
      "const bool by_node = instruments_.rates_are_shared;", "const bool by_node = true;",
      "a GPU that is slow hides behind the others of its node")
plant("doctor.down_everywhere", DIAGNOSIS, "condition",
      "finding.beside_others && !good_somewhere.contains(finding.what)", "false",
      "a port that nobody cabled makes every node a bad one")
plant("doctor.down_here", DIAGNOSIS, "condition",
      "finding.beside_others && !good_somewhere.contains(finding.what)", "finding.beside_others",
      "a port that is down on one node is passed over")
plant("doctor.uneven", DIAGNOSIS, "condition",
      "node != instruments_.node && ranks_on(node) == ranks_on(instruments_.node)", "node != instruments_.node",
      "a node is called slow because more ranks share it")
plant("doctor.any_word", DIAGNOSIS, "condition",
      "seen == word\n              ? good", "true\n              ? good",
      "a run.dir that is another one is taken for shared")
plant("doctor.word_stays", DIAGNOSIS, "missing step",
      "remove_file(folder / kWordName);", "",
      "the doctor leaves a file in run.dir")
plant("doctor.hangs", DIAGNOSIS, "missing limit",
      "const auto found = within(instruments_.patience_seconds, look);", "const auto found = within(1e6, look);",
      "a file server that is gone stops the doctor")
plant("doctor.port", NODE, "condition",
      "state.find(\"ACTIVE\") != std::string::npos", "!state.empty()",
      "a port that is down is well")
plant("doctor.memlock", NODE, "condition",
      "has_infiniband && bytes < kNeeded", "bytes < kNeeded && bytes == 0",
      "InfiniBand fails in the run")
plant("doctor.shared_memory", NODE, "comparison",
      "return free < needed ? bad(", "return free < 0 ? bad(",
      "a full /dev/shm is well")
plant("doctor.distance", NODE, "comparison",
      "nearest ? std::min(*nearest, found) : found", "nearest ? std::max(*nearest, found) : found",
      "the farthest NIC is called the nearest")
plant("doctor.numa", NODE, "condition",
      "if (shared > 0) {", "if (shared >= 0) {",
      "devices of one PCI root are taken to share a switch")
plant("doctor.ecc", GPU, "value",
      "constexpr int kUncorrected = 1;", "constexpr int kUncorrected = 0;",
      "errors that were corrected are counted in place of those that were not")
plant("doctor.link_down", GPU, "condition",
      "active == 0 ? 1 : 0", "active == 0 ? 0 : 0",
      "an NVLink that is down is well")
plant("doctor.slowed", GPU, "value",
      "0x08 | 0x20 | 0x40 | 0x80", "0x04 | 0x08 | 0x20 | 0x40 | 0x80",
      "a GPU that works at its power limit is called broken")
plant("doctor.space", JOB, "scale",
      "const auto needed = static_cast<double>(space_needed(of_one));",
      "const auto needed = static_cast<double>(0 * of_one);",
      "a full disk is well")
