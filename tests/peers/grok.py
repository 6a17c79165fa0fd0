# SPDX-License-Identifier: Apache-2.0
"""The model of csrc/model/grok.cpp in PyTorch, written to be fast there; its numbers stand at the lines.

Letters of shapes: B sequences, S positions, T tokens (B * S), D width, N query heads, G key/value heads,
H head width, E experts, K experts of a token, R rows (T * K), F expert width, V vocabulary, L layers.
"""
import gc
import json
import math
import struct

import torch
import torch.nn.functional as F

def single(value):
    """As f32 holds it: memphis keeps the scalars of a model so."""
    return torch.tensor(value, dtype=torch.float32).item()


DTYPES = {"F32": torch.float32, "F64": torch.float64, "BF16": torch.bfloat16}


def read_safetensors(path):
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    tensors = {}
    for name, entry in json.loads(content[8:8 + length]).items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            flat = torch.frombuffer(content[begin:end], dtype=DTYPES[entry["dtype"]])
            tensors[name] = flat.reshape(entry["shape"])
    return tensors


def load_weights(path, model):
    """Tensors by their place in the model, a layer's experts in one; matrices [outputs, inputs]."""
    stored = read_safetensors(path)
    weights = {"embedding": stored["model.embed_tokens.weight"], "final_norm": stored["model.norm.weight"]}
    if not model["tie_embeddings"]:
        weights["head"] = stored["lm_head.weight"]
    for i in range(model["num_layers"]):
        layer = f"model.layers.{i}."

        def of(name):
            return stored[layer + name + ".weight"]

        def experts(name):
            return torch.stack([of(f"block_sparse_moe.experts.{e}.{name}") for e in range(model["num_experts"])])

        own = {
            "pre_attention_norm": of("pre_attn_norm"),
            "qkv": torch.cat([of(f"self_attn.{name}_proj") for name in "qkv"]),
            "out": of("self_attn.o_proj"),
            "post_attention_norm": of("post_attn_norm"),
            "pre_moe_norm": of("pre_moe_norm"),
            "router": of("block_sparse_moe.gate"),
            "gate_up": torch.cat([experts("w1"), experts("w3")], dim=1),
            "down": experts("w2"),
            "post_moe_norm": of("post_moe_norm"),
        }
        if model["dense_ffn_dim"]:
            own["dense_gate_up"] = torch.cat([of("mlp.gate_proj"), of("mlp.up_proj")])
            own["dense_down"] = of("mlp.down_proj")
        weights.update({f"{i}.{name}": tensor for name, tensor in own.items()})
    return weights


class DrawnWeights:
    """Weights that stand nowhere but on the device, for a model whose own would not pass through a disk: items()
    draws them anew, the same each time, spread as memphis spreads its own (1 / sqrt(fan-in), norms 1)."""

    def __init__(self, model, device, seed=1):
        self.model, self.device, self.seed = model, device, seed

    def shapes(self):
        model = self.model
        D, H, E, V = model["d_model"], model["head_dim"], model["num_experts"], model["vocab_size"]
        N, G, ffn, dense = model["num_heads"], model["num_kv_heads"], model["ffn_dim"], model["dense_ffn_dim"]
        yield "embedding", (V, D)
        yield "final_norm", (D,)
        if not model["tie_embeddings"]:
            yield "head", (V, D)
        for i in range(model["num_layers"]):
            for name, shape in (("pre_attention_norm", (D,)), ("qkv", ((N + 2 * G) * H, D)), ("out", (D, N * H)),
                                ("post_attention_norm", (D,)), ("pre_moe_norm", (D,)), ("router", (E, D)),
                                ("gate_up", (E, 2 * ffn, D)), ("down", (E, D, ffn)), ("post_moe_norm", (D,)),
                                ("dense_gate_up", (2 * dense, D)), ("dense_down", (D, dense))):
                if dense or not name.startswith("dense"):
                    yield f"{i}.{name}", shape

    def items(self):
        generator = torch.Generator(self.device).manual_seed(self.seed)
        for name, shape in self.shapes():
            if is_norm(name):
                yield name, torch.ones(shape, device=self.device)
            else:
                drawn = torch.empty(shape, device=self.device)
                yield name, drawn.normal_(0, shape[-1] ** -0.5, generator=generator)


def is_norm(name):
    return name.endswith("norm")


