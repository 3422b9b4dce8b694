"""Membership inference on stored outputs: which examples would an attacker say the model was trained on?

The attack is fitted on retain (members) against test (non-members) and asked about the forget set. The share of the
forget set it calls non-member is the "MIA efficacy" of the unlearning papers; healthy is a value close to the retrained
model's, neither high nor low in itself. Its balanced accuracy on examples it was not fitted on ("privacy") says how
much the model leaks at all: 0.5 is nothing.

Everything is computed from logits in float64. scikit-learn is imported where it is used.

Shapes: N examples, K classes, p the softmax of the logits z, y the label.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation import svc
from utils import BadInput

FEATURES = ("correctness", "confidence", "entropy", "m_entropy", "prob")
LARGER_IS_MEMBER = {
    "correctness": True,
    "confidence": True,
    "entropy": False,
    "m_entropy": False,
    # what the published code computes grows with confidence once all classes occur among the labels
    "m_entropy_published": True,
}
RULES = ("threshold", "interval", "svc")
MODES = ("balanced", "published")


@dataclass(frozen=True)
class Outputs:
    """A model's outputs on one part of the data: logits float32 [N, K], labels int64 [N]."""

    logits: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        assert self.logits.ndim == 2 and self.labels.shape == self.logits.shape[:1], (
            f"logits {tuple(self.logits.shape)} and labels {tuple(self.labels.shape)} do not belong together"
        )

    def take(self, index: np.ndarray) -> Outputs:
        """The outputs of some examples, in the order of ``index`` (int64 [M])."""
        rows = torch.from_numpy(index).to(self.labels.device)
        return Outputs(self.logits[rows], self.labels[rows])


# ---------------------------------------------------------------------------------------------------------- features


def features(outputs: Outputs) -> dict[str, Tensor]:
    """The five features of the attack, in float64: four [N] and ``prob`` [N, K].

    An example's values depend on its own logits alone, and stay finite where the softmax saturates.

    - correctness: 1 where the prediction is right, else 0
    - confidence: p_y, 0 to 1
    - entropy: -Σ p_k log p_k in nats, 0 to log K
    - m_entropy: -(1 - p_y) log p_y - Σ_{k≠y} p_k log(1 - p_k) in nats, 0 or more, without upper end
      (Song and Mittal, USENIX Security 2021; the released attacks compute ``published_m_entropy``)
    - prob: p

    Raises:
        BadInput: a logit is NaN or infinite.
    """
    logits, label = _checked(outputs)
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    log_rest = _log_rest(logits, log_p)
    own = torch.zeros_like(p, dtype=torch.bool).scatter_(1, label, True)
    terms = torch.where(own, log_rest.exp() * log_p, p * log_rest)
    return {
        "correctness": (logits.argmax(1, keepdim=True) == label).squeeze(1).double(),
        "confidence": p.gather(1, label).squeeze(1),
        "entropy": -(p * log_p).sum(1),
        "m_entropy": -terms.sum(1),
        "prob": p,
    }


def margin(outputs: Outputs) -> Tensor:
    """φ = z_y - log Σ_{k≠y} exp z_k = log p_y - log(1 - p_y), float64 [N]; what LiRA calls the scaled confidence.

    Source: Carlini et al., IEEE S&P 2022, arXiv:2112.03570.

    Raises:
        BadInput: a logit is NaN or infinite.
    """
    logits, label = _checked(outputs)
    others = logits.scatter(1, label, -torch.inf).logsumexp(1)
    return logits.gather(1, label).squeeze(1) - others


def _checked(outputs: Outputs) -> tuple[Tensor, Tensor]:
    if not torch.isfinite(outputs.logits).all():
        raise BadInput("the model's outputs hold NaN or infinite values; it has diverged, train it with a lower rate")
    assert outputs.logits.shape[1] > 1, "one class leaves nothing to be attacked"
    return outputs.logits.double(), outputs.labels[:, None]


def _log_rest(logits: Tensor, log_p: Tensor) -> Tensor:
    """log(1 - p), float64 [N, K]: where p is near 1 the difference is lost, so there the other classes are summed."""
    top = logits.argmax(1, keepdim=True)
    of_top = log_p.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True)
    # no other class exceeds 1/2; the top one is set aside first so that log1p never meets -1
    return torch.log1p(-log_p.exp().scatter(1, top, 0.0)).scatter(1, top, of_top)


