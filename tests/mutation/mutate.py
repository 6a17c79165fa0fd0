#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""mutate.py: do the tests notice a fault?

Plants the faults of tables/ one at a time and runs the tests that cover the file until one of them
fails. A fault in a kernel must be noticed under the simt preset, which needs no GPU, by its op's cases
of Device::cuda or of no device; one in csrc by any test of the cpu preset whose program has that
source in it, or of the simt preset where only that one has.
Only what sees the changed file is compiled, and the test linked with it (build.py): sources and
build folder stay as they are, and nothing may change them meanwhile.

    tests/mutation/mutate.py                  the whole table
    tests/mutation/mutate.py --only plan      one op of kernels/ or one folder of csrc/
    tests/mutation/mutate.py --only rope.sign --fresh
    tests/mutation/mutate.py --list           the table, nothing is run
    tests/mutation/mutate.py --compiles       does each fault still compile? No test is run
    tests/mutation/mutate.py --jobs 4         four mutations side by side
    tests/mutation/mutate.py --handful 4 --build build/cpu --seed 1f2e3d
                                              a few, drawn by the seed, in this build

Prints a line for each mutation as it is decided, then a table by area, the survivors with their
reasons and the share that was caught:

    rope.sign             caught    values          0.1 s  rope_test Cases/Rope.Forward/odd: elem...
    permute.counted       caught    fault           0.3 s  permute_test Cases/Permute.Index/two: k...
    rope.table            SURVIVED                  1.1 s  angles of earlier pairs are taken

    caught by   fault    a message of the executor: a race, an access out of bounds, a deadlock ...
                values   an expectation of the test
                hang     the test did not end in time
                exception  one that is not the executor's
                crash    the test's process died (a sanitizer, a signal)

Seconds are the processor's, of all tests that were run. What fails with a mutation is run without
it as well and must pass.

Which case caught a mutation is kept in caught_by.json (--record), and tried first. Results are kept
in the scratch folder under digests of the mutation and of the programs of the test, so a run that
was interrupted goes on where it stopped, and a changed test is run again. Exits with 1 if less than
95 % is caught (of a handful: if one is not), a test fails without a mutation, or an entry of the
table is in error (its text is not found, or the mutated file does not compile).
"""
import argparse
import collections
import hashlib
import json
import os
import pathlib
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True  # the sources' folder stays as it is
import table
from build import Build, BuildError

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CAUGHT_BY = HERE / "caught_by.json"
GOAL = 0.95
WAYS = ("fault", "values", "exception", "hang", "crash")

# What of csrc stands for the device, or is used with it alone: a preset without one does not compile
# it, or does not call it.
SIMT_ONLY = ("csrc/comm/nccl", "csrc/comm/simt_nccl/", "csrc/core/device_simt",
             "csrc/train/step_graphs", "csrc/train/host_pieces")

# A test of unknown cost is taken for one of so many seconds.
UNKNOWN_SECONDS = 20.0

Result = collections.namedtuple("Result", "status how seconds message test case")
Run = collections.namedtuple("Run", "how seconds message case")


class TableError(Exception):
    pass


def root_of(mutation):
    return mutation.file.split("/")[0]


def preset_of(mutation):
    """Under which a fault of this file is noticed."""
    simt = root_of(mutation) == "kernels" or mutation.file.startswith(SIMT_ONLY)
    return "simt" if simt else "cpu"


def areas_of(mutations):
    return list(dict.fromkeys(mutation.area for mutation in mutations))


def check_table(mutations):
    names = collections.Counter(mutation.name for mutation in mutations)
    for name, count in names.items():
        if count > 1:
            raise TableError(f"{name}: {count} entries have this name; rename all but one")
    for mutation in mutations:
        mutated(mutation, (ROOT / mutation.file).read_text())


def mutated(mutation, text):
    """The file's text with the fault in it."""
    count = text.count(mutation.old)
    if count == 0:
        raise TableError(f"{mutation.name}: its old text is not in {mutation.file}; "
                         "follow the file's change")
    if mutation.occurrence is None and count > 1:
        raise TableError(f"{mutation.name}: its old text is {count} times in {mutation.file}; "
                         "take more of it, or give an occurrence")
    if (mutation.occurrence or 0) >= count:
        raise TableError(f"{mutation.name}: its old text is only {count} times in {mutation.file}")
    at = -1
    for _ in range((mutation.occurrence or 0) + 1):
        at = text.find(mutation.old, at + 1)
    return text[:at] + mutation.new + text[at + len(mutation.old):]


