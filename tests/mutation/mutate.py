#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""mutate.py: do the op tests notice a fault in a kernel?

Plants the faults of mutations.py one at a time, builds the test of the op and runs its cases of
Device::cuda under the simt preset, which needs no GPU. Works on a copy of the sources as they are,
uncommitted changes included, and touches nothing outside of its scratch folder.

    tests/mutation/mutate.py                  the whole table, half an hour on one core
    tests/mutation/mutate.py --only rope      one op
    tests/mutation/mutate.py --only rope.sign --fresh
    tests/mutation/mutate.py --list           the table, nothing is run
    tests/mutation/mutate.py --jobs 4         four copies of the sources side by side

Prints a line for each mutation as it is decided, then a table by op, the survivors with their
reasons and the share that was caught:

    rope.sign             caught    values          0.1 s  element 102 (row 17, column 0) is ...
    permute.counted       caught    fault           0.3 s  kernel permute_count_kernel, block ...
    rope.table            SURVIVED                  1.1 s  angles of earlier pairs are taken

    caught by   fault    a message of the executor: a race, an access out of bounds, a deadlock ...
                values   an expectation of the test
                hang     the test did not end in time
                exception  one that is not the executor's
                crash    the test's process died (a sanitizer, a signal)

Seconds are the processor's, of the test alone. Each op's `control` is the test without a mutation:
it must pass, and its seconds are what the op's cuda cases cost on one thread.

Results are kept in the scratch folder under a digest of the mutation and of all sources that the
op's test is built from, so a run that was interrupted goes on where it stopped, and a changed test
is run again. Exits with 1 if less than 95 % is caught, a control fails, or an entry of the table is
in error (its text is not found, or the mutated file does not compile).
"""
import argparse
import collections
import hashlib
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True  # the sources' folder stays as it is
from mutations import MUTATIONS

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOAL = 0.95
CONTROL = "control"

# What a result depends on besides the op's own folders.
COMMON = ("CMakePresets.json", "CMakeLists.txt", "cmake", "csrc/core", "kernels/cpu",
          "kernels/device", "bench/filled_tensor.h", "bench/filled_tensor.cpp", "tests/support")
COMMON_GLOBS = ("kernels/*.h", "kernels/*.cpp")

Result = collections.namedtuple("Result", "status how seconds message")


class TableError(Exception):
    pass


def ops_in_table():
    return sorted({mutation.op for mutation in MUTATIONS})


def check_table():
    names = collections.Counter(mutation.name for mutation in MUTATIONS)
    for name, count in names.items():
        if count > 1:
            raise TableError(f"{name}: {count} entries have this name; rename all but one")
    for mutation in MUTATIONS:
        mutated(mutation, (ROOT / "kernels" / mutation.file).read_text())


def mutated(mutation, text):
    """The file's text with the fault in it."""
    count = text.count(mutation.old)
    if count == 0:
        raise TableError(f"{mutation.name}: its old text is not in {mutation.file}; "
                         "follow the kernel's change")
    if mutation.occurrence is None and count > 1:
        raise TableError(f"{mutation.name}: its old text is {count} times in {mutation.file}; "
                         "take more of it, or give an occurrence")
    if (mutation.occurrence or 0) >= count:
        raise TableError(f"{mutation.name}: its old text is only {count} times in {mutation.file}")
    at = -1
    for _ in range((mutation.occurrence or 0) + 1):
        at = text.find(mutation.old, at + 1)
    return text[:at] + mutation.new + text[at + len(mutation.old):]


def sources():
    """Paths of all sources, relative to the root, as git sees them; ignored files are not among
    them."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT,
                            check=True, capture_output=True).stdout
    paths = {path for path in listed.decode().split("\0") if path}
    return sorted(path for path in paths if (ROOT / path).is_file())


def digest_of_sources(op, paths, root):
    """Of all that the op's test is built from."""
    digest = hashlib.sha256()
    folders = COMMON + (f"kernels/{op}", f"bench/{op}", f"tests/kernels/{op}")
    for path in paths:
        own = path.startswith(tuple(folder + "/" for folder in folders)) or path in folders
        if own or any(pathlib.PurePath(path).match(glob) for glob in COMMON_GLOBS):
            digest.update(path.encode() + b"\0" + (root / path).read_bytes() + b"\0")
    return digest.hexdigest()


