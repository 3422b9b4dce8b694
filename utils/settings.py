"""Settings that know their flag, and registries of what a name stands for."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

from utils.words import BadInput, is_control, shown

T = TypeVar("T")
# what every setting has to fit into: whole numbers into int64, others into float32, in which the weights are
INT_MAX, FLOAT_MAX, FLOAT_MIN = 2**63 - 1, (2 - 2**-23) * 2.0**127, 2.0**-149


def hp(default: Any, help: str, *, low: float = -math.inf, high: float = math.inf, above: float = -math.inf,
       below: float = math.inf, choices: tuple[str, ...] = (), digest: bool = True) -> Any:
    """A setting: a dataclass field that knows its flag's help and its bounds.

    ``low`` and ``high`` are themselves allowed, ``above`` and ``below`` are not. ``digest`` is False for what cannot
    change the weights (where to write, how to show progress), so that it does not move the run to another folder.
    """
    keep = dict(help=help, low=low, high=high, above=above, below=below, choices=choices, digest=digest)
    return dataclasses.field(default=default, metadata=keep)


def flag_words(flag: str, value: Any) -> list[str]:
    """The words of a command line that give a setting this value; none for None, which no flag can give."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no_{flag}"]
    text = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    return [f"--{flag}={text}"] if text.startswith("-") else [f"--{flag}", text]  # - alone would begin a flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all settings; checks every ``hp`` when made, from the shell, a plan or Python alike."""

    def __post_init__(self) -> None:
        self.check_values(vars(self))

    @classmethod
    def check_values(cls, values: Mapping[str, Any]) -> None:
        """Refuse what a setting does not take, of some settings by name, before anything is looked up by them."""
        for field in dataclasses.fields(cls):
            value = values.get(field.name)
            for item in value if isinstance(value, tuple) else (value,):
                _check(field.name, item, field.metadata)


def did_you_mean(word: Any, known: Iterable[str]) -> str:
    """The known word that is nearest, in brackets, of words that differ in case the nearest as written; "" where none is."""
    word, names = str(word)[:100], list(known)
    close = difflib.get_close_matches(word.lower(), {name.lower() for name in names}, n=1, cutoff=0.5)
    alike = [name for name in names if [name.lower()] == close]
    if not alike:
        return ""
    return f" (did you mean {max(alike, key=lambda name: sum(a == b for a, b in zip(name, word, strict=False)))!r}?)"


def _check(name: str, value: Any, meta: Mapping[str, Any]) -> None:
    if value is None or not meta:
        return
    if meta["choices"] and value not in meta["choices"]:
        raise BadInput(f"--{name} must be one of {', '.join(meta['choices'])}; got {shown(value)}"
                       + did_you_mean(value, meta["choices"]))
    if isinstance(value, str):
        _check_text(name, value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_number(name, value, meta)


def _check_text(name: str, value: str) -> None:
    if not value.strip():
        raise BadInput(f"--{name} is empty; give it a value, or leave the flag away")
    if any(map(is_control, value)):
        raise BadInput(f"--{name} {shown(value)} holds control characters, or bytes that are no text; give a name without any")


def _check_number(name: str, value: float, meta: Mapping[str, Any]) -> None:
    told = shown(value) if isinstance(value, int) else f"{value:.10g}"
    inside = meta["low"] <= value <= meta["high"] and meta["above"] < value < meta["below"]
    if not inside or value in (math.inf, -math.inf):  # NaN fails every comparison
        left = f"({meta['above']:.10g}" if meta["above"] > -math.inf else f"[{meta['low']:.10g}"
        right = f"{meta['high']:.10g}]" if meta["high"] < math.inf else f"{meta['below']:.10g})"
        raise BadInput(f"--{name} must lie in {left}, {right}; got {told}")
    if isinstance(value, int) and not -INT_MAX - 1 <= value <= INT_MAX:
        raise BadInput(f"--{name} must fit into 64 bits, which end at {INT_MAX}; got {told}")
    if abs(value) > FLOAT_MAX and not isinstance(value, int):
        raise BadInput(f"--{name} must fit into single precision, which ends at {FLOAT_MAX:.3g}; got {told}")
    if meta["above"] == 0 and value < FLOAT_MIN:
        raise BadInput(f"--{name} must be above 0 in single precision, which begins at {FLOAT_MIN:.2g}; got {told}")


class Registry(Generic[T]):
    """Names to entries; a second entry under a name is our error, an unknown name the user's.

    listed: what names all of them, where they are too many for an error.
    """

    listed = ""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        if name in self._entries:
            raise ValueError(f"the {self.kind} {name!r} is registered twice")
        self._entries[name] = entry
        return entry

    def names(self) -> list[str]:
        return list(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise BadInput(f"unknown {self.kind} {shown(name)}{did_you_mean(name, self._entries)}; "
                           f"{self.listed or 'known: ' + ', '.join(self._entries)}")
        return self._entries[name]
