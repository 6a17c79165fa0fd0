#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""step.py --config CONFIG: a training step of memphis beside the same step in PyTorch.

Both start from the same weights, those that memphis draws, and train on the same tokens in the same order.
First their losses are compared over --compare-steps steps, and only where these lie on each other are steps
timed: memphis, PyTorch as it stands (eager) and PyTorch through torch.compile, in turns, each from the
weights of step 0 on the same samples, --rounds times. Prints a table; ends with 1 where losses are apart,
with 2 where it cannot compare.

PyTorch is given what is fast there. On a GPU: flex_attention with the cap as its score_mod, torch._grouped_mm,
bf16 weights with f32 masters. On the CPU: f32, attention by its formula, as flex_attention has no backward
pass there and the fused attention no cap, and a product an expert. On both: losses and gradients of the head a
chunk of tokens at a time, permutations that are gathers in both passes, fused AdamW, no token dropped.

The bound of a loss is the rule of tests/support/tolerance.h. Exact is PyTorch in a wider type; naive are
PyTorch's runs in the type of memphis: eager, compiled, and --draws more from weights that are each moved by
at most a unit in the last place. What a rounding does to a loss grows from step to step, and a token that it
sends to another expert parts two runs for good, so

    bound of step t = 2 e + u |exact|,  e = the largest |naive - exact| of all naive runs up to step t,
                                            or half a unit in the last place of the largest loss

A model of f64 has no wider type: exact is then its eager run. Roundings of f64 seldom send a token elsewhere,
so that with precision.compute=f64 the bound stays narrow, and the curves tell most.

PyTorch's samples are on the device before its steps are timed; memphis reads its own within the step.

Weights reach PyTorch through a checkpoint and an export, 16 bytes a parameter on the disk, and what is exact
needs the memory of a run in f32 without a fused attention. Of a model for which there is no room --rates-alone
times steps and compares nothing: PyTorch then draws weights of its own, as widely spread. Losses of such a
model are compared where it is smaller (overrides), by the same code. One run at a time is on the device; one
that does not fit there is told as such.