class Worker:
    """A copy of the sources and a build of it."""

    def __init__(self, scratch, index, arguments):
        suffix = "" if index == 0 else f"-{index}"
        self.source = scratch / f"source{suffix}"
        self.build = scratch / f"build{suffix}"
        self.timeout = arguments.timeout
        self.prefix = arguments.prefix.split() if arguments.prefix else []
        self.environment = dict(os.environ, OMP_NUM_THREADS="1", CCACHE_BASEDIR=str(scratch))

    def prepare(self):
        """Copies what has changed, so that a build of before is of use; returns the paths."""
        wanted = sources()
        for path in wanted:
            data = (ROOT / path).read_bytes()
            copy = self.source / path
            if not copy.is_file() or copy.read_bytes() != data:
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(data)
                shutil.copymode(ROOT / path, copy)
        kept = set(wanted)
        for copy in list(self.source.rglob("*")):
            if copy.is_file() and str(copy.relative_to(self.source)) not in kept:
                copy.unlink()
        if not (self.build / "build.ninja").is_file():
            launcher = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
            command = self.prefix + ["cmake", "--preset", "simt", "-B", str(self.build)] + launcher
            done = subprocess.run(command, cwd=self.source, capture_output=True, text=True)
            if done.returncode != 0:
                raise TableError("the simt preset does not configure:\n" + done.stdout +
                                 done.stderr)
        return wanted

    def run(self, op, mutation):
        if mutation is None:
            return self.build_and_test(op)
        path = self.source / "kernels" / mutation.file
        original = path.read_text()
        path.write_text(mutated(mutation, original))
        try:
            return self.build_and_test(op)
        finally:
            path.write_text(original)

    def build_and_test(self, op):
        built = subprocess.run(self.prefix + ["ninja", "-C", str(self.build), "-j1", f"{op}_test"],
                               env=self.environment, capture_output=True, text=True)
        if built.returncode != 0:
            return Result("ERROR", "does not build", 0.0, first_error(built.stdout + built.stderr))
        command = self.prefix + [str(self.build / "tests" / f"{op}_test"), "--gtest_filter=*cuda*",
                                 "--gtest_fail_fast", "--gtest_brief=1"]
        log = self.build / "mutation.log"
        returncode, seconds = run_to_log(command, log, self.source, self.environment, self.timeout)
        if returncode is None:
            return Result("caught", "hang", seconds, f"no end after {self.timeout} s")
        how, message = judge(returncode, log.read_text(errors="replace"))
        status = {"passed": "SURVIVED", "nothing ran": "ERROR"}.get(how, "caught")
        return Result(status, how, seconds, message)


def run_to_log(command, log, folder, environment, timeout):
    """The exit status, None if it was stopped at the timeout, and the processor's seconds."""
    with open(log, "wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output,
                                   stderr=subprocess.STDOUT, start_new_session=True)
    deadline = time.monotonic() + timeout
    timed_out = False
    while True:
        # Not Popen's own wait, which does not say what the process has used.
        pid, status, usage = os.wait4(process.pid, 0 if timed_out else os.WNOHANG)
        if pid != 0:
            break
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            timed_out = True
        time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(status)
    return None if timed_out else process.returncode, usage.ru_utime + usage.ru_stime


def first_error(output):
    for line in output.splitlines():
        if "error:" in line:
            return line.strip()
    return output.strip().splitlines()[-1] if output.strip() else "no output"


def judge(returncode, output):
    """How a test ended, and the line that says so."""
    if returncode == 0:
        passed = re.search(r"\[  PASSED  \] (\d+) tests?", output)
        if not passed or passed.group(1) == "0":
            return "nothing ran", "no case of Device::cuda ran; check the filter"
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


class Results:
    """By sources and mutation, in a file that is written after each."""

    def __init__(self, path, fresh):
        self.path = path
        self.fresh = fresh
        self.kept = json.loads(path.read_text()) if path.is_file() else {}
        self.lock = threading.Lock()

    def get(self, key):
        return None if self.fresh or key not in self.kept else Result(*self.kept[key])

    def put(self, key, result):
        with self.lock:
            self.kept[key] = result
            new = self.path.with_suffix(".new")
            new.write_text(json.dumps(self.kept, indent=1))
            new.replace(self.path)


def line_of(name, result, width, note=""):
    how = "" if result.how == "passed" else result.how
    return f"{name:<{width}}  {result.status:<8}  {how:<14}  {result.seconds:6.1f} s  " + (
        note or result.message[:160])


def chosen_tasks(only):
    """(op, mutation) in the table's order, each op's control first."""
    tasks = []
    for op in ops_in_table():
        own = [mutation for mutation in MUTATIONS if mutation.op == op]
        chosen = [mutation for mutation in own
                  if not only or op in only or mutation.name in only]
        if chosen or f"{op}.{CONTROL}" in only:
            tasks += [(op, None)] + [(op, mutation) for mutation in chosen]
    return tasks


