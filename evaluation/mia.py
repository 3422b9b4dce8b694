"""Membership inference on stored outputs: which examples would an attacker say the model was trained on?

The attack is fitted on retain (members) against test (non-members) and asked about the forget set. The share of the
forget set it calls non-member is the "MIA efficacy" of the unlearning papers; healthy is a value close to the retrained
model's, neither high nor low in itself. Its balanced accuracy on examples it was not fitted on ("privacy") says how
much the model leaks at all: 0.5 is nothing.

Which examples of retain and test are drawn moves the threshold, and with it the share by many points. So every number is
a mean over draws, and its Monte-Carlo error stands beside it.

Everything is computed from logits in float64. scikit-learn is imported where it is used.

Shapes: N examples, K classes, D draws, p the softmax of the logits z, y the label.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evaluation import rules, svc
from evaluation.draws import MODES, Draws, Sides, draws
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
DRAWS, FITS = 100, 10  # draws of what is solved exactly, and of what is fitted by iteration
AT_ONCE = 2**17  # numbers in an array of draws times values, which stays in the cache; more draws come part by part


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


# ------------------------------------------------------------------------------------------------------------ attack


class Result(NamedTuple):
    """One feature's attack over D draws.

    forget, privacy: [D], the share of the forget set called NON-member, and the balanced accuracy on held-out examples.
    auc: [D], or None where the feature has no order. solver: what solved the fits.
    """

    forget: np.ndarray
    privacy: np.ndarray
    auc: np.ndarray | None
    solver: str


def membership(
    retain: Outputs, test: Outputs, forget: Outputs, *, rule: str, mode: str, generator: np.random.Generator,
    count: int = DRAWS, fits: int = FITS,
) -> dict[str, Any]:
    """Five attacks, one a feature, fitted on retain against test and asked about the forget set.

    Args:
        rule: for the four one-dimensional features the exact best ``threshold`` or ``interval``, and a logistic
            regression for ``prob``; or ``svc``, the published support vector machine for all five.
        mode: ``balanced`` draws retain and test class by class; the attack on the forget set is fitted on all of a draw,
            that for privacy on one half and asked about the other. ``published`` fits on the first |test| retain examples
            and the whole test set, scores privacy by a second fit on the first halves, and adds the feature
            ``m_entropy_published``.
        generator: of the balanced draws; unused in mode ``published``, which has one.
        count: draws of the exact rules; fits: of the logistic regression and of the support vector machine, which take an
            iterative fit a draw: the first ones of the same draws, never more than ``count``.

    Returns:
        forget: feature -> share of the forget set called NON-member, 0 to 1; closer to the retrained model's is better.
            ``confidence`` is the headline.
        privacy: feature -> balanced accuracy of the attack on examples it was not fitted on; 0.5 is no leak.
        auc: one-dimensional feature -> ROC AUC on the same examples, in the direction "member"; 0.5 is no leak.
        draws: feature -> how many draws these are means over.
        error: for each of ``forget``, ``privacy`` and ``auc``, feature -> Monte-Carlo standard error of the mean over draws,
            0 to 1; None of a single draw.
        members: how many members the attacks on the forget set were fitted on (and as many non-members).
        solver: with rule ``svc``, feature -> how the fits were solved (``svc.SvcAttack.solver``).

    Raises:
        BadInput: an unknown rule or mode, an empty forget set, too few examples, or logits that are not finite.
    """
    pools, drawn = _drawn(retain, test, forget, rule, mode, generator, count)
    asked = _values(forget, mode == "published")
    found: dict[str, Any] = {"forget": {}, "privacy": {}, "auc": {}, "draws": {}, "members": drawn.fit[0].shape[1]}
    found["error"] = {name: {} for name in ("forget", "privacy", "auc")}
    for name, values in asked.items():
        result = _attack(_Attack(rule, name, *(pool[name] for pool in pools)), values, _of(drawn, rule, name, fits))
        found["draws"][name] = len(result.forget)
        for kind, over in (("forget", result.forget), ("privacy", result.privacy), ("auc", result.auc)):
            if over is not None:
                found[kind][name], found["error"][kind][name] = float(over.mean()), _error(over)
        if rule == "svc":
            found.setdefault("solver", {})[name] = result.solver
    return found


def nonmembers(
    retain: Outputs, test: Outputs, forget: Outputs, *, rule: str, mode: str, generator: np.random.Generator,
    count: int = DRAWS, fits: int = FITS, feature: str = "confidence",
) -> np.ndarray:
    """The share of draws in which the attack on one feature calls each forget example a non-member, float64 [N], 0 to 1.

    Arguments are as of ``membership``, and so are the fits: the mean over any part of the forget set is what ``membership``
    would say of that part alone (``m_entropy_published`` aside, which depends on the whole batch).
    """
    pools, drawn = _drawn(retain, test, forget, rule, mode, generator, count)
    drawn = _of(drawn, rule, feature, fits)
    attack = _Attack(rule, feature, *(pool[feature] for pool in pools))
    values = _values(forget, mode == "published")[feature]
    called = [(~attack.fit(part.fit)[0](values)).sum(0) for part in drawn.parts(attack.at_once(values))]
    return np.sum(called, axis=0) / len(drawn)


def check_labels(retain: Tensor, test: Tensor, mode: str) -> None:
    """Refuse, before a model is trained, labels (int64 [N]) of which no members and non-members can be drawn.

    Raises:
        BadInput: as ``membership`` would, later.
    """
    draws(retain.cpu().numpy(), test.cpu().numpy(), mode, 1, np.random.default_rng(0))


Values = Mapping[str, np.ndarray]


def _drawn(
    retain: Outputs, test: Outputs, forget: Outputs, rule: str, mode: str, generator: np.random.Generator, count: int
) -> tuple[tuple[Values, Values], Draws]:
    """The features of all that is drawn from, of members and of non-members, and the draws: indices of them."""
    for name, value, known in (("rule", rule, RULES), ("mode", mode, MODES)):
        if value not in known:
            raise BadInput(f"unknown {name} {value!r} of the membership attack; known: {', '.join(known)}")
    if len(forget.labels) == 0:
        raise BadInput("the forget set is empty; the membership attack has nothing to ask about")
    drawn = draws(retain.labels.cpu().numpy(), test.labels.cpu().numpy(), mode, count, generator)
    if mode == "balanced":
        return (_values(retain, False), _values(test, False)), drawn
    # the published modified entropy is that of a batch: each set's own, one set behind another
    pools, sides = [], []
    for side, part in enumerate((retain, test)):
        sets = [pair[side][0] for pair in drawn]
        values = [_values(part.take(index), True) for index in sets]
        pools.append({name: np.concatenate([value[name] for value in values]) for name in values[0]})
        ends = np.cumsum([len(index) for index in sets])
        sides.append([np.arange(end - len(index), end)[None] for end, index in zip(ends, sets, strict=True)])
    return (pools[0], pools[1]), Draws(*zip(*sides, strict=True))


def _values(outputs: Outputs, published: bool) -> dict[str, np.ndarray]:
    """The features in float64; one-dimensional ones turned so that larger values speak for a member."""
    values = features(outputs)
    if published:
        # per set as it is handed over, and in float32, where small probabilities vanish: both as released
        values["m_entropy_published"] = published_m_entropy(outputs.logits.float().softmax(1), outputs.labels).double()
    return {name: (value if LARGER_IS_MEMBER.get(name, True) else -value).cpu().numpy() for name, value in values.items()}


def _of(drawn: Draws, rule: str, name: str, fits: int) -> Draws:
    """The draws of one feature."""
    return drawn.take(slice(fits)) if rule == "svc" or name == "prob" else drawn


def _error(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def _attack(attack: _Attack, asked: np.ndarray, drawn: Draws) -> Result:
    """One feature's attack on the values of the forget set."""
    found, solvers = [], []
    for part in drawn.parts(attack.at_once(asked)):
        (decide, solver), (decide_held_out, other) = attack.fit(part.fit), attack.fit(part.privacy)
        members, others = (values[index] for values, index in zip(attack.pools, part.held_out, strict=True))
        success = (decide_held_out(members).mean(1) + 1 - decide_held_out(others).mean(1)) / 2
        auc = rules.areas(*attack.counts(part.held_out)) if attack.name in LARGER_IS_MEMBER else None
        found.append((1 - decide(asked).mean(1), success, auc))
        solvers += [*solver, *other]
    forget, privacy, auc = zip(*found, strict=True)
    return Result(np.concatenate(forget), np.concatenate(privacy), None if auc[0] is None else np.concatenate(auc),
                  ", ".join(dict.fromkeys(solvers)))


