"""The plain way that published unlearning code works: PIL transforms, a single-process DataLoader, eager NCHW, libsvm.

Written for comparison; each function does the same job as the part of the suite it is measured against. Batches go to the
device of the model one by one, and losses and counts are read on the host in every step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

TRAIN = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()])
EVAL = transforms.ToTensor()
Batches = Iterable[tuple[Tensor, Tensor]]


class PilImages(Dataset):
    """uint8 [N, 32, 32, 3] images as torchvision's CIFAR class hands them out, one PIL image at a time."""

    def __init__(self, x: np.ndarray, y: np.ndarray, transform: Callable) -> None:
        self.x, self.y, self.transform = x, y, transform

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.x[index])), int(self.y[index])


def loader(x: np.ndarray, y: np.ndarray, batch_size: int = 256, train: bool = False) -> DataLoader:
    return DataLoader(PilImages(x, y, TRAIN if train else EVAL), batch_size, shuffle=train, num_workers=0)


def moved(batches: Batches, model: nn.Module) -> Batches:
    """Each batch on the model's device, one after another."""
    device = next(model.parameters()).device
    return ((x.to(device), y.to(device)) for x, y in batches)


def train_epoch(model: nn.Module, batches: Batches, optimizer: torch.optim.Optimizer,
                mask: dict[str, Tensor] | None = None) -> float:
    """One epoch with the loss read on the host in every step; a saliency mask is multiplied onto the gradients."""
    model.train()
    total = 0.0
    for x, y in moved(batches, model):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        if mask is not None:
            for name, p in model.named_parameters():
                if p.grad is not None:
                    p.grad *= mask[name]
        optimizer.step()
        total += loss.item()
    return total


@torch.no_grad()
def accuracy(model: nn.Module, batches: Batches) -> float:
    model.eval()
    right = count = 0
    for x, y in moved(batches, model):
        right += (model(x).argmax(1) == y).sum().item()
        count += len(y)
    return right / count


@torch.no_grad()
def probabilities(model: nn.Module, batches: Batches) -> tuple[Tensor, Tensor]:
    model.eval()
    parts = [(model(x).softmax(1).cpu(), y.cpu()) for x, y in moved(batches, model)]
    return torch.cat([p for p, _ in parts]), torch.cat([y for _, y in parts])


# ----------------------------------------------------------------------------------------------------------- membership


