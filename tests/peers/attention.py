#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""attention.py [--seconds N | --list]: times PyTorch's attention at the shapes of `memphis bench kernels`.

On each shape, forward and backward: flex_attention with a tanh cap and without, scaled dot product
attention (SDPA) without, as it has no cap, and flash-attn with both where the package is there. Causal,
bf16, grouped queries; a document mask where the shape has documents.

Prints one JSON object a line, the keys as those of `memphis bench kernels --json`, and beside each time
the relative error of the result against attention in f64. As there, a time is the median of single calls,
each behind work that keeps the GPU busy while the host starts it and leaves nothing in a cache, between two
events. FLOPs are those of the causal half. What a package
lacks is listed with the reason; so is what it cannot do, and what is left after N seconds. --list only prints
the shapes.
"""
import importlib
import itertools
import json
import statistics
import sys
import time

# Query heads, key/value heads and positions: Grok-1's heads, whole and in slices of tensor parallelism.
HEADS = ((48, 8), (12, 2), (6, 1))
POSITIONS = (8192, 4096, 16384, 32768)  # those that most is published of come first
CAPS = (30.0, 0.0)
WIDTH = 128
DOCUMENT = 1024  # tokens of the packed documents
FLUSH_BYTES = 256 << 20
REPEATS = 15
ERROR_QUERIES = 256  # rows of which the error is taken: the last, which see the most keys


def shapes():
    """(heads, kv_heads, positions, cap, tokens of a document or 0)"""
    for positions, (heads, kv_heads), cap in itertools.product(POSITIONS, HEADS, CAPS):
        yield heads, kv_heads, positions, cap, 0
    yield 48, 8, 8192, 30.0, DOCUMENT


def describe(shape):
    heads, kv_heads, positions, cap, document = shape
    text = f"B=1 S={positions} N={heads} G={kv_heads} H={WIDTH} cap={cap:g}"
    return text + (f" document={document}" if document else "")


def emit(**fields):
    print(json.dumps(fields), flush=True)


class Timer:
    def __init__(self, torch):
        self.torch = torch
        self.flushed = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def seconds(self, call):
        times = []
        for i in range(REPEATS + 2):
            self.flushed.zero_()
            self.flushed.sum()  # so that none of it has yet to be written when the call begins
            begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            # Compiled code takes the host a while to start: the GPU is kept at work meanwhile.
            self.torch.cuda._sleep(2_000_000)  # cycles, about a millisecond
            begin.record()
            call()
            end.record()
            end.synchronize()
            if i >= 2:  # the first calls compile and set up
                times.append(begin.elapsed_time(end) * 1e-3)
        return statistics.median(times), statistics.pstdev(times) / statistics.fmean(times)


def exact_rows(torch, q, k, v, cap, document):
    """Attention in f64 of the last rows, a head at a time; [N, rows, H]."""
    heads, positions = q.shape[1], q.shape[2]
    group = heads // k.shape[1]
    rows = min(ERROR_QUERIES, positions)
    query = torch.arange(positions - rows, positions, device=q.device)[:, None]
    key = torch.arange(positions, device=q.device)[None, :]
    seen = key <= query
    if document:
        seen &= key // document == query // document
    results = []
    for n in range(heads):
        scores = q[0, n, -rows:].double() @ k[0, n // group].double().T / WIDTH**0.5
        if cap:
            scores = cap * torch.tanh(scores / cap)
        weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1)
        results.append(weights @ v[0, n // group].double())
    return torch.stack(results)


def flex(torch, shape):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    _, _, positions, cap, document = shape

    def capped(score, b, h, q_index, k_index):
        return cap * torch.tanh(score / cap)

    def seen(b, h, q_index, k_index):
        causal = k_index <= q_index
        return causal & (k_index // document == q_index // document) if document else causal

    mask = create_block_mask(seen, B=None, H=None, Q_LEN=positions, KV_LEN=positions, device="cuda")
    # After some eight shapes it would go on uncompiled.
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention)
    return lambda q, k, v: compiled(
        q, k, v, score_mod=capped if cap else None, block_mask=mask, enable_gqa=True)


def sdpa(torch, shape):
    if shape[3]:
        raise NotImplementedError("it has no cap")
    if shape[4]:
        raise NotImplementedError("it takes documents as a dense mask alone")
    attention = torch.nn.functional.scaled_dot_product_attention
    return lambda q, k, v: attention(q, k, v, is_causal=True, enable_gqa=True)


def flash(module):
    """flash-attn's function in `module`, whose operands are [B, S, N, H]."""

    def make(torch, shape):
        function = importlib.import_module(module).flash_attn_func
        if shape[4]:
            raise NotImplementedError("documents are not passed to it here")

        def call(q, k, v):
            result = function(*(x.transpose(1, 2) for x in (q, k, v)), causal=True, softcap=shape[3])
            return (result[0] if isinstance(result, tuple) else result).transpose(1, 2)

        return call

    return make


