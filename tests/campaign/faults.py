#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every write of the program fails once.

    faults.py MEMPHIS LIBRARY [--all] [--command NAME ...] [--how WAY ...] [--only TEXT] [--calls FIRST LAST]
              [--record]

A run that trains, saves, deletes, samples and exports is made again and again, and each time another one of
the calls that open, write, flush, name, close and remove its files fails (file_faults.cpp, LIBRARY). The
run goes on, or ends with the code of what it could not do and one line that says so; what was saved before
stays; and the same command, given again on a disk that works, ends with the bytes of a run that nothing
happened to. So it is with a run that tokenizes its text, and with the other commands that write: of their
files each is at any time what was there before, or whole.

Without --all, of the calls that differ in nothing but a number the first is taken: a minute. What the
program says of each with EIO is in faults.golden, which --all --how EIO --record writes.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys

sys.dont_write_bytecode = True
import tiny
from disk import Disk, final_bytes, scratch_folder

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, "faults.golden")
TOKENIZER = os.path.join(os.path.dirname(HERE), "data", "golden", "gpt2.json")
WAYS = ("EIO", "ENOSPC", "EDQUOT", "short", "full", "slow", "kill")
REASONS = {"EIO": "Input/output error", "ENOSPC": "No space left on device", "full": "No space left on device",
           "EDQUOT": "Disk quota exceeded"}


def plain(text):
    """Without what differs between two runs."""
    text = re.sub(r"events\.out\.tfevents\.\S+?(?=[\s);]|$)", "EVENTS", text)
    text = re.sub(r"\.tmp-\d+", ".tmp-PID", text)
    text = re.sub(r"\.memphis-doctor-\S+-\d+", ".memphis-doctor-NODE", text)
    text = re.sub(r"seen from [^\s:;]+", "seen from HERE", text)
    text = re.sub(r"step-\d{8}", "step-N", text)
    text = re.sub(r"rank-\d{5}", "rank-N", text)
    text = re.sub(r"tokens/[0-9a-f]{16}", "tokens/DIGEST", text)
    text = re.sub(r"of step \d+", "of step N", text)
    text = re.sub(r"\d+ in a row", "N in a row", text)
    return re.sub(r"export/step-\w+", "export/step-N", text)


def cause(text, disk):
    """The line that says why a run ended; of one that went on, what it said of the fault."""
    lines = [line[line.index("memphis: ") + 9:] for line in text.splitlines() if "memphis: " in line]
    lines = lines or [line for line in text.splitlines() if any(reason in line for reason in REASONS.values())]
    return plain(lines[-1].replace(disk.files, "")) if lines else ""


class Inputs:
    """What the other commands read, on a disk that works: a run with a checkpoint, its model, tokens."""

    def __init__(self, memphis, library, scratch):
        disk = Disk(os.path.join(scratch, "inputs"), library)
        config, self.run = tiny.write_config(disk)
        subprocess.run([memphis, "train", config], check=True, capture_output=True)
        self.text = os.path.join(disk.scratch, "text.txt")
        self.model = os.path.join(self.run, "export", f"step-{tiny.LAST_STEP:08}")
        self.tokens = os.path.join(disk.scratch, "tokens.json")
        with open(self.tokens, "w", encoding="utf-8") as file:
            file.write('{"tokens": [[1, 2, 3], [4, 5, 6]]}')
        # A page is not written over what is none.
        self.page = os.path.join(disk.scratch, "page.html")
        subprocess.run([memphis, "report", self.run, "-o", self.page], check=True, capture_output=True)
        with open(self.page, "a", encoding="utf-8") as file:
            file.write("<!-- of an earlier day -->\n")


