"""The one training loop and the one prediction loop.

    opt = Descent(model, cfg, lr=0.1, epochs=30, rt=rt, purpose="train")
    losses = [opt.epoch(loader, cross_entropy) for epoch in resumable(30, opt, rt, run)]
    logits, labels = predict(model, data.loader("test"), rt)
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import models
from dataset import Batch, Loader
from models.modes import full_float32, normalising, without_gradient
from models.together import synchronised
from updates import SCHEDULES, UPDATES, ScheduleConfig, clear, leave
from utils import BadInput, Mask, Run, Runtime, hp
from watch import Watch


class Diverged(BadInput):
    """A loss that is not finite: bad settings of an original's training, the outcome of an unlearning method."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(ScheduleConfig):
    """Training of the original model."""

    lr: float = hp(0.1, "learning rate", above=0)
    epochs: int = hp(30, "training epochs", low=1)
    schedule: str = hp("cosine", "the rate over the epochs", choices=SCHEDULES)
    alpha: float = hp(0.0, "weight of a constant l1 penalty on all parameters (sparse pre-training); 0: none", low=0)
    early_epochs: int = hp(0, "epochs in which a whitening layer's bias trains; 0: in all", low=0)
    label_smoothing: float = hp(0.0, "share of the label spread over all classes", low=0, below=1)


