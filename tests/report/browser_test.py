# SPDX-License-Identifier: Apache-2.0
"""browser_test.py MEMPHIS: trains a small run, makes it sick, and looks at its report in headless Chromium."""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

MEMPHIS = os.path.abspath(sys.argv.pop(1))
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CONFIG = """
model: {vocab_size: 259, num_layers: 2, d_model: 16, num_heads: 2, num_kv_heads: 1, head_dim: 8, ffn_dim: 16,
        num_experts: 4, experts_per_token: 2}
run: {device: cpu}
data: {train: [text.txt], held_out: 0.1}
batch: {sequence_length: 64, micro_batch: 4, global_batch: 4}
schedule: {steps: 60, warmup_steps: 1}
metrics: {every: 2, validate_every: 20, sample_every: 60, sample_tokens: 20, trace: true}
"""
# Moves the pointer over the first plot, and leaves what the page then says for --dump-dom to see.
PROBE = """<script>
const plot=document.querySelector("svg.plot"),box=plot.getBoundingClientRect();
plot.dispatchEvent(new PointerEvent("pointermove",{clientX:box.left+box.width/2,clientY:box.top+50,bubbles:true}));
const seen=document.createElement("div");seen.id="seen";
seen.textContent=JSON.stringify({tip:document.querySelector(".tip").textContent,
  plots:[...document.querySelectorAll("svg")].filter(s=>s.getBoundingClientRect().height>20).length,
  wide:document.documentElement.scrollWidth>document.documentElement.clientWidth,
  ground:getComputedStyle(document.body).backgroundColor,
  requests:performance.getEntriesByType("resource").length,
  curve:getComputedStyle(document.querySelector(".curve")).stroke});
document.getElementById("theme").click();
seen.dataset.other=getComputedStyle(document.body).backgroundColor;
document.body.append(seen);</script>"""


def setUpModule():
    if BROWSER is None:
        print("SKIP: there is no chromium here (the report is not looked at in a browser); install chromium")
        sys.exit(0)


class Browser(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        with open(cls.path("tiny.yaml"), "w", encoding="utf-8") as file:
            file.write(CONFIG)
        with open(cls.path("text.txt"), "w", encoding="utf-8") as file:
            file.write("the quick brown fox jumps over the lazy dog. " * 400)
        cls.memphis("train", "tiny.yaml", "run.dir=<well> & good")
        shutil.copytree(cls.path("<well> & good"), cls.path("sick"))
        with open(cls.path("sick/metrics.jsonl"), encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        for line in lines:
            if "loss" in line and line["step"] > 40:
                line["loss"] = 40.0 + line["step"]
        with open(cls.path("sick/metrics.jsonl"), "w", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line) + "\n")
            file.write("damaged\n")

    @classmethod
    def path(cls, name):
        return os.path.join(cls.folder.name, name)

    @classmethod
    def memphis(cls, *arguments):
        subprocess.run([MEMPHIS, *arguments], cwd=cls.folder.name, check=True, capture_output=True)

    def look(self, *runs, flags=()):
        """The page in the browser: its text, and what the probe saw."""
        self.memphis("report", *runs, "-o", "report.html")
        with open(self.path("report.html"), encoding="utf-8") as file:
            page = file.read()
        self.assertNotRegex(page, r'(src|href)=|@import|url\(')  # all that it shows is in it
        with open(self.path("probed.html"), "w", encoding="utf-8") as file:
            file.write(page.replace("</body>", PROBE + "</body>"))
        ended = subprocess.run(
            [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--window-size=1200,900",
             f"--user-data-dir={self.path('profile')}", *flags, "--dump-dom", "file://" + self.path("probed.html")],
            check=True, capture_output=True, text=True, timeout=900)
        seen = re.search(r'<div id="seen" data-other="([^"]*)">(.*?)</div>', ended.stdout)
        self.assertIsNotNone(seen, ended.stdout[-2000:] + ended.stderr[-2000:])
        return ended.stdout, {**json.loads(seen[2].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")),
                              "other": seen[1]}

    def test_a_run_is_shown(self):
        text, seen = self.look("<well> & good")
        self.assertGreaterEqual(seen["plots"], 12, text[:2000])
        self.assertFalse(seen["wide"], "the page scrolls sideways")
        self.assertEqual(seen["requests"], 0)
        self.assertRegex(seen["tip"], r"training  step (28|29):  \d")
        self.assertNotEqual(seen["ground"], seen["other"], "the switch changes nothing")
        for heading in ("What stands out", "Learning", "Speed", "Experts", "Trace", "Memory plan", "Samples"):
            self.assertIn(heading, text)
        self.assertIn("&lt;well&gt; &amp; good", text)

    def test_what_went_wrong_comes_first(self):
        text, _ = self.look("sick")
        first = re.search(r'<ul class="findings"><li class="bad"><b>([^<]*)</b><span class="at">([^<]*)', text)
        self.assertIsNotNone(first, text[:4000])
        self.assertEqual((first[1], first[2]), ("Loss exploded", "step 41"))
        self.assertIn("Damaged metrics", text)

    def test_runs_are_laid_over_each_other(self):
        text, _ = self.look("<well> & good", "sick")
        loss = text[text.index("<b>Loss</b>"):]
        curves = re.findall(r'<path class="curve (c\d)', loss[:loss.index("</svg>")])
        self.assertEqual(sorted(set(curves)), ["c0", "c1"])


if __name__ == "__main__":
    unittest.main()
