"""What a file of torch.save holds, whoever wrote it: its one dict of tensors, under the names that the model itself has.

Checkpoints and masks alike. Training loops put the weights beside an optimiser, an accuracy and a number of epochs;
DataParallel and torch.compile add a part to every name, a wrapping model adds one in front, and a profiler leaves counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from utils import BadInput

State = dict[str, Tensor]
KNOWN = ("state_dict", "model_state_dict", "model", "net")  # where weights are kept; the first that is there is taken
WRAPPERS = ("module", "_orig_mod")  # parts of names that DataParallel and torch.compile add, at any depth
COUNTS = ("total_ops", "total_params")  # last parts of names under which a profiler keeps its counts
DEPTH = 3  # wrappers within one another


def tensors(content: Any, own: Collection[str]) -> State:
    """The tensors of a file's content by the names that a model has for them, every one with values.

    Args:
        own: the model's names, of which none is taken for a wrapper's.

    Raises:
        BadInput: none or several dicts of tensors, an optimiser's alone, two tensors of one name, a tensor of a kind that no
            weight is of; says which.
    """
    found = {name: value for name, value in _innermost(content).items() if str(name).rpartition(".")[2] not in COUNTS}
    if not found:
        raise BadInput("neither a state_dict nor a dict with one under 'state_dict': it is empty")
    for name, value in found.items():
        if (kind := _strange(value)) is not None:
            raise BadInput(f"{shown_key(name)} is {kind}; save plain tensors, such as model.state_dict() on the CPU")
    return _unwrapped({str(name): value for name, value in found.items()}, {name.partition(".")[0] for name in own})


def shown_key(key: Any) -> str:
    """A key as it is, or escaped and cut where a damaged file made something else of it."""
    return str(key) if str(key).isprintable() and len(str(key)) <= 80 else f"{key!r:.80}"


def _innermost(content: Any, depth: int = DEPTH) -> Mapping[Any, Tensor]:
    """The dict of tensors: the content itself, what it keeps under a known name, or the only one that it keeps."""
    if not isinstance(content, Mapping):
        raise BadInput(f"a {type(content).__name__} instead of a state_dict; save model.state_dict()")
    if {"state", "param_groups"} <= content.keys():
        raise BadInput("the state of an optimiser and no weights; name the file that model.state_dict() was saved in")
    if _all_tensors(content):
        return content
    for name in KNOWN:
        if isinstance(content.get(name), Mapping) and depth:
            return _innermost(content[name], depth - 1)
    inside = [name for name, value in content.items() if isinstance(value, Mapping) and value and _all_tensors(value)]
    if len(inside) == 1:
        return content[inside[0]]
    if inside:
        raise BadInput(f"several dicts of tensors ({', '.join(map(shown_key, inside[:4]))}); save the one that is meant alone")
    strange = next(name for name, value in content.items() if not isinstance(value, Tensor))
    raise BadInput("neither a state_dict nor a dict with one under 'state_dict': "
                   f"{shown_key(strange)} is a {type(content[strange]).__name__}, not a tensor")


def _all_tensors(content: Mapping[Any, Any]) -> bool:
    return all(isinstance(value, Tensor) for value in content.values())


def _strange(value: Tensor) -> str | None:
    """What a tensor is that no weight, buffer or mask is; None of a plain one."""
    if value.is_meta:
        return "a tensor of the meta device, which has no values"
    if value.is_quantized or value.is_nested or value.layout != torch.strided:
        return f"a {'quantised' if value.is_quantized else 'nested' if value.is_nested else 'sparse'} tensor"
    return "a tensor of complex numbers" if value.is_complex() else None


def _unwrapped(state: State, own: set[str]) -> State:
    """The same tensors without the parts of their names that wrappers added."""
    parts = {name: [part for part in name.split(".") if part not in WRAPPERS] for name in state}
    inner = [words for words in parts.values() if words[0] != "normalize"]  # which may stand beside the wrapped model
    while inner and all(len(words) > 2 and words[0] == inner[0][0] for words in inner) and inner[0][0] not in own:
        for words in inner:
            del words[0]
    found = {".".join(words): state[name] for name, words in parts.items()}
    if len(found) < len(state):
        names = [".".join(words) for words in parts.values()]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadInput(f"{shown_key(twice)} is there twice, once in a wrapper; the file was put together wrongly")
    return found
