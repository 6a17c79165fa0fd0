#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""commands_test.py MEMPHIS: the commands of the documents, run as they are printed.

They run in a copy of what they need of the tree, with this build's memphis in the place of what
launch/build.sh would build, and with the configs shortened: fewer and shorter steps, batches as they
are. Each command of a code block or in running text is run, or stands in NOT_RUN with the reason; a row
of NOT_RUN that no document has fails. Of commands with placeholders the options are looked up in --help.
Last, docs/ is compared with what `memphis docs` prints.
"""
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "BENCHMARKS.md", "kernels/device/README.md", *sorted(
    str(path.relative_to(ROOT)) for path in ROOT.glob("examples/*/README.md")))
TIMEOUT_SECONDS = 3000  # for what hangs

# Prefixes of commands that do not run here, and why.
NOT_RUN = {
    "git clone": "needs the repository's address",
    "tests/run.sh": "runs this test",
    "tests/fuzz/run.sh": "is a test of its own, fuzz",
    "launch/build.sh": "builds; tests/run.sh and launch/smoke.sh do it",
    "build/cpu/tests/swish_test": "the op is the reader's to write",
    "build/cpu/memphis bench kernels --filter swish": "the op is the reader's to write",
    "build/simt/": "is of another build; examples/CMakeLists.txt and the op's tests run it there",
    "build/cuda/": "needs a GPU",
    "mpirun --bind-to none -n 16 build/cpu/memphis doctor": "is for a cluster of 16 ranks",
    "mpirun --bind-to none -n 2 build/simt/memphis": "is of another build; its tests run jobs there",
    "launch/bundle.sh": "gathers a build; tests/launch/bundle_test.sh does it",
    "tests/gpu.sh": "needs a GPU; tests/launch/bundle_test.sh rehearses it",
    "tests/benchmarks.py": "needs what tests/gpu.sh measures; tests/support/benchmarks_test.py runs it",
    "sbatch": "needs a Slurm; tests/launch/slurm_test.sh has one",
}
PROGRAMS = ("git ", "launch/", "tests/", "examples/", "build/", "memphis ", "mpirun ", "sbatch ")
PLACEHOLDER = re.compile(r"<\w|\[|\.\.\.|\b[A-Z]{2,}(_[A-Z]+)*\b(?!=)")


def code_of(text):
    """The command lines of a document: code blocks, and code that fills itself in running text."""
    for language, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        lines = re.sub(r" *\\\n *", " ", block).splitlines()
        for line in lines:
            line = re.sub(r"\s{2,}#? ?\S.*$", "", line.strip()) if language == "" else line.strip()
            if language == "bash" or line.startswith(PROGRAMS):
                yield re.sub(r"\s+# .*$", "", line).removeprefix("$ ")
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`]+)`", prose):
        code = " ".join(code.split())
        if " " in code and code.startswith(PROGRAMS):
            yield code


def commands():
    found = {}
    for name in DOCUMENTS:
        for line in code_of((ROOT / name).read_text()):
            for command in line.split(" && "):
                if command.startswith(PROGRAMS) and not command.endswith("/"):  # a folder
                    found.setdefault(command, name)
    return found


def shortened(config):
    config = re.sub(r"\bsteps: \d+", "steps: 2", config)
    config = re.sub(r"\bwarmup_steps: \d+", "warmup_steps: 1", config)
    config = re.sub(r"\bsequence_length: \d+", "sequence_length: 32", config)
    config = re.sub(r"^metrics: \{", "metrics: {validate_batches: 1, sample_tokens: 8, ", config,
                    flags=re.MULTILINE)
    return re.sub(r"\bnum_layers: \d+", "num_layers: 2", config)


def make_tree(tree, memphis):
    for name in ("launch", "configs", "examples"):
        shutil.copytree(ROOT / name, tree / name)
    (tree / "launch/build.sh").write_text("true\n")
    for config in [*tree.glob("configs/*.yaml"), *tree.glob("examples/*/*.yaml")]:
        config.write_text(shortened(config.read_text()))
    for preset in ("cpu", "cuda"):
        (tree / "build" / preset).mkdir(parents=True)
        (tree / "build" / preset / "memphis").symlink_to(memphis)
    text = (ROOT / "README.md").read_text()
    for name in ("tinyshakespeare.txt", "novel.txt", "letters.txt"):
        (tree / name).write_text(text)


def run(command, tree):
    """What went wrong, or None."""
    environment = dict(os.environ, OMP_NUM_THREADS="2", OMP_WAIT_POLICY="passive",
                       PATH=f"{tree}/build/cpu:{os.environ['PATH']}")
    try:
        done = subprocess.run(["bash", "-c", command], cwd=tree, env=environment, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT_SECONDS,
                              errors="replace", check=False)
    except subprocess.TimeoutExpired as expired:
        said = (expired.stdout or b"").decode(errors="replace")
        return f"has not ended within {TIMEOUT_SECONDS} s:\n{said[-2000:]}"
    return None if done.returncode == 0 else f"ended with {done.returncode}:\n{done.stdout[-2000:]}"


def look_up(command, memphis):
    """Whether `memphis ... --help` knows the options of a command that has placeholders."""
    words = command[command.index("memphis") + len("memphis"):].split()
    subcommand = []
    while words and re.fullmatch(r"[a-z]+", words[0]):
        subcommand.append(words.pop(0))
    help_text = subprocess.run([memphis, *subcommand, "--help"], text=True, capture_output=True,
                               check=False)
    if help_text.returncode != 0:
        return f"`memphis {' '.join(subcommand)} --help` ends with {help_text.returncode}"
    unknown = [option for option in re.findall(r"--[a-z-]+", " ".join(words))
               if option not in help_text.stdout]
    return f"--help does not know {', '.join(unknown)}" if unknown else None


def main():
    memphis = pathlib.Path(sys.argv[1]).resolve()
    found = commands()
    problems = []
    used = set()
    num_run = 0
    with tempfile.TemporaryDirectory() as scratch:
        tree = pathlib.Path(scratch) / "a tree"
        tree.mkdir()
        make_tree(tree, memphis)
        for command, document in found.items():
            reasons = [prefix for prefix in NOT_RUN if command.startswith(prefix)]
            if reasons:
                used.add(max(reasons, key=len))
                print(f"not run: {command} ({NOT_RUN[max(reasons, key=len)]})")
                continue
            if PLACEHOLDER.search(re.sub(r"'[^']*'", "", command)):
                problem = look_up(command, memphis) if "memphis" in command else None
                print(f"looked up: {command}")
            else:
                problem = run(command, tree)
                num_run += 1
                print(f"run: {command}", flush=True)
            if problem:
                problems.append(f"{document}: {command}: {problem}")
    for prefix in set(NOT_RUN) - used:
        problems.append(f"no document has `{prefix}` of NOT_RUN; take it out")
    if num_run == 0:
        problems.append("no command was run")
    for name in ("config", "metrics"):
        printed = subprocess.run([memphis, "docs", name, "--markdown"], text=True,
                                 capture_output=True, check=False).stdout
        if (ROOT / f"docs/{name}.md").read_text() != printed:
            problems.append(f"docs/{name}.md is not what `memphis docs {name} --markdown` prints; "
                            "write it again by that")
    for problem in problems:
        print(f"FAILED {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