def cross_entropy(model: nn.Module, batch: Batch, smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(model(batch.x).float(), batch.y, label_smoothing=smoothing)


def loss_slope(logits: Tensor, y: Tensor) -> Tensor:
    """d -log p_y / d logits = softmax - onehot(y), [..., K], where p_y - 1, 0 in float32 from 3e-8 on, is minus the others."""
    hot = torch.arange(logits.shape[-1], device=logits.device) == y[..., None]
    others = logits.softmax(-1).masked_fill(hot, 0)
    return torch.where(hot, -others.sum(-1, keepdim=True), others)


class Descent:
    """Steps on a loss by the settings' optimiser, with penalties on the weights and a mask on what may change.

    Args:
        mask: weights with False stay bit-identical: decay, penalties and moments are masked as well as the gradient.
        mask_mode: ``published`` masks the gradient alone, so that masked weights decay (SalUn before 2026, RUM).
        purpose: of this training, as the loader's: no two of one seed share their dropout.
        l1: weight of sum |theta|, over all parameters, batch norm and biases included, as the l1-sparse papers take it; may be
            set anew between epochs.
        l2: weight of ||theta - theta_0||^2, where theta_0 are the weights at the start.
    """

    def __init__(self, model: nn.Module, cfg: ScheduleConfig, *, lr: float, epochs: int, rt: Runtime, purpose: str,
                 mask: Mask | None = None, mask_mode: str = "strict", l1: float = 0.0, l2: float = 0.0) -> None:
        self.model, self.cfg, self.lr, self.epochs, self.rt, self.purpose = model, cfg, lr, epochs, rt, purpose
        self.at, self.passes = 0, 0  # the epoch that the schedule stands at; calls of epoch()
        self.params = list(model.parameters())
        self.update = UPDATES[cfg.optimizer](self.params, cfg, lr, hasattr(model, "stacked"))
        self.l1, self.l2 = l1, l2
        self.anchor = [p.detach().clone() for p in self.params] if l2 else []
        self.strict = mask_mode == "strict"
        self.held: list[Tensor] | None = None  # of each parameter, where the mask holds it
        if mask is not None:
            self.hold(mask)
        if rt.cfg.compile != "off":
            model.compile(mode=rt.cfg.compile, dynamic=False)  # else a short last batch moves all later steps to any-shape code

    def hold(self, mask: Mask) -> None:
        """Weights with False stay as they are too from here on, their moments gone."""
        named = [(name, torch.zeros_like(p, dtype=torch.bool)) for name, p in self.model.named_parameters()]
        more = [held.copy_(~mask[name]) if name in mask else held for name, held in named]
        self.held = more if self.held is None else [a | b for a, b in zip(self.held, more, strict=True)]
        for moments in self.update.moments:
            clear(moments, more)

    def restart(self) -> None:
        """Forget what the optimiser knows of earlier steps."""
        self.update.restart()

    def rate(self, progress: float) -> float:
        """The learning rate ``progress`` (0 to 1) through the epoch ``at``; warm-up and linear move within an epoch."""
        cfg, warm = self.cfg, min(self.cfg.warmup, self.epochs)
        if self.at < warm:
            return self.lr * (self.at + progress) / warm
        if cfg.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * (self.at - warm) / max(1, self.epochs - warm)))
        if cfg.schedule == "linear":
            return self.lr * (1 - (self.at - warm + progress) / (self.epochs - warm))
        passed = sum(self.at >= milestone for milestone in cfg.decreasing_lr) if cfg.schedule == "step" else 0
        return self.lr * cfg.lr_gamma**passed

    def epoch(self, batches: Iterable[Any], loss: Callable[[nn.Module, Any], Tensor], steps: int = 0,
              bn: str = "update") -> float:
        """One pass: a step on ``loss(model, batch)`` per batch; the mean loss of the steps, without the penalties.

        Args:
            steps: number of batches, where ``batches`` has no length of its own (warm-up needs it).
            bn: batch norm's way, of ``models.modes.normalising``.

        Raises:
            Diverged: the mean loss is not finite.
        """
        steps = steps or len(batches)  # type: ignore[arg-type]
        ranks = self.rt.ranks
        shares = batches.shares if ranks.size > 1 else []  # of the examples of each batch, of several processes' parts
        own = f"/{ranks.rank}" if ranks.rank else ""  # else examples of several processes would share their dropout
        self.model.train()
        self.passes += 1  # dropout knows the global streams only: they are of this very pass, and as before after it
        total, count = torch.zeros((), device=self.rt.device), 0
        with (self.rt.seeded(f"dropout/{self.purpose}/{self.passes}{own}"), normalising(self.model, bn), self._resting(),
              synchronised(self.model, ranks)):
            for count, batch in enumerate(batches, 1):
                with self.rt.autocast():
                    value = loss(self.model, batch)
                if shares:  # the mean over no examples is NaN
                    value = value * shares[count - 1] if shares[count - 1] else value.nan_to_num() * 0
                value.backward()
                self._step(self.rate(count / steps))
                total += value.detach()
        ranks.add([total])
        mean = float(total) / max(1, count)  # the epoch's only synchronisation
        if not math.isfinite(mean):
            raise Diverged(f"the loss became {mean} in epoch {self.at}: lower the learning rate "
                           f"({self.lr:g}) or the weights of the loss terms")
        return mean

    def _resting(self) -> contextlib.AbstractContextManager:
        """What trains in the first epochs only stays from then on, and costs no gradient."""
        names = getattr(self.model, "early", ()) if 0 < getattr(self.cfg, "early_epochs", 0) <= self.at else ()
        early = {name: self.model.get_parameter(name) for name in names}
        if early:
            self.hold({name: torch.zeros_like(p, dtype=torch.bool) for name, p in early.items()})
        return without_gradient(early.values())

    @torch.no_grad()
    def _step(self, rate: float) -> None:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        self.rt.ranks.add(grads)
        if self.l1:
            torch._foreach_add_(grads, torch._foreach_sign(self.params), alpha=self.l1)
        if self.l2:
            torch._foreach_add_(grads, torch._foreach_sub(self.params, self.anchor), alpha=2 * self.l2)
        if not self.strict:
            self._hold_back(grads)
        self.update.step(grads, rate, self._hold_back if self.strict else leave)
        for p in self.params:
            p.grad = None

    def _hold_back(self, values: list[Tensor]) -> None:
        if self.held is not None:
            clear(values, self.held)

    def state(self) -> dict[str, Any]:
        return {"moments": self.update.moments, "count": self.update.count, "anchor": self.anchor,
                "model": self.model.state_dict(), "passes": self.passes}

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.passes, self.update.count = state["passes"], state["count"]
        pairs = zip([*self.update.moments, self.anchor], [*state["moments"], state["anchor"]], strict=True)
        for value, was in itertools.chain.from_iterable(zip(*pair, strict=True) for pair in pairs):
            value.copy_(was)


