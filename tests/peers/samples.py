# SPDX-License-Identifier: Apache-2.0
"""The training samples of a memphis run, in its order: csrc/data/ and csrc/core/rng in Python.

A stream of documents, each as bos, its bytes and eos, is cut into samples of sequence_length tokens from
an offset on, which a permutation puts into the order of training. Offset and permutation are those of an
epoch, and pure functions of the seed and of the stream's fingerprint, which memphis prints.
"""
import array
import bisect
import math

BOS, EOS, FIRST_BYTE = 1, 2, 3
NO_TARGET = -1
WORD = 0xFFFFFFFF
ROUNDS = 6  # of the Feistel network


def philox(counter, key):
    """Philox4x32-10 (Salmon et al. 2011): four words of a counter of four and a key of two."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & WORD, (a >> 32) ^ c3 ^ k1, a & WORD
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0, c1, c2, c3


def words(number):
    return number & WORD, number >> 32


def word64(seed, name, index):
    """Element `index` of the stream of numbers that a seed and a name stand for."""
    stream = 0xCBF29CE484222325  # FNV-1a of the name
    for letter in name.encode():
        stream = ((stream ^ letter) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    low, high, _, _ = philox((*words(index), *words(stream)), words(seed))
    return high << 32 | low


def permuted_index(index, size, key, tweak):
    """Where `index` of range(size) goes: a Feistel network, walked until it lands inside."""
    half_bits = ((size - 1).bit_length() + 1) // 2
    mask = (1 << half_bits) - 1
    value = index
    while True:
        left, right = value >> half_bits, value & mask
        for i in range(ROUNDS):
            noise = philox((right, i, *words(tweak)), words(key))[0]
            left, right = right, left ^ noise & mask
        value = left << half_bits | right
        if value < size:
            return value


class Samples:
    """Samples by their number since step 0."""

    def __init__(self, documents, fingerprint, seed, sequence_length, held_out):
        self.tokens = array.array("i")
        self.starts = []
        for text in documents:
            self.starts.append(len(self.tokens))
            self.tokens.append(BOS)
            self.tokens.extend(byte + FIRST_BYTE for byte in text)
            self.tokens.append(EOS)
        self.end = math.floor(len(self.tokens) * (1 - held_out))
        self.length = sequence_length
        self.number = (self.end - 1) // sequence_length  # of an epoch
        if self.number < 1:
            raise ValueError(f"{self.end} tokens hold no sample of {sequence_length}")
        self.key = word64(seed, "data/order/" + fingerprint, 0)

    def run(self, begin, count):
        """Tokens, targets and positions of `count` tokens from `begin` on, as a context of their own."""
        tokens = list(self.tokens[begin:begin + count])
        targets = list(self.tokens[begin + 1:min(begin + count + 1, self.end)])
        targets = [NO_TARGET if token == BOS else token for token in targets]
        targets += [NO_TARGET] * (count - len(targets))
        start = self.starts[bisect.bisect_right(self.starts, begin) - 1]
        positions = []
        for i, token in enumerate(tokens, begin):
            start = i if token == BOS else start
            positions.append(i - max(start, begin))
        return tokens, targets, positions

    def sample(self, index):
        epoch, index = divmod(index, self.number)
        chunk = permuted_index(index, self.number, self.key, epoch)
        offset = word64(self.key, "data/offset", epoch) % self.length
        first = (offset + chunk * self.length) % self.end
        before_end = min(self.length, self.end - first)
        parts = self.run(first, before_end)
        if before_end < self.length:  # goes on at the beginning
            parts = tuple(a + b for a, b in zip(parts, self.run(0, self.length - before_end)))
        return parts

    def batch(self, first, count):
        """Samples from number `first` on: tokens, targets and positions, a list of sequences each."""
        return tuple(zip(*(self.sample(first + i) for i in range(count))))
