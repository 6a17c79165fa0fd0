#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""benchmarks.py RESULTS [BENCHMARKS.md]: puts the figures of a run of tests/gpu.sh into BENCHMARKS.md.

Each table of figures on GPUs stands between two comments, <!-- gpu NAME --> and <!-- /gpu NAME -->. Its rows
are replaced; a table of which nothing was measured says so. Results of a rehearsal are refused: they are no figures.
"""
import json
import pathlib
import re
import sys

TABLES = ("kernels", "steps", "smoke", "peers", "rates")


def objects(path):
    """The JSON objects of a file, a line each; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]


def duration(seconds):
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def row(*cells):
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


class Results:
    def __init__(self, folder):
        self.folder = folder
        lines = (folder / "build.txt").read_text().splitlines()
        build = dict(line.split(": ", 1) for line in lines if ": " in line)
        if build.get("rehearsal", "0") != "0":
            raise SystemExit(f"error: {folder} is a rehearsal (the simulated device has no figures);"
                             " run tests/gpu.sh on a GPU")
        self.commit = build.get("commit", "unknown")
        found = re.search(r"NVIDIA ([A-Z]\w*\d\w*(?: \w+)*)", (folder / "machine.txt").read_text())
        self.machine = f"one {found[1].strip()}" if found else "one GPU"

    def kernels(self):
        seen = {}
        for name in ("all", "attention"):  # attention alone is measured first and best
            for result in objects(self.folder / "kernels" / f"{name}.out"):
                if "op" in result:
                    seen[result["op"], result["shape"], result["dtype"]] = result
        for (op, shape, dtype), result in sorted(seen.items()):
            head = f"{op}, {shape}", f"cuda, {dtype}", self.machine, self.commit
            if result["status"] != "measured":
                yield row(*head, f"{result['status']}: {result['reason']}", "", "", "", "")
                continue
            flops = result.get("flops_per_second")
            yield row(*head, duration(result["seconds"]), f"{result['bytes_per_second'] / 1e9:.0f}",
                      f"{100 * result['share_of_copy']:.0f} %",
                      f"{flops / 1e12:.0f}" if flops else "",
                      f"{100 * result['share_of_matmul']:.0f} %" if flops else "")

    def steps(self):
        names = {"smoke_gpu": "`configs/smoke_gpu.yaml`",
                 "heads_of_128": "the same, d_model 2048, 16/2 heads of 128, 4,096 positions"}
        proxies = ("grok_mini", "grok_mini_half", "grok1_eighth", "grok1_layer")
        found = [(self.folder / "steps" / f"{item}.out", name) for item, name in names.items()] + [
            (self.folder / "proxies" / f"bench_{name}{of_2}.out", f"`configs/bench_{name}.yaml`{rows}")
            for name in proxies for of_2, rows in (("", ""), ("_of_2", ", `batch.micro_batch=2`"))]
        for path, name in found:
            for result in objects(path):
                yield row(name, self.machine, self.commit, f"{result['tokens_per_second']:,.0f}",
                          f"{result['model_flops_per_second'] / 1e9:,.0f}", f"{result['ratio']:.2f}")

    def rates(self):
        for result in objects(self.folder / "peers" / "step_rates.out"):
            yield row(f"`{result['config']}`", result["program"], self.machine, self.commit,
                      f"{result['tokens_per_second']:,.0f}", f"{result['ratio']:.2f}")

    def smoke(self):
        path = self.folder / "smoke" / "run" / "metrics.jsonl"
        validated = [line for line in objects(path) if "validation_loss" in line]
        if validated:
            last = validated[-1]
            yield row("`configs/smoke_gpu.yaml`", self.machine, self.commit, f"{last['step']:,}",
                      f"{last['elapsed_seconds']:.0f} s", f"{last['validation_loss']:.3f}")

    def peers(self):
        # The best of the turns, of each side.
        best = {}
        for path in sorted((self.folder / "peers").glob("*.out")):
            for result in objects(path):
                if result.get("status") != "measured" or not result["op"].startswith("attention"):
                    continue
                key = result["op"], result["shape"], result.get("peer", "memphis")
                if key not in best or result["seconds"] < best[key]["seconds"]:
                    best[key] = result
        for (op, shape, peer), result in sorted(best.items()):
            error = result.get("relative_error")
            yield row(f"{op}, {shape}", peer, self.machine, self.commit, duration(result["seconds"]),
                      f"{result['flops_per_second'] / 1e12:.0f}", f"{error:.1e}" if error is not None else "")


def filled(text, results):
    for name in TABLES:
        pattern = re.compile(rf"(<!-- gpu {name} -->\n(.*)\n.*\n)([^<]*)(<!-- /gpu {name} -->)")
        place = pattern.search(text)
        if not place:
            raise SystemExit(f"error: BENCHMARKS.md has no table between <!-- gpu {name} --> and"
                             f" <!-- /gpu {name} --> (its figures go there); put it back")
        columns = place[2].count("|") - 1
        rows = list(getattr(results, name)()) or [row("on a GPU", "not measured", *[""] * (columns - 2))]
        text = pattern.sub(lambda found: found[1] + "\n".join(rows) + "\n" + found[4], text)
    return text


def main(arguments):
    if not 1 <= len(arguments) <= 2 or not (pathlib.Path(arguments[0]) / "build.txt").exists():
        raise SystemExit("error: benchmarks.py is given no folder of results (tests/gpu.sh makes one);"
                         " use it as in `tests/benchmarks.py runs/gpu`")
    results = Results(pathlib.Path(arguments[0]))
    path = pathlib.Path(__file__).parents[1] / "BENCHMARKS.md"
    if len(arguments) > 1:
        path = pathlib.Path(arguments[1])
    path.write_text(filled(path.read_text(), results))


if __name__ == "__main__":
    main(sys.argv[1:])