def is_wide(name):
    """Norms and routers stay in the type of sums where other weights are narrower."""
    return is_norm(name) or name.endswith("router")


# Products of a loop over experts, each into its part of one tensor: on the CPU nothing is faster, and
# torch.compile passes it by as one op. Rows of expert e are offsets[e] to offsets[e + 1].
@torch.library.custom_op("memphis_peer::rows_times", mutates_args=())
def rows_times(x: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    y = x.new_empty(x.shape[0], weight.shape[2])
    bounds = offsets.tolist()
    for e in range(weight.shape[0]):
        if bounds[e + 1] > bounds[e]:
            torch.mm(x[bounds[e]:bounds[e + 1]], weight[e], out=y[bounds[e]:bounds[e + 1]])
    return y


@rows_times.register_fake
def _(x, weight, offsets):
    return x.new_empty(x.shape[0], weight.shape[2])


@torch.library.custom_op("memphis_peer::weight_gradient", mutates_args=())
def weight_gradient(dy: torch.Tensor, x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    bounds = offsets.tolist()
    dweight = x.new_empty(len(bounds) - 1, dy.shape[1], x.shape[1])
    for e in range(len(bounds) - 1):
        rows = slice(bounds[e], bounds[e + 1])
        torch.mm(dy[rows].T, x[rows], out=dweight[e])  # zeros where an expert has no rows
    return dweight


@weight_gradient.register_fake
def _(dy, x, offsets):
    return x.new_empty(offsets.shape[0] - 1, dy.shape[1], x.shape[1])


class LoopedProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, offsets):
        ctx.save_for_backward(x, weight, offsets)
        return rows_times(x, weight.transpose(1, 2), offsets)

    @staticmethod
    def backward(ctx, dy):
        x, weight, offsets = ctx.saved_tensors
        dy = dy.contiguous()
        return rows_times(dy, weight, offsets), weight_gradient(dy, x, offsets), None


class Permute(torch.autograd.Function):
    """Tokens to the rows of their experts. Each way is a gather, where autograd's own would scatter."""

    @staticmethod
    def forward(ctx, x_TD, order, inverse, num_choices):
        ctx.save_for_backward(inverse)
        ctx.num_choices = num_choices
        return x_TD[order // num_choices]

    @staticmethod
    def backward(ctx, dx_RD):
        (inverse,) = ctx.saved_tensors
        return dx_RD[inverse].view(-1, ctx.num_choices, dx_RD.shape[1]).sum(1), None, None, None


class Reorder(torch.autograd.Function):
    """Rows, or numbers, in another order; `inverse` undoes `order`."""

    @staticmethod
    def forward(ctx, x, order, inverse):
        ctx.save_for_backward(inverse)
        return x[order]

    @staticmethod
    def backward(ctx, dx):
        (inverse,) = ctx.saved_tensors
        return dx[inverse], None, None


class HeadLoss(torch.autograd.Function):
    """(18) and the sum of the losses of tokens, with gradients at once and a chunk of tokens at a time:
    the logits of all tokens never exist."""

    @staticmethod
    def forward(ctx, x_TD, weight_VD, targets, multiplier, cap, rows):
        dx = torch.empty_like(x_TD)
        dweight = None
        total = None
        for begin in range(0, x_TD.shape[0], rows):
            x, target = x_TD[begin:begin + rows], targets[begin:begin + rows]
            raw = wide(x @ weight_VD.T) * multiplier
            logits = cap * torch.tanh(raw / cap) if cap else raw
            counted = (target >= 0).unsqueeze(1)
            index = target.clamp(min=0).unsqueeze(1)
            lse = torch.logsumexp(logits, dim=1, keepdim=True)
            loss = torch.where(counted, lse - logits.gather(1, index), 0.0).sum()
            hit = torch.arange(logits.shape[1], device=logits.device).unsqueeze(0) == index
            dlogits = torch.where(counted, torch.exp(logits - lse) - hit.to(logits.dtype), 0.0) * multiplier
            if cap:
                dlogits = dlogits * (1 - (logits / cap) ** 2)
            dlogits = dlogits.to(x.dtype)
            dx[begin:begin + rows] = dlogits @ weight_VD
            part = wide(dlogits.T @ x)
            dweight = part if dweight is None else dweight + part
            total = loss if total is None else total + loss
        ctx.save_for_backward(dx, dweight)
        ctx.dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx, dtotal):
        # The scale is applied to the products, which bf16 has the range for.
        dx, dweight = ctx.saved_tensors
        return (dx * dtotal).to(dx.dtype), (dweight * dtotal).to(ctx.dtype), None, None, None, None


def sums_of(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def wide(x):
    """In the type that sums are taken in."""
    return x.to(sums_of(x.dtype))


def rmsnorm(x, weight, eps):
    return F.rms_norm(wide(x), weight.shape, weight, eps).to(x.dtype)


def soft_cap(x, cap):
    return cap * torch.tanh(x / cap) if cap else x


class Grok:
    """The model of a resolved config. `experts` is looped or grouped, `attention` formula or flex."""

    def __init__(self, config, dtype, device, experts, attention):
        self.model, self.loss, self.batch = config["model"], config["loss"], config["batch"]
        self.dtype, self.device = dtype, device
        self.experts, self.attention = experts, attention
        self.whole_mask = None
        model = self.model
        self.scalars = {key: single(model[key]) for key in (
            "embedding_multiplier", "output_multiplier", "attention_multiplier", "attention_cap", "router_cap",
            "final_cap", "norm_eps")}
        positions, width = self.batch["sequence_length"], model["head_dim"]
        places = torch.arange(positions, dtype=torch.float64)[:, None]
        angles = places * model["rope_theta"] ** (-2 * torch.arange(width // 2, dtype=torch.float64) / width)
        sums = sums_of(dtype)
        self.cos, self.sin = angles.cos().to(device, sums), angles.sin().to(device, sums)
        # 2^27 logits at a time, and on a GPU at least 4096 tokens', as memory.head_rows by default.
        rows = max(8, 2**27 // model["vocab_size"])
        self.head_rows = max(rows, 4096) if device == "cuda" else rows

    def rope(self, x, positions):
        cos, sin = self.cos[positions].unsqueeze(2), self.sin[positions].unsqueeze(2)
        a, b = wide(x).chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)

    def temperature(self, positions):
        length = self.model["attention_temperature_len"]
        if not length:
            return None
        p = positions.to(self.cos.dtype)
        return torch.where(p > length, torch.log2(p.clamp(min=1)) / math.log2(length), 1.0)

    def formula(self, q, k, v, mask, positions):
        """Heads that read one key head are rows of one product."""
        B, N, S, H = q.shape
        G = k.shape[1]
        scale, cap = self.scalars["attention_multiplier"], self.scalars["attention_cap"]
        rows = q.reshape(B * G, N // G * S, H)
        scores = wide(torch.bmm(rows, k.reshape(B * G, S, H).transpose(1, 2))).view(B, N, S, S)
        scores = soft_cap(scores * scale, cap)
        tau = self.temperature(positions)
        if tau is not None:
            scores = scores * tau[:, None, :, None]
        p = torch.softmax(scores + mask, dim=-1).to(v.dtype)
        return torch.bmm(p.view(B * G, N // G * S, S), v.reshape(B * G, S, H)).view(B, N, S, H)

    def flex(self, q, k, v, mask, positions):
        from torch.nn.attention.flex_attention import flex_attention

        cap = self.scalars["attention_cap"]
        tau = self.temperature(positions)

        def modified(score, b, h, q_index, k_index):
            score = cap * torch.tanh(score / cap) if cap else score
            return score if tau is None else score * tau[b, q_index]

        return flex_attention(q, k, v, score_mod=modified, block_mask=mask, enable_gqa=k.shape[1] != q.shape[1],
                              scale=self.scalars["attention_multiplier"])

    def mask(self, positions):
        """(1). What a batch without borders of documents has is made once."""
        B, S = positions.shape
        whole = bool((positions == torch.arange(S, device=positions.device)).all())
        if whole and self.whole_mask is not None:
            return self.whole_mask
        index = torch.arange(S, device=positions.device)
        if self.attention == "flex":
            from torch.nn.attention.flex_attention import create_block_mask

            first = index - positions

            def seen(b, h, q_index, k_index):
                causal = k_index <= q_index
                return causal if whole else causal & (k_index >= first[b, q_index])

            result = create_block_mask(seen, B=None if whole else B, H=None, Q_LEN=S, KV_LEN=S, device=self.device)
        else:
            first = (index - positions)[:1] if whole else index - positions
            visible = (index[None, None, :] <= index[None, :, None]) & (index[None, None, :] >= first[:, :, None])
            result = torch.zeros(visible.shape, dtype=self.cos.dtype, device=positions.device)
            result = result.masked_fill(~visible, float("-inf")).unsqueeze(1)
        if whole:
            self.whole_mask = result
        return result

    def attend(self, w, i, u, mask, positions):
        model = self.model
        B, S = positions.shape
        N, G, H = model["num_heads"], model["num_kv_heads"], model["head_dim"]
        heads = F.linear(u, w[f"{i}.qkv"]).view(B, S, N + 2 * G, H)  # (4)
        rotated = self.rope(heads[:, :, :N + G], positions)  # (5)
        q, k, v = (x.transpose(1, 2) for x in (rotated[:, :, :N], rotated[:, :, N:], heads[:, :, N + G:]))
        attention = self.flex if self.attention == "flex" else self.formula
        out = attention(q, k, v, mask, positions)  # (6) to (8)
        return F.linear(out.transpose(1, 2).reshape(B * S, N * H), w[f"{i}.out"])  # (9)

    def products(self, x, weight, offsets):
        if self.experts == "grouped":
            return torch._grouped_mm(x, weight.transpose(1, 2), offs=offsets[1:])
        return LoopedProducts.apply(x, weight, offsets)

    def moe(self, w, i, u, B):
        model = self.model
        E, K = model["num_experts"], model["experts_per_token"]
        z = F.linear(wide(u), w[f"{i}.router"])
        P = torch.softmax(soft_cap(z, self.scalars["router_cap"]), dim=-1)  # (12)
        gates, experts = torch.topk(P, K, dim=-1)  # (13)
        # How many tokens each expert has, of each sequence and of all.
        chosen = F.one_hot(experts, E).sum(1).view(B, -1, E)
        shares = chosen.sum(1).to(P.dtype) / (chosen.shape[1] * K)
        balance = (E * shares * P.view(B, -1, E).mean(1)).sum(1)  # of each sequence
        squares = torch.logsumexp(z, dim=-1) ** 2
        offsets = F.pad(chosen.sum((0, 1)).cumsum(0), (1, 0)).to(torch.int32)
        order = torch.argsort(experts.reshape(-1), stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
        rows = Permute.apply(u, order, inverse, K)
        gate, up = self.products(rows, w[f"{i}.gate_up"], offsets).chunk(2, dim=-1)  # (14)
        scale = Reorder.apply(gates.reshape(-1), order, inverse).unsqueeze(1)
        hidden = (F.gelu(wide(gate), approximate="tanh") * wide(up) * scale).to(u.dtype)
        y = self.products(hidden, w[f"{i}.down"], offsets)
        m = Reorder.apply(y, inverse, order).view(-1, K, y.shape[1]).sum(1)  # (15)
        if model["dense_ffn_dim"]:
            gate, up = F.linear(u, w[f"{i}.dense_gate_up"]).chunk(2, dim=-1)
            hidden = (F.gelu(wide(gate), approximate="tanh") * wide(up)).to(u.dtype)
            m = (m + F.linear(hidden, w[f"{i}.dense_down"])) * single(1 / math.sqrt(2))
        return m, balance, squares

    def losses(self, w, tokens, targets, positions, mask):
        """Sums over the micro-batch: cross entropy of the targets, balance of the sequences, z of the tokens,
        the last two over layers."""
        B = tokens.shape[0]
        eps = self.scalars["norm_eps"]
        h = F.embedding(tokens.reshape(-1), w["embedding"]) * self.scalars["embedding_multiplier"]  # (2)
        balance, squares = 0.0, 0.0
        for i in range(self.model["num_layers"]):
            u = rmsnorm(h, w[f"{i}.pre_attention_norm"], eps)  # (3)
            a = self.attend(w, i, u, mask, positions)
            h = h + rmsnorm(a, w[f"{i}.post_attention_norm"], eps)  # (10)
            u = rmsnorm(h, w[f"{i}.pre_moe_norm"], eps)  # (11)
            m, of_sequences, of_tokens = self.moe(w, i, u, B)
            h = h + rmsnorm(m, w[f"{i}.post_moe_norm"], eps)  # (16)
            balance, squares = balance + of_sequences.sum(), squares + of_tokens.sum()
        h = rmsnorm(h, w["final_norm"], eps)  # (17)
        head = w["embedding" if self.model["tie_embeddings"] else "head"]
        loss = HeadLoss.apply(h, head, targets.reshape(-1), self.scalars["output_multiplier"],
                              self.scalars["final_cap"], self.head_rows)
        return loss, balance, squares


def learning_rate(config, step):
    """csrc/optim/lr_schedule.cpp; steps count from 1."""
    schedule, peak = config["schedule"], config["optimizer"]["learning_rate"]
    warmup, steps = schedule["warmup_steps"], schedule["steps"]

    def way(begin):
        return min(max((step - begin) / (steps - begin), 0.0), 1.0) if step < steps else 1.0

    if step <= warmup:
        return peak * step / warmup
    height = 1.0
    if schedule["decay"] == "cosine":
        height = (1 + math.cos(math.pi * way(warmup))) / 2
    elif schedule["decay"] == "wsd":
        height = 1 - way(max(warmup, steps - schedule["decay_steps"]))
    return peak * (schedule["min_ratio"] + (1 - schedule["min_ratio"]) * height)


class Run:
    """Training from given weights; where their type is narrower than f32, the optimizer has f32 ones. On the device
    from start() to stop(), since a model that fills it leaves no room for another run."""

    def __init__(self, config, weights, dtype, device, compiled, experts, attention):
        self.config = config
        self.device = device
        self.grok = Grok(config, dtype, device, experts, attention)
        self.initial = weights
        self.losses = self.grok.losses
        if compiled:
            self.losses = torch.compile(self.grok.losses, dynamic=False, fullgraph=True)

    def start(self):
        """At step 0, with the weights that were given and new moments."""
        dtype, sums = self.grok.dtype, sums_of(self.grok.dtype)
        self.master = {
            name: tensor.to(self.device, sums, copy=True).requires_grad_() for name, tensor in self.initial.items()}
        self.weights = {
            name: master if is_wide(name) or dtype == sums else master.detach().to(dtype).requires_grad_()
            for name, master in self.master.items()}
        self.narrow = [name for name in self.master if self.weights[name] is not self.master[name]]
        optimizer = self.config["optimizer"]
        norms = [tensor for name, tensor in self.master.items() if is_norm(name)]
        matrices = [tensor for name, tensor in self.master.items() if not is_norm(name)]
        self.adamw = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": optimizer["weight_decay"]}, {"params": norms, "weight_decay": 0.0}],
            betas=(optimizer["beta1"], optimizer["beta2"]), eps=optimizer["eps"], fused=True)
        self.steps = 0

    def stop(self):
        """Gives its memory back, to the device as well: memphis is another process."""
        self.master = self.weights = self.adamw = self.grok.whole_mask = None
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def publish(self):
        """The optimizer's weights, rounded to those of the model."""
        if self.narrow:
            torch._foreach_copy_([self.weights[name].detach() for name in self.narrow],
                                 [self.master[name].detach() for name in self.narrow])

    def collect(self):
        """Adds the gradients of a micro-batch up in f32."""
        for name in self.narrow:
            weight, master = self.weights[name], self.master[name]
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                master.grad += weight.grad
            weight.grad = None

    def put(self, batch):
        return tuple(torch.tensor(part, device=self.device) for part in batch)

    def step(self, batch):
        """A step with (tokens, targets, positions), on the device; returns its loss and gradient norm."""
        self.steps += 1
        tokens, targets, positions = batch
        loss_weights, optimizer = self.config["loss"], self.config["optimizer"]
        # The scales of losses are f32 in memphis, whatever the model's type.
        of_target = single(1 / max(int((targets >= 0).sum()), 1))
        of_sequence = single(single(loss_weights["balance"]) * single(1 / tokens.shape[0]))
        of_token = single(single(loss_weights["router_z"]) * single(1 / tokens.numel()))
        size = self.config["batch"]["micro_batch"]
        total = 0.0
        for begin in range(0, tokens.shape[0], size):
            part = slice(begin, begin + size)
            mask = self.grok.mask(positions[part])
            loss, balance, squares = self.losses(self.weights, tokens[part], targets[part], positions[part], mask)
            loss = of_target * loss
            (loss + of_sequence * balance + of_token * squares).backward()
            self.collect()
            total = total + loss.detach()
        clip = optimizer["clip_norm"] or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.master.values(), clip, foreach=True)
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate(self.config, self.steps)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.publish()
        return float(total), float(norm)