class Store:
    """A file of JSON that is written after each change."""

    def __init__(self, path, fresh=False):
        self.path = path
        self.values = json.loads(path.read_text()) if path.is_file() and not fresh else {}
        self.lock = threading.Lock()

    def get(self, key):
        with self.lock:
            return self.values.get(key)

    def put(self, key, value):
        with self.lock:
            self.values[key] = value
            text = json.dumps(dict(sorted(self.values.items())), indent=1)
            new = self.path.with_suffix(".new")
            new.write_text(text + "\n")
            new.replace(self.path)


class Bench:
    """A build, its tests, and what is known of them."""

    def __init__(self, folder, arguments):
        if not (folder / "compile_commands.json").is_file():
            raise TableError(f"{folder} is not a build folder (it has no compile_commands.json); "
                             f"run `launch/build.sh {folder.name} --tests`")
        self.build = Build(folder, ROOT, arguments.prefix.split())
        self.tests = self.build.tests()
        if arguments.test:
            self.tests = {name: self.tests[name] for name in arguments.test if name in self.tests}
        self.limit = arguments.timeout
        self.up_to = arguments.up_to
        self.costs = Store(pathlib.Path(arguments.scratch).resolve() / f"costs-{folder.name}.json")
        self.results = Store(pathlib.Path(arguments.scratch).resolve() /
                             f"results-{folder.name}.json", arguments.fresh)

    def covering(self, mutation):
        """The tests that may notice, each with a filter of cases: first those of the folder's own
        tests, then the cheapest."""
        if root_of(mutation) == "kernels":
            # What is of the device itself is noticed by tests that have no other.
            cases = "" if mutation.file.startswith("kernels/device/simt/") else "-*cpu*"
            return [(test, cases) for test in sorted(self.tests.values())
                    if self.is_of_op(test, mutation.area)]
        programs = {program for test in self.tests.values() for program in test.programs}
        reached = set(self.build.programs_reached(mutation.file, sorted(programs)))
        found = [test for test in self.tests.values() if reached.intersection(test.programs)]

        def order(test):
            own = any(f"/{mutation.area}/" in name
                      for name in self.build._objects_of(test.programs[0]))
            return not own, self.costs.get(test.name) or UNKNOWN_SECONDS

        return [(test, "") for test in sorted(found, key=order)]

    def is_of_op(self, test, op):
        """An op's test, the same for an older GPU, or another of its folder."""
        name = test.name.removesuffix("_sm_80")
        return name == f"{op}_test" or any(f"/kernels/{op}/" in each for each in
                                           self.build._objects_of(test.programs[0]))

    def run(self, test, case, command, log):
        """One run of a test, or of some of its cases."""
        words = command + ["--gtest_fail_fast"] + ([f"--gtest_filter={case}"] if case else [])
        environment = dict(os.environ, OMP_NUM_THREADS="2", OMP_WAIT_POLICY="passive")
        # A case that fails here is what is hoped for, and belongs in no report of the suite.
        environment.pop("GTEST_OUTPUT", None)
        environment.update(test.environment)
        cost = self.costs.get(test.name)
        limit = min(self.limit, 60 + 20 * cost) if cost else self.limit
        returncode, seconds = run_to_log(self.build.prefix + words, log, ROOT, environment, limit)
        output = log.read_text(errors="replace")
        if returncode is None:
            return Run("hang", seconds, f"no end after {limit:.0f} s", last_case(output))
        how, message = judge(returncode, output)
        if how == "passed" and not case:
            self.costs.put(test.name, round(seconds, 2))
        return Run(how, seconds, message, "" if how == "passed" else last_case(output))

    def passes_alone(self, test, case, log):
        """Whether a test passes without a mutation."""
        key = f"control {test.name} {case} {self.build.digest(test.programs)}"
        if self.results.get(key) is None:
            run = self.run(test, case, test.command, log)
            self.results.put(key, [run.how, run.message])
        return self.results.get(key)[0] == "passed"