# what is asked about, [M] or [M, K] the same for all draws or [D, M] or [D, M, K], to bool [D, M]: a member?
Decide = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class _Attack:
    """A rule on one feature, and the values that members and non-members are drawn from: [N] or [N, K]."""

    rule: str
    name: str
    members: np.ndarray
    others: np.ndarray

    @property
    def pools(self) -> Sides:
        return self.members, self.others

    @functools.cached_property
    def grid(self) -> tuple[np.ndarray, Sides]:
        """The distinct values of both pools in order [U], and where those of each are among them."""
        values, place = np.unique(np.concatenate(self.pools), return_inverse=True)
        return values, (place[: len(self.members)], place[len(self.members) :])

    def at_once(self, asked: np.ndarray) -> int:
        """How many draws are taken together, of which AT_ONCE numbers are one array."""
        return max(1, AT_ONCE // max(self.members.size + self.others.size, asked.size))

    def counts(self, index: Sides) -> Sides:
        values, places = self.grid
        return tuple(rules.counts(place, side, len(values)) for place, side in zip(places, index, strict=True))

    def fit(self, index: Sides) -> tuple[Decide, list[str]]:
        """The decision after a fit on the draws ``index``, and what solved each."""
        if self.rule == "svc" or self.name == "prob":
            fits = [self._iterated(*draw) for draw in zip(*index, strict=True)]
            return (lambda asked: np.stack([
                fit(asked if asked.ndim == self.members.ndim else asked[draw]) for draw, (fit, _) in enumerate(fits)
            ])), [solver for _, solver in fits]
        best = rules.best_intervals if self.rule == "interval" else rules.best_thresholds
        return best(self.grid[0], *self.counts(index)).decide, ["exact"]

    def _iterated(self, members: np.ndarray, others: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
        """A support vector machine or a logistic regression, fitted on one draw."""
        rows = np.concatenate([self.members[members], self.others[others]])
        member = np.arange(len(rows)) < len(members)
        if self.rule == "svc":
            attack = svc.fit(rows, member)
            return attack.decide, attack.solver
        from sklearn.linear_model import LogisticRegression

        # the exact minimum: the default solver stops where hardly anything can be learnt, which is the usual case
        return LogisticRegression(solver="newton-cholesky", tol=1e-8).fit(rows, member).predict, "logistic regression"
