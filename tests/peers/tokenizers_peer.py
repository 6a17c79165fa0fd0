#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tokenizers_peer.py --memphis build/cpu/memphis [--model SENTENCEPIECE.model] [--mib N]: ids of
`memphis tokenize` beside those of the Python originals, `tokenizers`, `tiktoken` and `sentencepiece`.

Makes a corpus of many scripts, emoji, control characters and very long words, trains tokenizers on a part of
it, one for each way of cutting words, and compares every document's ids. Ends with 1 where any differ, with 2
where a package is missing.

Of a SentencePiece unigram model two libraries may differ in a rounding, which is told and is no failure: one from
before 0.2.2 compares the score of a way to cut a text before it rounds it to f32; from 0.2.2 on it is rounded
first, and of a long text counted anew from time to time. Where two ways are as probable to within that they take
another. Every such document is computed as either does, and must have the ids of one here and of the other there.

--golden FOLDER writes the small tokenizers, texts and ids that tests/data/tokenizer_golden_test.cpp reads.
--speed times memphis, `tokenizers`' own threads and processes that have one tokenizer each, as Megatron's
preprocess_data.py has, in turns on the same corpus.
"""
import argparse
import base64
import json
import multiprocessing
import os
import pathlib
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import unicodedata

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
PATTERNS = {"gpt2": None, "llama3": LLAMA3, "o200k": O200K}

RANGES = [(0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF), (0x600, 0x6FF),
          (0x900, 0x97F), (0xE00, 0xE7F), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
          (0x1F300, 0x1F64F), (0x1F900, 0x1F9FF), (0x2000, 0x206F), (0x1, 0x1F), (0x2600, 0x27BF),
          (0x1100, 0x11FF), (0x300, 0x36F)]


def scripts():
    """Characters of each range that are assigned: of others programs may know more or fewer."""
    return [[chr(c) for c in range(low, high + 1) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
            for low, high in RANGES]


def long_words():
    draw = random.Random(5)
    return ["a" * 100000, "ab" * 70000, " " * 50000 + "x", "\n" * 3000 + " " * 3000, "é" * 40000, "漢字" * 30000,
            "".join(draw.choice("abcdefghijklmnop") for _ in range(200000)),
            "we'll they'RE I'M it's 'S don'\u017f 1234567 ١٢٣٤ <|endoftext|>x<|endoftext|><|endof" * 50]


def corpus(mib):
    draw = random.Random(3)
    letters = scripts()
    roots = [pathlib.Path(__file__).resolve().parents[2] / "csrc", pathlib.Path(os.__file__).parent]
    documents = long_words()
    size = sum(len(text.encode()) for text in documents)
    for path in sorted(p for root in roots for p in root.rglob("*") if p.suffix in (".py", ".cpp", ".h", ".md")):
        if size > mib * 2 ** 20 // 2:
            break
        documents.append(path.read_text(errors="replace").replace("\0", " "))
        size += len(documents[-1].encode())
    while size < mib * 2 ** 20:
        own, other = draw.choice(letters), draw.choice(letters)
        words = ["".join(draw.choice(own if draw.random() < 0.8 else other) for _ in range(draw.randint(1, 9)))
                 for _ in range(draw.randint(1, 120))]
        separator = draw.choice([" ", "  ", "\n", "\t", " \n ", "\r\n", "\u3000", "\u00a0", "", "\u180e", "\u2028"])
        documents.append(separator.join(words))
        size += len(documents[-1].encode())
    documents = [text for text in documents if text]
    draw.shuffle(documents)
    return documents


def byte_characters():
    table, extra = {}, 0
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or (byte >= 0xA1 and byte != 0xAD):
            table[chr(byte)] = byte
        else:
            table[chr(256 + extra)] = byte
            extra += 1
    return table


def train(documents, pattern, vocab_size, path):
    """A tokenizer.json, and the same merges as a tiktoken file beside it."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE())
    if pattern is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(pattern), "isolated"),
             pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.train_from_iterator(documents, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|endoftext|>"], show_progress=False, max_token_length=64,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.save(str(path.with_suffix(".json")), pretty=False)
    table = byte_characters()
    merges = json.loads(path.with_suffix(".json").read_text())["model"]["merges"]
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in merges]
    ranks = {bytes([byte]): byte for byte in range(256)}
    for pair in pairs:
        ranks.setdefault(bytes(table[c] for c in "".join(pair)), len(ranks))
    path.with_suffix(".tiktoken").write_bytes(
        b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return tokenizer, ranks


MARK = "\u2581"
DECODER = [{"type": "Replace", "pattern": {"String": MARK}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}


def metaspace(scheme, split):
    return {"type": "Metaspace", "replacement": MARK, "prepend_scheme": scheme, "split": split}


# A vocabulary of characters, in the ways in which such files are written. Falls back on bytes where the second is
# set; one of the added tokens is looked for in normalized text.
CHARACTERS = {
    "llama2": ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": MARK}, REPLACE]},
                "pre_tokenizer": None, "decoder": {"type": "Sequence", "decoders": DECODER + [STRIP]}}, True),
    "mistral": ({"normalizer": None, "pre_tokenizer": metaspace("first", False),
                 "decoder": {"type": "Sequence", "decoders": DECODER + [STRIP]}}, True),
    "gemma": ({"normalizer": REPLACE, "pre_tokenizer": {"type": "Split", "pattern": {"String": " "},
                                                        "behavior": "MergedWithPrevious", "invert": False},
               "decoder": {"type": "Sequence", "decoders": DECODER}}, True),
    "metaspace": ({"normalizer": {"type": "NFKC"}, "pre_tokenizer": metaspace("always", True),
                   "decoder": metaspace("always", True)}, False),
}