def run_all(tasks, arguments):
    """The results by name. A worker takes one op at a time: the next mutation of the same file
    then finds all other objects built."""
    scratch = pathlib.Path(arguments.scratch).resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    results = Results(scratch / "results.json", arguments.fresh)
    width = max(len(name_of(*task)) for task in tasks)
    done = {}
    failures = []
    pending = queue.Queue()
    by_op = collections.defaultdict(list)
    for op, mutation in tasks:
        by_op[op].append(mutation)
    for op, mutations in by_op.items():
        pending.put((op, mutations))

    def work(index):
        try:
            worker = Worker(scratch, index, arguments)
            paths = worker.prepare()
            while True:
                try:
                    op, mutations = pending.get_nowait()
                except queue.Empty:
                    return
                digest = digest_of_sources(op, paths, worker.source)
                for mutation in mutations:
                    key = f"{digest} {mutation and tuple(mutation[:-2])}"
                    result = results.get(key)
                    if result is None:
                        result = worker.run(op, mutation)
                        if mutation is None:
                            result = as_control(result)
                        results.put(key, result)
                    name = name_of(op, mutation)
                    done[name] = result
                    note = mutation.why if mutation and result.status == "SURVIVED" else ""
                    print(line_of(name, result, width, note), flush=True)
                    if mutation is None and result.status != "passed":
                        break  # a test that fails by itself says nothing
        except TableError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(arguments.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return done


def name_of(op, mutation):
    return f"{op}.{CONTROL}" if mutation is None else mutation.name


def as_control(result):
    return result._replace(status="passed" if result.how == "passed" else "FAILED")


def summary(done):
    """Prints the tables; returns whether all is well."""
    by_name = {mutation.name: mutation for mutation in MUTATIONS}
    ways = ("fault", "values", "exception", "hang", "crash")
    print(f"\n{'op':<16}{'mutations':>10}{'caught':>8}" + "".join(f"{way:>11}" for way in ways) +
          f"{'control':>12}")
    total = collections.Counter()
    for op in ops_in_table():
        own = [done[m.name] for m in MUTATIONS if m.op == op and m.name in done]
        control = done.get(f"{op}.{CONTROL}")
        if control is None:
            continue
        count = collections.Counter(r.how for r in own if r.status == "caught")
        print(f"{op:<16}{len(own):>10}{sum(count.values()):>8}" +
              "".join(f"{count[way]:>11}" for way in ways) +
              f"{control.seconds:>10.1f} s" + ("" if control.status == "passed" else " FAILED"))
        total.update({way: count[way] for way in ways})
        total["mutations"] += len(own)
        total["caught"] += sum(count.values())
        total["seconds"] += control.seconds
        total["bad controls"] += control.status != "passed"
    print(f"{'all':<16}{total['mutations']:>10}{total['caught']:>8}" +
          "".join(f"{total[way]:>11}" for way in ways) + f"{total['seconds']:>10.1f} s")

    for status in ("SURVIVED", "ERROR"):
        for name, result in done.items():
            if result.status == status:
                print(f"{status}: {name}: {by_name[name].why}" +
                      (f"\n    equivalent? {by_name[name].note}" if by_name[name].note else "") +
                      (f"\n    {result.message}" if status == "ERROR" else ""))
    errors = sum(result.status == "ERROR" for result in done.values())
    share = total["caught"] / total["mutations"] if total["mutations"] else 1.0
    print(f"\ncaught {total['caught']} of {total['mutations']}, {100 * share:.1f} % "
          f"(goal {100 * GOAL:.0f} %); {errors} entries in error, "
          f"{total['bad controls']} controls failed")
    return share >= GOAL and errors == 0 and total["bad controls"] == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="NAME|OP",
                        help="may be given several times")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, metavar="N")
    parser.add_argument("--timeout", type=float, default=300, metavar="SECONDS",
                        help="of one test; default 300")
    parser.add_argument("--scratch", default=str(ROOT / "build" / "mutation"), metavar="FOLDER")
    parser.add_argument("--fresh", action="store_true", help="forget the results of before")
    parser.add_argument("--prefix", default="", metavar="COMMAND",
                        help="before each command, such as 'nice taskset -c 1'")
    arguments = parser.parse_args()
    try:
        check_table()
        tasks = chosen_tasks(arguments.only)
        if not tasks:
            raise TableError("--only names no op and no mutation; see --list")
        if arguments.list:
            for _, mutation in tasks:
                if mutation is not None:
                    print(f"{mutation.name:<40}  {mutation.kind:<12}  {mutation.why}")
            return 0
        return 0 if summary(run_all(tasks, arguments)) else 1
    except TableError as error:
        print(f"mutate.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
