"""How a step moves the weights: SGD with momentum, Adam and AdamW, each equal to torch.optim's, and Muon.

torch.optim's first use imports the compiler (1.3 s of every stage's start); these foreach calls are what it runs. A mask comes
in as ``hold``, which sets to 0 what would move a weight that is held: gradient, decay and moments alike.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from utils import Config, hp

BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam and AdamW: torch's defaults, which the published code never changes
Clear = Callable[[list[Tensor]], None]  # sets to 0, in place, what belongs to a weight that is held


def clear(values: list[Tensor], held: list[Tensor]) -> None:
    """0 where it is held; a product with the mask would make NaN of the infinity of a run that diverges."""
    for value, part in zip(values, held, strict=True):
        value.masked_fill_(part, 0)


def leave(values: list[Tensor]) -> None:
    """Hold nothing."""


SCHEDULES = ("cosine", "step", "constant", "linear")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Config):
    """The optimiser's settings apart from rate and length, which training and unlearning name differently."""

    optimizer: str = hp("sgd", "how a step moves the weights; sgd, adam, adamw as torch.optim has them; muon: convolutions by "
                        "orthogonalised steps at a fixed norm", choices=("sgd", "adam", "adamw", "muon"))
    momentum: float = hp(0.9, "momentum of sgd, and of muon's convolutions", low=0, below=1)
    weight_decay: float = hp(5e-4, "decay: added to the gradient (sgd, adam), or beside the step (adamw, at the rate; muon: of "
                             "all but convolutions, at the rate's share of its start); never of a masked weight", low=0)
    bias_lr: float = hp(26.5, "muon: first rate of biases and batch norm", above=0)
    head_lr: float = hp(335.0, "muon: first rate of linear layers", above=0)
    schedule: str = hp("step", "the rate over the epochs", choices=SCHEDULES)
    decreasing_lr: tuple[int, ...] = hp((91, 136), "epochs at which schedule step multiplies the rate by lr_gamma", low=0)
    lr_gamma: float = hp(0.1, "factor of schedule step", above=0, high=1)
    warmup: int = hp(0, "epochs of linear warm-up to the rate", low=0)


class _Update:
    """moments: of each kind one tensor a parameter; count: steps so far. lr: the rate that the schedule starts from.

    stacked: the parameters are those of several models, [K, ...] each.
    """

    kinds: int

    def __init__(self, params: list[Tensor], cfg: ScheduleConfig, lr: float = 1.0, stacked: bool = False) -> None:
        self.params, self.cfg, self.lr, self.count = params, cfg, lr, 0
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


class Muon(_Update):
    """Convolutions by orthogonalised momentum, at a fixed norm; all else by Nesterov SGD at rates of its own.

    Of a convolution w [out, ...]: v <- momentum v + g; u = g + momentum v; w <- sqrt(out) w / ||w|| - rate orthogonal(u). Of
    the rest, with its rate r (``bias_lr`` of vectors, ``head_lr`` of linear layers) and s, the schedule's share of its start:
    v <- 0.85 v + g + weight_decay w / r; w <- w - s r (g + weight_decay w / r + 0.85 v). What a mask holds is no part of u and
    does not follow the norm.

    Source: Jordan et al., Muon, 2024, in the form of airbench94; the published rates are of a summed loss, these of a mean.
    """

    kinds = 1

    def __init__(self, params: list[Tensor], cfg: ScheduleConfig, lr: float = 1.0, stacked: bool = False) -> None:
        super().__init__(params, cfg, lr, stacked)
        dims = [p.dim() - stacked for p in params]
        self.matrices = [dim == 4 for dim in dims]
        self.rates = [0.0 if dim == 4 else cfg.bias_lr if dim == 1 else cfg.head_lr for dim in dims]  # of all but convolutions

    def step(self, grads: list[Tensor], rate: float, hold: Clear) -> None:
        (velocity,), share = self.moments, rate / self.lr
        for g, p, own in zip(grads, self.params, self.rates, strict=True):
            if own:
                g.add_(p, alpha=self.cfg.weight_decay / own)
        hold(grads)
        keeps = [NESTEROV if own else self.cfg.momentum for own in self.rates]
        torch._foreach_mul_(velocity, keeps)
        torch._foreach_add_(velocity, grads)
        changes = list(torch._foreach_mul(velocity, keeps))
        torch._foreach_add_(changes, grads)
        torch._foreach_mul_(changes, [-share * own if own else 1.0 for own in self.rates])
        for at, (p, matrix) in enumerate(zip(self.params, self.matrices, strict=True)):
            if matrix:
                norm = torch.linalg.vector_norm(p, dim=(-4, -3, -2, -1), keepdim=True).clamp_min(TINY)
                changes[at] = p * (p.shape[-4] ** 0.5 / norm - 1) - rate * orthogonal(changes[at])
        hold(changes)
        torch._foreach_add_(self.params, changes)


NESTEROV = 0.85  # momentum of Muon's other weights
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of five terms, whose slope at 0 is as large as may be
ROUNDS, TINY = 3, 1e-7


def orthogonal(u: Tensor, rounds: int = ROUNDS) -> Tensor:
    """Nearly the orthogonal factor of u [..., out, in, h, w] as matrices [out, in h w]: singular values come to lie about 1.

    Newton-Schulz, X <- a X + (b A + c A A) X with A = X X^T. 0 stays 0.
    """
    flat = u.flatten(-3)  # a copy in this very order, whatever the layout in memory
    wide = flat.shape[-2] <= flat.shape[-1]
    x = flat if wide else flat.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + TINY)
    a, b, c = NEWTON_SCHULZ
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).reshape(u.shape)


UPDATES: dict[str, Any] = {"sgd": Sgd, "adam": Adam, "adamw": AdamW, "muon": Muon}
