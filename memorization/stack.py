"""K models of one architecture as one module: their channels side by side in layers that are K times as wide.

A convolution of K times as many groups, a batch norm of K times as many channels and a product of K matrices are K models that
know nothing of one another, trained by the same kernels and in the same precision as one alone: bf16 as well as float64.

A network whose code does more than treat channels alike (``Classifier.channelwise``) is mapped by vmap instead. vmap and
autocast do not go together: with CUDA's bf16 convolutions its batch norm stops, or computes in float32 what a model alone
computes in bf16. Those stacks are of float32 alone.

Shapes: K models, B images in a batch, C channels of each model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F

from models.resnet import ZeroPad
from utils import BadInput


class Linears(nn.Module):
    """K linear layers: [B, K F] becomes [B, K ``out_features``]."""

    def __init__(self, one: nn.Linear, count: int) -> None:
        super().__init__()
        self.weight, self.bias, self.count = one.weight, one.bias, count  # [K out, F] and [K out] when it is called

    def forward(self, x: Tensor) -> Tensor:
        inputs = x.unflatten(1, (self.count, -1)).transpose(0, 1)
        weight = self.weight.unflatten(0, (self.count, -1)).transpose(1, 2)
        out = inputs @ weight if self.bias is None else torch.baddbmm(self.bias.view(self.count, 1, -1), inputs, weight)
        return out.transpose(0, 1).flatten(1)


class ZeroPads(nn.Module):
    """K ``ZeroPad``: the zeros stand around each model's channels."""

    def __init__(self, one: ZeroPad, count: int) -> None:
        super().__init__()
        self.one, self.count = one, count

    def forward(self, x: Tensor) -> Tensor:
        apart = F.avg_pool2d(x, 1, self.one.stride).unflatten(1, (self.count, -1))
        return F.pad(apart, (0, 0, 0, 0, self.one.front, self.one.back)).flatten(1, 2)


def widened(model: nn.Module, count: int) -> nn.Module:
    """A copy of the module without values, for ``count`` models' tensors joined along their first dimension.

    Layers without tensors treat channels alike, and batch norm and ``Normalize`` take any number of them.
    """
    wide = copy.deepcopy(model).to("meta")
    for name, layer in list(wide.named_modules()):
        if isinstance(layer, nn.Conv2d):
            layer.groups *= count
        elif isinstance(layer, nn.Linear):
            wide.set_submodule(name, Linears(layer, count))
        elif isinstance(layer, ZeroPad):
            wide.set_submodule(name, ZeroPads(layer, count))
    return wide


def refused(model: nn.Module, bf16: bool) -> str | None:
    """Why K such models cannot be trained at once; None where they can."""
    if any(isinstance(part, nn.modules.dropout._DropoutNd) and part.p for part in model.modules()):
        return "models with dropout cannot be trained as a stack; use --engine serial or processes"
    if bf16 and not getattr(model, "channelwise", False):
        return "this network can be stacked in float32 alone; use --engine serial or processes, or --precision fp32"
    return None


class Stack(nn.Module):
    """K models of one architecture as one module, whose parameters and buffers are theirs, stacked: [K, ...].

    Images [K, B, 3, H, W], each model's own, or [B, 3, H, W] for all of them, give logits [B, K, C]. Batch norm
    normalises by each model's own batch and keeps each model's running statistics.

    Raises:
        BadInput: a model with dropout, whose masks could not be those of the models one by one; one that needs vmap, in bf16.
    """

    def __init__(self, singles: Sequence[nn.Module], bf16: bool = False) -> None:
        super().__init__()
        if why := refused(singles[0], bf16):
            raise BadInput(why)
        params, buffers = stack_module_state([one.to(memory_format=torch.contiguous_format) for one in singles])
        self.count, self.wide = len(singles), getattr(singles[0], "channelwise", False)
        self.names, self.buffer_names = list(params), list(buffers)
        self.stacked = nn.ParameterList(params.values())
        for place, value in enumerate(buffers.values()):
            self.register_buffer(f"buffer{place}", value)
        places = {name: f"stacked.{place}" for place, name in enumerate(self.names)}
        self.early = tuple(places[name] for name in getattr(singles[0], "early", ()))
        form = widened(singles[0], self.count) if self.wide else copy.deepcopy(singles[0]).to("meta")
        self._form = (form,)  # in a tuple, so that its parameters are none of ours

    def train(self, mode: bool = True) -> Stack:
        self._form[0].train(mode)
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        params = dict(zip(self.names, self.stacked, strict=True))
        buffers = dict(zip(self.buffer_names, self.buffers(), strict=True))
        return self._side_by_side({**params, **buffers}, x) if self.wide else self._mapped(params, buffers, x)

    def _side_by_side(self, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        own = x[None].expand(self.count, *x.shape) if x.dim() == 4 else x
        # views: what batch norm writes into its statistics stays; a counter has one number a model as it is
        joined = {name: value.flatten(0, 1) if value.dim() > 1 else value for name, value in tensors.items()}
        return functional_call(self._form[0], joined, (own.transpose(0, 1).flatten(1, 2),)).unflatten(1, (self.count, -1))

    def _mapped(self, params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        def one(params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(self._form[0], (params, buffers), (x,))

        return torch.vmap(one, in_dims=(0, 0, None if x.dim() == 4 else 0), out_dims=1)(params, buffers, x.contiguous())

    def states(self) -> list[dict[str, Tensor]]:
        """Each model's state_dict."""
        named = [*zip(self.names, self.stacked, strict=True), *zip(self.buffer_names, self.buffers(), strict=True)]
        return [{name: value[k].detach() for name, value in named} for k in range(self.count)]
