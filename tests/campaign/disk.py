# SPDX-License-Identifier: Apache-2.0
"""A disk that fails, and that loses power: what runs on it, what is left of it.

The calls of a program that change files are counted, and made to fail, by tests/support/file_faults.cpp,
which is preloaded; no call is known here by another name than there.
"""
import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

Ended = collections.namedtuple("Ended", "code text calls")


def scratch_folder():
    """A folder that goes at the end: in memory where there is such a disk, for nothing here is to be kept,
    and flushing is most of what these runs do."""
    shared = "/dev/shm"
    roomy = os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > 256 << 20
    return tempfile.TemporaryDirectory(dir=shared if roomy else None)


def descendants(pid):
    """The processes that `pid` has started, and theirs."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            children = [int(child) for child in file.read().split()]
    except OSError:
        return []
    return [one for child in children for one in (child, *descendants(child))]


def state_of(pid):
    """What a process is doing, as far as the system tells."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            name, rest = file.read().rsplit(")", 1)
        with open(f"/proc/{pid}/wchan", encoding="ascii") as file:
            where = file.read()
        fields = rest.split()
        return f"{name.split('(', 1)[1]} is {fields[0]} in {where}, {int(fields[11]) + int(fields[12])} ticks"
    except OSError:
        return f"{pid} is gone"


