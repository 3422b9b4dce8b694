"""Distance to the retrained model, as pure functions of tensors and floats.

Accuracies are shares, 0 to 1, except where a function says that any unit will do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from utils import BadInput

Measure = Callable[[Mapping[str, float], Mapping[str, float]], float]


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of examples whose largest logit is the label's, 0 to 1.

    Args:
        logits: float [N, K].
        labels: int64 [N].

    Raises:
        BadInput: no examples, or a logit is NaN.
    """
    return (_predictions(logits) == labels).double().mean().item()


def disagreement(logits_a: Tensor, logits_b: Tensor) -> float:
    """Share of the same examples for which two models predict different classes, 0 to 1.

    Args:
        logits_a, logits_b: float [N, K], row i of both belonging to one example.

    Raises:
        BadInput: no examples, or a logit is NaN.
    """
    assert logits_a.shape == logits_b.shape, f"{tuple(logits_a.shape)} against {tuple(logits_b.shape)}"
    return (_predictions(logits_a) != _predictions(logits_b)).double().mean().item()


def _predictions(logits: Tensor) -> Tensor:
    if len(logits) == 0:
        raise BadInput("no examples to take the accuracy of; the part is empty")
    if logits.isnan().any():
        raise BadInput("the model's outputs hold NaN; it has diverged, train it with a lower rate")
    return logits.argmax(1)


def tow(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """Tug of war: the product of 1 - |difference in accuracy| over forget, retain and test; 0 to 1, 1 is best.

    Source: Zhao et al., NeurIPS 2024, arXiv:2406.01257.

    Args:
        unlearned, retrained: accuracies as shares under ``forget``, ``retain`` and ``test``; other keys are ignored.

    Raises:
        BadInput: an accuracy is missing, NaN, or outside 0 to 1 (given in percent, most likely).
    """
    return _product(unlearned, retrained, ("forget", "retain", "test"))


def tow_mia(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """As ``tow``, with the share of the forget set called non-member (``mia``, 0 to 1) in place of its accuracy."""
    return _product(unlearned, retrained, ("mia", "retain", "test"))


def noise_floor(retrained: Sequence[Mapping[str, float]], measure: Measure = tow) -> list[float]:
    """``measure`` (``tow`` or ``tow_mia``) of every unordered pair of retrained models: what chance alone costs.

    Empty for fewer than two models. The values share models, so that an interval over them would be too narrow.
    """
    return [measure(first, second) for first, second in itertools.combinations(retrained, 2)]


def average_gap(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """Mean |difference| over ``UA``, ``RA``, ``TA`` and ``MIA``, in the unit they are given in; 0 is best.

    Source: "Disparity Ave." of Jia et al., NeurIPS 2023, arXiv:2304.04934; "Avg. Gap" of Fan et al., ICLR 2024,
    arXiv:2310.12508.

    Raises:
        BadInput: an entry is missing or NaN.
    """
    names = ("UA", "RA", "TA", "MIA")
    return math.fsum(abs(_entry(unlearned, name) - _entry(retrained, name)) for name in names) / len(names)


def _product(unlearned: Mapping[str, float], retrained: Mapping[str, float], names: tuple[str, ...]) -> float:
    return math.prod(1 - abs(_share(unlearned, name) - _share(retrained, name)) for name in names)


def _share(metrics: Mapping[str, float], name: str) -> float:
    value = _entry(metrics, name)
    if not 0 <= value <= 1:
        raise BadInput(f"{name} must be a share from 0 to 1; got {value:g} (divide percent by 100)")
    return value


def _entry(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        raise BadInput(f"no {name} among the metrics ({', '.join(metrics)}); evaluate the run again")
    if math.isnan(metrics[name]):
        raise BadInput(f"{name} is NaN; the model has diverged, repeat the run with a lower rate")
    return metrics[name]