def run_to_log(command, log, folder, environment, timeout):
    """The exit status, None if it was stopped at the timeout, and the processor's seconds."""
    with open(log, "wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output,
                                   stderr=subprocess.STDOUT, start_new_session=True)
    deadline = time.monotonic() + timeout
    timed_out = False
    while True:
        # Not Popen's own wait, which does not say what the process has used.
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid != 0:
            break
        if time.monotonic() > deadline:
            # mpirun ends its ranks when it is asked to.
            os.killpg(process.pid, signal.SIGKILL if timed_out else signal.SIGTERM)
            timed_out = True
            deadline = time.monotonic() + 10
        time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(status)
    return None if timed_out else process.returncode, usage.ru_utime + usage.ru_stime


def last_case(output):
    """The case that failed, or that ran when the process ended."""
    failed = re.findall(r"^\[  FAILED  \] ([\w/]+\.[\w/]+)", output, re.M)
    if failed:
        return failed[0]
    running = re.findall(r"^\[ RUN      \] ([\w/]+\.[\w/]+)", output, re.M)
    return running[-1] if running else ""


def judge(returncode, output):
    """How a test ended, and the line that says so."""
    if returncode == 0:
        passed = re.search(r"\[  PASSED  \] (\d+) tests?", output)
        if not passed or passed.group(1) == "0":
            return "nothing ran", "no case ran; check the filter"
        return "passed", ""
    exception = re.search(r'C\+\+ exception with description "([^\n]*)', output)
    failure = re.search(r": Failure\n(.*?)(?:\n\n|\n\[|\Z)", output, re.S)
    if exception and (not failure or exception.start() < failure.start()):
        how = "fault" if exception.group(1).startswith("kernel ") else "exception"
        return how, exception.group(1).rstrip('"')
    if failure:
        if exception and exception.group(1).startswith("kernel "):
            return "fault", exception.group(1).rstrip('"')
        return "values", most_telling(failure.group(1))
    for line in output.splitlines():
        if "runtime error:" in line or "ERROR: AddressSanitizer" in line:
            return "crash", line.strip()
    return "crash", f"exit status {returncode}"


