# SPDX-License-Identifier: Apache-2.0
"""The table of mutate.py: faults to plant in kernels and in csrc, one text replacement each.

    name         "area.what": under kernels/ the op whose test must notice, or the device's test of
                 that name, under csrc/ the folder
    file         the file under kernels/ or csrc/; one in device/ is a helper that the op calls
    kind         what sort of fault, for --list
    old, new     the text that is replaced and what it becomes; `old` is in the file once, or
    occurrence   says which one, from 0
    why          one line: what goes wrong
    note         of a survivor that was looked into: why nothing can see it

A mutation must compile and must change what a user gets: a shared row without its padding, a loop
that takes more steps than it needs or a block that does nothing twice are slower, not wrong, and do
not belong here.
"""
import collections
import importlib

Mutation = collections.namedtuple("Mutation", "name area file kind old new occurrence why note")

MUTATIONS = []

TABLES = ("attention", "device", "grouped_matmul", "kernels", "plan", "model", "optim", "data",
          "checkpoint", "comm", "config", "train", "doctor", "core", "report", "context")


def planter(root):
    """The function by which a table plants its faults in files under `root`."""

    def plant(name, file, kind, old, new, why, occurrence=None, note=""):
        area = name.split(".")[0]
        MUTATIONS.append(
            Mutation(name, area, f"{root}/{file}", kind, old, new, occurrence, why, note))

    return plant


def load():
    """All tables, in their order."""
    if not MUTATIONS:
        for name in TABLES:
            importlib.import_module(f"tables.{name}")
    return MUTATIONS
