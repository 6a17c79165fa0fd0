#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the reference logits that golden_test compares with: reference.py MODEL_PY [FOLDER ...].

MODEL_PY is the model.py that xAI released with Grok-1 (github.com/xai-org/grok-1, commit 7050ed2),
unchanged. It runs here in float32: what it would round to bfloat16 in between is kept. Each FOLDER,
by default those beside this script, has a config.json and a tokens.json and is given its logits.npy.

The weights are not stored, as a formula gives them: see `weight`, and its twin in golden_test.cpp. A
folder that has a model.safetensors (of float32) is run on that instead, to check this script by logits
that somebody else made: they are compared, and nothing is written.

Needs, in a virtual environment: pip install 'jax[cpu]==0.4.25' dm-haiku==0.0.12 'numpy<2'
"""
import importlib.util
import json
import pathlib
import struct
import sys
import types

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np


def weight(name, shape):
    """Uniform in [-0.75, 0.75), about 1 for norms: SplitMix64 of the name's FNV-1a hash and the index."""
    mask = (1 << 64) - 1
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = (state ^ byte) * 0x100000001B3 & mask
    values = np.empty(int(np.prod(shape)), np.float32)
    for i in range(values.size):
        z = (state + (i + 1) * 0x9E3779B97F4A7C15) & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        unit = ((z ^ z >> 31) >> 40) / 2.0**24
        values[i] = 0.75 * (2 * unit - 1) + (1 if name.endswith("norm.weight") else 0)
    return values.reshape(shape)


def stored_weights(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)

    def read(name, shape):
        begin, end = header[name]["data_offsets"]
        return np.frombuffer(data[8 + length + begin : 8 + length + end], np.float32).reshape(shape)

    return read


def load_model(path):
    spec = importlib.util.spec_from_file_location("model", path)
    model = importlib.util.module_from_spec(spec)
    sys.modules["model"] = model
    spec.loader.exec_module(model)

    class WithoutBfloat16(types.ModuleType):
        bfloat16 = jnp.float32

        def __getattr__(self, name):
            return getattr(jnp, name)

    model.jnp = WithoutBfloat16("jnp")
    return model


def parameters(model, config, read):
    """The parameters by the names of Haiku, from those of Hugging Face's form."""
    D = config["hidden_size"]
    F = config["intermediate_size"]
    E = config["num_local_experts"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    result = {
        "language_model/in_out_embed": {
            "embeddings": read("model.embed_tokens.weight", (config["vocab_size"], D))
        },
        "language_model/rms_norm": {"scale": read("model.norm.weight", (D,))},
    }
    for i in range(config["num_hidden_layers"]):
        ours = f"model.layers.{i}."
        theirs = f"transformer/decoder_layer_{i}/"
        for name, linear, rows, columns in (
            ("q_proj", "query", q, D),
            ("k_proj", "key", kv, D),
            ("v_proj", "value", kv, D),
            ("o_proj", "linear", D, q),
        ):
            w = read(f"{ours}self_attn.{name}.weight", (rows, columns))
            result[f"{theirs}multi_head_attention/{linear}"] = {"w": w.T}
        for name, norm in (
            ("pre_attn_norm", "rms_norm"),
            ("post_attn_norm", "rms_norm_1"),
            ("pre_moe_norm", "rms_norm_2"),
            ("post_moe_norm", "rms_norm_3"),
        ):
            result[theirs + norm] = {"scale": read(f"{ours}{name}.weight", (D,))}
        moe = ours + "block_sparse_moe."
        result[theirs + "router"] = {"w": read(moe + "gate.weight", (E, D)).T}
        for name, linear, rows, columns in (
            ("w1", "linear", F, D),
            ("w3", "linear_v", F, D),
            ("w2", "linear_1", D, F),
        ):
            w = np.stack(
                [read(f"{moe}experts.{e}.{name}.weight", (rows, columns)).T for e in range(E)]
            )
            # Its inference wants the weights as they were released, with scales, here of 1.
            scales = np.ones((E, 1, rows), np.float32)
            result[f"{theirs}moe/{linear}"] = {"w": model.QuantizedWeight8bit(w, scales)}
    return result


def logits_of(model, folder):
    config = json.loads((folder / "config.json").read_text())
    tokens = np.array(json.loads((folder / "tokens.json").read_text())["tokens"], np.int32)
    stored = folder / "model.safetensors"
    read = stored_weights(stored) if stored.exists() else weight
    widening = next(
        w
        for w in np.arange(1, 17, 0.25)
        if model.ffn_size(config["hidden_size"], w) == config["intermediate_size"]
    )
    language_model = model.LanguageModelConfig(
        model=model.TransformerConfig(
            emb_size=config["hidden_size"],
            key_size=config["head_dim"],
            num_q_heads=config["num_attention_heads"],
            num_kv_heads=config["num_key_value_heads"],
            num_layers=config["num_hidden_layers"],
            vocab_size=config["vocab_size"],
            widening_factor=float(widening),
            attn_output_multiplier=config["attn_output_multiplier"],
            num_experts=config["num_local_experts"],
            num_selected_experts=config["num_experts_per_tok"],
        ),
        vocab_size=config["vocab_size"],
        pad_token=config["pad_token_id"],
        eos_token=config["eos_token_id"],
        sequence_len=tokens.shape[1],
        embedding_multiplier_scale=config["embedding_multiplier_scale"],
        output_multiplier_scale=config["output_multiplier_scale"],
        fprop_dtype=jnp.float32,
    )
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    forward = hk.transform(lambda batch: language_model.make(mesh=mesh)(batch).logits)
    with mesh:
        return np.asarray(forward.apply(parameters(model, config, read), None, tokens))


def main():
    model = load_model(sys.argv[1])
    here = pathlib.Path(__file__).resolve().parent
    folders = [pathlib.Path(f) for f in sys.argv[2:]] or sorted(here.glob("grok_*"))
    for folder in folders:
        logits = logits_of(model, folder).astype(np.float32)
        if (folder / "model.safetensors").exists():
            expected = np.load(folder / "logits.npy")
            apart = np.abs(logits - expected).max() / np.abs(expected).max()
            print(f"{folder}: {apart:.1e} of the largest logit from {folder / 'logits.npy'}")
        else:
            np.save(folder / "logits.npy", logits)
            print(f"{folder}: {logits.shape}, largest {np.abs(logits).max():.4f}")


if __name__ == "__main__":
    main()
