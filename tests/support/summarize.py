#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""summarize.py RESULTS...: counts the cases of test runs and ends with the totals.

Each RESULTS folder is one run of CTest: ctest.xml (its JUnit report), gtest/*.xml (one report of
GoogleTest a binary, written when the binary ends), or not_built (one line, the reason) instead.
GoogleTest's cases are counted one by one. A CTest entry without a GoogleTest report counts as one,
and so does an entry that failed although its report shows no failed case: it crashed, ran out of
time, or a sanitizer spoke at its end.
"""
import collections
import pathlib
import sys
import xml.etree.ElementTree as ElementTree


class Totals:
    def __init__(self):
        self.passed = 0
        self.failed = []
        self.skipped = collections.Counter()  # by reason


def skip_reason(message):
    """GoogleTest's message is "file:line", a newline, the text given to GTEST_SKIP."""
    lines = [line.strip() for line in (message or "").splitlines()]
    if len(lines) > 1 and lines[0].rpartition(":")[2].isdigit():
        lines = lines[1:]
    return " ".join(line for line in lines if line) or "no reason given"


def count_gtest(path, run, totals):
    """Returns how many cases of the report failed."""
    num_failed = 0
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = f"{run}: {case.get('classname')}.{case.get('name')}"
        if case.find("failure") is not None:
            totals.failed.append(name)
            num_failed += 1
        elif case.find("skipped") is not None:
            totals.skipped[skip_reason(case.find("skipped").get("message"))] += 1
        elif case.get("status") == "notrun":
            totals.skipped["disabled in the source"] += 1
        else:
            totals.passed += 1
    return num_failed


def count_entry(entry, run, reports, totals):
    name = entry.get("name")
    num_failed = sum(count_gtest(path, run, totals) for path in reports)
    status = entry.get("status")
    skipped = entry.find("skipped")
    # CTest reports an executable that is not there as "notrun" too; only these two are skips.
    skip_rule = skipped is not None and skipped.get("message", "").startswith("SKIP_")
    if status == "disabled" or (status == "notrun" and skip_rule):
        output = (entry.findtext("system-out") or "").strip()
        reason = output.partition("SKIP: ")[2].partition("\n")[0]
        totals.skipped[reason or f"{name} is disabled"] += 1
    elif status == "run":
        totals.passed += 0 if reports else 1
    elif num_failed == 0:
        totals.failed.append(f"{run}: {name} (ended badly outside any case: {status})")


def count_run(results, totals):
    run = results.parent.name
    not_built = results / "not_built"
    if not_built.exists():
        totals.failed.append(f"{run}: {not_built.read_text().strip()}")
        return
    # A second report of one binary is named <binary>_1.xml by GoogleTest; it is counted too.
    reports = sorted((results / "gtest").glob("*.xml"))
    junit = results / "ctest.xml"
    entries = list(ElementTree.parse(junit).getroot().iter("testcase")) if junit.exists() else []
    if not entries:
        totals.failed.append(f"{run}: no test ran")
    names = {entry.get("name") for entry in entries}
    for entry in entries:
        name = entry.get("name")
        count_entry(entry, run, [path for path in reports if path.stem == name], totals)
    for path in reports:
        if path.stem not in names:
            count_gtest(path, run, totals)


def main():
    totals = Totals()
    for results in sys.argv[1:]:
        count_run(pathlib.Path(results), totals)
    for reason, count in totals.skipped.most_common():
        print(f"skipped {count}: {reason}")
    for name in totals.failed:
        print(f"FAILED {name}")
    num_skipped = sum(totals.skipped.values())
    print(f"{totals.passed} passed, {len(totals.failed)} failed, {num_skipped} skipped")
    return 1 if totals.failed else 0


if __name__ == "__main__":
    sys.exit(main())
