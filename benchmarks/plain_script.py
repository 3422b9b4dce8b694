"""Fine-tuning as forgetting with its evaluation, as one plain script: what main_forget.py --unlearn FT does as a process.

    python benchmarks/plain_script.py DATA.npz MODEL.pt SPLITS.npz ARCH BATCH RATE DEVICE [EPOCHS]

The model file is one of main_train.py, since what is compared is the work and not the format; the network is built by the same
code, contiguous. With EPOCHS 0 it makes one training step and nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

import models
from benchmarks import plain


def main(data: str, weights: str, splits: str, arch: str, batch: str, rate: str, device: str, epochs: str = "1") -> None:
    with np.load(data) as file:
        x, y, x_test, y_test = (file[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    with np.load(splits) as file:
        parts = {part: file[part] for part in ("retain", "forget", "val")}
    model = models.build(arch, 10, (0.0,) * 3, (1.0,) * 3)
    model.load_state_dict(torch.load(weights, weights_only=True)["state_dict"])
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=float(rate), momentum=0.9, weight_decay=5e-4)
    retain = parts["retain"] if int(epochs) else parts["retain"][: int(batch)]
    batches = plain.loader(x[retain], y[retain], int(batch), train=True)
    for _ in range(max(1, int(epochs))):
        print(plain.train_epoch(model, batches, optimizer))
    if int(epochs):
        print(plain.evaluate(model, x, y, parts, [], (x_test, y_test)))
        torch.save(model.state_dict(), f"{weights}.unlearned")


if __name__ == "__main__":
    main(*sys.argv[1:])