def published_m_entropy(probs: Tensor, labels: Tensor) -> Tensor:
    """What the released SVC_MIA code computes under the name of modified entropy; [N], for comparison only.

    It departs from the definition twice. Its log(1 - p) is log p, and it assigns through ``[:, labels]``, which swaps
    p for 1 - p in every column whose class occurs anywhere in the batch: the value is -Σ_{k occurs} (1 - p_k) log p_k
    - Σ_{k does not} p_k log p_k, with log 1e-30 where p_k is 0. It ignores the example's own label and changes with its
    neighbours. Time and memory are O(N K) here, O(N²) there.

    Args:
        probs: [N, K]; the released code has the float32 softmax.
        labels: int64 [N], of the whole batch.
    """
    occurs = torch.zeros(probs.shape[1], dtype=torch.bool, device=probs.device)
    occurs[labels] = True
    log_p = torch.where(probs > 0, probs.log(), probs.new_tensor(1e-30).log())
    return -(torch.where(occurs, 1 - probs, probs) * log_p).sum(1)


# ------------------------------------------------------------------------------------------ members and non-members


def balanced_draw(
    member_labels: np.ndarray, nonmember_labels: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of members and non-members with equally many of every class on both sides, as many as there are.

    A class that one side lacks is left out. Position i holds the same class in both, classes one after the other and
    random within a class, so that ``halves`` splits each class.

    Args:
        member_labels, nonmember_labels: int64 [N], [M].

    Raises:
        BadInput: no class occurs on both sides.
    """
    sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for label in np.intersect1d(member_labels, nonmember_labels):
        of_class = [np.flatnonzero(labels == label) for labels in (member_labels, nonmember_labels)]
        size = min(len(index) for index in of_class)
        for side, index in zip(sides, of_class, strict=True):
            side.append(generator.permutation(index)[:size])
    if not sides[0]:
        raise BadInput(
            f"no class occurs in both the {len(member_labels)} retain and the {len(nonmember_labels)} test examples; "
            "the membership attack needs some of both"
        )
    return np.concatenate(sides[0]), np.concatenate(sides[1])


def halves(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every other entry to fit with, the rest held out; of a balanced draw, half of every class (give or take one)."""
    return index[0::2], index[1::2]


def published_draw(num_retain: int, num_test: int) -> tuple[np.ndarray, np.ndarray]:
    """The released code's choice: the first |test| retain examples in data set order, and the whole test set.

    Where retain is smaller than test the released code fails; here both sides are then cut to their first |retain|.

    Raises:
        BadInput: one side is empty.
    """
    size = min(num_retain, num_test)
    if size == 0:
        raise BadInput(f"the membership attack needs retain and test examples; got {num_retain} and {num_test}")
    return np.arange(size), np.arange(size)


# ------------------------------------------------------------------------------------------------------------- rules


def best_threshold(member_values: np.ndarray, nonmember_values: np.ndarray, larger_is_member: bool) -> float:
    """The threshold with the best balanced accuracy; exact, by one sort.

    An example is called a member where value >= threshold (larger_is_member) or value <= threshold. Thresholds lie
    midway between neighbouring distinct values, or at ±inf: all or none are members. Of equally good ones it is that
    which calls most examples members, so that a tie never counts as forgetting.

    Args:
        member_values, nonmember_values: float [N], [M], none NaN.
    """
    if not larger_is_member:
        return -best_threshold(-member_values, -nonmember_values, True)
    cuts, gain = _cumulated_gain(member_values, nonmember_values)
    # members are what lies above the cut: the less gained below it the better; argmin takes the lowest of equals
    return float(cuts[np.argmin(gain)])


@dataclass(frozen=True)
class Interval:
    """The half-open interval low <= value < high, and whether the members are inside it or outside."""

    low: float
    high: float
    members_inside: bool

    def decide(self, values: np.ndarray) -> np.ndarray:
        """Whether each value is called a member: bool [N]."""
        return ((values >= self.low) & (values < self.high)) == self.members_inside


def best_interval(member_values: np.ndarray, nonmember_values: np.ndarray) -> Interval:
    """The interval with the best balanced accuracy, its inside either members or non-members; exact, by one sort.

    Of all intervals the one with the largest sum of gains (maximum subarray). Ends lie midway between neighbouring
    distinct values or at ±inf. Of equally good ones: members inside, then the lowest upper end, then the widest.

    Args:
        member_values, nonmember_values: float [N], [M], none NaN.
    """
    cuts, gain = _cumulated_gain(member_values, nonmember_values)
    inside = _best_span(gain)
    outside = _best_span(-gain)
    members_inside = gain[inside[1]] - gain[inside[0]] >= gain[outside[0]] - gain[outside[1]]
    start, stop = inside if members_inside else outside
    if start == stop:
        return Interval(-np.inf, np.inf, True)  # nothing gains: call all members
    return Interval(float(cuts[start]), float(cuts[stop]), bool(members_inside))


def _cumulated_gain(member_values: np.ndarray, nonmember_values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All cuts between distinct values [C], and the gain of what lies below each [C].

    A member below a cut counts +M, a non-member -N: integers in proportion to their share of the balanced accuracy, so
    that equals are equal.
    """
    count_m, count_n = len(member_values), len(nonmember_values)
    assert count_m and count_n, "an attack needs members and non-members"
    values, group = np.unique(np.concatenate([member_values, nonmember_values]), return_inverse=True)
    assert not np.isnan(values[-1]), "a feature is NaN"
    of_value = np.bincount(group[:count_m], minlength=len(values)) * count_n
    of_value = of_value - np.bincount(group[count_m:], minlength=len(values)) * count_m
    between = values[:-1] / 2 + values[1:] / 2
    # of adjacent floats the middle rounds to one of them; the cut must lie above the lower
    between = np.where(between > values[:-1], between, values[1:])
    return np.concatenate([[-np.inf], between, [np.inf]]), np.concatenate([[0], np.cumsum(of_value)])


def _best_span(gain: np.ndarray) -> tuple[int, int]:
    """Positions start <= stop with the largest gain[stop] - gain[start]."""
    stop = int(np.argmax(gain - np.minimum.accumulate(gain)))
    return int(np.argmin(gain[: stop + 1])), stop


def area_under_curve(member_values: np.ndarray, nonmember_values: np.ndarray) -> float:
    """ROC AUC: the chance that a member's value exceeds a non-member's, ties counted half; 0 to 1."""
    ordered = np.sort(nonmember_values)
    below = np.searchsorted(ordered, member_values, "left") + np.searchsorted(ordered, member_values, "right")
    return float(below.mean() / (2 * len(ordered)))


# ------------------------------------------------------------------------------------------------------------ attack


def membership(
    retain: Outputs, test: Outputs, forget: Outputs, *, rule: str, mode: str, generator: np.random.Generator
) -> dict[str, Any]:
    """Five attacks, one a feature, fitted on retain against test and asked about the forget set.

    Args:
        rule: for the four one-dimensional features the exact best ``threshold`` or ``interval``, and a logistic
            regression for ``prob``; or ``svc``, the published support vector machine for all five.
        mode: ``balanced`` draws retain and test class by class, fits on one half and scores privacy on the other.
            ``published`` fits on the first |test| retain examples and the whole test set, scores privacy by a second
            fit on the first halves, and adds the feature ``m_entropy_published``.
        generator: of the balanced draw; unused in mode ``published``.

    Returns:
        forget: feature -> share of the forget set called NON-member, 0 to 1; closer to the retrained model's is better.
            ``confidence`` is the headline.
        privacy: feature -> balanced accuracy of the attack on examples it was not fitted on; 0.5 is no leak.
        auc: one-dimensional feature -> ROC AUC on the same examples, in the direction "member"; 0.5 is no leak.
        members: how many members the attacks on the forget set were fitted on (and as many non-members).
        solver: with rule ``svc``, feature -> how the fit was solved (``svc.SvcAttack.solver``).

    Raises:
        BadInput: an unknown rule or mode, an empty forget set, too few examples, or logits that are not finite.
    """
    for name, value, known in (("rule", rule, RULES), ("mode", mode, MODES)):
        if value not in known:
            raise BadInput(f"unknown {name} {value!r} of the membership attack; known: {', '.join(known)}")
    if len(forget.labels) == 0:
        raise BadInput("the forget set is empty; the membership attack has nothing to ask about")
    published = mode == "published"
    fit, privacy_fit, held_out = _draws(retain.labels, test.labels, published, generator)
    values = [
        tuple(_values(part.take(index), published) for part, index in zip((retain, test), draw, strict=True))
        for draw in (fit, privacy_fit, held_out)
    ]
    return _attack(values, _values(forget, published), rule)


def nonmembers(retain: Outputs, test: Outputs, forget: Outputs, *, rule: str, mode: str, generator: np.random.Generator,
               feature: str = "confidence") -> np.ndarray:
    """Which forget examples the attack on one feature calls non-members, bool [N]; arguments as of ``membership``.

    The fit is that of ``membership``, so that the share of them over any part of the forget set is what ``membership`` would
    say of that part alone (``m_entropy_published`` aside, which depends on the whole batch).
    """
    published = mode == "published"
    fit = _draws(retain.labels, test.labels, published, generator)[0]
    sides = [_values(part.take(index), published)[feature] for part, index in zip((retain, test), fit, strict=True)]
    return ~_fit(rule, feature, *sides)[0](_values(forget, published)[feature]).astype(bool)


def check_labels(retain: Tensor, test: Tensor, mode: str) -> None:
    """Refuse, before a model is trained, labels (int64 [N]) of which no members and non-members can be drawn.

    Raises:
        BadInput: as ``membership`` would, later.
    """
    _draws(retain, test, mode == "published", np.random.default_rng(0))


def _draws(
    retain: Tensor, test: Tensor, published: bool, generator: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """From the labels: (member index, non-member index) to fit on, to fit on for privacy, and held out for privacy."""
    if published:
        fit = published_draw(len(retain), len(test))
        size = len(fit[0]) // 2
        privacy_fit = np.arange(size), np.arange(size)
        held_out = np.arange(size, len(retain)), np.arange(size, len(test))
    else:
        drawn = balanced_draw(retain.cpu().numpy(), test.cpu().numpy(), generator)
        (fit_m, held_m), (fit_n, held_n) = (halves(index) for index in drawn)
        fit, privacy_fit, held_out = (fit_m, fit_n), (fit_m, fit_n), (held_m, held_n)
    if min(len(index) for index in (*privacy_fit, *held_out)) == 0:
        raise BadInput("the membership attack needs two retain and two test examples of the same classes at least")
    return [fit, privacy_fit, held_out]


def _values(outputs: Outputs, published: bool) -> dict[str, np.ndarray]:
    values = features(outputs)
    if published:
        # per set as it is handed over, and in float32, where small probabilities vanish: both as released
        values["m_entropy_published"] = published_m_entropy(outputs.logits.float().softmax(1), outputs.labels).double()
    return {name: value.cpu().numpy() for name, value in values.items()}


def _attack(values: list[tuple[dict, ...]], forget: dict[str, np.ndarray], rule: str) -> dict[str, Any]:
    result: dict[str, Any] = {"forget": {}, "privacy": {}, "auc": {}, "members": len(values[0][0]["confidence"])}
    for name in forget:
        fit, privacy_fit, held_out = (tuple(side[name] for side in sides) for sides in values)
        decide, solver = _fit(rule, name, *fit)
        decide_privacy, privacy_solver = (decide, solver) if values[0] is values[1] else _fit(rule, name, *privacy_fit)
        result["forget"][name] = float(1 - decide(forget[name]).mean())
        found, spared = decide_privacy(held_out[0]).mean(), 1 - decide_privacy(held_out[1]).mean()
        result["privacy"][name] = float(found + spared) / 2
        if name in LARGER_IS_MEMBER:
            sign = 1 if LARGER_IS_MEMBER[name] else -1
            result["auc"][name] = area_under_curve(sign * held_out[0], sign * held_out[1])
        if rule == "svc":
            result.setdefault("solver", {})[name] = ", ".join(dict.fromkeys((solver, privacy_solver)))
    return result


def _fit(
    rule: str, name: str, members: np.ndarray, nonmembers: np.ndarray
) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """The decision (values -> bool, True = member) and what solved it."""
    if rule == "svc" or name == "prob":
        rows = np.concatenate([members, nonmembers])
        member = np.arange(len(rows)) < len(members)
        if rule == "svc":
            attack = svc.fit(rows, member)
            return attack.decide, attack.solver
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(max_iter=1000).fit(rows, member).predict, "logistic regression"
    if rule == "interval":
        return best_interval(members, nonmembers).decide, "exact"
    larger = LARGER_IS_MEMBER[name]
    threshold = best_threshold(members, nonmembers, larger)
    return (lambda values: values >= threshold if larger else values <= threshold), "exact"
