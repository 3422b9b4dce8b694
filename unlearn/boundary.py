"""Methods that move the decision boundary across the forget set: boundary shrink and boundary expanding.

Chen et al., CVPR 2023, arXiv:2303.11570.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dataset import Batch
from models.modes import evaluating, full_float32
from trainer import cross_entropy
from unlearn.presets import REMINISCENCE, preset
from unlearn.registry import ForgetPassConfig, Task, register
from utils import hp

SOURCE = f"{REMINISCENCE}; Chen et al., CVPR 2023, arXiv:2303.11570"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundaryConfig(preset(ForgetPassConfig, "UpdatingConfig", bn="update")):
    """Moving the boundary; of batch norm's ways the published one, without which the digits are not forgotten."""

    unlearn_lr: float = hp(1e-5, "learning rate", above=0)
    unlearn_epochs: int = hp(10, "epochs over the forget set", low=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShrinkConfig(BoundaryConfig):
    """Boundary shrink."""

    epsilon: float = hp(0.01, "length of the step towards the nearest wrong class, in each of the pixels, which are in [0, 1]",
                        low=0, high=1)


@register("boundary_shrink", config=ShrinkConfig, uses="forget", source=f"{SOURCE}, section 3.2",
          departs="the step is taken in pixels and stays in [0, 1] (published: by constants of CIFAR-10, with a slip in one); "
                  "the nearest class is never the true one, as the published argmax may be; it is found once for each image, "
                  "without augmentation")
def boundary_shrink(task: Task, cfg: ShrinkConfig) -> None:
    """Teach each forget example the wrong class that one step against its label makes most likely (boundary shrink)."""
    copy, images = task.frozen_copy(), task.in_order("forget")
    with full_float32():
        nearest = torch.cat([nearest_wrong(copy, batch, cfg.epsilon) for batch in images])
    # both are in the order of the data set
    _teach(task, cfg, nearest.to(task.forget.labels.device))


def nearest_wrong(model: nn.Module, batch: Batch, epsilon: float) -> Tensor:
    """The most likely class but the true one, int64 [B], after a step of the fast gradient sign method.

    x' = clamp(x + epsilon sign(d CE / d x), 0, 1); Goodfellow et al., ICLR 2015, arXiv:1412.6572.
    """
    x = batch.x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(x).float(), batch.y, reduction="sum"), x)
    with torch.no_grad():
        logits = model((x + epsilon * slope.sign()).clamp(0, 1)).float()
        return logits.scatter(1, batch.y[:, None], -torch.inf).argmax(1)


@register("boundary_expanding", config=BoundaryConfig, uses="forget", source=f"{SOURCE}, section 3.3",
          departs="the file of its source is a stub, so this is the paper's")
def boundary_expanding(task: Task, cfg: BoundaryConfig) -> None:
    """Teach the forget set a class of its own, whose output neuron is taken away in the end (boundary expanding)."""
    with expanded(task):
        _teach(task, cfg, torch.full_like(task.forget.labels, task.num_classes))


def _teach(task: Task, cfg: BoundaryConfig, labels: Tensor) -> None:
    opt, batches = task.descent(cfg), task.forget.relabelled(labels)
    for epoch in task.epochs(cfg, opt):
        task.log(epoch=epoch, loss=opt.epoch(batches, cross_entropy, bn=cfg.bn), lr=opt.rate(1))


@contextlib.contextmanager
def expanded(task: Task) -> Iterator[None]:
    """Inside the block the model has an output more, the last; afterwards it is built as before, whatever happens inside.

    The neuron stands beside the head and not in it, so that masks and names of weights are those of the model.
    """
    model, head = task.model, last_linear(task)
    stream, bound = task.generator("extra neuron"), head.in_features**-0.5  # torch's own start of a linear layer
    extra = nn.Linear(head.in_features, 1, bias=head.bias is not None, device="meta")
    for name, p in list(extra.named_parameters()):
        drawn = bound * (2 * torch.rand(p.shape, generator=stream) - 1)
        setattr(extra, name, nn.Parameter(drawn.to(head.weight)))
    model.extra_neuron = extra
    hook = head.register_forward_hook(lambda _, given, out: torch.cat([out, extra(given[0])], -1))
    try:
        yield
    finally:
        hook.remove()
        del model.extra_neuron
        if model._compiled_call_impl is not None:  # what is compiled has the neuron in it
            model._compiled_call_impl = None
            torch.compiler.reset()


def last_linear(task: Task) -> nn.Linear:
    """The linear layer whose output is the model's, found by showing it images (else BadInput)."""
    seen: list[tuple[nn.Linear, Tensor]] = []
    fits = [m for m in task.model.modules() if isinstance(m, nn.Linear) and m.out_features == task.num_classes]
    hooks = [m.register_forward_hook(lambda layer, _, out: seen.append((layer, out))) for m in fits]
    try:
        with evaluating(task.model), torch.no_grad():
            logits = task.model(next(iter(task.in_order("forget"))).x)
    finally:
        for hook in hooks:
            hook.remove()
    scaled = [(layer, out * getattr(task.model, "scale", 1.0)) for layer, out in seen if out.shape == logits.shape]
    heads = [layer for layer, out in scaled if torch.equal(out.nan_to_num(), logits.nan_to_num())]
    if not heads:
        task.refuse("the network does not end in a linear layer with an output for each class, so that none can be added")
    return heads[-1]