def train_characters(documents, vocab_size, folder):
    """A tokenizer.json in each of these ways, of one vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(documents, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)],
        limit_alphabet=vocab_size // 12, show_progress=False, max_token_length=16))
    root = json.loads(tokenizer.to_str())
    root["added_tokens"] = [token for token in root["added_tokens"] if token["content"] in special]
    root["added_tokens"][2].update(normalized=True, special=False)
    tokenizers = {}
    for name, (parts, falls_back) in CHARACTERS.items():
        model = dict(root["model"], byte_fallback=falls_back, fuse_unk=True, unk_token="<unk>")
        (folder / f"{name}.json").write_text(json.dumps(dict(root, model=model, **parts), ensure_ascii=False))
        tokenizers[name] = Tokenizer.from_file(str(folder / f"{name}.json"))
    return tokenizers


def train_normalized(documents, vocab_size, folder):
    """Bytes of normalized text, as Qwen's."""
    from tokenizers import Tokenizer
    train(documents, LLAMA3, vocab_size, folder / "nfc")
    (folder / "nfc.tiktoken").unlink()
    root = json.loads((folder / "nfc.json").read_text())
    root["normalizer"] = {"type": "NFC"}
    root["decoder"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    (folder / "nfc.json").write_text(json.dumps(root, ensure_ascii=False))
    return {"nfc": Tokenizer.from_file(str(folder / "nfc.json"))}


def read_dataset(prefix):
    """Documents of a Megatron dataset, by its description."""
    index = pathlib.Path(f"{prefix}.idx").read_bytes()
    assert index[:9] == b"MMIDIDX\0\0"
    _, code, sequences, boundaries = struct.unpack_from("<QBQQ", index, 9)
    lengths = struct.unpack_from(f"<{sequences}i", index, 34)
    assert len(index) == 34 + 12 * sequences + 8 * boundaries
    form = {4: "i", 8: "H"}[code]
    data = pathlib.Path(f"{prefix}.bin").read_bytes()
    ids = memoryview(data).cast(form)
    place, documents = 0, []
    for length in lengths:
        documents.append(list(ids[place:place + length]))
        place += length
    assert place == len(ids)
    return documents


def tokenize(arguments, corpus_path, tokenizer, pattern, folder):
    prefix = folder / "out"
    for path in folder.glob("out*"):
        path.unlink()
    command = [arguments.memphis, "tokenize", str(corpus_path), "--tokenizer", str(tokenizer), "--output", str(prefix),
               "--no-bos", "--no-eos"] + (["--pattern", pattern] if pattern else [])
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return read_dataset(prefix)


def compare(name, documents, got, encode):
    differ = 0
    number = 0
    for text, ids in zip(documents, got):
        expected = encode(text)
        number += len(expected)
        if list(expected) != ids:
            differ += 1
            print(f"{name}: differs in {text[:60]!r}")
    if len(documents) != len(got):
        differ += 1
        print(f"{name}: {len(got)} documents of {len(documents)}")
    print(f"{name}: {len(documents)} documents, {number} ids, {differ} differ", flush=True)
    return differ


F32 = struct.Struct("f")


def f32(value):
    return F32.unpack(F32.pack(value))[0]


class Unigram:
    """The most probable way to cut a text, as SentencePiece finds it (EncodeOptimized), for models without symbols
    of a user's: of each place the best score of a path that ends there, in f32, and of equal ones the first."""
    UNKNOWN_PENALTY = 10.0
    COUNTED_ANEW = 100000.0

    def __init__(self, original):
        self.original = original
        ids = range(original.get_piece_size())
        plain = [i for i in ids if not (original.is_control(i) or original.is_unknown(i) or original.is_unused(i)
                                        or original.is_byte(i))]
        self.pieces = {original.id_to_piece(i): (i, original.get_score(i)) for i in plain}
        self.longest = max(len(piece) for piece in self.pieces)
        self.unknown = f32(min(score for _, score in self.pieces.values()) - self.UNKNOWN_PENALTY)

    def encode(self, text, is_newer):
        text = self.original.normalize(text)
        best = [(0.0, -1, -1)] + [None] * len(text)

        def offer(end, score, begin, piece):
            if best[end] is None or score > best[end][0]:
                best[end] = (f32(score), begin, piece)

        for begin in range(len(text)):
            before = best[begin][0]
            if is_newer and abs(before) > self.COUNTED_ANEW:
                for at in range(begin, min(len(text), begin + self.longest) + 1):
                    if best[at] is not None:
                        best[at] = (f32(best[at][0] - before), *best[at][1:])
                before = 0.0
            for end in range(begin + 1, min(len(text), begin + self.longest) + 1):
                if found := self.pieces.get(text[begin:end]):
                    score = found[1] + before
                    offer(end, f32(score) if is_newer else score, begin, found[0])
            if text[begin] not in self.pieces:
                offer(begin + 1, f32(self.unknown + before), begin, None)
        ids, end = [], len(text)
        while end > 0:
            _, begin, piece = best[end]
            if piece is None:
                ids += [self.original.piece_to_id(f"<0x{byte:02X}>") for byte in reversed(text[begin:end].encode())]
            else:
                ids.append(piece)
            end = begin
        return ids[::-1]


def compare_unigram(name, documents, got, original):
    """As compare, with a library that may round otherwise."""
    differing = [(text, ids, expected) for text, ids in zip(documents, got)
                 if (expected := original.encode(text)) != ids]
    model = Unigram(original) if differing else None
    for is_newer in (True, False):
        if differing and all(expected == model.encode(text, is_newer) and ids == model.encode(text, not is_newer)
                             for text, ids, expected in differing):
            print(f"{name}: {len(differing)} of {len(documents)} documents differ by a rounding alone: Python's "
                  f"library rounds as those {'since' if is_newer else 'before'} 0.2.2, memphis's as those "
                  f"{'before' if is_newer else 'since'}", flush=True)
            by_rounding = {text for text, _, _ in differing}
            rest = [(text, ids) for text, ids in zip(documents, got) if text not in by_rounding]
            return compare(name, [text for text, _ in rest], [ids for _, ids in rest], original.encode) \
                + abs(len(documents) - len(got))
    return compare(name, documents, got, original.encode)


def write_corpus(documents, path):
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for text in documents:
            file.write(json.dumps({"text": text}, ensure_ascii=len(text) % 2 == 0) + "\n")


def equality(arguments, folder):
    import sentencepiece
    import tiktoken
    documents = corpus(arguments.mib)
    path = folder / "corpus.jsonl"
    write_corpus(documents, path)
    differ = 0
    sample = documents[:len(documents) // 3]
    for name, pattern in PATTERNS.items():
        tokenizer, ranks = train(sample, pattern, 16000, folder / name)
        got = tokenize(arguments, path, folder / f"{name}.json", None, folder)
        differ += compare(f"tokenizers, {name}", documents, got,
                          lambda text: tokenizer.encode(text, add_special_tokens=False).ids)
        expression = pattern or GPT2
        original = tiktoken.Encoding(name, pat_str=expression, mergeable_ranks=ranks, special_tokens={})
        got = tokenize(arguments, path, folder / f"{name}.tiktoken", expression, folder)
        differ += compare(f"tiktoken, {name}", documents, got, original.encode_ordinary)
    for name, tokenizer in {**train_characters(sample, 16000, folder), **train_normalized(sample, 8000, folder)}.items():
        got = tokenize(arguments, path, folder / f"{name}.json", None, folder)
        differ += compare(f"tokenizers, {name}", documents, got,
                          lambda text: tokenizer.encode(text, add_special_tokens=False).ids)
    models = [pathlib.Path(arguments.model)] if arguments.model else []
    for kind in ("bpe", "unigram"):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample), model_prefix=str(folder / kind), vocab_size=18000, model_type=kind,
            byte_fallback=True, character_coverage=0.98, max_sentence_length=20000, minloglevel=2)
        models.append(folder / f"{kind}.model")
    for model in models:
        original = sentencepiece.SentencePieceProcessor(model_file=str(model))
        texts = [text for text in documents if original.encode(text)]
        write_corpus(texts, path)
        got = tokenize(arguments, path, model, None, folder)
        name = f"sentencepiece {sentencepiece.__version__}, {model.name}"
        differ += (compare_unigram(name, texts, got, original) if model.stem == "unigram"
                   else compare(name, texts, got, original.encode))
    return differ


