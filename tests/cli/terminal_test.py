# SPDX-License-Identifier: Apache-2.0
"""terminal_test.py MEMPHIS: what `memphis train` shows on a terminal, in a log, and where it is to be quiet."""
import glob
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

MEMPHIS = os.path.abspath(sys.argv.pop(1))
CONFIG = """
model: {vocab_size: 259, num_layers: 2, d_model: 16, num_heads: 2, num_kv_heads: 1, head_dim: 8, ffn_dim: 16,
        num_experts: 4, experts_per_token: 2}
run: {device: cpu}
data: {train: [text.txt], held_out: 0.1}
batch: {sequence_length: 64, micro_batch: 4, global_batch: 4}
schedule: {steps: 300, warmup_steps: 1}
metrics: {every: 100, validate_every: 150, sample_every: 0}
checkpoint: {every: 150}
"""
ENVIRONMENT = {**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"}


class Terminal(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        with open(os.path.join(self.folder.name, "tiny.yaml"), "w", encoding="utf-8") as file:
            file.write(CONFIG)
        with open(os.path.join(self.folder.name, "text.txt"), "w", encoding="utf-8") as file:
            file.write("the quick brown fox jumps over the lazy dog. " * 400)

    def arguments(self, *more, run="run"):
        return [MEMPHIS, "train", "tiny.yaml", f"run.dir={run}", *more]

    def on_terminal(self, *more, meanwhile=lambda process: None):
        master, slave = pty.openpty()
        with subprocess.Popen(self.arguments(*more), cwd=self.folder.name, env=ENVIRONMENT,
                              stdin=slave, stdout=slave, stderr=slave) as process:
            os.close(slave)
            meanwhile(process)
            text = b""
            while True:
                try:
                    piece = os.read(master, 65536)
                except OSError:  # the terminal's other end is closed
                    break
                if not piece:
                    break
                text += piece
            os.close(master)
        self.assertEqual(process.returncode, 0, text.decode())
        return text.decode()

    def test_a_terminal_has_one_live_line_with_events_above_it(self):
        shown = self.on_terminal()
        # A line that is drawn over begins with a return and an erasure, and has no end.
        drawn = re.findall(r"\r\x1b\[K(train \[[#.]{20}\] \d+/300 steps  [^\r\n]*)", shown)
        self.assertTrue(drawn, shown)
        self.assertRegex("\n".join(drawn), r"left  loss \d+\.\d+  \d+ tok/s")
        # What stays when all drawn lines are erased: whole lines of events.
        lines = re.sub(r"\r\x1b\[K[^\r\n]*(?=\r\x1b\[K)", "", shown).replace("\r\x1b[K", "")
        lines = re.sub(r"\x1b\[\d*m", "", lines).splitlines()
        self.assertEqual(sum(line.startswith("saved ") for line in lines), 2, shown)
        self.assertEqual(sum("validation loss" in line for line in lines), 2, shown)
        steps = [line for line in lines if re.match(r"step \d+/300 ", line)]
        self.assertEqual(len(steps), 1, shown)
        self.assertTrue(steps[0].startswith("step 300/300 "), steps)
        self.assertFalse(any("train [" in line for line in lines), lines)

    def test_text_that_is_made_to_tokens_first_shows_how_far_that_is(self):
        with open(os.path.join(self.folder.name, "text.jsonl"), "w", encoding="utf-8") as file:
            file.write('{"text": "the quick brown fox jumps over the lazy dog"}\n' * 600000)

        def halt(process):
            """For longer than a line waits before it is drawn again, once the work has begun."""
            while process.poll() is None:
                if glob.glob(os.path.join(self.folder.name, "run", "tokens", "*.partial")):
                    process.send_signal(signal.SIGSTOP)
                    time.sleep(1)
                    process.send_signal(signal.SIGCONT)
                    return
                time.sleep(0.001)

        shown = self.on_terminal("data.train=[text.jsonl]", "schedule.steps=2", "checkpoint.every=0",
                                 meanwhile=halt)
        self.assertRegex(shown, r"\r\x1b\[Ktokenize \[[#.]{20}\] \d+/\d+ KiB")

    def test_a_log_has_plain_lines(self):
        ended = subprocess.run(self.arguments(), cwd=self.folder.name, env=ENVIRONMENT, check=True,
                               capture_output=True, text=True)
        self.assertNotIn("\r", ended.stderr)
        self.assertNotIn("\x1b", ended.stderr)
        steps = re.findall(r"^step (\d+)/300 ", ended.stderr, re.MULTILINE)
        self.assertEqual(steps, ["100", "200", "300"])

    def test_quiet_says_nothing_of_what_goes_well(self):
        self.assertEqual(self.on_terminal("--quiet"), "")
        ended = subprocess.run(self.arguments("-q", run="another"), cwd=self.folder.name,
                               env=ENVIRONMENT, check=True, capture_output=True, text=True)
        self.assertEqual(ended.stderr, "")


if __name__ == "__main__":
    unittest.main()
