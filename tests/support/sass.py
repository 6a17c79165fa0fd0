#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""sass.py TABLE OBJECTS...: holds the machine code of kernels to a table.

OBJECTS are object files, or folders of them (*.cu.o), of the cuda preset. No kernel of them may use local
memory, unless the table lets it. TABLE is TOML, a [[kernel]] for each that is to be held to more:

  name      a regular expression, searched in the demangled name; it must find a kernel
  arch      "sm_90a", where it is of one architecture alone: elsewhere the entry is passed over
  must      instructions that occur: regular expressions, from the beginning of the instruction, operands included
  never     instructions that do not
  registers how many a thread may have at most
  stack     bytes of local memory that it may have; 0 unless given
  loop      of the innermost loops that hold an instruction: {around = "HGMMA", never = [...],
            scores = 64, others = 12}: at most 12 others a score, where a thread has 64 scores an iteration,
            in the shortest of them: those that mask scores are longer, and run less often;
            order = ["MUFU", "DEPBAR"]: what matches any of these comes in this order, each once or several
            times in a row;
            most = {"MUFU" = 144}: how many of these there may be in the shortest of them

The PTX of an object with wgmma is assembled once more, as the assembler alone says where it had to serialise
them. Prints `SKIP: ` and the reason where cuobjdump is not found; it is part of the CUDA toolkit, and of the
Python packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm.
"""
import itertools
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib

KEYS = {"name", "arch", "must", "never", "registers", "stack", "loop"}
LOOP_KEYS = {"around", "never", "scores", "others", "order", "most"}
LOCAL_MEMORY = ("LDL", "STL")


class Kernel:
    def __init__(self, name, arch):
        self.name = name  # mangled
        self.arch = arch
        self.code = []  # (address, instruction without its predicate)
        self.ends = set()  # addresses of instructions that what follows is not executed after
        self.registers = 0
        self.stack = 0


def parse_sass(text):
    """The kernels of `cuobjdump -sass`, by mangled name."""
    kernels, kernel, arch = {}, None, None
    for line in text.splitlines():
        if found := re.match(r"\s*code for (sm_\w+)", line):
            arch, kernel = found[1], None
        elif found := re.match(r"\s*Function : (\S+)", line):
            kernel = kernels.setdefault(found[1], Kernel(found[1], arch))
        elif kernel and (found := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][^;]*?)\s*;", line)):
            kernel.code.append((int(found[1], 16), found[3]))
            if not found[2] and re.match(r"BRA 0x|EXIT|RET|BRX|JMP", found[3]):
                kernel.ends.add(int(found[1], 16))
    return kernels


def parse_resources(text, kernels):
    """Adds what `cuobjdump -res-usage` says."""
    for name, registers, stack, local in re.findall(
            r"Function (\S+?):\s+REG:(\d+) STACK:(\d+) \S+ LOCAL:(\d+)", text):
        if name in kernels:
            kernels[name].registers = int(registers)
            kernels[name].stack = max(int(stack), int(local))


def occurs(patterns, code):
    return [pattern for pattern in patterns if any(re.match(pattern, text) for _, text in code)]


def order_of(patterns, code):
    """The patterns that instructions match, in the order of these, those in a row once."""
    found = [pattern for _, text in code for pattern in patterns if re.match(pattern, text)]
    return [pattern for pattern, _ in itertools.groupby(found)]


def target_of(text):
    found = re.match(r"BRA(?:\.\w+)* .*?0x([0-9a-f]+)", text)
    return int(found[1], 16) if found else None


def is_loop(kernel, begin, end):
    """Whether the branch at `end` back to `begin` closes a loop: nothing comes to it but through `begin`. What waits
    at a barrier lies behind the kernel and comes back to the middle of one."""
    follows = {a: b for (a, _), (b, _) in zip(kernel.code, kernel.code[1:]) if a not in kernel.ends}
    jumps = {address: target_of(text) for address, text in kernel.code}
    seen, pending = {begin}, [kernel.code[0][0]]
    while pending:
        at = pending.pop()
        if at is not None and at not in seen:
            seen.add(at)
            pending += [follows.get(at), jumps.get(at)]
    return end not in seen


def innermost_loops(kernel, around):
    """The loops that hold an instruction `around` and no smaller loop that does, as code."""
    loops = []
    for address, text in kernel.code:
        begin = target_of(text)
        if begin is not None and begin < address:
            body = [line for line in kernel.code if begin <= line[0] <= address]
            if occurs([around], body) and is_loop(kernel, begin, address):
                loops.append((begin, address, body))
    return [body for begin, end, body in loops
            if not any((b, e) != (begin, end) and begin <= b and e <= end for b, e, _ in loops)]


def check_loop(rule, kernel):
    loops = innermost_loops(kernel, rule["around"])
    if not loops:
        yield f"has no loop around {rule['around']}"
    for body in loops:
        where = f"its loop at 0x{body[0][0]:04x}"
        for pattern in occurs(rule.get("never", []), body):
            yield f"has {pattern} in {where}"
        if order_of(rule.get("order", []), body) != rule.get("order", []):
            yield f"has not {', '.join(rule['order'])} in this order in {where}"
    if loops and "others" in rule:
        others = min(sum(not re.match(rule["around"], text) for _, text in body) for body in loops)
        if others > rule["others"] * rule["scores"]:
            yield (f"has {others / rule['scores']:.1f} instructions a score beside {rule['around']} in its shortest "
                   f"loop, not {rule['others']} at most")
    for pattern, most in rule.get("most", {}).items() if loops else ():
        count = sum(bool(re.match(pattern, text)) for _, text in min(loops, key=len))
        if count > most:
            yield f"has {count} {pattern} in its shortest loop, not {most} at most"


def check_kernel(entry, kernel):
    """What of the entry the kernel breaks; an empty entry is that of every kernel."""
    stack = entry.get("stack", 0)
    if kernel.stack > stack:
        yield f"has {kernel.stack} bytes of local memory, not {stack} at most"
    if not stack:
        for pattern in occurs(LOCAL_MEMORY, kernel.code):
            yield f"has {pattern}: it spills, or indexes an array by what is not known"
    for pattern in entry.get("must", []):
        if not occurs([pattern], kernel.code):
            yield f"lacks {pattern}"
    for pattern in occurs(entry.get("never", []), kernel.code):
        yield f"has {pattern}"
    if kernel.registers > entry.get("registers", 255):
        yield f"has {kernel.registers} registers, not {entry['registers']} at most"
    if "loop" in entry:
        yield from check_loop(entry["loop"], kernel)


def check(table, kernels, demangled):
    """Problems of all kernels, a line each. `demangled`: names by mangled ones."""
    problems = []
    used = set()
    for mangled, kernel in kernels.items():
        entries = [(i, entry) for i, entry in enumerate(table)
                   if re.search(entry["name"], demangled[mangled]) and entry.get("arch", kernel.arch) == kernel.arch]
        used.update(i for i, _ in entries)
        for entry in [entry for _, entry in entries] or [{}]:
            problems += [f"{demangled[mangled]} {problem}" for problem in check_kernel(entry, kernel)]
    architectures = {kernel.arch for kernel in kernels.values()}
    for i, entry in enumerate(table):
        unknown = entry.keys() - KEYS | entry.get("loop", {}).keys() - LOOP_KEYS
        if unknown:
            problems.append(f"the entry {entry['name']} has keys that nothing reads: {', '.join(sorted(unknown))}")
        elif i not in used and entry.get("arch") in architectures | {None}:
            problems.append(f"no kernel is called {entry['name']}")
    return problems


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def demangle(names):
    try:
        lines = subprocess.run(["c++filt"], input="\n".join(names), check=True, capture_output=True, text=True).stdout
        return dict(zip(names, lines.split("\n")))
    except FileNotFoundError:
        return {name: name for name in names}


def assembler_warnings(cuobjdump, ptxas, path):
    """What ptxas says of the object's PTX that costs speed."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([cuobjdump, "-xptx", "all", str(path.resolve())], check=True, capture_output=True, cwd=folder)
        for ptx in pathlib.Path(folder).glob("*.ptx"):
            arch = re.search(r"^\.target (sm_\w+)", ptx.read_text(), re.MULTILINE)[1]
            said = subprocess.run([ptxas, "-arch", arch, "-o", "/dev/null", str(ptx)], capture_output=True, text=True)
            for line in (said.stdout + said.stderr).splitlines():
                if re.search(r"\(C\d+\)|warning", line):
                    yield line.strip()


