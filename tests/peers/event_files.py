# SPDX-License-Identifier: Apache-2.0
"""event_files.py RUN_DIR: loads RUN_DIR/tensorboard with the package `tensorboard`, and fails where it has
anything else than metrics.jsonl says.

pip install tensorboard
memphis train configs/smoke_cpu.yaml run.dir=RUN_DIR metrics.tensorboard=true
"""
import json
import os
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

def main(run):
    everything = {"scalars": 0, "histograms": 0, "tensors": 0}
    events = EventAccumulator(os.path.join(run, "tensorboard"), size_guidance=everything).Reload()
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    steps = {line["step"]: line["loss"] for line in lines if "loss" in line}
    loss = {event.step: event.value for event in events.Scalars("loss")}
    assert loss.keys() == steps.keys(), f"{len(loss)} steps there, {len(steps)} here"
    assert all(abs(loss[step] - steps[step]) <= 1e-6 * abs(steps[step]) for step in steps)
    looks = [line for line in lines if "expert_load" in line]
    for layer in range(len(looks[0]["expert_load"])):
        histograms = events.Histograms(f"expert_load/layer_{layer}")
        assert [event.step for event in histograms] == [look["step"] for look in looks]
        for event, look in zip(histograms, looks):
            counts = event.histogram_value.bucket
            assert all(abs(a - b) < 1e-3 for a, b in zip(counts, look["expert_load"][layer]))
    samples = [line["step"] for line in lines if "sample" in line]
    assert [event.step for event in events.Tensors("sample")] == samples
    print(f"{len(steps)} steps, {len(looks)} looks at the routing and {len(samples)} samples agree; tags: "
          f"{', '.join(sorted(events.Tags()['scalars']))}")


if __name__ == "__main__":
    main(sys.argv[1])
