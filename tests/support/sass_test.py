#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tests of sass.py, on machine code as cuobjdump prints it: each rule holds where it holds, and is seen broken."""
import unittest

import sass

SASS = """
	code for sm_90a
		Function : good
        /*0000*/                   MOV R1, c[0x0][0x28] ;          /* 0x00000a0000017a02 */
                                                                   /* 0x000fe20000000f00 */
        /*0010*/                   USETMAXREG.TRY_ALLOC.CTAPOOL UP0, 0xf0 ;  /* 0x0 */
        /*0020*/                   BSSY B0, 0x60 ;                 /* 0x0 */
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4].tnspB, R24, gsb0 ;  /* 0x0 */
        /*0040*/              @!P0 FADD R2, R2, R3 ;               /* 0x0 */
        /*0050*/               @P1 BRA 0x30 ;                      /* 0x0 */
        /*0060*/              @!P2 BRA 0x20 ;                      /* 0x0 */
        /*0070*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4].tnspB, R24, gsb0 ;  /* 0x0 */
        /*0080*/                   FMUL R2, R2, R3 ;               /* 0x0 */
        /*0090*/                   FMUL R2, R2, R3 ;               /* 0x0 */
        /*00a0*/               @P1 BRA 0x70 ;                      /* 0x0 */
        /*00b0*/                   EXIT ;                          /* 0x0 */
		Function : waits
        /*0000*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;  /* 0x0 */
        /*0010*/              @!P0 BRA 0x60 ;                      /* 0x0 */
        /*0020*/                   FADD R2, R2, R3 ;               /* 0x0 */
        /*0030*/               @P1 BRA 0x0 ;                       /* 0x0 */
        /*0040*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;  /* 0x0 */
        /*0050*/                   EXIT ;                          /* 0x0 */
        /*0060*/              @!P0 BRA 0x60 ;                      /* 0x0 */
        /*0070*/                   BRA 0x20 ;                      /* 0x0 */
		Function : ordered
        /*0000*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24 ;  /* 0x0 */
        /*0010*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;  /* 0x0 */
        /*0020*/                   WARPGROUP.DEPBAR.LE gsb0, 0x1 ; /* 0x0 */
        /*0030*/                   MUFU.EX2 R2, R3 ;               /* 0x0 */
        /*0040*/                   FADD R2, R2, R3 ;               /* 0x0 */
        /*0050*/                   MUFU.EX2 R2, R3 ;               /* 0x0 */
        /*0060*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ; /* 0x0 */
        /*0070*/                   F2FP.BF16.F32.PACK_AB R2, R3, R2 ;  /* 0x0 */
        /*0080*/               @P1 BRA 0x0 ;                       /* 0x0 */
        /*0090*/                   EXIT ;                          /* 0x0 */
		Function : spills
        /*0000*/               @P0 STL [R1], R2 ;                  /* 0x0 */
"""
RESOURCES = """
Resource usage:
 Common:
  GLOBAL:0
 Function good:
  REG:168 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:648 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function spills:
  REG:32 STACK:8 SHARED:0 LOCAL:0 CONSTANT[0]:648 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


class Sass(unittest.TestCase):
    def setUp(self):
        self.kernels = sass.parse_sass(SASS)
        sass.parse_resources(RESOURCES, self.kernels)

    def problems(self, *table, kernels=("good",)):
        chosen = {name: self.kernels[name] for name in kernels}
        return sass.check(list(table), chosen, {name: name for name in chosen})

    def assert_breaks(self, text, *table, **kwargs):
        problems = self.problems(*table, **kwargs)
        self.assertEqual(len(problems), 1, problems)
        self.assertIn(text, problems[0])

    def test_reads_instructions_without_predicates(self):
        self.assertEqual(self.kernels["good"].code[4], (0x40, "FADD R2, R2, R3"))
        self.assertEqual(self.kernels["good"].registers, 168)
        self.assertEqual(self.kernels["good"].arch, "sm_90a")

    def test_what_holds_is_no_problem(self):
        self.assertEqual(self.problems({
            "name": "go+d", "must": ["HGMMA", r"USETMAXREG\.TRY_ALLOC\S* UP0, 0xf0"], "never": ["RED"],
            "registers": 168, "loop": {"around": "HGMMA", "never": ["BSSY"], "scores": 1, "others": 2}}), [])

    def test_each_rule_is_seen_broken(self):
        self.assert_breaks("lacks UTMALDG", {"name": "good", "must": ["UTMALDG"]})
        self.assert_breaks("lacks USETMAXREG.* 0xa0", {"name": "good", "must": ["USETMAXREG.* 0xa0"]})
        self.assert_breaks("has BSSY", {"name": "good", "never": ["BSSY"]})
        self.assert_breaks("has 168 registers", {"name": "good", "registers": 160})

    def test_the_innermost_loop_counts(self):
        self.assert_breaks("has FADD in its loop at 0x0030",
                           {"name": "good", "loop": {"around": "HGMMA", "never": ["FADD"]}})
        self.assert_breaks("has FMUL in its loop at 0x0070",
                           {"name": "good", "loop": {"around": "HGMMA", "never": ["FMUL"]}})
        self.assert_breaks("2.0 instructions a score beside HGMMA in its shortest loop",
                           {"name": "good", "loop": {"around": "HGMMA", "scores": 1, "others": 1}})
        self.assert_breaks("has no loop around HMMA", {"name": "good", "loop": {"around": "HMMA"}})

    def test_the_order_in_a_loop(self):
        def entry(*order):
            return {"name": "ordered", "loop": {"around": "HGMMA", "order": list(order)}}
        one, none = r"WARPGROUP\.DEPBAR\.LE gsb0, 0x1", r"WARPGROUP\.DEPBAR\.LE gsb0, 0x0"
        for order in (("HGMMA", one, "MUFU", none), ("MUFU", none), ("MUFU", "F2FP")):
            self.assertEqual(self.problems(entry(*order), kernels=("ordered",)), [])
        for order in ((one, "HGMMA"), (none, "MUFU"), ("MUFU", "FADD"), ("MUFU", "STS")):
            expected = "in this order in its loop at 0x0000"
            self.assert_breaks(expected, entry(*order), kernels=("ordered",))

    def test_how_many_in_a_loop(self):
        def entry(most):
            return {"name": "ordered", "loop": {"around": "HGMMA", "most": {"MUFU": most, "RED": 0}}}
        self.assertEqual(self.problems(entry(2), kernels=("ordered",)), [])
        shortest = {"around": "HGMMA", "most": {"FMUL": 0}}
        self.assertEqual(self.problems({"name": "good", "loop": shortest}), [])
        self.assert_breaks("has 2 MUFU in its shortest loop, not 1 at most", entry(1), kernels=("ordered",))

    def test_a_wait_behind_the_kernel_makes_no_loop(self):
        loops = sass.innermost_loops(self.kernels["waits"], "HGMMA")
        self.assertEqual([(body[0][0], body[-1][0]) for body in loops], [(0, 0x30)])

    def test_local_memory_needs_no_entry(self):
        problems = self.problems(kernels=("spills",))
        self.assertEqual(len(problems), 2, problems)
        self.assertIn("8 bytes of local memory", problems[0])
        self.assertIn("has STL", problems[1])
        self.assertEqual(self.problems({"name": "spills", "stack": 8}, kernels=("spills",)), [])

    def test_an_entry_that_nothing_meets_is_a_problem(self):
        self.assert_breaks("no kernel is called gone", {"name": "gone"})
        self.assertEqual(self.problems({"name": "gone", "arch": "sm_80"}), [])
        self.assert_breaks("keys that nothing reads: musst", {"name": "good", "musst": []})


if __name__ == "__main__":
    unittest.main()
