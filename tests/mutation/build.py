# SPDX-License-Identifier: Apache-2.0
"""A build folder, and how a test of it is made with one source changed.

Nothing is built again but what the change reaches: the sources that see the changed file are
compiled by the commands of compile_commands.json, and the test is linked by ninja's command with
these objects in front of the libraries, where they stand for their members. All of it goes to a
folder of its own; the sources and the build folder stay as they are.
"""
import collections
import hashlib
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess

# One entry of CTest: `programs` are the targets of the build that it runs, the test itself first.
Test = collections.namedtuple("Test", "name command programs environment labels")


class BuildError(Exception):
    """A command failed; the text is its first error."""


class Build:
    def __init__(self, folder, root, prefix=()):
        self.folder = pathlib.Path(folder).resolve()
        self.root = pathlib.Path(root).resolve()
        self.prefix = list(prefix)
        self._links = {}
        self._hashes = {}
        commands = json.loads((self.folder / "compile_commands.json").read_text())
        self._compiles = {}  # by object, relative to the folder
        for entry in commands:
            words = shlex.split(entry["command"])
            self._compiles[words[words.index("-o") + 1]] = words
        self._sources = {}  # objects by the source that they are made of
        for entry, words in zip(commands, self._compiles.values()):
            self._sources.setdefault(entry["file"], []).append(words[words.index("-o") + 1])
        self._seen_by = None

    def tests(self):
        """Those entries of CTest that run a GoogleTest binary of this build, by name."""
        listed = subprocess.run(
            ["ctest", "--test-dir", str(self.folder), "--show-only=json-v1"],
            check=True, capture_output=True, text=True)
        targets = subprocess.run(["ninja", "-C", str(self.folder), "-t", "targets", "all"],
                                 check=True, capture_output=True, text=True).stdout
        targets = {line.split(": ")[0] for line in targets.splitlines()}
        result = {}
        for entry in json.loads(listed.stdout)["tests"]:
            # CTest has no command where the program is not built yet; most are named like the test.
            if not entry.get("command") and f"tests/{entry['name']}" not in targets:
                continue
            command = entry.get("command") or [f"{self.folder}/tests/{entry['name']}"]
            own = [word for word in command if word.startswith(f"{self.folder}/tests/")]
            if not own or not (command[0] == own[0] or "mpiexec" in command[0] or
                               "mpirun" in command[0]):
                continue
            properties = {one["name"]: one["value"] for one in entry["properties"]}
            program = str(pathlib.Path(own[0]).relative_to(self.folder))
            if not pathlib.Path(program).name.endswith("_test"):
                continue
            environment = dict(one.split("=", 1) for one in properties.get("ENVIRONMENT", []))
            result[entry["name"]] = Test(entry["name"], command,
                                         [program] + self._programs_within(program), environment,
                                         properties.get("LABELS", []))
        return result

    def _programs_within(self, program):
        """Other programs of the build that a test starts: it is told their paths when compiled."""
        found = []
        for name in self._objects_of(program):
            for path in re.findall(r'="(' + re.escape(str(self.folder)) + r'/[^"]*)"',
                                   " ".join(self._compiles.get(name, []))):
                found.append(str(pathlib.Path(path).relative_to(self.folder)))
        return found

    def make(self, programs):
        """Brings programs up to date, in the build folder."""
        if programs:
            run(self.prefix + ["cmake", "--build", str(self.folder), "--target"] +
                [pathlib.Path(program).name for program in programs], self.root)

    def digest(self, programs):
        """Of what these programs are."""
        digest = hashlib.sha256()
        for program in programs:
            path = self.folder / program
            stamp = path.stat().st_mtime_ns
            if self._hashes.get(program, (0, ""))[0] != stamp:
                self._hashes[program] = (stamp, hashlib.sha256(path.read_bytes()).hexdigest())
            digest.update(self._hashes[program][1].encode())
        return digest.hexdigest()

    def links(self, program, library):
        """Whether the library, a path in the build folder, is linked into the program."""
        return library in self._link(program)

    def _link(self, program):
        """The words of the command that links a program."""
        if program not in self._links:
            listed = subprocess.run(["ninja", "-C", str(self.folder), "-t", "commands", program],
                                    check=True, capture_output=True, text=True)
            line = listed.stdout.rstrip().splitlines()[-1]
            words = shlex.split(line.removeprefix(": && ").removesuffix(" && :"))
            if "&&" in words or program not in words:
                raise BuildError(f"the command that links {program} is not understood: {line}")
            self._links[program] = words
        return self._links[program]

    def _objects_of(self, program):
        return [word for word in self._link(program) if word.endswith(".o")]

    def _reached(self, file):
        """Objects that are made of a source of the repository, or see it as a header."""
        if self._seen_by is None:
            listed = subprocess.run(["ninja", "-C", str(self.folder), "-t", "deps"], check=True,
                                    capture_output=True, text=True)
            self._seen_by = collections.defaultdict(set)
            target = ""
            for line in listed.stdout.splitlines():
                if line.startswith("    "):
                    path = os.path.normpath(self.folder / line.strip())
                    if path.startswith(f"{self.root}/"):
                        self._seen_by[os.path.relpath(path, self.root)].add(target)
                elif line:
                    target = line.split(":")[0]
        return sorted(name for name in self._seen_by[file] if name in self._compiles)

    def programs_reached(self, file, programs):
        """Those of the programs that a source has a part in."""
        reached = set(self._reached(file))
        libraries = {library_of(name) for name in reached}
        return [program for program in programs
                if any(word in reached or word in libraries for word in self._link(program))]

    def changed(self, file, text, scratch):
        """This build with another text of one file."""
        return Changed(self, file, text, pathlib.Path(scratch))


