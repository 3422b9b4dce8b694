"""How a step moves the weights: SGD with momentum, Adam and AdamW, each equal to torch.optim's.

torch.optim's first use imports the compiler (1.3 s of every stage's start); these foreach calls are what it runs. A mask comes
in as ``hold``, which sets to 0 what would move a weight that is held: gradient, decay and moments alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam and AdamW: torch's defaults, which the published code never changes
Clear = Callable[[list[Tensor]], None]  # sets to 0, in place, what belongs to a weight that is held


def clear(values: list[Tensor], held: list[Tensor]) -> None:
    """0 where it is held; a product with the mask would make NaN of the infinity of a run that diverges."""
    for value, part in zip(values, held, strict=True):
        value.masked_fill_(part, 0)


def leave(values: list[Tensor]) -> None:
    """Hold nothing."""


class Settings(Protocol):
    momentum: float
    weight_decay: float


class _Update:
    """moments: of each kind one tensor a parameter; count: steps so far."""

    kinds: int

    def __init__(self, params: list[Tensor], cfg: Settings) -> None:
        self.params, self.cfg, self.count = params, cfg, 0
        self.moments = [[torch.zeros_like(p) for p in params] for _ in range(self.kinds)]

    def restart(self) -> None:
        """As if no step had been taken."""
        self.count = 0
        for moments in self.moments:
            torch._foreach_zero_(moments)


class Sgd(_Update):
    """v <- momentum v + g + decay w; w <- w - rate v."""

    kinds = 1

    def step(self, grads: list[Tensor], rate: float, hold: Clear) -> None:
        (velocity,) = self.moments
        torch._foreach_add_(grads, self.params, alpha=self.cfg.weight_decay)
        hold(grads)
        torch._foreach_mul_(velocity, self.cfg.momentum)
        torch._foreach_add_(velocity, grads)
        torch._foreach_add_(self.params, velocity, alpha=-rate)


class Adam(_Update):
    """Kingma and Ba, ICLR 2015, arXiv:1412.6980, algorithm 1; the decay is added to the gradient."""

    kinds, decoupled = 2, False

    def step(self, grads: list[Tensor], rate: float, hold: Clear) -> None:
        self.count += 1
        decay, (mean, square) = self.cfg.weight_decay, self.moments
        if not self.decoupled:
            torch._foreach_add_(grads, self.params, alpha=decay)
        hold(grads)
        torch._foreach_lerp_(mean, grads, 1 - BETAS[0])
        torch._foreach_mul_(square, BETAS[1])
        torch._foreach_addcmul_(square, grads, grads, value=1 - BETAS[1])
        down = torch._foreach_sqrt(square)
        torch._foreach_div_(down, math.sqrt(1 - BETAS[1] ** self.count))
        torch._foreach_add_(down, EPSILON)
        change = torch._foreach_div(mean, down)
        torch._foreach_mul_(change, rate / (1 - BETAS[0] ** self.count))
        if self.decoupled:
            torch._foreach_add_(change, self.params, alpha=rate * decay)
            hold(change)
        torch._foreach_sub_(self.params, change)


class AdamW(Adam):
    """Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101, algorithm 2; the decay acts on the weights beside the step."""

    decoupled = True


UPDATES: dict[str, Any] = {"sgd": Sgd, "adam": Adam, "adamw": AdamW}
