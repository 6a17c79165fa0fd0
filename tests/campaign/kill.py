#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""kill.py MEMPHIS LIBRARY [--mpirun PATH] [--times N] [--seed N]: a run is killed anywhere and goes on.

Each time a run that trains, saves, deletes, samples and exports is killed, once or several times in a row:
at a moment of its time or before one of the calls that change its files; all of it or one of its ranks; and
after some of these the disk loses power too, and with it all that was not flushed, or some of that by
chance. The same command then goes on by itself and ends with the bytes of a run that nothing happened to,
and no checkpoint that was committed is ever gone.

With --mpirun half of the runs have two ranks. A line tells how often each part of a run was met; a failure
says with which --seed and --first it comes again.
"""
import argparse
import collections
import os
import random
import re
import shutil
import subprocess
import sys
import time

sys.dont_write_bytecode = True
import tiny
from disk import Disk, final_bytes, scratch_folder

RANKS = ["parallel.tensor=2", "parallel.expert=2"]


def part_of(calls):
    """What a run was about by its last calls."""
    if not calls:
        return "start"
    call, path = calls[-1]
    for part, pattern in (("record", r"nothing-saved"), ("commit", r"COMMIT|manifest\.json|step-\d+$"),
                          ("export", r"/export"), ("trace", r"/trace"), ("prune", r"^unlinkat .*step-|rename .*tmp$"),
                          ("write", r"step-\d+\.tmp"), ("directory", r"lock|config|tensorboard$|run$|deep$|^mkdir"),
                          ("step", r"metrics\.jsonl|tensorboard/")):
        if re.search(pattern, f"{call} {path}"):
            return part
    return "other"


def committed(calls):
    """The newest step whose marker and its name were flushed to the end."""
    newest = -1
    marked = None
    for call, path in calls:
        if call == "rename" and path.endswith("/COMMIT"):
            marked = os.path.dirname(path)
        elif call == "close" and path == marked:
            newest = int(marked[-8:])
    return newest


def saved(run_dir):
    """The newest step that a run directory has with its marker."""
    names = os.listdir(run_dir) if os.path.isdir(run_dir) else []
    return max((int(name[5:]) for name in names if re.fullmatch(r"step-\d{8}", name) and
                os.path.exists(os.path.join(run_dir, name, "COMMIT"))), default=-1)


class Campaign:
    def __init__(self, options, scratch):
        self.options = options
        self.scratch = scratch
        self.met = collections.Counter()
        self.references = {}

    def fresh(self, ranks):
        folder = os.path.join(self.scratch, "one")
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        disk = Disk(folder, self.options.library)
        config, run_dir = tiny.write_config(disk)
        command = [self.options.memphis, "train", config]
        if ranks > 1:
            command = [self.options.mpirun, "--allow-run-as-root", "--oversubscribe", "-n", str(ranks), *command,
                       *RANKS]
        return disk, command, run_dir

    def reference(self, ranks):
        """Of a run that nothing happens to: its bytes, its calls in a process, and its seconds."""
        if ranks not in self.references:
            disk, command, run_dir = self.fresh(ranks)
            begin = time.monotonic()
            ended = disk.run(command)
            if ended.code != 0:
                sys.exit(f"the run does not end well by itself:\n{ended.text}")
            self.references[ranks] = (final_bytes(run_dir, tiny.LAST_STEP), len(ended.calls) // ranks,
                                      time.monotonic() - begin)
        return self.references[ranks]

    def once(self, number):
        """What went wrong, or nothing."""
        chance = random.Random(f"{self.options.seed} {number}")
        ranks = chance.choice([1, 2]) if self.options.mpirun else 1
        expected, num_calls, seconds = self.reference(ranks)
        disk, command, run_dir = self.fresh(ranks)
        story = []
        promised = -1
        for _ in range(chance.choice([1, 1, 1, 2, 2, 3])):
            power = chance.choice(["", "", "strict", "by chance"])
            faults = {"shadow": bool(power)}
            if chance.random() < 0.4:
                faults["kill_after"] = chance.uniform(0, seconds * 1.1)
                if ranks > 1 and not power and chance.random() < 0.5:
                    faults["choose"] = lambda family: [chance.choice(family)] if family else []
            else:
                # Ranks after the first have few calls, and a run that goes on has fewer.
                faults.update(at=int(num_calls * chance.random() ** 1.5) + 1, how="kill",
                              rank=chance.randrange(ranks) if ranks > 1 else None)
            ended = disk.run(command, **faults)
            part = "whole" if ended.code == 0 else part_of(ended.calls)
            self.met[part + (", power" if power else "")] += 1
            shown = {key: value for key, value in faults.items() if key != "choose"}
            story.append(f"{shown} {power}: ended with {ended.code} in {part}, after {ended.calls[-1:]}")
            if ended.code in (1, 4) or ended.code == 5 and ranks == 1:
                return "\n".join([*story, ended.text[-1500:]])
            promised = max(promised, committed(ended.calls))
            if power:
                disk.cut_power(None if power == "strict" else chance.random())
            if saved(run_dir) < promised:
                return "\n".join([*story, f"step {promised} was saved and {saved(run_dir)} is the newest there"])
        again = disk.run(command)
        story.append(f"at last: ended with {again.code}")
        if again.code != 0:
            return "\n".join([*story, again.text[-1500:]])
        if final_bytes(run_dir, tiny.LAST_STEP) != expected:
            return "\n".join([*story, "other weights than those of a run that nothing happened to"])
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("memphis", type=os.path.abspath)
    parser.add_argument("library", type=os.path.abspath)
    parser.add_argument("--mpirun")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", default="1")
    options = parser.parse_args()
    if options.mpirun and subprocess.run(
            [options.mpirun, "--allow-run-as-root", "-n", "1", "/bin/true"], stdin=subprocess.DEVNULL,
            capture_output=True, check=False).returncode != 0:
        print("mpirun does not start on this machine: all runs have one rank")
        options.mpirun = None
    num_bad = 0
    with scratch_folder() as scratch:
        campaign = Campaign(options, os.path.realpath(scratch))
        for number in range(options.first, options.first + options.times):
            try:
                wrong = campaign.once(number)
            except AssertionError as error:  # it does not end
                wrong = str(error)
            if wrong:
                num_bad += 1
                print(f"--seed {options.seed} --first {number} --times 1\n{wrong}\n", flush=True)
        met = ", ".join(f"{count} {part}" for part, count in campaign.met.most_common())
        print(f"{options.times} runs, killed {sum(campaign.met.values())} times ({met}); {num_bad} problems")
    sys.exit(1 if num_bad else 0)


if __name__ == "__main__":
    main()