class Changed:
    """The programs of a build with one source changed, in a folder of their own."""

    def __init__(self, build, file, text, scratch):
        self.build = build
        self.file = file
        self.scratch = scratch
        if scratch.exists():
            shutil.rmtree(scratch)
        self.overlay = scratch / "overlay"
        path = self.overlay / file
        path.parent.mkdir(parents=True)
        path.write_text(text)
        self._objects = {}
        # Programs find their tree by where they lie in it: they lie so in one like it.
        tree = scratch / "tree"
        self.programs = tree / "build" / build.folder.name
        self.programs.mkdir(parents=True)
        for entry in build.root.iterdir():
            if entry.name not in ("build", ".git"):
                (tree / entry.name).symlink_to(entry)

    def close(self):
        shutil.rmtree(self.scratch)

    def compiles(self):
        """Compiles one object that sees the changed file: one made of it, if there is one."""
        reached = self.build._reached(self.file)
        if not reached:
            raise BuildError(f"nothing that is built in {self.build.folder} sees {self.file}")
        source = self.build._sources.get(str(self.build.root / self.file), reached)
        self._compile(source[0], only_look=True)

    def command(self, test):
        """What runs the test with its changed programs, which are made now."""
        for program in test.programs:
            self._make(program, test.programs)
        return [self._moved(word, test.programs) for word in test.command]

    def _moved(self, word, programs):
        for program in programs:
            if word == f"{self.build.folder}/{program}":
                return str(self.programs / program)
        return word

    def _make(self, program, programs):
        target = self.programs / program
        if target.exists():
            return
        build = self.build
        words = build._link(program)
        libraries = {word for word in words if word.endswith(".a")}
        changed = {name: self._compile(name) for name in build._reached(self.file)
                   if name in words or library_of(name) in libraries}
        # A test that starts programs by their path is told the new ones.
        if program == programs[0] and len(programs) > 1:
            for name in build._objects_of(program):
                if name not in changed and any(f'"{build.folder}/{other}"' in word
                                               for word in build._compiles[name]
                                               for other in programs[1:]):
                    changed[name] = self._compile(name, programs[1:])
        target.parent.mkdir(parents=True, exist_ok=True)
        link = []
        in_libraries = [path for name, path in changed.items() if name not in words]
        for word in words:
            if word.endswith(".a") and in_libraries:
                link += in_libraries
                in_libraries = []
            link.append(str(target) if word == program else changed.get(word, word))
        run(build.prefix + link, build.folder)

    def _compile(self, name, told=(), only_look=False):
        if name in self._objects:
            return self._objects[name]
        build = self.build
        target = self.scratch / "objects" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        words = list(build._compiles[name])
        words[words.index("-o") + 1] = str(target)
        source = words.index("-c") + 1
        if os.path.relpath(words[source], build.root) == self.file:
            words[source] = str(self.overlay / self.file)
        elif words[source].startswith(f"{build.folder}/"):
            # CMake's, which includes several sources by their whole paths.
            text = pathlib.Path(words[source]).read_text()
            words[source] = f"{target}.cxx"
            pathlib.Path(words[source]).write_text(
                text.replace(f'"{build.root}/{self.file}"', f'"{self.overlay}/{self.file}"'))
        for i, word in enumerate(words):
            for program in told:
                word = word.replace(f'"{build.folder}/{program}"', f'"{self.programs / program}"')
            words[i] = word
        # The changed file is found before the repository's. It may leave a variable unused.
        includes = [f"-I{self.overlay}/{word[len(f'-I{build.root}'):].lstrip('/')}" for word in words
                    if word.startswith(f"-I{build.root}")]
        # A compiler's cache would look for what nobody has compiled before.
        if "ccache" in words:
            del words[:words.index("ccache") + 1]
        words[1:1] = includes
        words.append("-Wno-error")
        if only_look:
            words.append("-fsyntax-only")
        run(build.prefix + words, build.folder)
        self._objects[name] = str(target)
        return self._objects[name]


def library_of(name):
    """The library that an object of CMake's goes into, if it goes into one."""
    folder, _, rest = name.partition("/CMakeFiles/")
    return f"{folder}/lib{rest.split('.dir/')[0]}.a"


def run(command, folder):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(first_error(done.stdout + done.stderr))


def first_error(output):
    for line in output.splitlines():
        if "error:" in line or "undefined reference" in line or "multiple definition" in line:
            return line.strip()
    return output.strip().splitlines()[-1] if output.strip() else "no output"