def m_entropy(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The released code's "modified entropy", whose ``[:, labels]`` makes arrays of N x N."""
    log_p = -np.log(np.maximum(probs, 1e-30))
    reverse, swapped = 1 - probs, probs.copy()
    log_reverse = -np.log(np.maximum(probs, 1e-30))  # of p itself, as released
    swapped[:, labels] = reverse[:, labels]
    swapped_log = log_reverse.copy()
    swapped_log[:, labels] = log_p[:, labels]
    return np.sum(swapped * swapped_log, axis=1)


def features(probs: Tensor, labels: Tensor) -> list[np.ndarray]:
    """Correctness, confidence, entropy, modified entropy (Song and Mittal's) and the probabilities, each [N, d]."""
    p = probs.double().numpy().clip(1e-30)
    y = labels.numpy()
    own = p[np.arange(len(y)), y]
    others = p.copy()
    others[np.arange(len(y)), y] = 0
    modified = -(1 - own) * np.log(own) - (others * np.log1p(-np.minimum(others, 1 - 1e-12))).sum(1)
    columns = ((p.argmax(1) == y).astype(float), own, -(p * np.log(p)).sum(1), modified)
    return [*(column[:, None] for column in columns), p]


def attack(values: list[np.ndarray], members: list[np.ndarray], nonmembers: list[np.ndarray]) -> list[float]:
    """Share of the targets that scikit-learn's SVC calls non-member, one fit a feature."""
    shares = []
    for target, member, nonmember in zip(values, members, nonmembers, strict=True):
        rows = np.concatenate([member, nonmember])
        machine = SVC(C=3, gamma="auto", kernel="rbf").fit(rows, np.repeat([1, 0], [len(member), len(nonmember)]))
        shares.append(float(1 - machine.predict(target).mean()))
    return shares


def evaluate(model: nn.Module, x: np.ndarray, y: np.ndarray, parts: dict[str, np.ndarray], groups: list[np.ndarray],
             test: tuple[np.ndarray, np.ndarray]) -> list[float]:
    """Accuracies of retain, forget, val, test and of groups, then the attack on outputs that are predicted once more."""
    found = [accuracy(model, loader(x[index], y[index])) for index in (*parts.values(), *groups)]
    found.append(accuracy(model, loader(*test)))
    first = parts["retain"][: len(test[1])]
    member, nonmember, target = (features(*probabilities(model, loader(*part)))
                                 for part in ((x[first], y[first]), test, (x[parts["forget"]], y[parts["forget"]])))
    return [*found, *attack(target, member, nonmember)]


# -------------------------------------------------------------------------------------------------------------- weights


def saliency_mask(model: nn.Module, batches: Batches, share: float) -> dict[str, Tensor]:
    """|sum of the batches' gradients|, all of it sorted for one threshold, as the released SalUn code does."""
    model.eval()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, y in moved(batches, model):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        for name, p in model.named_parameters():
            total[name] += p.grad.data
    sizes = {name: value.abs() for name, value in total.items()}
    every = -torch.cat([value.flatten() for value in sizes.values()])
    ranks = torch.argsort(torch.argsort(every))
    kept = int(len(every) * share)
    mask, start = {}, 0
    for name, value in sizes.items():
        mask[name] = (ranks[start : start + value.numel()] < kept).float().reshape(value.shape)
        start += value.numel()
    return mask


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def synflow(model: nn.Module, share: float, rounds: int) -> list[Tensor]:
    """Masks of the convolutions after rounds of full sorts over all scores, in double precision, as published."""
    net = copy.deepcopy(model).double().eval()
    for value in (*net.parameters(), *net.buffers()):
        value.data.abs_()
    layers = convolutions(net)
    masks = [torch.ones_like(layer.weight) for layer in layers]
    left = sum(mask.numel() for mask in masks)
    image = torch.ones(1, 3, 32, 32, dtype=torch.float64, device=layers[0].weight.device)
    for _ in range(rounds):
        net.zero_grad()
        net(image).sum().backward()
        scores = [(layer.weight.grad * layer.weight).detach().abs() for layer in layers]
        left -= round((1 - share ** (1 / rounds)) * left)
        every = torch.cat([score[mask > 0] for score, mask in zip(scores, masks, strict=True)])
        threshold = every.sort(descending=True).values[left - 1]
        for layer, score, mask in zip(layers, scores, masks, strict=True):
            mask *= (score >= threshold).to(mask.dtype)
            layer.weight.data *= mask
    return masks


def prune_globally(model: nn.Module, rate: float) -> None:
    """torch's global magnitude pruning of all convolutions, which computes a product with the mask in every forward pass."""
    from torch.nn.utils import prune

    prune.global_unstructured([(layer, "weight") for layer in convolutions(model)], prune.L1Unstructured, amount=rate)


def make_permanent(model: nn.Module) -> None:
    """Pruned weights as zeros of the weights themselves, no mask beside them."""
    from torch.nn.utils import prune

    for layer in convolutions(model):
        prune.remove(layer, "weight")


# --------------------------------------------------------------------------------------------------------- distribution


def distribution(points: np.ndarray, labels: np.ndarray, forgotten: int) -> dict[str, float]:
    """Variance, silhouette and overlap of the forgotten points by scikit-learn and scipy.

    Silhouettes are those of all points, of which the forgotten ones are read; the overlap is in the plane of the linear
    discriminant and the first principal component of what it leaves, on a grid of 200 x 200.
    """
    from scipy.stats import gaussian_kde
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.metrics import silhouette_samples

    gone = labels == forgotten
    found = {"variance": float(((points[gone] - points[gone].mean(0)) ** 2).sum(1).mean()),
             "silhouette_all": float(silhouette_samples(points, labels)[gone].mean())}
    first = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto").fit(points, gone).coef_[0]
    first = first / np.linalg.norm(first)
    rest = points - np.outer(points @ first, first)
    plane = np.stack([points @ first, PCA(1).fit_transform(rest)[:, 0]])
    axes = [np.linspace(row.min(), row.max(), 200) for row in plane]
    grid = np.stack(np.meshgrid(*axes)).reshape(2, -1)
    smaller = np.minimum(gaussian_kde(plane[:, gone])(grid), gaussian_kde(plane[:, ~gone])(grid))
    return found | {"overlap": float(smaller.sum() * np.prod([axis[1] - axis[0] for axis in axes]))}


# ---------------------------------------------------------------------------------------------------------------- pools


def one_of_a_pool(model: nn.Module, x: np.ndarray, y: np.ndarray, test: tuple[np.ndarray, np.ndarray], subset: np.ndarray,
                  epochs: int, batch_size: int) -> Any:
    """Train on a subset and predict all images, as a loop over models does; the loader transforms one image at a time."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    batches = DataLoader(PilImages(x[subset], y[subset], EVAL), batch_size, shuffle=True)
    for _ in range(epochs):
        train_epoch(model, batches, optimizer)
    return probabilities(model, loader(x, y)), probabilities(model, loader(*test))