def files_below(folder):
    """Each file's bytes by its path."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, folder)] = file.read()
    return found


class Walk:
    """A command that is given again and again, each time with another fault."""

    name = ""
    codes = set()  # that a fault may end it with
    about = ""  # which of its files have faults

    def __init__(self, options, scratch, inputs, golden):
        self.options = options
        self.scratch = scratch
        self.inputs = inputs
        self.golden = golden
        self.problems = []
        self.rows = set()
        self.num_runs = 0

    def prepare(self, disk):
        """The command's words."""
        raise NotImplementedError

    def keep(self, disk):
        """What is there after a run that nothing happens to."""
        raise NotImplementedError

    def after_fault(self, disk, calls, site, ended, problem):
        """Looks at what the fault has left."""

    def is_done(self, disk):
        """Whether the same command has no place any more."""
        return False

    def after_again(self, disk, ended, again, problem):
        """Looks at what the same command has made of it since."""

    def fresh(self):
        folder = os.path.join(self.scratch, "one")
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        disk = Disk(folder, self.options.library)
        return disk, [self.options.memphis, *self.prepare(disk)]

    def reference(self):
        disk, command = self.fresh()
        ended = disk.run(command)
        if ended.code != 0:
            sys.exit(f"{self.name} does not end well by itself:\n{ended.text}")
        self.expected = self.keep(disk)
        return ended.calls

    def fail_one(self, number, how):
        self.num_runs += 1

        def problem(text, said=""):
            self.problems.append(f"{where}: {text}\n{said[-1500:]}")

        disk, command = self.fresh()
        ended = disk.run(command, at=number, how=how)
        if len(ended.calls) < number:
            return
        # A checkpoint is written beside the run, so the call of this number may be another one.
        site = ended.calls[number - 1]
        where = f"{self.name} {number} {site[0]} {site[1]} with {how}"
        said = cause(ended.text, disk)
        if how == "kill":
            if ended.code != -9:
                problem(f"ended with {ended.code} and not by the signal", ended.text)
        elif how in ("short", "slow"):
            if ended.code != 0:
                problem(f"ended with {ended.code}, for nothing", ended.text)
        elif ended.code not in self.codes | {0}:
            problem(f"ended with {ended.code}", ended.text)
        elif ended.code != 0:
            if not re.search(r"\(.*\); ", said):
                problem("no line says what is wrong, why, and what to do", ended.text)
            elif REASONS[how] not in said:
                problem("the line does not have the system's reason", ended.text)
        if how == "EIO":
            # Which of its calls fails makes no difference to what is said of a file.
            row = f"{self.name} {plain(site[1])} | {ended.code} | {said}"
            self.rows.add(row)
            if not self.options.record and row not in self.golden:
                problem(f"is not in {os.path.basename(GOLDEN)}: {row}", ended.text)
        self.after_fault(disk, ended.calls[:number - 1], site, ended, problem)
        if self.is_done(disk):
            return
        again = disk.run(command)
        if again.code != 0:
            problem(f"a start afterwards ends with {again.code}", ended.text + "\n--- again\n" + again.text)
            return
        self.after_again(disk, ended, again, problem)
        left = [name for _, _, files in os.walk(disk.files) for name in files if ".tmp-" in name]
        if left and how != "kill":
            problem(f"{left} are left over", again.text)


class Train(Walk):
    name = "train"
    # 3: its trace is lost, 4: a checkpoint, 5: its metrics or its directory.
    codes = {3, 4, 5}

    def prepare(self, disk):
        config, self.run_dir = tiny.write_config(disk)
        return ["train", config]

    def keep(self, disk):
        return final_bytes(self.run_dir, tiny.LAST_STEP)

    def after_fault(self, disk, calls, site, ended, problem):
        # What had its marker for good is there, or a newer one: each before the last that has it now.
        marked = [int(m.group(1)) for call, path in calls
                  if call == "rename" and (m := re.search(r"step-(\d+)/COMMIT$", path))]
        if marked and site[1].endswith(f"step-{marked[-1]:08}"):
            marked.pop()  # its directory is being flushed
        self.kept = [int(name[5:])
                     for name in (os.listdir(self.run_dir) if os.path.isdir(self.run_dir) else [])
                     if re.fullmatch(r"step-\d{8}", name) and
                     os.path.exists(os.path.join(self.run_dir, name, "COMMIT"))]
        if marked and (not self.kept or max(self.kept) < max(marked)):
            problem(f"checkpoint {max(marked)} is lost ({self.kept} are there)", ended.text)

    def after_again(self, disk, ended, again, problem):
        if self.kept and ended.code != 0 and "nothing to do" not in again.text and \
                not re.search(rf"resuming from \S*step-{max(self.kept):08} ", again.text):
            problem(f"it does not go on from step {max(self.kept)}", again.text)
        if self.keep(disk) != self.expected:
            problem("other weights than those of a run that nothing happened to", again.text)


