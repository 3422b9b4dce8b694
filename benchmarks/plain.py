"""The plain way that published unlearning code works: PIL transforms, a single-process DataLoader, eager NCHW, libsvm.

Written for comparison; each function does the same job as the part of the suite it is measured against.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

TRAIN = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()])
EVAL = transforms.ToTensor()


class PilImages(Dataset):
    """uint8 [N, 32, 32, 3] images as torchvision's CIFAR class hands them out, one PIL image at a time."""

    def __init__(self, x: np.ndarray, y: np.ndarray, transform: object) -> None:
        self.x, self.y, self.transform = x, y, transform

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.x[index])), int(self.y[index])


def loader(x: np.ndarray, y: np.ndarray, batch_size: int = 256, train: bool = False) -> DataLoader:
    return DataLoader(PilImages(x, y, TRAIN if train else EVAL), batch_size, shuffle=train, num_workers=0)


def train_epoch(model: nn.Module, batches: object, optimizer: torch.optim.Optimizer) -> float:
    """One epoch with the loss read on the host in every step."""
    model.train()
    total = 0.0
    for x, y in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total


@torch.no_grad()
def accuracy(model: nn.Module, batches: object) -> float:
    model.eval()
    right = count = 0
    for x, y in batches:
        right += (model(x).argmax(1) == y).sum().item()
        count += len(y)
    return right / count


@torch.no_grad()
def probabilities(model: nn.Module, batches: object) -> tuple[Tensor, Tensor]:
    model.eval()
    parts = [(model(x).softmax(1), y) for x, y in batches]
    return torch.cat([p for p, _ in parts]), torch.cat([y for _, y in parts])


def attack(values: list[np.ndarray], members: list[np.ndarray], nonmembers: list[np.ndarray]) -> list[float]:
    """Share of the targets that scikit-learn's SVC calls non-member, one fit a feature."""
    shares = []
    for target, member, nonmember in zip(values, members, nonmembers, strict=True):
        rows = np.concatenate([member, nonmember])
        machine = SVC(C=3, gamma="auto", kernel="rbf").fit(rows, np.repeat([1, 0], [len(member), len(nonmember)]))
        shares.append(float(1 - machine.predict(target).mean()))
    return shares
