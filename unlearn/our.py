"""Orthogonal unlearning and replay: pull the forget set's features apart, then train on the retain set, and its ablations.

Xiao et al., ICCV 2025, arXiv:2507.20573. Approximate unlearning leaves the forgotten examples near one another in the deep
layers, and a few steps of training bring them back; here their features are made orthogonal first. Shapes: B examples, F
features of a layer, flattened.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batches import Batch, Loader, Pairs
from models.deep import deep_layers, outputs_of
from models.modes import normalising
from trainer import cross_entropy
from unlearn.label import draw_labels
from unlearn.phases import Phase, ReplayConfig, follow, replay
from unlearn.registry import ForgetPassConfig, Task, register
from utils import BadInput, hp

SOURCE = "Xiao et al., ICCV 2025, arXiv:2507.20573"
WEIGHTS = {"class": (2.0, 1.0), "sample": (1.0, 0.1)}  # form -> weights of the orthogonality loss and of the random labels
SHARE = 0.8  # of every term of the ablation in one phase
DEPARTS = ("three distinct layers (--our_layers published: the shipped code counts the second twice and never the third); "
           "the replay follows on every data set (the shipped sample-wise one never runs); the forget set alone does not move "
           "batch norm's running statistics (--bn update: as published)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrthogonalConfig(ForgetPassConfig):
    """Orthogonality of the forget set's features, and random labels."""

    optimizer: str = hp("adam", "how a step moves the weights", choices=("sgd", "adam", "adamw", "muon"))
    weight_decay: float = hp(0.0, "decay: added to the gradient (sgd, adam), or beside the step (adamw); never of a masked "
                             "weight", low=0)
    unlearn_lr: float = hp(1.2e-3, "learning rate of the first phase", above=0)
    unlearn_epochs: int = hp(3, "epochs of the first phase over the forget set; published for single examples: 6", low=0)
    our_form: str = hp("auto", "class: features of different forgotten examples are made orthogonal to one another, under "
                       "one random label for each; sample: each example's features to the original's own, under labels drawn "
                       "anew in every epoch; auto: class where whole classes, or examples of one class, are forgotten",
                       choices=("auto", "class", "sample"))
    our_layers: tuple[str, ...] = hp(("distinct",), "layers whose features are made orthogonal: distinct, three of the "
                                     "network; published, of these the first, and the second twice; or names of modules")
    orth_weight: float | None = hp(None, "weight of the orthogonality loss; without the flag 2 (class) or 1 (sample)", low=0)
    label_weight: float | None = hp(None, "weight of the cross-entropy to random labels; without the flag 1 (class) or 0.1 "
                                    "(sample)", low=0)
    rl_labels: str = hp("wrong", "wrong: never the true class; any: uniform over all, as published for single examples",
                        choices=("wrong", "any"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class OurConfig(ReplayConfig, OrthogonalConfig):
    """Orthogonal unlearning and replay."""

    replay_lr: float = hp(0.005, "learning rate of the replay", above=0)
    replay_epochs: tuple[int, ...] = hp((3, 2, 1), "epochs over the retain set; several numbers are parts, each of which "
                                        "begins with a fresh optimiser", low=0)
    replay_factors: tuple[float, ...] = hp((1.0, 0.5, 0.2), "share of --replay_lr in each part, one for all or one for each",
                                           above=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelsConfig(OurConfig):
    """The same without the orthogonality loss."""

    orth_weight: float | None = hp(0.0, "weight of the orthogonality loss", low=0)


@register("our", config=OurConfig, uses="retain forget", source=SOURCE + ", orthogonal unlearning and replay", departs=DEPARTS,
          phases=("over", "replay"))
def orthogonal(task: Task, cfg: OurConfig) -> None:
    """Make the forget set's deep features orthogonal under random labels, then replay the retain set (OUR)."""
    follow(task, [Phase("over", lambda part: _orthogonalise(part, cfg), ("retain",)),
                  Phase("replay", lambda part: replay(part, cfg))])


register("orthogonality", config=OurConfig, uses="retain forget", source=SOURCE, same_as="our", departs="as our",
         phases=("over", "replay"))(orthogonal)


@register("rl_our", config=LabelsConfig, uses="retain forget", source=SOURCE + ", ablation", departs="as our",
          phases=("over", "replay"), label="rl_our_2")  # RL_our is another
def labels_alone(task: Task, cfg: LabelsConfig) -> None:
    """Ablation of our: random labels on the forget set without the orthogonality loss, then replay."""
    orthogonal(task, cfg)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnePhaseConfig(OrthogonalConfig):
    """Orthogonality and retain in the same steps, without replay."""

    unlearn_lr: float = hp(1.2e-3, "learning rate", above=0)
    unlearn_epochs: int = hp(3, "epochs over the forget set, a retain batch beside each of its batches", low=0)
    l1: float = hp(5e-5, "weight of a constant penalty sum |theta| on all parameters", low=0)


@register("orth_no_our", config=OnePhaseConfig, uses="retain forget", source=SOURCE + ", ablation", departs="as our",
          over_forget=True)
def one_phase(task: Task, cfg: OnePhaseConfig) -> None:
    """Ablation of our: orthogonality, random labels and the retain set in the same steps, one phase, no replay."""
    opt = task.descent(cfg)
    opt.l1, opt.l2 = SHARE * opt.l1, SHARE * opt.l2
    with _apart(task, cfg) as (loss, labelled):
        def both(model: nn.Module, pair: tuple[Batch, Batch | None]) -> Tensor:
            drop, keep = pair
            with normalising(model, cfg.bn):
                away = loss(model, drop)
            return SHARE * (away if keep is None else away + cross_entropy(model, keep))

        for epoch in task.epochs(cfg, opt):
            task.log(epoch=epoch, loss=opt.epoch(Pairs(labelled(), task.retain), both), lr=opt.rate(1))


def _orthogonalise(task: Task, cfg: OrthogonalConfig) -> None:
    opt = task.descent(cfg)
    with _apart(task, cfg) as (loss, labelled):
        for epoch in task.epochs(cfg, opt):
            task.log(epoch=epoch, loss=opt.epoch(labelled(), loss, bn=cfg.bn), lr=opt.rate(1))


@contextlib.contextmanager
def _apart(task: Task, cfg: OrthogonalConfig) -> Iterator[tuple[Callable[[nn.Module, Batch], Tensor], Callable[[], Loader]]]:
    """The loss on a batch of the forget set, and a function that gives an epoch's forget set under its random labels."""
    form = cfg.our_form if cfg.our_form != "auto" else _form(task)
    weights = zip((cfg.orth_weight, cfg.label_weight), WEIGHTS[form], strict=True)
    of_features, of_labels = (default if typed is None else typed for typed, default in weights)
    names = layers_of(task, cfg)
    teacher = task.frozen_copy() if form == "sample" and of_features else None
    with outputs_of(task.model, names) as seen, outputs_of(teacher or task.model, names if teacher else ()) as first:

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            value = of_labels * cross_entropy(model, batch)
            if not of_features:
                return value
            mine = [seen[name] for name in names]
            if teacher is None:
                return value + of_features * sum(map(between, mine))
            with torch.no_grad():
                teacher(batch.x)
            return value + of_features * sum(to_first(mine[at], first[name]) for at, name in enumerate(names))

        yield loss, _labelling(task, cfg, form)


def _labelling(task: Task, cfg: OrthogonalConfig, form: str) -> Callable[[], Loader]:
    stream, true = task.generator("labels"), task.forget.labels
    if form == "sample":
        return lambda: task.forget.relabelled(draw_labels(true, task.num_classes, cfg.rl_labels, stream))
    fixed = task.forget.relabelled(draw_labels(true, task.num_classes, cfg.rl_labels, stream))
    return lambda: fixed


def _form(task: Task) -> str:
    """class where all that is forgotten is of classes forgotten whole, or of one class."""
    classes = torch.nonzero(task.class_shares("forget")).flatten().tolist()
    return "class" if len(classes) == 1 or set(classes) <= set(task.whole_classes) else "sample"


def layers_of(task: Task, cfg: OrthogonalConfig) -> list[str]:
    """The names of the layers, one for each term of the loss."""
    if cfg.our_layers in (("distinct",), ("published",)):
        first, second, third = deep_layers(task.model)
        return [first, second, third if cfg.our_layers == ("distinct",) else second]
    if {"distinct", "published"} & set(cfg.our_layers):
        raise BadInput(f"--our_layers {','.join(cfg.our_layers)}: distinct and published stand alone; name modules, or one of "
                       "the two")
    return list(cfg.our_layers)


def between(features: Tensor) -> Tensor:
    """Mean squared cosine between the features of different examples of a batch, 0 to 1: what orthogonal unlearning lowers.

    sum over i != j of cos(f_i, f_j)^2 / (B (B - 1)); the published form, the Gram matrix less the identity, is equal to it.

    Args:
        features: float [B, ...]; 0 for a batch of one.
    """
    count = len(features)
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(_wide(features))
        gram = (unit @ unit.T).square()
        return (gram.sum() - gram.diagonal().sum()) / max(1, count * (count - 1))


def to_first(features: Tensor, original: Tensor) -> Tensor:
    """Mean squared cosine between each example's features and the original model's of the same example, [B, ...] both."""
    with torch.autocast(features.device.type, enabled=False):
        return F.cosine_similarity(_wide(features), _wide(original)).square().mean()


def _wide(features: Tensor) -> Tensor:
    """[B, F], float32 at least."""
    return features.flatten(1).to(torch.promote_types(features.dtype, torch.float32))
