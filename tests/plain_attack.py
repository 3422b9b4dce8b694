"""Outputs of made-up models, and the membership attack the slow way: draw by draw, every threshold tried."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.svm import SVC

from evaluation.mia import LARGER_IS_MEMBER, Outputs, features


def random_outputs(
    count: int, classes: int, seed: int, boost: float = 2.0, labels: np.ndarray | None = None
) -> Outputs:
    """Outputs of a model that adds ``boost`` on average to the right logit."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count) if labels is None else labels
    logits = random.normal(0, 2, (len(labels), classes))
    logits[np.arange(len(labels)), labels] += random.gamma(2.0, boost / 2, len(labels))
    return Outputs(torch.tensor(logits, dtype=torch.float32), torch.tensor(labels))


def balanced_accuracy(member_called: np.ndarray, nonmember_called: np.ndarray) -> float:
    return (member_called.mean() + 1 - nonmember_called.mean()) / 2


def cuts(*sides: np.ndarray) -> list[float]:
    """Midway between neighbouring distinct values, and beyond both ends."""
    values = sorted(set(np.concatenate(sides)))
    return [-math.inf, *((a + b) / 2 for a, b in itertools.pairwise(values)), math.inf]


def threshold(members: np.ndarray, others: np.ndarray) -> float:
    """The lowest of the best cuts; members are the values not below it. Shares are compared as whole numbers."""
    def score(cut: float) -> int:
        return int((members >= cut).sum()) * len(others) - int((others >= cut).sum()) * len(members)

    return max(cuts(members, others), key=lambda cut: (score(cut), -cut))


def draws(members: np.ndarray, others: np.ndarray, count: int, generator: np.random.Generator) -> list[list[np.ndarray]]:
    """For each draw the indices of members and of non-members, of labels [N] and [M]: class by class, as many as there are.

    As the suite draws them: one permutation a side, and of each class its first ones.
    """
    found = []
    for _ in range(count):
        both = []
        for mine, theirs in ((members, others), (others, members)):
            order = generator.permutation(np.flatnonzero(np.isin(mine, theirs)))
            both.append(np.array([i for label in np.unique(mine[order]) for i in
                                  order[mine[order] == label][: min((mine == label).sum(), (theirs == label).sum())]]))
        found.append(both)
    return found


def decide(rule: str, name: str, members: np.ndarray, others: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Whether each of the values asked about is called a member, after a fit on members and others."""
    if rule == "threshold" and name != "prob":
        sign = 1 if LARGER_IS_MEMBER[name] else -1
        return sign * asked >= threshold(sign * members, sign * others)
    rows, asked = (x.reshape(len(x), -1) for x in (np.concatenate([members, others]), asked))
    machine = SVC(C=3, gamma="auto") if rule == "svc" else LogisticRegression(solver="newton-cholesky", tol=1e-8)
    return machine.fit(rows, np.repeat([True, False], [len(members), len(others)])).predict(asked)


def membership(
    retain: Outputs, test: Outputs, forget: Outputs, count: int, seed: int, rule: str = "threshold",
    names: tuple[str, ...] = ("confidence",),
) -> dict[str, dict[str, np.ndarray]]:
    """forget, privacy and auc of each draw, and ``called``, draws times examples: NON-member?"""
    values = [{k: v.numpy() for k, v in features(part).items()} for part in (retain, test, forget)]
    found = {kind: {name: [] for name in names} for kind in ("forget", "privacy", "auc", "called")}
    for a, b in draws(retain.labels.numpy(), test.labels.numpy(), count, np.random.default_rng(seed)):
        for name in names:
            members, others, asked = (side[name] for side in values)
            called = ~decide(rule, name, members[a], others[b], asked)
            found["called"][name].append(called)
            found["forget"][name].append(called.mean())
            held = members[a[1::2]], others[b[1::2]]
            answers = [decide(rule, name, members[a[0::2]], others[b[0::2]], side) for side in held]
            found["privacy"][name].append(balanced_accuracy(*answers))
            if name in LARGER_IS_MEMBER:
                truth = np.repeat([LARGER_IS_MEMBER[name], not LARGER_IS_MEMBER[name]], [len(side) for side in held])
                found["auc"][name].append(roc_auc_score(truth, np.concatenate(held)))
    return {kind: {name: np.array(lists) for name, lists in of.items()} for kind, of in found.items()}
