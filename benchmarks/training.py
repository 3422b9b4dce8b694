"""Loaders, training epochs, masks and precision, against the loops of published code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from benchmarks.harness import Case, Context, Skipped, row
from benchmarks.inputs import make_data, make_model
from dataset import Data
from models.registry import ARCHS
from pruner.mask import largest
from trainer import Descent, ScheduleConfig, cross_entropy
from unlearn import METHODS
from unlearn.saliency import saliency
from utils import Runtime, RuntimeConfig, machine

RATE = 0.01
MUON = ScheduleConfig(optimizer="muon", momentum=0.6, weight_decay=1e-3, schedule="constant")
EPOCHS = {"resnet20s": (1280, 256), "resnet18": (256, 128), "vgg16_bn": (256, 128), "cifarnet": (2000, 500)}  # images, batch


def whole(c: Context, arch: str, images: int, batch: int) -> tuple[Data, Any]:
    """Data of so many training images, validation not counted, and their arrays (x, y)."""
    data, (x, y, *_) = make_data(c.rt, -(-images * 10 // 9), 16, max(1, images // 4), batch_size=batch)
    return data, (x[data.splits.train], y[data.splits.train])


def our_epoch(c: Context, arch: str, images: int, batch: int, rt: Runtime | None = None) -> Callable[[], float]:
    rt = rt or c.rt
    data, _ = whole(c, arch, images, batch)
    model = make_model(rt, arch)
    cfg, rate = (MUON, 0.12) if arch == "cifarnet" else (ScheduleConfig(), RATE)  # as --protocol cifar-fast has it
    opt = Descent(model, cfg, lr=rate, epochs=1, rt=rt, purpose="benchmark")
    batches = data.loader("train", rt, "benchmark")
    return lambda: opt.epoch(batches, cross_entropy)


def plain_epoch(c: Context, arch: str, images: int, batch: int) -> Callable[[], float]:
    from benchmarks import plain

    _, (x, y) = whole(c, arch, images, batch)
    model = make_model(c.rt, arch, channels_last=False)
    optimizer, batches = sgd(model), plain.loader(x, y, batch, train=True)
    return lambda: plain.train_epoch(model, batches, optimizer)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)


@row("loader", "batches of images: crop and flip, and evaluation", seconds=30)
def loader(c: Context) -> Iterator[Case]:
    count = c.size(4608, 64)

    def ours(train: bool) -> Callable[[], Any]:
        data, _ = whole(c, "", count, 256)
        batches = data.loader("train", c.rt, "benchmark") if train else data.loader("train")
        return lambda: [None for _ in batches]

    def theirs(train: bool) -> Callable[[], Any]:
        from benchmarks import plain

        batches = plain.loader(*whole(c, "", count, 256)[1], train=train)
        return lambda: [None for x, y in batches if (x.to(c.rt.device), y.to(c.rt.device)) is None]

    for name, train in (("loader, crop and flip", True), ("loader, evaluation", False)):
        yield Case(name, {"ours": lambda t=train: ours(t), "plain": lambda t=train: theirs(t)}, work=count, unit="img/s")


@row("epoch", "training epochs: resnet20s (on one thread too), resnet18, vgg16_bn, cifarnet", seconds=420)
def epoch(c: Context) -> Iterator[Case]:
    for arch, (images, batch) in EPOCHS.items():
        if arch not in ARCHS or (c.quick and arch in ("resnet18", "vgg16_bn")):  # seconds even for one image
            continue
        size = c.size(images, 4), c.size(batch, 2)
        sides = {"ours": lambda a=arch, s=size: our_epoch(c, a, *s), "plain": lambda a=arch, s=size: plain_epoch(c, a, *s)}
        yield Case(f"epoch {arch}, batches of {size[1]}", sides, work=size[0], unit="img/s")
        if arch == "resnet20s":
            yield Case(f"epoch {arch}, one thread", sides, work=size[0], unit="img/s", threads=1)
    if "cifarnet" in ARCHS:
        size = c.size(2000, 40), c.size(500, 20)
        yield Case("epoch cifarnet against plain resnet20s", {
            "ours": lambda: our_epoch(c, "cifarnet", *size), "plain resnet20s": lambda: plain_epoch(c, "resnet20s", *size)},
            base="plain resnet20s", work=size[0], unit="img/s")


@row("saliency", "the mask of half the weights by the gradient of the forget loss", seconds=30)
def mask(c: Context) -> Iterator[Case]:
    count, arch = c.size(512, 20), c.arch("resnet20s")

    def ours() -> Callable[[], Any]:
        data, _ = make_data(c.rt, 2 * count, 16, count)
        model = make_model(c.rt, arch)
        return lambda: largest(saliency(model, data.loader("forget", batch_size=256)), (0.5,))[0.5]

    def theirs() -> Callable[[], Any]:
        from benchmarks import plain

        data, (x, y, *_) = make_data(c.rt, 2 * count, 16, count)
        model, forget = make_model(c.rt, arch, channels_last=False), data.splits.forget
        batches = plain.loader(x[forget], y[forget])
        return lambda: plain.saliency_mask(model, batches, 0.5)

    def other(answers: dict[str, Any]) -> dict[str, Any]:
        ours, theirs = answers["ours"], answers["plain"]
        apart = sum(int((ours[name].cpu() != (theirs[name] > 0).cpu()).sum()) for name in ours)
        return {"share of the mask that differs": apart / sum(part.numel() for part in ours.values())}

    yield Case(f"saliency mask {arch}", {"ours": ours, "plain": theirs}, work=count, unit="img/s", check=other)


@row("mask", "an epoch of random labels with a strict mask: against none, and against the plain way", seconds=80)
def masked(c: Context) -> Iterator[Case]:
    count, batch, arch = c.size(1280, 40), c.size(256, 20), c.arch("resnet20s")

    def ours(strict: bool) -> Callable[[], Any]:
        data, _ = whole(c, arch, count, batch)
        model = make_model(c.rt, arch)
        free = {name: half_of(p) for name, p in model.named_parameters()} if strict else None
        method = METHODS["RL"]
        cfg = method.config(unlearn_epochs=1, unlearn_lr=RATE)
        return lambda: method.apply(model, data, cfg, c.rt, mask=free)

    def theirs() -> Callable[[], Any]:
        from benchmarks import plain

        _, (x, y) = whole(c, arch, count, batch)
        model = make_model(c.rt, arch, channels_last=False)
        free = {name: half_of(p).float() for name, p in model.named_parameters()}
        optimizer, batches = sgd(model), plain.loader(x, y, batch, train=True)
        return lambda: plain.train_epoch(model, batches, optimizer, free)

    yield Case(f"RL with a strict mask, {arch}", {"ours": lambda: ours(True), "no mask": lambda: ours(False)}, base="no mask")
    yield Case(f"RL with a mask, {arch}", {"ours": lambda: ours(True), "plain": theirs}, work=count, unit="img/s")


def half_of(p: torch.Tensor) -> torch.Tensor:
    """bool of the parameter's shape: every second weight."""
    return (torch.arange(p.numel(), device=p.device) % 2 == 0).reshape(p.shape)


def native_bf16(rt: Runtime) -> bool:
    """Whether the device has units for bf16; emulated it is 12 to 20 times slower than float32."""
    return torch.cuda.is_bf16_supported(including_emulation=False) if rt.cuda else machine.native_bf16()


@row("precision", "training in bf16 against float32, where the processor has units for it", seconds=120)
def precision(c: Context) -> Iterator[Case]:
    if not native_bf16(c.rt) and not c.quick:
        raise Skipped(f"{machine.processor()} has no bf16 units")
    for arch in [c.arch(arch) for arch in ("resnet20s", "cifarnet")[: c.size(2, 1)] if arch in ARCHS]:
        def side(how: str, arch: str = arch) -> Callable[[], Any]:
            rt = Runtime(RuntimeConfig(device=c.rt.device.type, precision=how, progress=False))
            return our_epoch(c, arch, c.size(1280, 8), c.size(256, 4), rt)

        yield Case(f"bf16 {arch}", {"ours": lambda s=side: s("bf16"), "float32": lambda s=side: s("fp32")}, base="float32")
