#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""traffic.py TABLE TESTS: holds to a table what kernels ask of the memory system.

TESTS is the folder of tests of the simt preset, which count sectors of device memory and passes over the banks of
shared memory (kernels/device/README.md). TABLE is TOML. What it runs:

  [[test]]
  name    a test
  cases   GoogleTest's filter: cases whose rows are aligned and long enough that their ends do not count

No kernel of them may ask for more than 1.05 times the least that would do for the bytes it names, summed over its
lines that access one memory in one way, unless the table lets it:

  [[allowed]]
  kernel  a regular expression, searched in the kernel's name
  access  the same, of "reads device memory", "writes shared memory" and the like
  times   how many times the least, at most
  why     what it would cost to ask for less
"""
import pathlib
import re
import subprocess
import sys
import tomllib

USUAL = 1.05
KEYS = {"test": {"name", "cases"}, "allowed": {"kernel", "access", "times", "why"}}
LINE = re.compile(r"  (\S+)\s+(reads|writes|adds to)\s+(device|shared) memory\s+(\d+) (?:sectors|passes) for (\d+) bytes, "
                  r"(\d+) would do")


def parse(text):
    """(kernel, access) -> (cost, least), of what a test prints."""
    sums, kernel = {}, None
    for line in text.splitlines():
        if found := LINE.match(line):
            key = (kernel, f"{found[2]} {found[3]} memory")
            cost, least = sums.get(key, (0, 0))
            sums[key] = (cost + int(found[4]), least + int(found[6]))
        elif not line.startswith(" "):
            kernel = line
    return sums


def add(sums, more):
    for key, (cost, least) in more.items():
        before = sums.get(key, (0, 0))
        sums[key] = (before[0] + cost, before[1] + least)


def check(table, sums):
    """Problems, a line each: kernels that ask for more than they may, and entries that nothing needs."""
    problems, used = [], set()
    for kind, keys in KEYS.items():
        for entry in table.get(kind, []):
            if entry.keys() != keys:
                problems.append(f"an entry of [[{kind}]] has not the keys {', '.join(sorted(keys))}: {entry}")
    for (kernel, access), (cost, least) in sorted(sums.items()):
        times = cost / least
        allowed = [(i, entry) for i, entry in enumerate(table.get("allowed", []))
                   if re.fullmatch(entry["access"], access) and re.search(entry["kernel"], kernel)]
        most = max([entry["times"] for _, entry in allowed] + [USUAL])
        if times > USUAL:
            used.update(i for i, _ in allowed)
        if times > most:
            problems.append(f"{kernel} {access} {times:.2f} times the least that would do ({cost} for {least}), "
                            f"not {most} at most")
    for i, entry in enumerate(table.get("allowed", [])):
        if i not in used:
            problems.append(f"no kernel that matches {entry['kernel']} {entry['access']} more than {USUAL} times the "
                            "least: the entry is not needed")
    return problems


def main(arguments):
    table = tomllib.loads(pathlib.Path(arguments[0]).read_text())
    folder = pathlib.Path(arguments[1])
    sums = {}
    for test in table["test"]:
        ran = subprocess.run([folder / test["name"], "--simt_traffic=1", "--simt_races=0",
                              f"--gtest_filter={test['cases']}"], capture_output=True, text=True)
        counted = parse(ran.stdout)
        if ran.returncode != 0 or not counted:
            print(ran.stdout + ran.stderr, file=sys.stderr)
            print(f"error: {test['name']} {test['cases']} ended with {ran.returncode}, {len(counted)} counts",
                  file=sys.stderr)
            return 1
        add(sums, counted)
    problems = check(table, sums)
    for problem in problems:
        print(problem)
    kernels = {kernel for kernel, _ in sums}
    print(f"{len(kernels)} kernels, {len(problems)} problems")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
