#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tests of the peers that need no PyTorch: their sources compile, samples come in the order that memphis's
tests demand of it, and a curve that leaves its bound is seen."""
import contextlib
import io
import pathlib
import sys
import types
import unittest

sys.dont_write_bytecode = True

import samples
import step

FOLDER = pathlib.Path(__file__).resolve().parent


class Sources(unittest.TestCase):
    def test_compile(self):
        for path in sorted(FOLDER.glob("*.py")):
            with self.subTest(path.name):
                compile(path.read_text(), str(path), "exec")


class Order(unittest.TestCase):
    def test_philox_gives_the_known_answers_of_random123(self):
        ones = samples.WORD
        self.assertEqual(samples.philox((0,) * 4, (0,) * 2), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8))
        self.assertEqual(samples.philox((ones,) * 4, (ones,) * 2), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD))

    def test_an_index_goes_to_a_place_of_its_own(self):
        for size in (1, 2, 17, 256):
            self.assertEqual(sorted(samples.permuted_index(i, size, 5, 1) for i in range(size)), list(range(size)))

    def test_an_epoch_has_every_token_once(self):
        text = bytes(range(1, 255))
        drawn = samples.Samples([text, text], "x", 1, 16, 0.0)
        tokens = [token for row in drawn.batch(0, drawn.number)[0] for token in row]
        self.assertEqual(drawn.number, (2 * (254 + 2) - 1) // 16)
        self.assertEqual(len(tokens), drawn.number * 16)
        self.assertTrue(all(tokens.count(token) <= 2 for token in set(tokens)))

    def test_no_target_lies_in_another_document(self):
        drawn = samples.Samples([b"ab", b"cd"], "x", 1, 7, 0.0)
        tokens, targets, positions = drawn.sample(0)
        for i in range(6):
            starts = positions[i + 1] == 0
            self.assertEqual(targets[i], samples.NO_TARGET if starts else tokens[i + 1])
            self.assertEqual(positions[i + 1], 0 if starts else positions[i] + 1)


class Bounds(unittest.TestCase):
    def test_they_are_twice_the_worst_that_naive_runs_have_shown(self):
        unit = 2.0**-24
        exact = [4.0, 2.0, 1.0]
        naive = [[4.0, 2.001, 1.0], [4.0, 2.0, 1.0005]]
        first, second, third = step.bounds(exact, naive, unit)
        self.assertEqual(first, 2 * 4 * unit + 4 * unit)  # a unit in the last place: 4 rounds by 4 u at most
        self.assertAlmostEqual(second, 0.002 + 2 * unit, places=12)
        self.assertAlmostEqual(third, 0.002 + unit, places=12)  # it does not shrink again

    def test_losses_beyond_them_are_named(self):
        nan = float("nan")
        self.assertEqual(step.steps_over([1.0, 1.2, 0.8, nan], [1.0] * 4, [0.1] * 4), [1, 2, 3])


class OutOfMemory(Exception):
    pass


class Run:
    def __init__(self, fits):
        self.fits, self.on_device = fits, False

    def start(self):
        self.on_device = True

    def stop(self):
        self.on_device = False

    def step(self, batch):
        if not self.fits:
            raise OutOfMemory("out of memory\nby 1 GiB")


class Rates(unittest.TestCase):
    """Of a model that fills the device: one program's memory at a time, and a run that does not fit is told."""

    def measured(self, eager_fits):
        runs = {False: Run(eager_fits), True: Run(True)}
        alone = []

        class Memphis:
            def tokens_per_second(self, steps):
                alone.append(not any(run.on_device for run in runs.values()))
                return 1e9

        class Peer(step.PyTorch):
            def __init__(self):
                pass

            def run(self, config, compiled):
                return runs[compiled]

            def batches(self, run, config, steps):
                return range(steps)

        options = types.SimpleNamespace(rounds=2, steps=1, json=False)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            step.measure(Memphis(), Peer(), {"batch": {"global_batch": 1, "sequence_length": 8}}, options)
        self.assertEqual(alone, [True, True])
        return printed.getvalue()

    def test_a_run_that_does_not_fit_is_left_out(self):
        self.assertIn("PyTorch eager is left out, OutOfMemory: out of memory\n", self.measured(eager_fits=False))
        self.assertIn("PyTorch compiled  ", self.measured(eager_fits=False))
        self.assertIn("PyTorch eager  ", self.measured(eager_fits=True))

    def test_a_plan_is_read_as_far_as_its_config_goes(self):
        plan = "model:\n  preset: grok-1\n  num_layers: 2\ndevice cpu\n  weights  8 bytes\n"
        self.assertEqual(step.resolved_config(plan), {"model": {"preset": "grok-1", "num_layers": 2}})


if __name__ == "__main__":
    unittest.main()
