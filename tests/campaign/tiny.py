# SPDX-License-Identifier: Apache-2.0
"""A run of a few steps that writes all that a run can write: checkpoints, of which it deletes the oldest,
samples, a model folder, event files, a trace."""
import os

CONFIG = """
model: {{vocab_size: 259, num_layers: 2, d_model: 16, num_heads: 2, num_kv_heads: 1, head_dim: 8,
        ffn_dim: 16, num_experts: 4, experts_per_token: 2}}
run: {{dir: {run}, device: cpu, export_every: 4}}
data: {{train: [{text}], held_out: 0.1}}
batch: {{sequence_length: 32, micro_batch: 2, global_batch: 4}}
schedule: {{steps: 6, warmup_steps: 1}}
checkpoint: {{every: 2, keep: 1}}
metrics: {{every: 2, validate_every: 3, validate_batches: 1, sample_every: 3, sample_tokens: 2,
          tensorboard: true, trace: true}}
"""
LAST_STEP = 6


def write_config(disk, run="deep/run"):
    """The config of a run on `disk`; its text lies elsewhere, on a disk that works."""
    text = os.path.join(disk.scratch, "text.txt")
    with open(text, "w", encoding="utf-8") as file:
        for i in range(400):
            file.write(f"the quick brown fox {i * i % 17} jumps over the lazy dog. ")
    path = os.path.join(disk.scratch, "tiny.yaml")
    run_dir = os.path.join(disk.files, run)
    with open(path, "w", encoding="utf-8") as file:
        file.write(CONFIG.format(run=run_dir, text=text))
    return path, run_dir
