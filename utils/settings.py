"""Settings that know their flag, and registries of what a name stands for."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from utils.words import BadInput

T = TypeVar("T")


def hp(default: Any, help: str, *, low: float = -math.inf, high: float = math.inf, above: float = -math.inf,
       below: float = math.inf, choices: tuple[str, ...] = (), digest: bool = True) -> Any:
    """A setting: a dataclass field that knows its flag's help and its bounds.

    ``low`` and ``high`` are themselves allowed, ``above`` and ``below`` are not. ``digest`` is False for what cannot
    change the weights (where to write, how to show progress), so that it does not move the run to another folder.
    """
    keep = dict(help=help, low=low, high=high, above=above, below=below, choices=choices, digest=digest)
    return dataclasses.field(default=default, metadata=keep)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all settings; checks every ``hp`` when made, from the shell, a plan or Python alike."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for item in value if isinstance(value, tuple) else (value,):
                _check(field.name, item, field.metadata)


def _check(name: str, value: Any, meta: Mapping[str, Any]) -> None:
    if value is None or not meta:
        return
    if meta["choices"] and value not in meta["choices"]:
        raise BadInput(f"--{name} must be one of {', '.join(meta['choices'])}; got {value!r}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    inside = meta["low"] <= value <= meta["high"] and meta["above"] < value < meta["below"]
    if not inside or math.isinf(value):  # NaN fails every comparison
        left = f"({meta['above']:.10g}" if meta["above"] > -math.inf else f"[{meta['low']:.10g}"
        right = f"{meta['high']:.10g}]" if meta["high"] < math.inf else f"{meta['below']:.10g})"
        raise BadInput(f"--{name} must lie in {left}, {right}; got {value:.10g}")


class Registry(Generic[T]):
    """Names to entries; a second entry under a name is our error, an unknown name the user's."""

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
            close = difflib.get_close_matches(str(name), self._entries, n=1, cutoff=0.5)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise BadInput(f"unknown {self.kind} {name!r}{hint}; known: {', '.join(self._entries)}")
        return self._entries[name]
