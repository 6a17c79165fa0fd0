#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tests of tests/benchmarks.py, which fills BENCHMARKS.md from results of tests/gpu.sh."""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).parents[2]
KERNEL = {"op": "attention_forward", "shape": "B=1 S=8192", "device": "cuda", "dtype": "bf16", "status": "measured",
          "seconds": 1.5e-3, "bytes_per_second": 2e11, "share_of_copy": 0.1, "flops_per_second": 5.5e14,
          "share_of_matmul": 0.7}
STEP = {"tokens_per_second": 123456.7, "model_flops_per_second": 4e14, "ratio": 0.512}


class Benchmarks(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.results = pathlib.Path(folder.name) / "results"
        self.document = pathlib.Path(folder.name) / "BENCHMARKS.md"
        self.document.write_text((ROOT / "BENCHMARKS.md").read_text())
        self.write("build.txt", "commit: abc123\nrehearsal: 0\n")
        self.write("machine.txt", "|   0  NVIDIA H100 80GB HBM3          On  |   00000000:00:00.0 Off |\n")

    def write(self, name, text):
        path = self.results / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def fill(self):
        command = [sys.executable, str(ROOT / "tests/benchmarks.py"), str(self.results), str(self.document)]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stderr

    def rows(self, table):
        text = self.document.read_text()
        return text.split(f"<!-- gpu {table} -->\n")[1].split(f"<!-- /gpu {table} -->")[0].splitlines()[2:]

    def test_figures_become_rows_with_machine_and_commit(self):
        other = KERNEL | {"op": "rope_forward"}
        slower = KERNEL | {"seconds": 1.0}
        self.write("kernels/all.out", "\n".join(map(json.dumps, ({"machine": "x"}, slower, other))))
        self.write("kernels/attention.out", json.dumps(KERNEL) + "\n")
        self.write("steps/smoke_gpu.out", json.dumps(STEP) + "\n")
        self.write("proxies/bench_grok_mini.out", json.dumps(STEP) + "\n")
        self.write("proxies/bench_grok_mini_of_2.out", json.dumps(STEP) + "\n")
        self.write("peers/step_rates.out", "a table\n" + json.dumps(
            {"program": "PyTorch compiled", "config": "c.yaml", "ratio": 1.5, "tokens_per_second": 30000.4}))
        self.write("smoke/run/metrics.jsonl", "\n".join(map(json.dumps, (
            {"step": 100, "validation_loss": 3.0, "elapsed_seconds": 5.0},
            {"step": 500, "validation_loss": 1.25, "elapsed_seconds": 30.4}))))
        self.assertEqual(self.fill(), (0, ""))
        self.assertEqual(self.rows("kernels"), [
            "| attention_forward, B=1 S=8192 | cuda, bf16 | one H100 80GB HBM3 | abc123 | 1.50 ms | 200 | 10 % | 550 | 70 % |",
            "| rope_forward, B=1 S=8192 | cuda, bf16 | one H100 80GB HBM3 | abc123 | 1.50 ms | 200 | 10 % | 550 | 70 % |"])
        self.assertEqual(self.rows("steps"), [
            "| `configs/smoke_gpu.yaml` | one H100 80GB HBM3 | abc123 | 123,457 | 400,000 | 0.51 |",
            "| `configs/bench_grok_mini.yaml` | one H100 80GB HBM3 | abc123 | 123,457 | 400,000 | 0.51 |",
            "| `configs/bench_grok_mini.yaml`, `batch.micro_batch=2` | one H100 80GB HBM3 | abc123 | 123,457 | 400,000 | "
            "0.51 |"])
        self.assertEqual(self.rows("rates"), [
            "| `c.yaml` | PyTorch compiled | one H100 80GB HBM3 | abc123 | 30,000 | 1.50 |"])
        self.assertEqual(self.rows("smoke"), [
            "| `configs/smoke_gpu.yaml` | one H100 80GB HBM3 | abc123 | 500 | 30 s | 1.250 |"])
        self.assertEqual(self.rows("peers"), ["| on a GPU | not measured |  |  |  |  |  |"])

    def test_what_was_not_measured_says_why(self):
        self.write("kernels/all.out", json.dumps({
            "op": "adamw", "shape": "N=1", "dtype": "f32", "status": "not measured", "reason": "no memory"}))
        self.assertEqual(self.fill(), (0, ""))
        self.assertIn("not measured: no memory", self.rows("kernels")[0])

    def test_the_best_turn_counts_of_each_side(self):
        peer = KERNEL | {"peer": "flex_attention", "relative_error": 2.5e-3}
        for turn, seconds in ((1, 4e-3), (2, 2e-3)):
            self.write(f"peers/memphis_{turn}.out", json.dumps(KERNEL | {"seconds": seconds}) + "\n")
            self.write(f"peers/pytorch_{turn}.out", json.dumps(peer | {"seconds": 2 * seconds}) + "\n")
        self.assertEqual(self.fill(), (0, ""))
        first, second = self.rows("peers")
        self.assertIn("| flex_attention | one H100 80GB HBM3 | abc123 | 4.00 ms | 550 | 2.5e-03 |", first)
        self.assertIn("| memphis | one H100 80GB HBM3 | abc123 | 2.00 ms | 550 |", second)

    def test_the_same_results_give_the_same_document(self):
        self.write("kernels/all.out", json.dumps(KERNEL) + "\n")
        self.fill()
        once = self.document.read_text()
        self.fill()
        self.assertEqual(self.document.read_text(), once)

    def test_a_rehearsal_is_refused(self):
        self.write("build.txt", "commit: abc123\nrehearsal: 1\n")
        before = self.document.read_text()
        status, said = self.fill()
        self.assertNotEqual(status, 0)
        self.assertIn("is a rehearsal", said)
        self.assertEqual(self.document.read_text(), before)


if __name__ == "__main__":
    unittest.main()