Needs PyTorch (on a GPU one that has torch._grouped_mm, as 2.8) and a C++ compiler for torch.compile; nothing of
memphis needs this script.
"""
import argparse
import contextlib
import json
import math
import os
import pathlib
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
WARMUP_STEPS = 3  # of `memphis bench step`, which times those after them


class CannotCompare(Exception):
    pass


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--memphis", help="the program, or a command that runs it, quoted as for a shell; "
                                          "build/<cpu|cuda>/memphis of this tree if not given")
    parser.add_argument("--text", nargs="+", type=pathlib.Path, help="text files; this tree's sources if not given")
    parser.add_argument("--compare-steps", type=int, default=500, help="schedule.steps, too")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each in a round")
    parser.add_argument("--rounds", type=int, default=5, help="0: only compares")
    parser.add_argument("--rates-alone", action="store_true", help="compare no losses; see above")
    parser.add_argument("--draws", type=int, default=2, help="more naive runs, of moved weights")
    parser.add_argument("--json", action="store_true", help="the rates once more, as JSON, a line a program")
    parser.add_argument("--curves", type=pathlib.Path, help="where to write the losses, as JSON")
    parser.add_argument("overrides", nargs="*", help="section.key=value, for memphis and PyTorch alike")
    options = parser.parse_args(arguments)
    if options.rates_alone and (options.rounds == 0 or options.curves):
        parser.error("--rates-alone compares no losses, so that --rounds 0 and --curves have nothing to do; "
                     "leave them out")
    return options


def resolved_config(text):
    """Of the file that a run writes, or of a plan, which begins with it: sections of one line a key, each value of
    JSON or a bare word."""
    config = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        if not line.startswith(" "):
            if not line.endswith(":"):
                break
            section = config.setdefault(line.rstrip(":"), {})
            continue
        key, value = line.strip().split(": ", 1)
        try:
            section[key] = json.loads(value)
        except ValueError:
            section[key] = value
    return config


class Memphis:
    def __init__(self, options, work):
        self.program = (shlex.split(options.memphis) if options.memphis
                        else [str(ROOT / "build" / options.device / "memphis")])
        self.config = options.config
        self.work = work
        text = work / "text"
        text.mkdir()
        sources = options.text or sorted(
            path for folder in ("csrc", "kernels", "docs") for path in (ROOT / folder).rglob("*")
            if path.suffix in (".h", ".cpp", ".cu", ".md"))
        # Under names whose order is plain to both.
        for i, path in enumerate(sources):
            (text / f"{i:05}.txt").write_bytes(path.read_bytes())
        self.schedule = f"schedule.steps={options.compare_steps}"
        self.documents = [path.read_bytes() for path in sources]
        self.overrides = [f"data.train=[\"{text}\"]", "data.validation=[]", f"run.device={options.device}",
                          "metrics.sample_every=0", "metrics.validate_batches=1", "metrics.every=100",
                          *options.overrides]

    def call(self, *arguments):
        done = subprocess.run([*self.program, *map(str, arguments)], capture_output=True, text=True)
        if done.returncode != 0:
            raise CannotCompare(f"memphis {arguments[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        return done.stdout

    def train(self, name, *more):
        """Trains under an own run.dir, which it returns."""
        folder = self.work / name
        self.call("train", self.config, *self.overrides, f"run.dir={folder}", *more)
        return folder

    def begin(self):
        """Weights of step 0 and all that stands beside them: a step whose rate moves no weight."""
        folder = self.train("begin", "schedule.steps=1", "schedule.warmup_steps=0", "optimizer.learning_rate=1e-30")
        self.call("export", folder, self.work / "weights")
        manifest = json.loads((folder / "step-00000001" / "manifest.json").read_text())
        return self.work / "weights" / "model.safetensors", manifest["dataset_fingerprint"]

    def planned_config(self):
        return resolved_config(self.call("plan", self.config, *self.overrides, self.schedule))

    def losses(self):
        """Loss and gradient norm of each step, and the config that gave them."""
        folder = self.train("curve", self.schedule)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = [(line["loss"], line["grad_norm"]) for line in lines if "loss" in line]
        return losses, resolved_config((folder / "config.yaml").read_text())

    def tokens_per_second(self, steps):
        output = self.call("bench", "step", self.config, *self.overrides, self.schedule, "--steps", steps, "--json")
        return json.loads(output.splitlines()[-1])["tokens_per_second"]


@contextlib.contextmanager
def started(run):
    try:
        run.start()
        yield
    finally:
        run.stop()


class PyTorch:
    """The runs of PyTorch, on the samples of memphis and from its weights, or with `rates_alone` from others."""

    def __init__(self, torch, memphis, device, draws, rates_alone):
        import grok
        from samples import Samples

        self.torch, self.grok, self.device, self.draws = torch, grok, device, draws
        if rates_alone:
            config = memphis.planned_config()
            self.weights, fingerprint = grok.DrawnWeights(config["model"], device), "of no run"
        else:
            path, fingerprint = memphis.begin()
            config = resolved_config((memphis.work / "begin" / "config.yaml").read_text())
            self.weights = grok.load_weights(path, config["model"])
        compute = config["precision"]["compute"]
        if compute == "auto":
            compute = "bf16" if device == "cuda" else "f32"
        self.dtype = {"bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64}[compute]
        self.config = config
        self.samples = Samples(memphis.documents, fingerprint, config["run"]["seed"],
                               config["batch"]["sequence_length"], config["data"]["held_out"])
        if config["model"]["pad_id"] in self.samples.tokens:
            raise CannotCompare(f"the text has token {config['model']['pad_id']}, which is model.pad_id")

    def run(self, config, compiled, dtype=None, weights=None):
        dtype = dtype or self.dtype
        on_gpu = self.device == "cuda"
        if on_gpu and not hasattr(self.torch, "_grouped_mm"):
            raise CannotCompare(f"PyTorch {self.torch.__version__} has no torch._grouped_mm; take 2.8 or later")
        # Products of experts in one kernel are of bf16; flex_attention is fast where it is compiled.
        return self.grok.Run(config, weights or self.weights, dtype, self.device, compiled,
                             "grouped" if on_gpu and dtype == self.torch.bfloat16 else "looped",
                             "flex" if on_gpu and compiled else "formula")

    def batches(self, run, config, steps):
        count = config["batch"]["global_batch"]
        for i in range(steps):
            yield run.put(self.samples.batch(i * count, count))

    def losses(self, config, steps, compiled, **options):
        run = self.run(config, compiled, **options)
        with started(run):
            return [run.step(batch) for batch in self.batches(run, config, steps)]

    def moved(self, draw):
        """The weights, each moved by at most a unit in its last place."""
        generator = self.torch.Generator().manual_seed(draw)
        unit = self.torch.finfo(self.dtype).eps
        sums = self.grok.sums_of(self.dtype)
        moved = {}
        for name, weight in self.weights.items():
            noise = 2 * self.torch.rand(weight.shape, generator=generator, dtype=self.torch.float64) - 1
            moved[name] = (weight.double() * (1 + unit * noise)).to(sums)
        return moved

    def curves(self, config, steps):
        """(exact, naive): each a list of losses and gradient norms, by name."""
        naive = {}
        for name, compiled in (("eager", False), ("compiled", True)):
            naive[name] = self.losses(config, steps, compiled)
            note(f"PyTorch {name}: loss {naive[name][-1][0]:.4f} in step {steps}")
        for draw in range(self.draws):
            naive[f"moved {draw + 1}"] = self.losses(config, steps, True, weights=self.moved(draw))
        if self.dtype == self.torch.float64:
            return naive.pop("eager"), naive
        wider = self.torch.float64 if self.dtype == self.torch.float32 else self.torch.float32
        return self.losses(config, steps, False, dtype=wider), naive

    def tokens_per_second(self, run, config, batches):
        """As `memphis bench step`: the median of steps behind some that are not timed, from step 0 on."""
        seconds = []
        with started(run):
            for i, batch in enumerate(batches):
                begin = time.perf_counter()
                run.step(batch)  # reads the loss back, so it ends when the step does
                if i >= WARMUP_STEPS:
                    seconds.append(time.perf_counter() - begin)
        return config["batch"]["global_batch"] * config["batch"]["sequence_length"] / statistics.median(seconds)


def note(text):
    print(text, file=sys.stderr, flush=True)


def bounds(exact, naive, unit):
    """The bound of each step; see above."""
    largest = max(abs(loss) for loss in exact)
    error = unit * 2.0 ** math.floor(math.log2(largest)) if largest > 0 else 0.0  # half a unit in the last place
    result = []
    for t, loss in enumerate(exact):
        error = max([error] + [abs(run[t] - loss) for run in naive])
        result.append(2 * error + unit * abs(loss))
    return result


def steps_over(losses, exact, limits):
    """The steps, from 0, whose loss is farther from the exact one than its bound; NaN always is."""
    return [t for t, loss in enumerate(losses) if not abs(loss - exact[t]) <= limits[t]]


def compare(ours, config, peer, options):
    """Whether the curves lie on each other."""
    exact, naive = peer.curves(config, options.compare_steps)
    # Losses are kept and written in f32 unless the model is f64.
    unit = peer.torch.finfo(peer.grok.sums_of(peer.dtype)).eps / 2
    losses = [loss for loss, _ in exact]
    limits = bounds(losses, [[loss for loss, _ in run] for run in naive.values()], unit)
    apart = [abs(loss - exact_loss) for (loss, _), exact_loss in zip(ours, losses)]
    if options.curves:
        options.curves.write_text(json.dumps(
            {"memphis": ours, "exact": exact, "naive": naive, "bound": limits}) + "\n")
    worst = max(range(len(apart)), key=lambda t: apart[t] / limits[t])
    over = steps_over([loss for loss, _ in ours], losses, limits)
    for t in sorted({t for t in (0, 9, 49, 99, 199, 299, 399, len(apart) - 1) if t < len(apart)}):
        rest = "  ".join(f"{name} {abs(run[t][0] - losses[t]):.1e}" for name, run in naive.items())
        print(f"step {t + 1:>4}  loss {ours[t][0]:.6f}  from exact: memphis {apart[t]:.1e}  {rest}  "
              f"bound {limits[t]:.1e}")
    print(f"losses of {len(apart)} steps: largest difference {max(apart):.2e} (step {apart.index(max(apart)) + 1}, "
          f"bound there {limits[apart.index(max(apart))]:.2e}); nearest to its bound in step {worst + 1}: "
          f"{apart[worst]:.2e} of {limits[worst]:.2e}")
    if over:
        print(f"APART: {len(over)} steps are over their bounds, the first is {over[0] + 1}: memphis "
              f"{ours[over[0]][0]:.9g}, exact {losses[over[0]]:.9g}, gradient norms {ours[over[0]][1]:.6g} and "
              f"{exact[over[0]][1]:.6g}")
    return not over


def measure(memphis, peer, config, options):
    """Whether there was a run of PyTorch to measure beside."""
    runs = {name: peer.run(config, compiled) for name, compiled in (("eager", False), ("compiled", True))}
    batches = list(peer.batches(runs["eager"], config, WARMUP_STEPS + options.steps))
    for name, run in list(runs.items()):
        try:
            peer.tokens_per_second(run, config, batches[:WARMUP_STEPS + 1])  # compiles
        except Exception as error:  # a device that is full is told of in many ways
            print(f"PyTorch {name} is left out, {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
            del runs[name]
        run.stop()  # once more: what failed held on to its tensors until here
    rates = {name: [] for name in ("memphis", *runs)}
    for i in range(options.rounds):
        load = os.getloadavg()[0]
        rates["memphis"].append(memphis.tokens_per_second(options.steps))
        for name, run in runs.items():
            rates[name].append(peer.tokens_per_second(run, config, batches))
        note(f"round {i + 1}, load {load:.1f}: " + ", ".join(f"{name} {rate[-1]:.0f}" for name, rate in rates.items()))
    print(f"\n{options.rounds} rounds in turns, {options.steps} steps each; load {os.getloadavg()[0]:.1f} at the end")
    print(f"{'':<18}  tokens/s (median)  {'lowest':>8}  {'highest':>8}  memphis over it (median of rounds)")
    lines = []
    for name, rate in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates["memphis"], rate))
        label = name if name == "memphis" else f"PyTorch {name}"
        print(f"{label:<18}  {statistics.median(rate):>17.0f}  {min(rate):>8.0f}  {max(rate):>8.0f}  {ratio:.2f}")
        if options.json:
            lines.append(json.dumps({"program": label, "config": options.config, "ratio": ratio,
                                     "tokens_per_second": statistics.median(rate)}))
    for line in lines:
        print(line)
    return bool(runs)


def machine(torch, device):
    if device == "cuda":
        return torch.cuda.get_device_name()
    models = [line.split(":", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
              if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} cores, {models[0] if models else platform.machine()}"


def commit():
    """Of a bundle, or of the checkout that this is in."""
    manifest = ROOT / "MANIFEST"
    if manifest.exists():
        return next((line.split(": ")[1] for line in manifest.read_text().splitlines() if line.startswith("commit: ")),
                    "of no commit")
    try:
        git = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        return git.stdout.strip() or "of no commit"
    except OSError:
        return "of no commit"


def main(arguments):
    options = parse(arguments)
    try:
        import torch
    except ImportError as error:
        print(f"SKIP: there is no PyTorch ({error})")
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        print("SKIP: PyTorch finds no GPU")
        return 0
    print(f"{machine(torch, options.device)}; memphis {commit()}, PyTorch "
          f"{torch.__version__}, Python {platform.python_version()}, threads {torch.get_num_threads()}; "
          f"{options.config} {' '.join(options.overrides)}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            memphis = Memphis(options, pathlib.Path(folder))
            peer = PyTorch(torch, memphis, options.device, options.draws, options.rates_alone)
            print(f"compute {str(peer.dtype).removeprefix('torch.')}, {len(memphis.documents)} documents, "
                  f"{len(peer.samples.tokens)} tokens", flush=True)
            config = peer.config
            if not options.rates_alone:
                ours, config = memphis.losses()
                note(f"memphis: loss {ours[-1][0]:.4f} in step {len(ours)}")
                if not compare(ours, config, peer, options):
                    return 1
            if options.rounds and not measure(memphis, peer, config, options):
                raise CannotCompare("no run of PyTorch was left")
        except CannotCompare as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    # What is killed leaves no files, and no memphis, behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
    sys.exit(main(sys.argv[1:]))
