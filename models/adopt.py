"""Weights that others have trained, as a start: all of a file but a head for another number of classes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import nn

from models.libraries import Borrowed
from models.peer import COUNTER, load_state, read_safely
from models.registry import ARCHS
from models.unwrap import tensors
from utils import BadInput, say

AUXILIARY = re.compile(r"(network\.)?(AuxLogits|aux1|aux2)\.")  # outputs beside the logits, which a network here has not
OURS = ("normalize.mean", "normalize.std")


def start_from(model: nn.Module, path: Path) -> None:
    """Give a model the weights of a file, in place, but for a head of another number of classes, which stays as it is.

    Args:
        path: of torch.save, read with ``weights_only=True``; a library's names are its own.

    Raises:
        BadInput: a file that cannot be read, or names and shapes that do not fit.
    """
    content = read_safely(path)
    try:
        adopt(model, content, headless=True, told=str(path))
    except BadInput as error:
        raise BadInput(f"--pretrained {path}: {error}") from error


def adopt(model: nn.Module, content: Any, *, headless: bool = False, told: str = "") -> bool:
    """As ``start_from``, of a file's content; whether it holds a normalisation of its own.

    Args:
        headless: a head of another shape is left out, and said of the file ``told``, instead of refused.
    """
    own = model.state_dict()
    state = tensors(content, own.keys())
    state = model.adopted(state) if isinstance(model, Borrowed) else state
    state = {name: value for name, value in state.items() if name in own or not AUXILIARY.match(name)}
    normalised = all(name in state for name in OURS)
    state |= {} if normalised else {name: own[name] for name in OURS}
    if not any(name.endswith(COUNTER) for name in state):
        state |= {name: value for name, value in own.items() if name.endswith(COUNTER)}
    last = re.compile(rf"{re.escape(ARCHS[model.arch].head)}\..*")
    rows = {name for name in own if last.fullmatch(name) and own[name].shape[0] == model.num_classes}
    if headless and rows <= state.keys() and any(state[name].shape != own[name].shape for name in rows):
        found = len(state[next(iter(rows))])
        state |= {name: own[name] for name in rows}
        say(f"notice: the head of {told} is for {found} classes and is left out: that of {model.num_classes} starts anew")
    load_state(model, state)
    return normalised