def has_ended(pid):
    """Whether a process is gone, or waits for nothing but its parent to ask how it ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def kill(pids):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


class Disk:
    """A directory `files` that a program writes to, in a scratch folder of its own."""

    def __init__(self, scratch, library):
        self.scratch = os.path.realpath(scratch)
        self.files = os.path.join(self.scratch, "disk")
        self.shadow = os.path.join(self.scratch, "shadow")
        self.library = os.path.abspath(library)
        os.makedirs(self.files)
        self.before = None

    def environment(self, at=0, how="", log=False, shadow=False, rank=None):
        """What the program, or the ranks that a launcher starts, are to have in their environment."""
        # A loader that does not find it says so and goes on without.
        if not os.path.isfile(self.library):
            sys.exit(f"there is no {self.library} (it makes the faults); build memphis_file_faults")
        more = {"LD_PRELOAD": self.library, "FILE_FAULTS_UNDER": self.files, "OMP_NUM_THREADS": "1"}
        if at:
            more.update(FILE_FAULTS_AT=str(at), FILE_FAULTS_HOW=how)
        if rank is not None:
            more["FILE_FAULTS_RANK"] = str(rank)
        if log:
            more["FILE_FAULTS_LOG"] = self.log
        if shadow:
            more["FILE_FAULTS_SHADOW"] = self.shadow
        return more

    @property
    def log(self):
        return os.path.join(self.scratch, "calls")

    def run(self, command, limit=900, kill_after=None, choose=None, **faults):
        """Runs `command` to its end. After kill_after seconds, if it is not at its end then, SIGKILL is sent
        to all of its processes, or to those of them that choose(list) takes. `calls` are the lines of the
        log. Where a process is killed, those of the others that do not end by themselves are killed too,
        in the end: nothing of a run is there when this returns."""
        if faults.get("shadow"):
            self.remember()
        if os.path.exists(self.log):
            os.remove(self.log)
        environment = self.environment(log=True, **faults)
        with open(os.path.join(self.scratch, "said"), "w+b") as said:
            process = subprocess.Popen(
                ["env", *(f"{k}={v}" for k, v in environment.items()), *command], stdout=said,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=self.scratch,
                start_new_session=True)
            if kill_after is not None:
                time.sleep(kill_after)
                if process.poll() is None:
                    family = descendants(process.pid)
                    kill(choose(family) if choose else [*family, process.pid])
            try:
                process.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                ranks = descendants(process.pid)
                family = [process.pid, *ranks]
                there = ", ".join(state_of(pid) for pid in family)
                # Open MPI's launcher can wait for itself for ever when it has a rank killed: no run is left.
                was_killed = kill_after is not None or faults.get("how") == "kill"
                launcher_alone = was_killed and ranks and all(has_ended(pid) for pid in ranks)
                kill(family)
                process.wait()
                said.seek(0)
                text = said.read().decode(errors="replace")[-1500:]
                if not launcher_alone:
                    raise AssertionError(
                        f"{' '.join(command)} does not end ({there}) with {faults}\n{text}") from None
                print(f"{command[0]} stood when its ranks had ended ({there}), and was killed", flush=True)
            self.await_silence()
            said.seek(0)
            text = said.read().decode(errors="replace")
        calls = []
        if os.path.exists(self.log):
            with open(self.log, encoding="utf-8", errors="replace") as file:
                lines = [line.rstrip("\n").split(" ", 2) for line in file]
            # Threads number their calls first and then write the lines.
            calls = [(call, path) for _, call, path in sorted(lines, key=lambda line: int(line[0]))]
        return Ended(process.returncode, text, calls)

    def await_silence(self):
        """Until no process writes to this disk any more: ranks outlive a launcher that is killed."""
        mine = f"FILE_FAULTS_UNDER={self.files}".encode()
        until = time.monotonic() + 20
        while True:
            left = []
            for name in os.listdir("/proc"):
                try:
                    with open(f"/proc/{name}/environ", "rb") as file:
                        if name.isdigit() and mine in file.read().split(b"\0"):
                            left.append(int(name))
                except OSError:
                    pass
            if not left:
                return
            if time.monotonic() > until:
                kill(left)
            time.sleep(0.01)

    # ------------------------------------------------------------------------------- losses of power

    def remember(self):
        """Takes what is there now for durable: the disk as it is found at a start."""
        shutil.rmtree(self.shadow, ignore_errors=True)
        os.makedirs(self.shadow)
        keep = os.path.join(self.scratch, "before")
        shutil.rmtree(keep, ignore_errors=True)
        os.makedirs(keep)
        self.before = self.scan(keep)

    def scan(self, keep):
        """Of each directory's and each file's number: entries, and a copy of its bytes."""
        found = {}
        for folder, folders, files in os.walk(self.files):
            entries = {}
            for name in folders + files:
                status = os.lstat(os.path.join(folder, name))
                entries[name] = ("d" if name in folders else "f", status.st_ino)
            found["d", os.stat(folder).st_ino] = entries
            for name in files:
                path = os.path.join(folder, name)
                copy = os.path.join(keep, str(os.stat(path).st_ino))
                shutil.copyfile(path, copy)
                found["f", os.stat(path).st_ino] = copy
        return found

    def durable(self, kind, number):
        path = os.path.join(self.shadow, f"{kind}{number}")
        if not os.path.exists(path):
            return self.before.get((kind, number), {} if kind == "d" else None)
        if kind == "f":
            return path
        entries = {}
        with open(path, encoding="utf-8") as file:
            for line in file:
                inode, of_kind, name = line.rstrip("\n").split(" ", 2)
                entries[name] = (of_kind, int(inode))
        return entries

    def cut_power(self, seed=None):
        """The disk as a loss of power leaves it: without all that was not flushed; or, with a seed, with
        some of it by chance, each file and each directory as it was flushed or as it was last."""
        chance = random.Random(seed)
        keep = os.path.join(self.scratch, "after")
        shutil.rmtree(keep, ignore_errors=True)
        os.makedirs(keep)
        last = self.scan(keep)
        root = os.stat(self.files).st_ino
        new = os.path.join(self.scratch, "restored")
        shutil.rmtree(new, ignore_errors=True)

        def state_of(kind, number):
            if seed is not None and (kind, number) in last and chance.random() < 0.5:
                return last[kind, number]
            return self.durable(kind, number)

        def build(number, place):
            os.makedirs(place)
            for name, (kind, inode) in sorted(state_of("d", number).items()):
                path = os.path.join(place, name)
                if kind == "d":
                    build(inode, path)
                    continue
                content = state_of("f", inode)
                if content is None:
                    open(path, "wb").close()
                else:
                    shutil.copyfile(content, path)

        build(root, new)
        shutil.rmtree(self.files)
        os.rename(new, self.files)


def final_bytes(run, step):
    """What a checkpoint holds: its tensors' files."""
    folder = os.path.join(run, f"step-{step:08}")
    found = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            with open(os.path.join(folder, name), "rb") as file:
                found[name] = file.read()
    return found
