"""Activations inside a network by the names of its modules, for losses on features of several depths.

    names = deep_layers(model)
    with outputs_of(model, names) as seen:
        logits = model(images)
        shallow, middle, deep = (seen[name] for name in names)  # float [B, ...] each, with gradients
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from models.libraries import Borrowed
from models.modes import evaluating
from models.resnet import ResNet
from models.vgg import VGG
from models.vit import ViT
from models.wide import WideResNet
from utils import BadInput
from utils.settings import did_you_mean

SHOWN = 6  # names that an error shows


def deep_layers(model: nn.Module) -> tuple[str, str, str]:
    """Three distinct modules of rising depth whose outputs the orthogonality loss compares.

    Of a residual network the last blocks of its last three stages; of a VGG the last convolution blocks of its last three
    stages; of a ViT, as published, the first linear layer of the first block's perceptron, the queries, keys and values of
    the last block, and the LayerNorm before the head. Of another network three modules with weights spread over its depth,
    the last of them the last before the head; of a library's, of those that are called once with a row for each image.

    Raises:
        BadInput: fewer than three modules.
    """
    if isinstance(model, ResNet):
        found = [f"{stage}.{len(getattr(model, stage)) - 1}" for stage in model.stages[-3:]]
    elif isinstance(model, WideResNet):
        found = [f"group{number}.{len(getattr(model, f'group{number}')) - 1}" for number in (1, 2, 3)]
    elif isinstance(model, VGG):
        found = _before_pools(model.features)
    elif isinstance(model, ViT):
        found = ["blocks.0.feed.1", f"blocks.{len(model.blocks) - 1}.attention.qkv", "norm"]
    else:
        found = _spread(model)
    first, second, third = found
    return first, second, third


def _before_pools(features: nn.Sequential) -> list[str]:
    """The last activation of each of the last three stages; a max-pool ends a stage, and so does the end."""
    last = [place for place, layer in enumerate(features) if isinstance(layer, nn.ReLU)
            and (place + 1 == len(features) or isinstance(features[place + 1], nn.MaxPool2d))]
    return [f"features.{place}" for place in last[-3:]]


def _spread(model: nn.Module) -> list[str]:
    """Of the layers with weights but the head, in the order of their definition: one at a third, at two thirds, the last."""
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm)
    layers = [name for name, module in model.named_modules() if isinstance(module, kinds)][:-1]
    if isinstance(model, Borrowed):  # windows of a Swin transformer are not images, and some layers are never called
        called = _called(model, layers)
        layers = [name for name in called if called.count(name) == 1]
    if len(layers) < 3:
        raise BadInput(f"{getattr(model, 'arch', 'this network')} has {len(layers)} layers before its head, and features of "
                       "three depths are asked for; choose a deeper --arch")
    return [layers[len(layers) // 3], layers[2 * len(layers) // 3], layers[-1]]


@torch.no_grad()
def _called(model: Borrowed, names: list[str]) -> list[str]:
    """Those of some layers that a batch of two images calls with two rows of output, in the order of the calls."""
    found, modules = [], dict(model.named_modules())

    def hook(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: found.append(name) if len(output) == 2 else None

    handles = [modules[name].register_forward_hook(hook(name)) for name in names]
    try:
        with evaluating(model):
            first = next(model.parameters())
            model(torch.zeros(2, 3, model.input_size, model.input_size, device=first.device, dtype=first.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextlib.contextmanager
def outputs_of(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """A dict that holds, after each forward pass inside the block, the outputs of these modules by name.

    Each is as it left its module, float [B, ...], with its gradient. The hooks are gone after the block, whatever happens.
    A compiled model is called as it was written inside the block.

    Raises:
        BadInput: a module that does not exist.
    """
    modules = dict(model.named_modules())
    for name in names:
        if not name or name not in modules:
            there = [own for own in modules if own]
            raise BadInput(f"{getattr(model, 'arch', 'this network')} has no layer {name!r}{did_you_mean(name, there)}; there "
                           f"are {', '.join(there[:: max(1, len(there) // SHOWN)][:SHOWN])} and others ({len(there)} in all)")
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            if not isinstance(output, Tensor):
                raise BadInput(f"the layer {name!r} gives a {type(output).__name__} and no tensor; name another one")
            # a copy, since the next layer may overwrite the output in place
            seen[name] = output.clone()

        return hook

    compiled, model._compiled_call_impl = model._compiled_call_impl, None
    handles = [modules[name].register_forward_hook(keep(name)) for name in dict.fromkeys(names)]
    try:
        yield seen
    finally:
        model._compiled_call_impl = compiled
        for handle in handles:
            handle.remove()