def tool(name):
    """On the PATH, in the toolkit, or among Python's packages."""
    found = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    for folder in sys.path:
        found = found or next((str(p) for p in pathlib.Path(folder).glob(f"nvidia/*/bin/{name}")), None)
    return found


def main(arguments):
    table = tomllib.loads(pathlib.Path(arguments[0]).read_text())["kernel"]
    objects = []
    for argument in map(pathlib.Path, arguments[1:]):
        objects += sorted(argument.rglob("*.cu.o")) if argument.is_dir() else [argument]
    cuobjdump, ptxas = tool("cuobjdump"), tool("ptxas")
    if not cuobjdump:
        print("SKIP: cuobjdump is not found (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)")
        return 0
    kernels, problems = {}, []
    for path in objects:
        sass = run(cuobjdump, "-sass", str(path))
        found = parse_sass(sass)
        parse_resources(run(cuobjdump, "-res-usage", str(path)), found)
        kernels |= found
        if "HGMMA" in sass and ptxas:
            problems += [f"{path.name}: {line}" for line in assembler_warnings(cuobjdump, ptxas, path)]
    if not kernels:
        print(f"error: {' '.join(arguments[1:])} hold no kernels; build the cuda preset", file=sys.stderr)
        return 1
    problems += check(table, kernels, demangle(list(kernels)))
    for problem in problems:
        print(problem)
    print(f"{len(kernels)} kernels of {len(objects)} objects, {len(problems)} problems")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