def resumable(n: int, opt: Descent, rt: Runtime, run: Run | None, keep: dict[str, Any] | None = None) -> Iterator[int]:
    """The epochs still to do; the state goes to disk between them, so that a killed run goes on from there.

    Args:
        keep: tensors and numbers of the caller's own that belong to the state; updated in place on resuming.
    """
    keep = {} if keep is None else keep
    state = None if run is None else run.load_state({"epoch": 0, "opt": opt.state(), "streams": {}, "keep": keep})
    state = rt.ranks.shared(state)
    first = 0 if state is None else state["epoch"]
    if state is not None:
        opt.restore(state["opt"])
        rt.restore_streams(state["streams"])
        keep.update(state["keep"])
    saved = time.perf_counter()
    label = "" if run is None else run.label
    hidden = None if rt.cfg.progress and rt.ranks.first else True  # None: hidden where nobody watches
    for epoch in tqdm(range(first, n), label, n, initial=first, unit="epoch", disable=hidden, leave=False):
        opt.at = epoch
        yield epoch
        if run is not None and epoch + 1 < n and time.perf_counter() - saved >= run.cfg.resume_every:
            run.save_state(epoch=epoch + 1, opt=opt.state(), streams=rt.streams(), keep=keep)
            saved = time.perf_counter()


def train(model: nn.Module, loader: Loader, cfg: TrainConfig, rt: Runtime, run: Run | None, mask: Mask | None = None,
          watch: Watch | None = None) -> None:
    """Train the original model: cross-entropy, with a constant l1 penalty where ``alpha`` says so.

    Several processes (``rt.ranks``) compute each batch's parts, and step alike; ``run`` is the first one's alone.
    """
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        if watch is not None:
            watch.before(model, batch)
        logits = model(batch.x).float()
        if watch is not None:
            watch.after(batch, logits.detach())
        return F.cross_entropy(logits, batch.y, label_smoothing=cfg.label_smoothing)

    loader = loader.among(rt.ranks) if rt.ranks.size > 1 else loader
    opt = Descent(model, cfg, lr=cfg.lr, epochs=cfg.epochs, rt=rt, purpose="train", mask=mask, l1=cfg.alpha)
    for epoch in resumable(cfg.epochs, opt, rt, run, None if watch is None else watch.keep):
        if watch is not None:
            watch.begin(epoch, cfg.epochs)
        row = dict(epoch=epoch, loss=opt.epoch(loader, loss), lr=opt.rate(1))
        if watch is not None:
            watch.end()
        if run is not None:
            run.log(**row)


def predict(model: nn.Module, loader: Loader, rt: Runtime) -> tuple[Tensor, Tensor]:
    """``predict_all`` of one loader."""
    return predict_all(model, [loader], rt)[0]


@torch.inference_mode()
@full_float32()
def predict_all(model: nn.Module, loaders: Sequence[Loader], rt: Runtime) -> list[tuple[Tensor, Tensor]]:
    """Logits float32 [N, K] and labels int64 [N] of each loader, in its order; batch norm folded once, the model untouched.

    Never in bf16 or TF32: three digits tie the largest logits, and every metric and stored margin is read from these.
    """
    assert all(loader.shuffle is None for loader in loaders), "labels are in the loader's order, so it must not shuffle"
    net = models.fold_batchnorm(model)
    return [(torch.cat([net(batch.x).float() for batch in loader]), loader.labels.to(rt.device)) for loader in loaders]
