#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""make_seeds.py: writes the seeds of the fuzz targets, seeds/TARGET/, which are in the repository. What was
found since stays."""
import gzip
import json
import os
import shutil
import struct
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..")


def put(target, name, content):
    folder = os.path.join(HERE, "seeds", target)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())


def main():
    put("config", "short", "model: {vocab_size: 259, num_layers: 2, d_model: 32}\nrun: {dir: run, device: cpu}\n"
                           "data: {train: [a.txt, {path: b, weight: 2}]}\nbatch: &x {micro_batch: 0x4}\n")

    put("manifest", "one", json.dumps({
        "format_version": 1, "step": 6, "samples": 24, "seed": 1,
        "dataset_fingerprint": "54b9c34afbbc2b7850c79a2f868aeee5", "validation_fingerprint": "",
        "tokenizer_fingerprint": "byte", "loss_reference": 5.8, "exploded_at": 0, "files": [
            {"name": "config.json", "bytes": 827, "xxh3": "417e8925c81485fc"},
            {"name": "model.safetensors", "bytes": 53144, "xxh3": "ab8254e88e5e90d7"}],
        "config": "model:\n  vocab_size: 259\n"}, indent=1))

    header = json.dumps({"__metadata__": {"a": "b"},
                         "w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
                         "h": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]},
                         "i": {"dtype": "U8", "shape": [2], "data_offsets": [22, 24]},
                         "e": {"dtype": "F16", "shape": [0, 5], "data_offsets": [24, 24]}}).encode()
    header += b" " * (-len(header) % 8)
    put("safetensors", "four", struct.pack("<Q", len(header)) + header + bytes(range(24)))

    shape = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
    shape += b" " * (63 - (len(shape) + 10) % 64) + b"\n"
    put("npy", "matrix", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(shape)) + shape + bytes(24))

    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 3, 4) + struct.pack("<3i", 2, 1, 2) + \
        struct.pack("<3q", 0, 4, 6) + struct.pack("<4q", 0, 1, 2, 3)
    tokens = struct.pack("<5H", 1, 5, 7, 9, 299)
    for kind in (1, 3):
        put("tokens", f"megatron-{kind}", struct.pack("<BH", kind, len(index)) + index + tokens)
    put("tokens", "llmc-16", b"\0\0\0" + struct.pack("<256i", 20240520, 1, 5, *[0] * 253) + tokens)
    put("tokens", "llmc-32", b"\0\0\0" + struct.pack("<256i", 20240801, 7, 5, *[0] * 253) +
        struct.pack("<5I", 1, 5, 7, 9, 299))

    lines = b'{"text": "one"}\n\n{"text": "\\u00e4 two", "n": 1}\r\n{"text": ""}\n'
    put("corpus", "lines", lines)
    put("corpus", "gzip", gzip.compress(lines, mtime=0) + gzip.compress(b"more\n", mtime=0))
    if shutil.which("zstd"):
        put("corpus", "zstd", subprocess.run(["zstd", "-q", "-c"], input=lines, stdout=subprocess.PIPE,
                                             check=True).stdout)
    # A frame with a window of 4 GiB, which is more than is read.
    put("corpus", "zstd-4gib", b"\x28\xb5\x2f\xfd\x00" + bytes([22 << 3]) +
        struct.pack("<I", len(lines) << 3 | 1)[:3] + lines)
    put("corpus", "text", "plain text, \u00e4\ud55c\n\n of three\nlines".encode())
    put("corpus", "parquet", b"PAR1 and so on")

    for name in ("bpe.model", "gpt2.json", "gpt2.tiktoken", "o200k.json", "o200k.tiktoken"):
        with open(os.path.join(ROOT, "tests", "data", "golden", name), "rb") as file:
            content = file.read()
        if name.endswith("tiktoken"):
            content = b"".join(content.splitlines(keepends=True)[:300])
        if len(content) < 70000:
            put("tokenizer", name, content)


if __name__ == "__main__":
    main()
