#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What summarize.py counts, from reports as GoogleTest 1.12 and CTest 3.25 write them."""
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).with_name("summarize.py")

GTEST = """<testsuites><testsuite name="Rope">
<testcase name="Rotates" status="run" result="completed" classname="Rope"/>
<testcase name="Inverts" status="run" result="completed" classname="Rope"/>
<testcase name="OnGpu" status="run" result="skipped" classname="Rope">
<skipped message="/somewhere/rope_test.cpp:12&#x0A;no GPU&#x0A;"/></testcase>
<testcase name="DISABLED_Old" status="notrun" result="suppressed" classname="Rope"/>
{more}</testsuite></testsuites>"""
GTEST_FAILURE = """<testcase name="Breaks" status="run" result="completed" classname="Rope">
<failure message="x"/></testcase>"""


class Summarize(unittest.TestCase):
    def summarize(self, entries, reports, not_built=None):
        with tempfile.TemporaryDirectory() as folder:
            results = pathlib.Path(folder) / "cpu" / "results"
            (results / "gtest").mkdir(parents=True)
            for name, text in reports.items():
                (results / "gtest" / f"{name}.xml").write_text(text)
            (results / "ctest.xml").write_text(f"<testsuite>{''.join(entries)}</testsuite>")
            if not_built:
                (results / "not_built").write_text(not_built)
            done = subprocess.run(
                [sys.executable, SCRIPT, results], capture_output=True, text=True, check=False
            )
            self.assertEqual(done.stderr, "")
            lines = done.stdout.splitlines()
            return lines[-1], done.returncode, lines[:-1]

    def test_cases_of_googletest_are_counted_one_by_one(self):
        total, status, lines = self.summarize(
            ['<testcase name="rope_test" status="run"/>'], {"rope_test": GTEST.format(more="")}
        )
        self.assertEqual((total, status), ("2 passed, 0 failed, 2 skipped", 0))
        self.assertIn("skipped 1: no GPU", lines)

    def test_a_failed_case_is_one_failure(self):
        total, status, lines = self.summarize(
            ['<testcase name="rope_test" status="fail"><failure message="Failed"/></testcase>'],
            {"rope_test": GTEST.format(more=GTEST_FAILURE)},
        )
        self.assertEqual((total, status), ("2 passed, 1 failed, 2 skipped", 1))
        self.assertIn("FAILED cpu: Rope.Breaks", lines)

    def test_a_crash_without_a_report_is_a_failure(self):
        total, status, _ = self.summarize(['<testcase name="rope_test" status="fail"/>'], {})
        self.assertEqual((total, status), ("0 passed, 1 failed, 0 skipped", 1))

    def test_a_leak_after_cases_that_passed_is_a_failure(self):
        total, status, _ = self.summarize(
            ['<testcase name="rope_test" status="fail"/>'], {"rope_test": GTEST.format(more="")}
        )
        self.assertEqual((total, status), ("2 passed, 1 failed, 2 skipped", 1))

    def test_an_executable_that_is_not_there_is_a_failure(self):
        missing = '<skipped message="Unable to find executable: rope_test"/>'
        total, status, _ = self.summarize(
            [f'<testcase name="rope_test" status="notrun">{missing}</testcase>'], {}
        )
        self.assertEqual((total, status), ("0 passed, 1 failed, 0 skipped", 1))

    def test_other_entries_count_as_one(self):
        skip = '<skipped message="SKIP_REGULAR_EXPRESSION_MATCHED"/>'
        output = "<system-out>-- SKIP: clang-format 14 is not installed\n</system-out>"
        total, status, lines = self.summarize(
            [
                '<testcase name="layers" status="run"/>',
                f'<testcase name="format" status="notrun">{skip}{output}</testcase>',
            ],
            {},
        )
        self.assertEqual((total, status), ("1 passed, 0 failed, 1 skipped", 0))
        self.assertIn("skipped 1: clang-format 14 is not installed", lines)

    def test_no_build_and_no_tests_are_failures(self):
        total, status, _ = self.summarize([], {}, not_built="the cpu preset does not build")
        self.assertEqual((total, status), ("0 passed, 1 failed, 0 skipped", 1))
        total, status, _ = self.summarize([], {})
        self.assertEqual((total, status), ("0 passed, 1 failed, 0 skipped", 1))


if __name__ == "__main__":
    unittest.main()