def golden(folder):
    """Small tokenizers, what they make of texts that are hard, and nothing that depends on a version."""
    import sentencepiece
    import tiktoken
    folder.mkdir(parents=True, exist_ok=True)
    documents = corpus(1)
    sample = [text for text in documents if len(text) < 20000][:400]
    texts = ["", " ", "Hello, world!", "  two  spaces\n\n\tand\r\nlines ", "we'll they'RE don'\u017f 'S",
             "1234567 ١٢٣٤ ⅷ", "naïve café Ünï", "漢字かな交じり文、です。", "한국어 텍스트", "עברית العربية हिन्दी ไทย",
             "👩‍👩‍👧‍👦 🇩🇪 ☃️", "\x01\x02\x1f\x7f\x85\xa0\u180e\u2028\u3000x", "a" * 300, "ab" * 200, "\n" * 70 + " " * 70,
             "<|endoftext|>x<|endoftext|><|endof", "x = foo(bar[1:2]) # comment"]
    cases = {}
    for name, pattern in (("gpt2", None), ("o200k", O200K)):
        tokenizer, ranks = train(sample, pattern, 600, folder / name)
        cases[f"{name}.json"] = {"pattern": "",
                                 "ids": [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]}
        encoding = tiktoken.Encoding(name, pat_str=pattern or GPT2, mergeable_ranks=ranks, special_tokens={})
        cases[f"{name}.tiktoken"] = {"pattern": name, "ids": [encoding.encode_ordinary(text) for text in texts]}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in sample if text.isascii()]), model_prefix=str(folder / "bpe"),
        vocab_size=600, model_type="bpe", normalization_rule_name="identity",
        byte_fallback=True, character_coverage=0.98, minloglevel=2)
    (folder / "bpe.vocab").unlink()
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "bpe.model"))
    cases["bpe.model"] = {"pattern": "", "ids": [processor.encode(text) for text in texts],
                          "decoded": [processor.decode(processor.encode(text)) for text in texts]}
    (folder / "ids.json").write_text(json.dumps({"texts": texts, "tokenizers": cases}, ensure_ascii=True) + "\n")


