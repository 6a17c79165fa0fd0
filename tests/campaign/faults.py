#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""faults.py MEMPHIS LIBRARY [--all] [--how WAY ...] [--only TEXT] [--record]: every write of a run fails once.

A run that trains, saves, deletes, samples and exports is made again and again, and each time another one of
the calls that open, write, flush, name, close and remove its files fails (file_faults.cpp, LIBRARY). The
run goes on, or ends with the code of what it could not do and one line that says so; what was saved before
stays; and the same command, given again on a disk that works, ends with the bytes of a run that nothing
happened to.

Without --all, of the calls that differ in nothing but a number the first is taken: half a minute. What the
program says of each with EIO is in faults.golden, which --record writes.
"""
import argparse
import os
import re
import shutil
import sys

sys.dont_write_bytecode = True
import tiny
from disk import Disk, final_bytes, scratch_folder

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "faults.golden")
WAYS = ("EIO", "ENOSPC", "EDQUOT", "short", "full", "slow", "kill")
REASONS = {"EIO": "Input/output error", "ENOSPC": "No space left on device", "full": "No space left on device",
           "EDQUOT": "Disk quota exceeded"}
# 0: the run goes on. 3: its trace is lost, 4: a checkpoint, 5: its metrics or its directory.
CODES = {0, 3, 4, 5}


def plain(text):
    """Without what differs between two runs."""
    text = re.sub(r"events\.out\.tfevents\.\S+?(?=[\s);]|$)", "EVENTS", text)
    text = re.sub(r"\.tmp-\d+", ".tmp-PID", text)
    text = re.sub(r"step-\d{8}", "step-N", text)
    text = re.sub(r"rank-\d{5}", "rank-N", text)
    text = re.sub(r"of step \d+", "of step N", text)
    text = re.sub(r"\d+ in a row", "N in a row", text)
    return re.sub(r"export/step-\w+", "export/step-N", text)


def cause(text, disk):
    """The line that says why a run ended; of one that went on, what it said of the fault."""
    lines = [line[line.index("memphis: ") + 9:] for line in text.splitlines() if "memphis: " in line]
    lines = lines or [line for line in text.splitlines() if any(reason in line for reason in REASONS.values())]
    return plain(lines[-1].replace(disk.files, "")) if lines else ""


class Walk:
    def __init__(self, options, scratch):
        self.options = options
        self.scratch = scratch
        self.problems = []
        self.rows = set()
        self.golden = set()
        if os.path.exists(GOLDEN):
            with open(GOLDEN, encoding="utf-8") as file:
                self.golden = {line.rstrip("\n") for line in file if line[0] != "#"}
        self.num_runs = 0

    def fresh(self):
        folder = os.path.join(self.scratch, "one")
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        disk = Disk(folder, self.options.library)
        config, run_dir = tiny.write_config(disk)
        return disk, [self.options.memphis, "train", config], run_dir

    def reference(self):
        disk, command, run_dir = self.fresh()
        ended = disk.run(command)
        if ended.code != 0:
            sys.exit(f"the run does not end well by itself:\n{ended.text}")
        self.expected = final_bytes(run_dir, tiny.LAST_STEP)
        return [(call, path) for call, path in ended.calls]

    def fail_one(self, number, how):
        self.num_runs += 1

        def problem(text, said=""):
            self.problems.append(f"{where}: {text}\n{said[-1500:]}")

        disk, command, run_dir = self.fresh()
        ended = disk.run(command, at=number, how=how)
        if len(ended.calls) < number:
            return
        # A checkpoint is written beside the run, so the call of this number may be another one.
        site = ended.calls[number - 1]
        where = f"{number} {site[0]} {site[1]} with {how}"
        said = cause(ended.text, disk)
        if how == "kill":
            if ended.code != -9:
                problem(f"ended with {ended.code} and not by the signal", ended.text)
        elif how in ("short", "slow"):
            if ended.code != 0:
                problem(f"ended with {ended.code}, for nothing", ended.text)
        elif ended.code not in CODES:
            problem(f"ended with {ended.code}", ended.text)
        elif ended.code != 0:
            if not re.search(r"\(.*\); ", said):
                problem("no line says what is wrong, why, and what to do", ended.text)
            elif REASONS[how] not in said:
                problem("the line does not have the system's reason", ended.text)
        if how == "EIO":
            # Which of its calls fails makes no difference to what is said of a file.
            row = f"{plain(site[1])} | {ended.code} | {said}"
            self.rows.add(row)
            if not self.options.record and row not in self.golden:
                problem(f"is not in {os.path.basename(GOLDEN)}: {row}", ended.text)
        # What had its marker for good is there, or a newer one: each before the last that has it now.
        marked = [int(m.group(1)) for call, path in ended.calls[:number - 1]
                  if call == "rename" and (m := re.search(r"step-(\d+)/COMMIT$", path))]
        if marked and site[1].endswith(f"step-{marked[-1]:08}"):
            marked.pop()  # its directory is being flushed
        kept = [int(name[5:]) for name in (os.listdir(run_dir) if os.path.isdir(run_dir) else [])
                if re.fullmatch(r"step-\d{8}", name) and os.path.exists(os.path.join(run_dir, name, "COMMIT"))]
        if marked and (not kept or max(kept) < max(marked)):
            problem(f"checkpoint {max(marked)} is lost ({kept} are there)", ended.text)
        again = disk.run(command)
        if again.code != 0:
            problem(f"a start afterwards ends with {again.code}", ended.text + "\n--- again\n" + again.text)
            return
        if kept and ended.code != 0 and "nothing to do" not in again.text and \
                not re.search(rf"resuming from \S*step-{max(kept):08} ", again.text):
            problem(f"it does not go on from step {max(kept)}", again.text)
        if final_bytes(run_dir, tiny.LAST_STEP) != self.expected:
            problem("other weights than those of a run that nothing happened to", again.text)
        left = [name for _, _, files in os.walk(disk.files) for name in files if ".tmp-" in name]
        if left and how != "kill":
            problem(f"{left} are left over", again.text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("memphis", type=os.path.abspath)
    parser.add_argument("library", type=os.path.abspath)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--how", nargs="+", choices=WAYS)
    parser.add_argument("--only", default="")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    with scratch_folder() as scratch:
        walk = Walk(options, os.path.realpath(scratch))
        calls = walk.reference()
        seen = set()
        sites = []
        for number, site in enumerate(calls, 1):
            kind = (site[0], plain(site[1]))
            if options.only not in f"{number} {kind[0]} {kind[1]}":
                continue
            if options.all or kind not in seen:
                sites.append(number)
            seen.add(kind)
        print(f"{len(calls)} calls of {len(seen)} kinds", flush=True)
        for at, number in enumerate(sites):
            # Of the other ways each call sees one, and all calls together all of them.
            ways = options.how or (WAYS if options.all else ("EIO", WAYS[1 + at % (len(WAYS) - 1)]))
            for how in ways:
                before = len(walk.problems)
                walk.fail_one(number, how)
                for text in walk.problems[before:]:
                    print(text, flush=True)
        if options.record:
            with open(GOLDEN, "w", encoding="utf-8") as file:
                file.write("# What a run says when a call fails (EIO) that opens or changes one of its files: the"
                           " file |\n# the exit code | the line. Written by faults.py --all --how EIO --record.\n")
                file.writelines(row + "\n" for row in sorted(walk.rows))
        print(f"{walk.num_runs} runs with a fault, {len(walk.problems)} problems")
        sys.exit(0 if walk.num_runs > 0 and not walk.problems else 1)


if __name__ == "__main__":
    main()
