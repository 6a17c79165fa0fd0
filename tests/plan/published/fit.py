#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fits the constants of csrc/plan/step_time.h on runs.csv, as docs/planner.md says.

  tests/plan/published/fit.py [BUILD/tests/published_runs] [--sources]

Prints the constants and each run's error; with --sources also the errors of each source's runs with
constants that were fitted without them. What is minimised is the sum of squared logarithms of
predicted over measured, with a steeper part beyond 8.5 %, and for four differences that a planner is
asked for the same of what lies beyond a quarter of their size. Runs of EXCEPT are left out.
"""
import math
import subprocess
import sys

EXCEPT = ("43", "46", "52 cp4", "52 cp8")
DIFFERENCES = (("7", "9"), ("7", "10"), ("35", "36"))
# Name, first value, least, most.
CONSTANTS = (
    ("dense_products", 0.85, 0.6, 1.0),
    ("fp8_products", 0.85, 0.5, 1.0),
    ("fp8_expert_products", 0.6, 0.3, 1.0),
    ("attention", 0.95, 0.6, 1.3),
    ("eager_streams", 2.5, 1.2, 8.0),
    ("tensor_seen", 0.35, 0.0, 1.0),
    ("rows_seen", 0.15, 0.0, 1.0),
    ("pieces", 1.5, 1.0, 5.0),
    ("start_seconds", 50e-6, 0.0, 1e-3),
    ("imbalance", 0.03, 0.0, 0.2),
    ("straggling", 0.004, 0.0, 0.02),
    ("share of a 500 W GPU", 0.8, 0.5, 1.0),
)
STEEP_FROM, STEEPNESS = 0.085, 20.0


class Runs:
    def __init__(self, program):
        self.process = subprocess.Popen([program, "--fit"], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        self.names, self.sources, self.measured = [], [], []
        for line in iter(self.process.stdout.readline, "\n"):
            name, source, seconds = line.strip().split(";")
            self.names.append(name)
            self.sources.append(source)
            self.measured.append(float(seconds))

    def times(self, values):
        self.process.stdin.write(" ".join(f"{v:.9g}" for v in values) + "\n")
        self.process.stdin.flush()
        return [float(word) for word in self.process.stdout.readline().split()]


def solve(matrix, right):
    rows = [row[:] + [value] for row, value in zip(matrix, right)]
    for i in range(len(rows)):
        pivot = max(range(i, len(rows)), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(len(rows)):
            if r != i:
                factor = rows[r][i] / rows[i][i]
                rows[r] = [a - factor * b for a, b in zip(rows[r], rows[i])]
    return [row[-1] / row[i] for i, row in enumerate(rows)]


def residuals(runs, values, used):
    times = runs.times(values)
    result = [math.log(times[i] / runs.measured[i]) for i in used]
    index = {name: i for i, name in enumerate(runs.names)}
    for before, after in DIFFERENCES:
        a, b = index[before], index[after]
        if a in used and b in used:
            wanted = runs.measured[b] / runs.measured[a] - 1
            error = (times[b] / times[a] - 1) / wanted - 1
            result.append(0.6 * math.copysign(max(abs(error) - 0.25, 0), error))
    return result


def beyond(value):
    return math.copysign(max(abs(value) - STEEP_FROM, 0), value)


def fit(runs, used, values=None):
    """Levenberg and Marquardt's method within the bounds."""
    count = len(CONSTANTS)
    values = list(values or [constant[1] for constant in CONSTANTS])
    scale = [constant[1] for constant in CONSTANTS]
    cost_of = lambda r: sum(v * v + STEEPNESS * beyond(v) ** 2 for v in r)
    now = residuals(runs, values, used)
    cost, damping = cost_of(now), 0.01
    for _ in range(25):
        columns = []
        for j in range(count):
            step = 0.01 * scale[j]
            if values[j] + step > CONSTANTS[j][3]:
                step = -step
            moved = values[:]
            moved[j] += step
            columns.append([(a - b) / step * scale[j]
                            for a, b in zip(residuals(runs, moved, used), now)])
        weight = [1 + STEEPNESS * (abs(v) > STEEP_FROM) for v in now]
        pull = [v + STEEPNESS * beyond(v) for v in now]
        normal = [[sum(w * a * b for w, a, b in zip(weight, x, y)) for y in columns]
                  for x in columns]
        slope = [-sum(a * p for a, p in zip(x, pull)) for x in columns]
        before = cost
        for _ in range(8):
            damped = [[normal[a][b] + (damping * (normal[a][a] + 1e-3) if a == b else 0)
                       for b in range(count)] for a in range(count)]
            change = solve(damped, slope)
            tried = [min(most, max(least, value + c * s)) for (_, _, least, most), value, c, s in
                     zip(CONSTANTS, values, change, scale)]
            then = residuals(runs, tried, used)
            if cost_of(then) < cost:
                values, now, cost, damping = tried, then, cost_of(then), max(damping / 3, 1e-6)
                break
            damping *= 4
        if before - cost < 1e-7:
            break
    return values


def main():
    arguments = [word for word in sys.argv[1:] if not word.startswith("--")]
    runs = Runs(arguments[0] if arguments else "build/cpu/tests/published_runs")
    fitted = [i for i, name in enumerate(runs.names) if name not in EXCEPT]
    values = fit(runs, fitted)
    for constant, value in zip(CONSTANTS, values):
        print(f"{constant[0]:<22} {value:.4g}")
    for name, source, measured, time in zip(runs.names, runs.sources, runs.measured,
                                            runs.times(values)):
        print(f"{name:<18} {source:<22} {100 * (time / measured - 1):+6.1f} %")
    if "--sources" in sys.argv:
        for source in sorted(set(runs.sources)):
            others = [i for i in fitted if runs.sources[i] != source]
            own = [i for i in fitted if runs.sources[i] == source]
            # From the first values: what the others say nothing of stays there.
            times = runs.times(fit(runs, others))
            errors = [abs(times[i] / runs.measured[i] - 1) for i in own]
            print(f"without {source:<22} {len(own):2} runs, mean {100 * sum(errors) / len(own):.1f} %, "
                  f"worst {100 * max(errors):.1f} %")


if __name__ == "__main__":
    main()