def golden_characters(folder):
    """The same of vocabularies of characters, and of text that is normalized."""
    sample = [text for text in corpus(1) if len(text) < 20000][:400]
    texts = ["", " ", "Hello, world!", "  two  spaces\n\n\tand\r\nlines ", "</s>a<s> b</s> </s>", "<s>a", "a \u2581b\u2581",
             "naïve cafe\u0301 \u00c5\u212b \ufb01 \u1100\u1161\u11a8 q\u0323\u0307 \uff21", "漢字かな交じり文、です。",
             "עברית العربية हिन्दी ไทย \U0001f469\u200d\U0001f469", "\x01\x7f\u3000x", "a" * 90, "x = foo(bar[1:2])"]
    tokenizers = {**train_characters(sample, 900, folder), **train_normalized(sample, 600, folder)}
    cases = {}
    for name, tokenizer in tokenizers.items():
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        cases[f"{name}.json"] = {"ids": ids, "decoded": [tokenizer.decode(each) for each in ids]}
    (folder / "character_ids.json").write_text(json.dumps({"texts": texts, "tokenizers": cases}) + "\n")


WORKER = None


def start_worker(path):
    global WORKER
    from tokenizers import Tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    WORKER = Tokenizer.from_file(path)


def work(line):
    return WORKER.encode(json.loads(line)["text"], add_special_tokens=False).ids