class TrainOnText(Train):
    """A run that tokenizes its text, and keeps what with."""

    name = "train-on-text"
    about = r"/token"  # the rest is as above

    def prepare(self, disk):
        return [*super().prepare(disk), f"data.tokenizer={TOKENIZER}", "model.vocab_size=768",
                "model.pad_id=-1"]


class Writer(Walk):
    """A command whose files are at any time as they were before, or whole."""

    def arguments(self, disk):
        raise NotImplementedError

    def prepare(self, disk):
        for path, content in self.previous().items():
            with open(os.path.join(disk.files, path), "wb") as file:
                file.write(content)
        return [self.name, *self.arguments(disk)]

    def previous(self):
        return {}

    def keep(self, disk):
        return files_below(disk.files)

    def whole(self, path):
        return [self.expected[path], self.previous().get(path)]

    def is_expected(self, path, content):
        return content == self.expected.get(path)

    def after_fault(self, disk, calls, site, ended, problem):
        now = self.keep(disk)
        for path in now:
            if path in self.expected and now[path] not in self.whole(path):
                problem(f"{path} is neither what was there nor whole", ended.text)
        for path in self.previous():
            if path not in now:
                problem(f"{path} was there and is not", ended.text)
        if ended.code == 0 and any(not self.is_expected(path, now.get(path)) for path in self.expected):
            problem("it ends well and has not written all", ended.text)

    def after_again(self, disk, ended, again, problem):
        now = self.keep(disk)
        for path in self.expected.keys() | now.keys():
            if ended.code == -9 and re.search(r"\.tmp-|\.memphis-doctor-", path):
                continue  # of a process that was killed
            if not self.is_expected(path, now.get(path)) and f"cannot remove {disk.files}/{path} " not in ended.text:
                problem(f"{path} is not as after a run that nothing happened to", again.text)


class Tokenize(Writer):
    name = "tokenize"
    codes = {3, 4, 5}  # 3: what it wrote itself and cannot read

    def arguments(self, disk):
        return [self.inputs.text, "--output", os.path.join(disk.files, "deep", "corpus"), "--tokenizer", TOKENIZER]


class Report(Writer):
    name = "report"
    codes = {3, 5}  # 3: a page that is there and cannot be read

    def previous(self):
        with open(self.inputs.page, "rb") as file:
            return {"report.html": file.read()}

    def arguments(self, disk):
        return [self.inputs.run, "-o", os.path.join(disk.files, "report.html")]


class Export(Writer):
    name = "export"
    codes = {4}

    def arguments(self, disk):
        return [self.inputs.run, os.path.join(disk.files, "model")]

    def after_fault(self, disk, calls, site, ended, problem):
        super().after_fault(disk, calls, site, ended, problem)
        names = os.listdir(disk.files)
        if ended.code not in (0, -9) and names:
            problem(f"{names} are left", ended.text)
        # What a process that was killed has left is another's, as far as the next one knows.
        shutil.rmtree(os.path.join(disk.files, "model.tmp"), ignore_errors=True)

    def is_done(self, disk):
        return os.path.exists(os.path.join(disk.files, "model"))


class Logits(Writer):
    name = "logits"
    codes = {3, 5}  # 3: an array that is there and cannot be read

    def previous(self):
        return {"logits.npy": b"\x93NUMPY of an earlier day"}

    def arguments(self, disk):
        return [self.inputs.model, self.inputs.tokens, os.path.join(disk.files, "logits.npy")]


