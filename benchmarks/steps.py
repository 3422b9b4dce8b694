"""Training steps in a process of their own, for settings that a process has from its start.

    python -m benchmarks.steps ARCH COUNT BATCH [DEVICE] [THREADS] [KEEP_MEMORY]

Prints wall seconds, processor seconds and minor page faults of the steps after two of warm-up.
"""

from __future__ import annotations

import resource
import sys
import time

import torch

from benchmarks.inputs import make_data, make_model
from trainer import Descent, ScheduleConfig, cross_entropy
from utils import Runtime, RuntimeConfig


def main(arch: str, count: str, batch: str, device: str = "cpu", threads: str = "0", keep: str = "1") -> None:
    if int(threads):
        torch.set_num_threads(int(threads))
    rt, size = Runtime(RuntimeConfig(device=device, keep_memory=keep == "1", progress=False)), int(batch)
    data, _ = make_data(rt, 2 * size + 40, 16, 16, batch_size=size)
    model = make_model(rt, arch)
    opt = Descent(model, ScheduleConfig(), lr=0.01, epochs=1, rt=rt, purpose="benchmark")
    (first, *_) = data.loader("train", rt, "benchmark")
    opt.epoch([first] * 2, cross_entropy)
    rt.drain()
    start, before, faults = time.perf_counter(), time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    opt.epoch([first] * int(count), cross_entropy)
    rt.drain()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    print(time.perf_counter() - start, time.process_time() - before, faults)


if __name__ == "__main__":
    main(*sys.argv[1:])
