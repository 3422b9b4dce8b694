"""Over-unlearning and replay: a method on the forget set alone, further than it goes by itself, then training on retain.

``NAME_our`` exists for every method that reads the forget set; it is made when it is asked for, from NAME's own function and
settings. Xiao et al., ICCV 2025, arXiv:2507.20573, in its first form.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Any

from unlearn.phases import Phase, ReplayConfig, follow, replay
from unlearn.registry import METHODS, Method, RateConfig, Task
from utils import BadInput, Config, hp

SUFFIX = "_our"
RENAMED = {"unlearn_lr": "over_lr", "unlearn_epochs": "over_epochs"}
HELP = {"over_lr": "learning rate of the first phase, on the forget set alone", "over_epochs": "epochs of the first phase"}
FLAGS = {*RENAMED.values(), *(field.name for field in dataclasses.fields(ReplayConfig))}
# the published first phases; elsewhere a method's own defaults hold until others are typed
ASCENT, DAMPENING = {"over_epochs": 5, "alpha": 0.0}, {"alpha": 0.005, "ssd_lambda": 0.4, "replay_epochs": (5,)}
FIRST: dict[str, dict[str, Any]] = {
    "amnesiac": {"over_lr": 2.5e-3}, "badteacher": {"replay_epochs": (5,)}, "blindspot": {"replay_epochs": (5,)},
    "NG": ASCENT, "negative_grad": ASCENT, "ssd": DAMPENING, "ssd_tuning": DAMPENING,
    "Wfisher": {"wfisher_mode": "published", "alpha": 120.0}, "Woodfisher": {"wfisher_mode": "published", "alpha": 120.0}}
DEPARTS = ("phase 1 sees no retain image at all (published: bad teacher three of them), but those that take one step from "
           "statistics of the retain set (fisher, wfisher, ssd) read it; the replay's rate is constant, where the published "
           "warm-up doubles it for an epoch; all phases keep a mask")


class OverConfig(ReplayConfig):
    """A first phase by another method, then replay."""

    base: typing.ClassVar[Method]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.first()

    def first(self) -> Config:
        """The settings of the first phase, as the method itself has them."""
        own = {field.name: getattr(self, RENAMED.get(field.name, field.name)) for field in dataclasses.fields(self.base.config)}
        return self.base.config(**own)


def derived(name: str) -> Method | None:
    """The method of a name that ends in ``_our``; None of any other.

    Raises:
        BadInput: its first half does not read the forget set, so that there is nothing to do without the retain set.
    """
    base = METHODS.known(name.removesuffix(SUFFIX)) if name.endswith(SUFFIX) else None
    if base is None:
        return None
    if "forget" not in base.uses or _closed(base):
        why = "is of this family already" if _closed(base) else "does not read the forget set, which is all that it would see"
        raise BadInput(f"--unlearn {name}: {base.name} {why}; main_forget.py --list ends with those that "
                       f"take {SUFFIX}")
    return _made(base.name)


def takers() -> list[str]:
    """The methods that take ``_our``."""
    found = [METHODS[name] for name in METHODS.names()]
    return [method.name for method in found if "forget" in method.uses and not _closed(method)]


def _closed(method: Method) -> bool:
    """Whether a method is of this family already."""
    return bool(method.phases) or method.name.endswith(SUFFIX)


def _told(names: list[str]) -> list[str]:
    """Of a list of methods, what ``_our`` makes of some of them."""
    here = [name for name in takers() if name in names]
    text = (f"NAME{SUFFIX}: NAME on the forget set alone, at its own rate and length, then replay on the retain set (sparse).\n"
            f"  NAME is any of {', '.join(here)}; its flags, but --over_lr and --over_epochs in place of --unlearn_lr and "
            f"--unlearn_epochs, and {', '.join(f'--{field.name}' for field in dataclasses.fields(ReplayConfig))}\n"
            f"  [Xiao et al., ICCV 2025, arXiv:2507.20573]")
    return [text] if here else []


@functools.cache
def _made(name: str) -> Method:
    base = METHODS[name]
    trains = issubclass(base.config, RateConfig)

    def over_and_replay(task: Task, cfg: Any) -> None:
        follow(task, [Phase("over", lambda part: base.function(part, cfg.first()), ("retain",) if trains else (), base),
                      Phase("replay", lambda part: replay(part, cfg))])

    over_and_replay.__doc__ = f"{base.name} on the forget set alone, then replay on the retain set under an l1 penalty."
    config = _config(base)
    renamed = {protocol: {RENAMED.get(name, name): value for name, value in values.items()}
               for protocol, values in base.per_protocol.items()}
    same = f"{base.same_as}{SUFFIX}" if base.same_as else ""
    return Method(f"{name}{SUFFIX}", over_and_replay, config, base.uses | {"retain"},
                  f"Xiao et al., ICCV 2025, arXiv:2507.20573; {base.source}", masked=base.masked, departs=DEPARTS,
                  per_protocol=renamed, same_as=same, phases=("over", "replay"), needs_mask=base.needs_mask, whole=base.whole,
                  label=f"{base.label}{SUFFIX}")


def _config(base: Method) -> type[OverConfig]:
    """NAME's settings under the names of the first phase, and the replay's."""
    hints, defaults = typing.get_type_hints(base.config), FIRST.get(base.name, {})
    fields = []
    for field in dataclasses.fields(base.config):
        name = RENAMED.get(field.name, field.name)
        about = {**field.metadata} | ({"help": HELP[name]} if name in HELP else {})
        fields.append((name, hints[field.name], hp(defaults.get(name, field.default), **about)))
    hints = typing.get_type_hints(ReplayConfig)
    fields += [(field.name, hints[field.name], hp(defaults[field.name], **field.metadata))
               for field in dataclasses.fields(ReplayConfig) if field.name in defaults]
    made = dataclasses.make_dataclass(f"{base.name}{SUFFIX}", fields, bases=(OverConfig,), frozen=True, kw_only=True,
                                      namespace={"base": base, "__doc__": f"{base.name} on the forget set alone, then replay."})
    return made


METHODS.derive, METHODS.more = derived, _told
