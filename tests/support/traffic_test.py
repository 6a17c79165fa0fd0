#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What traffic.py reads from a test and makes of a table."""
import unittest

import traffic

PRINTED = """\
Note: Google Test filter = *grok_row*
[ RUN      ] Sizes/RmsNorm.Forward/grok_row_cuda_bf16
[       OK ] Sizes/RmsNorm.Forward/grok_row_cuda_bf16 (3 ms)
rmsnorm_forward_kernel<bf16, 8>
  kernels/rmsnorm/rmsnorm.cu:82     reads    device memory        200 sectors for 3200 bytes, 100 would do  <--
  kernels/rmsnorm/rmsnorm.cu:64     reads    device memory        100 sectors for 3200 bytes, 100 would do
  kernels/device/reduce.h:30        writes   shared memory         40 passes for 160 bytes, 40 would do
permute_count_kernel
  kernels/permute/permute.cu:44     adds to  shared memory         90 passes for 900 bytes, 30 would do  <--
"""
NORM = ("rmsnorm_forward_kernel<bf16, 8>", "reads device memory")
COUNT = ("permute_count_kernel", "adds to shared memory")


def allowed(kernel, access, times):
    return {"kernel": kernel, "access": access, "times": times, "why": "it is a test"}


class Traffic(unittest.TestCase):
    def setUp(self):
        self.sums = traffic.parse(PRINTED)

    def problems(self, *entries):
        return traffic.check({"test": [{"name": "rmsnorm_test", "cases": "*"}], "allowed": list(entries)}, self.sums)

    def test_lines_of_one_kernel_and_access_are_summed(self):
        self.assertEqual(self.sums, {NORM: (300, 200), ("rmsnorm_forward_kernel<bf16, 8>", "writes shared memory"):
                                     (40, 40), COUNT: (90, 30)})

    def test_tests_are_summed(self):
        sums = {}
        traffic.add(sums, self.sums)
        traffic.add(sums, self.sums)
        self.assertEqual(sums[COUNT], (180, 60))

    def test_what_asks_for_more_is_named(self):
        problems = self.problems()
        self.assertEqual(len(problems), 2, problems)
        self.assertIn("permute_count_kernel adds to shared memory 3.00 times", problems[0])
        self.assertIn("rmsnorm_forward_kernel<bf16, 8> reads device memory 1.50 times", problems[1])

    def test_what_the_table_allows_is_none(self):
        self.assertEqual(self.problems(allowed("rmsnorm_forward", "reads device memory", 1.5),
                                       allowed("permute_count", "adds to shared memory", 3.2)), [])

    def test_it_allows_no_more_than_it_says(self):
        problems = self.problems(allowed("rmsnorm_forward", "reads device memory", 1.4),
                                 allowed("permute_count", "adds to shared memory", 3.2))
        self.assertEqual(len(problems), 1, problems)
        self.assertIn("not 1.4 at most", problems[0])

    def test_another_access_is_not_allowed_with_it(self):
        problems = self.problems(allowed("rmsnorm_forward", "writes device memory", 9),
                                 allowed("permute_count", "adds to shared memory", 3.2))
        self.assertEqual(len(problems), 2, problems)
        self.assertIn("the entry is not needed", problems[1])

    def test_an_entry_that_nothing_needs_is_named(self):
        problems = self.problems(allowed("rmsnorm_forward", "reads device memory", 1.5),
                                 allowed("permute_count", "adds to shared memory", 3.2),
                                 allowed("rmsnorm_forward", "writes shared memory", 2))
        self.assertEqual(len(problems), 1, problems)
        self.assertIn("rmsnorm_forward writes shared memory", problems[0])

    def test_an_entry_of_other_keys_is_named(self):
        entry = allowed("permute_count", "adds to shared memory", 3.2)
        del entry["why"]
        problems = self.problems(entry, allowed("rmsnorm_forward", "reads device memory", 1.5))
        self.assertIn("has not the keys", problems[0])


if __name__ == "__main__":
    unittest.main()
