#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""alarms.py MEMPHIS --mpirun PATH [--hours H] [--ranks N] [--seed N]: no verdict without a cause.

A job of several ranks trains on all cores, beside a neighbour for each core that computes, and that is
stopped and let go on again at random. Now and then the whole job is stopped too, as a scheduler does with
one that has to make way, for longer than a rank may be silent. Nothing is lost, so nothing is to be said:
the job must go on, every time, with no rank called lost, hung or different, and no loss other than that of
a job that has the machine for itself. That a rank whose core a neighbour takes is slow is true; how often
that is said is counted.

A line a quarter of an hour tells how far it is. Ends with the first wrong verdict, and its text.
"""
import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True

CONFIG = """
model: {{vocab_size: 259, num_layers: 2, d_model: 64, num_heads: 4, num_kv_heads: 2, head_dim: 16, ffn_dim: 128,
        num_experts: 4, experts_per_token: 2}}
run: {{dir: {run}, device: cpu, resume: never, verify_every: 50}}
parallel: {{tensor: 2, expert: 2}}
data: {{train: [{text}], held_out: 0.1}}
batch: {{sequence_length: 128, micro_batch: 4, global_batch: 16}}
schedule: {{steps: {steps}, warmup_steps: 10}}
checkpoint: {{every: 100, keep: 2}}
metrics: {{every: 20, validate_every: 100, sample_every: 0}}
"""
STEPS = 600
# What a verdict reads like, wherever it stands.
VERDICTS = re.compile(r"memphis: |silent for|has waited for|differ|exploded|Traceback", re.IGNORECASE)
LONGER_THAN_SILENCE = 15  # seconds; run.lost_seconds is 10


def busy():
    """A process that computes."""
    return subprocess.Popen([sys.executable, "-c", "while True: sum(range(10000))"])


def losses(run):
    result = {}
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
        for line in file:
            entry = json.loads(line)
            if "loss" in entry and "step" in entry:
                result[entry["step"]] = entry["loss"]
    return result


class Campaign:
    def __init__(self, options, folder):
        self.options = options
        self.folder = folder
        self.chance = random.Random(options.seed)
        self.stops = {"neighbour": 0, "job": 0}
        self.slow = 0
        self.text = os.path.join(folder, "text.txt")
        with open(self.text, "w", encoding="utf-8") as file:
            for i in range(20000):
                file.write(f"the quick brown fox {i * i % 97} jumps over the lazy dog. ")

    def start(self, name):
        run = os.path.join(self.folder, name)
        config = run + ".yaml"
        with open(config, "w", encoding="utf-8") as file:
            file.write(CONFIG.format(run=run, text=self.text, steps=STEPS))
        log = open(run + ".log", "w+", encoding="utf-8")  # pylint: disable=consider-using-with
        command = [self.options.mpirun, "--allow-run-as-root", "--oversubscribe", "--bind-to", "none",
                   "-n", str(self.options.ranks), self.options.memphis, "train", config]
        job = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        return job, log, run

    def ended(self, job, log, run):
        """Its losses; the campaign ends where there is a verdict."""
        log.seek(0)
        text = log.read()
        found = VERDICTS.search(text)
        if job.returncode != 0 or found:
            sys.exit(f"a verdict without a cause: status {job.returncode}, "
                     f"'{found.group(0) if found else ''}', after {self.stops} stops:\n{text[-3000:]}")
        self.slow += len(re.findall(" is slow: ", text))
        log.close()
        return losses(run)

    def stop_for_a_while(self, processes, seconds, kind):
        self.stops[kind] += 1
        self.send(processes, signal.SIGSTOP)
        time.sleep(seconds)
        self.send(processes, signal.SIGCONT)

    def send(self, processes, what):
        for process in processes:
            try:
                os.kill(process, what)
            except ProcessLookupError:
                pass  # it has ended meanwhile

    def ranks_of(self, job):
        """The processes of the job: children of mpirun, with the name of the program."""
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(job.pid)], capture_output=True, text=True, check=False)
        return [int(word) for word in found.stdout.split()]

    def run(self):
        job, log, run = self.start("alone")
        job.wait()
        expected = self.ended(job, log, run)
        end = time.monotonic() + 3600 * self.options.hours
        said = time.monotonic()
        neighbours = [busy() for _ in range(os.cpu_count() or 1)]
        number = 0
        try:
            while time.monotonic() < end:
                number += 1
                job, log, run = self.start(f"run-{number}")
                while job.poll() is None:
                    if time.monotonic() - said > 900:
                        said = time.monotonic()
                        print(f"{number - 1} jobs of {STEPS} steps ended well, {self.stops['neighbour']} stops of a "
                              f"neighbour, {self.stops['job']} of a job, {(end - said) / 3600:.2f} h left", flush=True)
                    time.sleep(self.chance.uniform(0, 3))
                    if self.chance.random() < 0.04:
                        whole = self.ranks_of(job)
                        if whole and job.poll() is None:
                            self.stop_for_a_while(whole, self.chance.uniform(1, LONGER_THAN_SILENCE), "job")
                    else:
                        self.stop_for_a_while([self.chance.choice(neighbours).pid], self.chance.uniform(0, 4), "neighbour")
                if self.ended(job, log, run) != expected:
                    sys.exit(f"run {number} has other losses than one that had the machine for itself")
                subprocess.run(["rm", "-rf", run], check=True)
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
            for neighbour in neighbours:
                neighbour.kill()
                neighbour.wait()
        print(f"{number} jobs of {self.options.ranks} ranks and {STEPS} steps in {self.options.hours} h, "
              f"{self.stops['neighbour']} stops of a neighbour, {self.stops['job']} of a whole job, {self.slow} words of a slow rank: no wrong "
              "verdict")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("memphis", type=os.path.abspath)
    parser.add_argument("--mpirun", default="mpirun")
    parser.add_argument("--hours", type=float, default=2)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Campaign(options, folder).run()


if __name__ == "__main__":
    main()