def by_processes(path, tokenizer, out, number):
    from array import array
    with multiprocessing.Pool(number, start_worker, (tokenizer,)) as pool, open(path, encoding="utf-8") as lines, \
            open(out, "wb") as file:
        for ids in pool.imap(work, lines, 32):
            file.write(array("H", ids).tobytes())


def by_threads(path, tokenizer, out, number):
    from array import array
    from tokenizers import Tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    os.environ["RAYON_NUM_THREADS"] = str(number)
    own = Tokenizer.from_file(tokenizer)

    def write(batch, file):
        for encoding in own.encode_batch_fast(batch, add_special_tokens=False):
            file.write(array("H", encoding.ids).tobytes())

    with open(path, encoding="utf-8") as lines, open(out, "wb") as file:
        batch = []
        for line in lines:
            batch.append(json.loads(line)["text"])
            if len(batch) == 2000:
                write(batch, file)
                batch = []
        write(batch, file)


def speed(arguments, folder):
    number = len(os.sched_getaffinity(0))
    text = pathlib.Path(arguments.text).read_text(errors="replace")
    documents = [text[i:i + 4000] for i in range(0, len(text), 4000)]
    documents *= max(1, int(arguments.mib * 2 ** 20 // len(text.encode())))
    path = folder / "corpus.jsonl"
    write_corpus(documents, path)
    train(documents[:len(text) // 4000], None, 30000, folder / "gpt2")
    tokenizer = str(folder / "gpt2.json")
    size = sum(len(text.encode()) for text in documents) / 1e6

    def by_memphis():
        for old in folder.glob("out*"):
            old.unlink()
        subprocess.run([arguments.memphis, "tokenize", str(path), "--tokenizer", tokenizer, "--output",
                        str(folder / "out"), "--no-eos"], check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)

    ways = {"memphis tokenize": by_memphis,
            "tokenizers, encode_batch_fast": lambda: in_process(by_threads, path, tokenizer, folder / "threads", number),
            "tokenizers, a process a core": lambda: by_processes(path, tokenizer, folder / "processes", number)}
    seconds = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - begin)
    same = (folder / "out.bin").read_bytes()
    assert same == (folder / "threads").read_bytes() and same == (folder / "processes").read_bytes(), "ids differ"
    print(f"{size:.1f} MB of text, {len(documents)} documents, {number} cores, {arguments.rounds} rounds in turns")
    for name, each in seconds.items():
        print(f"{name:32} {size / statistics.median(each):8.1f} MB/s  ({size / max(each):.1f} to {size / min(each):.1f})")


def in_process(way, *arguments):
    """Rayon reads its number of threads once a process."""
    process = multiprocessing.Process(target=way, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memphis", default="build/cpu/memphis")
    parser.add_argument("--model", help="a SentencePiece model to compare too")
    parser.add_argument("--mib", type=float, default=12)
    parser.add_argument("--golden", type=pathlib.Path)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--text", help="of --speed: a text file")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    try:
        import sentencepiece  # noqa: F401
        import tiktoken  # noqa: F401
        import tokenizers  # noqa: F401
    except ImportError as error:
        print(f"cannot compare ({error}); pip install tokenizers tiktoken sentencepiece", file=sys.stderr)
        return 2
    if arguments.golden:
        golden(arguments.golden)
        golden_characters(arguments.golden)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if arguments.speed:
            speed(arguments, pathlib.Path(folder))
            return 0
        return 1 if equality(arguments, pathlib.Path(folder)) else 0


if __name__ == "__main__":
    sys.exit(main())