class Doctor(Writer):
    name = "doctor"
    codes = {3, 4, 5}  # 3: a list that is there and cannot be read

    def previous(self):
        return {"good.txt": b"of-an-earlier-day\n", "bad.txt": b"of-an-earlier-day\n"}

    def arguments(self, disk):
        config, _ = tiny.write_config(disk, "run")
        self.node = f"{os.environ.get('SLURMD_NODENAME', os.uname().nodename)}\n".encode()
        # A machine that is well, whatever ports and shared memory this one has.
        machine = os.path.join(self.scratch, "machine")
        for folder in ("sys", "dev/shm"):
            os.makedirs(os.path.join(machine, folder), exist_ok=True)
        return [config, "--root", machine, "--good", os.path.join(disk.files, "good.txt"),
                "--bad", os.path.join(disk.files, "bad.txt")]


    def whole(self, path):
        # A disk that fails is a finding, and its node a bad one.
        return [*super().whole(path), self.node, b""]

    def is_expected(self, path, content):
        return content in (self.node, b"") if path in self.expected else content is None


WALKS = {walk.name: walk for walk in (Train, TrainOnText, Tokenize, Report, Export, Logits, Doctor)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("memphis", type=os.path.abspath)
    parser.add_argument("library", type=os.path.abspath)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--command", nargs="+", choices=WALKS, default=list(WALKS))
    parser.add_argument("--how", nargs="+", choices=WAYS)
    parser.add_argument("--only", default="")
    parser.add_argument("--calls", type=int, nargs=2, metavar=("FIRST", "LAST"), default=(1, sys.maxsize),
                        help="of a command's calls those with these numbers, to share hours out")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    first, last = options.calls
    if first > last:
        parser.error(f"--calls {first} {last} is no call (the first comes behind the last); give the lower number first")
    whole = options.all and not options.only and (first, last) == (1, sys.maxsize)
    if options.record and not (whole and options.how == ["EIO"]):
        parser.error("--record writes anew what is said of all of a command's calls, and some are left out; use"
                     " --all --how EIO --record, without --only and --calls")
    with open(GOLDEN, encoding="utf-8") as file:
        golden = {line.rstrip("\n") for line in file if line[0] != "#"}
    num_runs = num_problems = 0
    with scratch_folder() as scratch:
        scratch = os.path.realpath(scratch)
        inputs = Inputs(options.memphis, options.library, scratch)
        for name in options.command:
            walk = WALKS[name](options, scratch, inputs, golden)
            calls = walk.reference()
            sites = []
            kinds = set()
            for number, site in enumerate(calls, 1):
                kind = (site[0], plain(site[1]))
                if options.only not in f"{number} {kind[0]} {kind[1]}" or not re.search(walk.about, site[1]):
                    continue
                if options.all or kind not in kinds:
                    sites.append(number)
                kinds.add(kind)
            print(f"{name}: {len(calls)} calls of {len(kinds)} kinds", flush=True)
            if first > len(calls):
                parser.error(f"--calls {first}: {name} has {len(calls)} calls; give a lower number")
            for at, number in enumerate(sites):
                if not first <= number <= last:
                    continue
                # Of the other ways each call sees one, and all calls together all of them.
                ways = options.how or (WAYS if options.all else ("EIO", WAYS[1 + at % (len(WAYS) - 1)]))
                for how in ways:
                    before = len(walk.problems)
                    walk.fail_one(number, how)
                    for text in walk.problems[before:]:
                        print(text, flush=True)
            golden = {row for row in golden if row.split(" ")[0] != name} | walk.rows
            num_runs += walk.num_runs
            num_problems += len(walk.problems)
            print(f"{name}: {walk.num_runs} runs with a fault, {len(walk.problems)} problems", flush=True)
    if options.record:
        with open(GOLDEN, "w", encoding="utf-8") as file:
            file.write("# What a command says when a call fails (EIO) that opens or changes one of its files: the"
                       " command,\n# the file | the exit code | the line. Written by faults.py --all --how EIO"
                       " --record.\n")
            file.writelines(row + "\n" for row in sorted(golden))
    print(f"{num_runs} runs with a fault, {num_problems} problems")
    sys.exit(0 if num_runs > 0 and num_problems == 0 else 1)


if __name__ == "__main__":
    main()