def most_telling(text):
    """The line of an expectation's text that has the numbers."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        if "element " in line or "is off by norm" in line:
            return line.removeprefix("Actual: false (").rstrip(")")
    return lines[0] if lines else "an expectation without text"


def decide(mutation, bench, known, scratch):
    """Runs the tests that cover the mutation until one of them fails."""
    text = mutated(mutation, (ROOT / mutation.file).read_text())
    digest = hashlib.sha256(f"{mutation.file}\0{text}".encode()).hexdigest()
    tests = bench.covering(mutation)
    if not tests:
        return Result("ERROR", "", 0.0, f"no test of {bench.build.folder.name} has "
                      f"{mutation.file} in it", "", "")
    order = [(test, case) for test, case in tests
             if bench.up_to is None or (bench.costs.get(test.name) or 0) <= bench.up_to]
    if known and known[0] in bench.tests:
        order.insert(0, (bench.tests[known[0]], known[1]))
    changed = bench.build.changed(mutation.file, text, scratch / "changed")
    seconds = 0.0
    try:
        for test, case in order:
            key = f"{digest} {test.name} {case} {bench.build.digest(test.programs)}"
            kept = bench.results.get(key)
            if kept is None:
                run = bench.run(test, case, changed.command(test), scratch / "log")
                bench.results.put(key, list(run))
            else:
                run = Run(*kept)
            seconds += run.seconds
            if run.how in ("passed", "nothing ran"):
                continue
            failed = run.case or case
            if not bench.passes_alone(test, failed, scratch / "log"):
                return Result("ERROR", run.how, seconds,
                              f"{test.name} {failed} fails without a mutation too", test.name,
                              failed)
            return Result("caught", run.how, seconds, f"{test.name} {failed}: {run.message}",
                          test.name, failed)
        return Result("SURVIVED", "", seconds, f"{len(order)} tests passed", "", "")
    except BuildError as error:
        return Result("ERROR", "does not build", seconds, str(error), "", "")
    finally:
        changed.close()


def line_of(mutation, result, width):
    text = mutation.why if result.status == "SURVIVED" else result.message
    return (f"{mutation.name:<{width}}  {result.status:<8}  {result.how:<14}  "
            f"{result.seconds:6.1f} s  {text[:200]}")


def compile_one(mutation, bench, scratch):
    """Whether the file with the fault in it is a program at all, which it may no longer be once
    what is around it has changed."""
    text = mutated(mutation, (ROOT / mutation.file).read_text())
    changed = bench.build.changed(mutation.file, text, scratch / "changed")
    try:
        changed.compiles()
        return Result("compiles", "", 0.0, "", "", "")
    except BuildError as error:
        return Result("ERROR", "does not build", 0.0, str(error), "", "")
    finally:
        changed.close()


def run_all(chosen, benches, known, arguments):
    """The results by name."""
    scratch = pathlib.Path(arguments.scratch).resolve()
    width = max(len(mutation.name) for mutation in chosen)
    done = {}
    failures = []
    pending = queue.Queue()
    for mutation in chosen:
        pending.put(mutation)

    def work(index):
        own = scratch / f"work-{os.getpid()}-{index}"  # another run may use the scratch folder too
        own.mkdir(parents=True, exist_ok=True)
        try:
            while not failures:
                try:
                    mutation = pending.get_nowait()
                except queue.Empty:
                    break
                bench = benches[preset_of(mutation)]
                result = (compile_one(mutation, bench, own) if arguments.compiles else
                          decide(mutation, bench, known.get(mutation.name), own))
                done[mutation.name] = result
                if result.status != "compiles":
                    print(line_of(mutation, result, width), flush=True)
                if result.status == "caught" and arguments.record:
                    known.put(mutation.name, [result.test, result.case])
        except Exception as error:  # of a thread's own nobody hears, and what is left is not run
            failures.append(error)
        finally:
            shutil.rmtree(own, ignore_errors=True)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(arguments.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return done


def summary(chosen, done, goal):
    """Prints the tables; returns whether all is well."""
    print(f"\n{'area':<16}{'mutations':>10}{'caught':>8}" + "".join(f"{way:>11}" for way in WAYS))
    total = collections.Counter()
    for area in areas_of(chosen):
        own = [done[m.name] for m in chosen if m.area == area and m.name in done]
        count = collections.Counter(r.how for r in own if r.status == "caught")
        print(f"{area:<16}{len(own):>10}{sum(count.values()):>8}" +
              "".join(f"{count[way]:>11}" for way in WAYS))
        total.update({way: count[way] for way in WAYS})
        total["mutations"] += len(own)
        total["caught"] += sum(count.values())
    print(f"{'all':<16}{total['mutations']:>10}{total['caught']:>8}" +
          "".join(f"{total[way]:>11}" for way in WAYS))

    for status in ("SURVIVED", "ERROR"):
        for mutation in chosen:
            result = done.get(mutation.name)
            if result and result.status == status:
                print(f"{status}: {mutation.name}: {mutation.why}\n    {result.message}" +
                      (f"\n    equivalent? {mutation.note}" if mutation.note else ""))
    errors = sum(result.status == "ERROR" for result in done.values())
    share = total["caught"] / total["mutations"] if total["mutations"] else 1.0
    print(f"\ncaught {total['caught']} of {total['mutations']}, {100 * share:.1f} % "
          f"(goal {100 * goal:.0f} %); {errors} entries in error")
    return share >= goal and errors == 0


def seed_of_commit():
    head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT,
                          capture_output=True, text=True)
    return head.stdout.strip() if head.returncode == 0 else time.strftime("%Y-%m-%d")


def fits(mutation):
    try:
        mutated(mutation, (ROOT / mutation.file).read_text())
    except TableError as error:
        print(error)
        return False
    return True


def draw_handful(mutations, count, seed, known):
    """Some that are known to be caught by one case. An entry whose file has changed is said and left
    out: the whole table's run is what it fails."""
    candidates = [mutation for mutation in mutations if known.get(mutation.name) and fits(mutation)]
    drawn = random.Random(seed).sample(candidates, min(count, len(candidates)))
    print(f"{len(drawn)} of {len(candidates)} mutations, drawn by --seed {seed}", flush=True)
    return drawn


