# SPDX-License-Identifier: Apache-2.0
"""event_file_test.py MEMPHIS: event files of a run that was stopped and went on say what metrics.jsonl says."""
import glob
import json
import os
import struct
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import event_reader  # noqa: E402

MEMPHIS = os.path.abspath(sys.argv.pop(1))
CONFIG = """
model: {vocab_size: 259, num_layers: 2, d_model: 16, num_heads: 2, num_kv_heads: 1, head_dim: 8, ffn_dim: 16,
        num_experts: 4, experts_per_token: 2}
run: {dir: run, device: cpu}
data: {train: [text.txt], held_out: 0.1}
batch: {sequence_length: 64, micro_batch: 4, global_batch: 4}
schedule: {steps: 20, warmup_steps: 1}
metrics: {every: 2, validate_every: 10, sample_every: 10, sample_tokens: 20, tensorboard: true}
"""


def single(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


class EventFiles(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        with open(os.path.join(self.folder, "tiny.yaml"), "w", encoding="utf-8") as file:
            file.write(CONFIG)
        with open(os.path.join(self.folder, "text.txt"), "w", encoding="utf-8") as file:
            file.write("the quick brown fox jumps over the lazy dog. " * 400)

    def train(self, *overrides):
        subprocess.run([MEMPHIS, "train", "tiny.yaml", *overrides], cwd=self.folder, check=True, capture_output=True)

    def read(self):
        files = sorted(glob.glob(os.path.join(self.folder, "run/tensorboard/events.out.tfevents.*")))
        return [list(event_reader.events(file)) for file in files]

    def test_they_say_what_the_metrics_say(self):
        self.train()
        (events,) = self.read()
        self.assertEqual(events[0][1], {"version": "brain.Event:2"})
        self.assertEqual(events[1], (1, {"start": 1}))
        values = {}
        for step, more in events[2:]:
            values.setdefault(step, {}).update(more)
        with open(os.path.join(self.folder, "run/metrics.jsonl"), encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        kinds = set()
        for line in lines:
            of_step = values.get(line["step"], {})
            if "loss" in line:
                kinds.add("step")
                for key, value in line.items():
                    if key not in ("step", "time"):
                        self.assertEqual(of_step[key], single(value), key)
            elif "validation_loss" in line:
                kinds.add("validation")
                self.assertEqual(of_step["validation_loss"], single(line["validation_loss"]))
            elif "sample" in line:
                kinds.add("sample")
                self.assertEqual(of_step["sample"][0], "text")
                self.assertEqual(of_step["sample"][1].replace("\ufffd", ""),
                                 of_step["sample"][1])
            elif "expert_load" in line:
                kinds.add("routing")
                for layer, load in enumerate(line["expert_load"]):
                    kind, limits, counts = of_step[f"expert_load/layer_{layer}"]
                    self.assertEqual((kind, limits), ("histogram", (1, 2, 3, 4)))
                    for here, there in zip(counts, load):
                        self.assertAlmostEqual(here, there, delta=6e-4)  # which has three digits
        self.assertEqual(kinds, {"step", "validation", "sample", "routing"})

    def test_a_run_that_goes_on_says_from_where(self):
        self.train("schedule.steps=10")
        self.train()
        _, second = self.read()
        self.assertEqual(second[1], (11, {"start": 1}))
        self.assertEqual(max(step for step, _ in second), 20)


if __name__ == "__main__":
    unittest.main()
