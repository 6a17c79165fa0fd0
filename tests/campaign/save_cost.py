#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What saving in the background costs a step.

    save_cost.py MEMPHIS [--config FILE] [--every N] [--saves N] [--rounds N] [section.key=value ...]

Trains by turns without saves and with one every N steps, and prints the seconds of a step of each run, by
the clock, and the ratio of their means. The first steps, before the first save, are left out. Give
OMP_NUM_THREADS one less than there are cores for what a machine with a core to spare has.
"""
import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def step_seconds(memphis, options, every, run):
    first = options.every  # from here on
    steps = first + options.saves * options.every
    subprocess.run([memphis, "train", options.config, f"run.dir={run}", f"schedule.steps={steps}",
                    "schedule.warmup_steps=1", "metrics.every=1", "metrics.validate_every=0", "metrics.sample_every=0",
                    f"checkpoint.every={every}", f"data.train=[{ROOT}/README.md]", *options.overrides],
                   check=True, capture_output=True)
    times = {}
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if "loss" in row:
                times[row["step"]] = datetime.datetime.fromisoformat(row["time"].replace("Z", "+00:00")).timestamp()
    return (times[steps] - times[first]) / (steps - first)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("memphis", type=os.path.abspath)
    parser.add_argument("--config", default=os.path.join(ROOT, "configs", "bench_cpu.yaml"))
    parser.add_argument("--every", type=int, default=8, help="steps between saves")
    parser.add_argument("--saves", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    seconds = {"without": [], "with": []}
    for number in range(options.rounds):
        for how, every in (("without", 0), ("with", options.every)):
            with tempfile.TemporaryDirectory() as folder:
                seconds[how].append(step_seconds(options.memphis, options, every, os.path.join(folder, "run")))
        print(f"round {number + 1}: {seconds['without'][-1]:.4f} s a step without saves,"
              f" {seconds['with'][-1]:.4f} s with one every {options.every} steps", flush=True)
    ratio = statistics.mean(seconds["with"]) / statistics.mean(seconds["without"])
    print(f"a step takes {ratio:.3f} times as long with saves")


if __name__ == "__main__":
    main()
