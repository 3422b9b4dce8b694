"""Other names and other defaults of methods: what the Reminiscence project calls what is here, and how it sets it."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from unlearn.registry import METHODS, DescentConfig
from utils import Config

REMINISCENCE = "arXiv:2507.20573"  # Xiao et al., Reminiscence Attack on Residuals, ICCV 2025
ADAM = {"optimizer": "adam", "weight_decay": 0.0}  # as the Reminiscence project's methods step, with torch's betas
PLAIN = {"momentum": 0.0, "weight_decay": 0.0}  # and where it steps by SGD


def preset(base: type[Config], name: str, **values: Any) -> type[Config]:
    """Settings ``base`` under other defaults, as a class of this name; their help and bounds stay."""
    hints, fields = typing.get_type_hints(base), {field.name: field for field in dataclasses.fields(base)}
    own = {key: dataclasses.field(default=value, metadata=fields[key].metadata) for key, value in values.items()}
    about = {"__doc__": base.__doc__, "__module__": base.__module__, "__annotations__": {key: hints[key] for key in values}}
    return dataclasses.dataclass(frozen=True, kw_only=True)(type(name, (base,), {**about, **own}))


AdamConfig = preset(DescentConfig, "AdamConfig", **ADAM)


def also(name: str, of: str, **more: Any) -> None:
    """Add a method's function under the name that the Reminiscence project has for it, with that project's defaults.

    Args:
        more: what is not as in the method ``of``, whose departures and values by protocol are its own.
    """
    known = METHODS[of]
    own = {"name": name, "label": "", "source": f"{REMINISCENCE}; {known.source}", "same_as": known.same_as or of}
    METHODS.add(name, dataclasses.replace(known, **own, **{"departs": "", "per_protocol": {}, **more}))