PEERS = {
    "flex_attention": flex,
    "sdpa": sdpa,
    "flash_attn_3": flash("flash_attn_interface"),
    "flash_attn_cute": flash("flash_attn.cute"),
    "flash_attn_2": flash("flash_attn"),
}


def measure(torch, timer, peer, shape):
    heads, kv_heads, positions, cap, document = shape
    torch.manual_seed(1)
    # Wide enough that the cap bends the largest scores, and laid out as the peer wants it.
    make = lambda n: torch.randn(1, n, positions, WIDTH, device="cuda", dtype=torch.bfloat16)
    q, k, v = 2 * make(heads), 2 * make(kv_heads), make(kv_heads)
    dout = make(heads)
    for operand in (q, k, v):
        operand.requires_grad_()
    call = PEERS[peer](torch, shape)
    out = call(q, k, v)
    exact = exact_rows(torch, q.detach(), k.detach(), v.detach(), cap, document)
    rows = out.detach()[0, :, -exact.shape[1]:].double()
    error = ((rows - exact).norm() / exact.norm()).item()
    # Pairs of a query and a key that it sees, by half the square; two products forward, five back.
    length = document or positions
    pairs = positions * length / 2 * heads
    for op, products, timed in (
            ("attention_forward", 2, lambda: call(q, k, v)),
            ("attention_backward", 5, lambda: torch.autograd.grad(
                out, (q, k, v), dout, retain_graph=True))):
        seconds, sigma = timer.seconds(timed)
        flops = 2 * products * pairs * WIDTH
        emit(peer=peer, op=op, shape=describe(shape), device="cuda", dtype="bf16", status="measured",
             seconds=seconds, relative_sigma=sigma, repeats=REPEATS, caches="cold", flops=flops,
             flops_per_second=flops / seconds, relative_error=error)


def main(arguments):
    if arguments == ["--list"]:
        for shape in shapes():
            print(describe(shape))
        return 0
    ends = float("inf")
    if arguments and arguments[0] == "--seconds" and len(arguments) == 2 and arguments[1].isdigit():
        ends = time.monotonic() + int(arguments[1])
    elif arguments:
        print(f"error: attention.py is given {arguments} (it takes --list, or --seconds and a number); leave it out",
              file=sys.stderr)
        return 2
    try:
        import torch
    except ImportError as error:
        print(f"SKIP: there is no PyTorch ({error})")
        return 0
    if not torch.cuda.is_available():
        print("SKIP: PyTorch finds no GPU")
        return 0
    emit(machine=torch.cuda.get_device_name(), device="cuda", torch=torch.__version__)
    timer = Timer(torch)
    for shape in shapes():
        for peer in PEERS:
            try:
                if time.monotonic() > ends:
                    raise TimeoutError("no time is left")
                measure(torch, timer, peer, shape)
            except Exception as error:  # a peer that fails leaves the others their turn
                reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                emit(peer=peer, op="attention", shape=describe(shape), status="not measured", reason=reason)
                if isinstance(error, torch.cuda.OutOfMemoryError):
                    torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