def choose(mutations, arguments, known):
    chosen = [mutation for mutation in mutations
              if not arguments.only or mutation.area in arguments.only or
              mutation.name in arguments.only]
    if arguments.build:
        cache = (pathlib.Path(arguments.build) / "CMakeCache.txt").read_text()
        preset = "simt" if "MEMPHIS_DEVICE:STRING=simt" in cache else "cpu"
        chosen = [mutation for mutation in chosen if preset_of(mutation) == preset]
    if arguments.handful is not None:
        chosen = draw_handful(chosen, arguments.handful, arguments.seed or seed_of_commit(), known)
    if not chosen:
        raise TableError("nothing is chosen (--only names no area and no mutation, or the build "
                         "has none of them); see --list")
    return chosen


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="NAME|AREA",
                        help="may be given several times")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--compiles", action="store_true",
                        help="run no test, only compile each mutated file")
    parser.add_argument("--jobs", type=int, default=1, metavar="N")
    parser.add_argument("--timeout", type=float, default=300, metavar="SECONDS",
                        help="of one test; default 300")
    parser.add_argument("--up-to", type=float, metavar="SECONDS",
                        help="leave out tests that are known to take longer")
    parser.add_argument("--test", action="append", default=[], metavar="NAME",
                        help="of CTest: these tests alone, may be given several times")
    parser.add_argument("--build", metavar="FOLDER",
                        help="of a preset; default build/cpu or build/simt, as the file needs")
    parser.add_argument("--handful", type=int, metavar="N", help="draw N of the mutations")
    parser.add_argument("--seed", metavar="TEXT", help="of the draw; default the commit's hash")
    parser.add_argument("--scratch", default=str(ROOT / "build" / "mutation"), metavar="FOLDER")
    parser.add_argument("--record", action="store_true", help="keep what caught in caught_by.json")
    parser.add_argument("--fresh", action="store_true", help="forget the results of before")
    parser.add_argument("--prefix", default="", metavar="COMMAND",
                        help="before each command, such as 'nice taskset -c 1'")
    arguments = parser.parse_args()
    try:
        mutations = table.load()
        if arguments.handful is None:
            check_table(mutations)
        known = Store(CAUGHT_BY)
        chosen = choose(mutations, arguments, known)
        if arguments.list:
            for mutation in chosen:
                print(f"{mutation.name:<40}  {mutation.kind:<12}  {mutation.why}")
            return 0
        pathlib.Path(arguments.scratch).mkdir(parents=True, exist_ok=True)
        benches = {}
        for preset in dict.fromkeys(preset_of(mutation) for mutation in chosen):
            folder = pathlib.Path(arguments.build or ROOT / "build" / preset).resolve()
            bench = benches[preset] = Bench(folder, arguments)
            if arguments.compiles:
                continue
            programs = sorted({program for mutation in chosen if preset_of(mutation) == preset
                               for test, _ in bench.covering(mutation)
                               for program in test.programs})
            bench.build.make(programs)
        done = run_all(chosen, benches, known, arguments)
        if arguments.compiles:
            errors = sum(result.status == "ERROR" for result in done.values())
            print(f"{len(done) - errors} of {len(done)} mutations compile")
            return 1 if errors else 0
        goal = GOAL if arguments.handful is None else 1.0
        return 0 if summary(chosen, done, goal) else 1
    except (TableError, BuildError) as error:
        print(f"mutate.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
