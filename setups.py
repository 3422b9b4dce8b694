"""Published setups by name: --setup cifar20_5 is the same as typing its flags, and what was typed wins.

Source: the scripts and result tables of "Reminiscence Attack on Residuals" (Xiao et al., ICCV 2025, arXiv:2507.20573) and of
the earlier manuscript of that work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from sources.kept import ClassList, ClassNumbers
from utils import BadInput, Config, flag_words, hp, say

CHOICES = ("num_indexes_to_replace", "forget_fraction", "class_to_replace", "subclass_to_replace", "forget_mislabelled",
           "forget_index", "mem", "group_index", "requests")  # flags by which a forget set may be chosen
WHOLE = ("forget_index", "mem", "group_index", "requests")  # those of them that stand alone
RIVALS = {"forget_fraction": ("num_indexes_to_replace",), "class_to_replace": ("subclass_to_replace",),
          "subclass_to_replace": ("class_to_replace",)}


class Setup(NamedTuple):
    """data, forget: flag -> value, of the data and of the forget set; outputs: of the model; about: for the table."""

    data: dict[str, Any]
    forget: dict[str, Any]
    outputs: int
    about: str


FIVE, SIX = ClassNumbers((12, 16, 17, 18, 19)), ClassNumbers((4, 12, 16, 17, 18, 19))
SETUPS = {
    "cifar20_5": Setup({"dataset": "cifar20", "ood_classes": FIVE}, {"class_to_replace": (4,)}, 15,
                       "the published 15 outputs: five super-classes left out, as first meant"),
    "cifar20_6": Setup({"dataset": "cifar20", "ood_classes": SIX}, {}, 14,
                       "the six classes of the released list: the class 4 that its drivers forget is among them, so "
                       "another one to forget must be typed"),
    "cifar100_5": Setup({"dataset": "cifar100", "ood_classes": FIVE}, {"class_to_replace": (4,)}, 95, "the same five numbers"),
    "imagenet64_6": Setup({"dataset": "imagenet64", "classes": ClassList("0-99"), "ood_classes": SIX},
                          {"class_to_replace": (0,)}, 94,
                          "the published 100 classes are not public: the first hundred stand for them"),
    "cifar20_sub": Setup({"dataset": "cifar20", "ood_subclass": ClassNumbers((30,))},
                         {"subclass_to_replace": ClassNumbers((4,))}, 20,
                         "within super-class 0 (sub-classes 4, 30, 55, 72, 95); published with each in turn in both places"),
    "cifar10_sample": Setup({"dataset": "cifar10"}, {"forget_fraction": 0.1}, 10, "a random tenth"),
    "cifar20_sample": Setup({"dataset": "cifar20"}, {"forget_fraction": 0.1}, 20, "a random tenth"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetupConfig(Config):
    """A published setup."""

    setup: str | None = hp(None, "stands for the flags of a published setup, data and forget set, that are not typed",
                           choices=tuple(SETUPS), digest=False)


def completed(typed: Mapping[str, Any], groups: Mapping[str, type[Config]]) -> dict[str, Any]:
    """The typed values, by flag, and those of --setup that the stage has flags for and that were not typed; said in a line.

    Args:
        groups: of the stage. A --class_to_replace that is not of a forget set, as main_backdoor.py's, is left alone.

    Raises:
        BadInput: no such setup, or one that leaves the forget set to be chosen where none is.
    """
    if "setup" not in typed:
        return dict(typed)
    SetupConfig.check_values(typed)
    name, chosen = typed["setup"], [flag for flag in CHOICES if flag in typed]
    setup = SETUPS[name]
    if "forget" in groups and not setup.forget and not chosen:
        told = ",".join(map(str, setup.data["ood_classes"]))
        raise BadInput(f"--setup {name} leaves the classes {told} out of distribution, 4 among them, which the published "
                       "drivers forget; name another one to forget: --class_to_replace C")
    flags = _flags(groups.get("cfg") if "data" not in groups else groups.get("data"))
    found = {flag: value for flag, value in setup.data.items() if flag in flags and flag not in typed}
    flags = _flags(groups.get("cfg") if "data" not in groups else groups.get("forget"))
    found |= {flag: value for flag, value in _open(setup.forget, chosen).items() if flag in flags}
    words = " ".join(word for flag, value in found.items() for word in flag_words(flag, value))
    say(f"notice: --setup {name} stands for {words or 'nothing that was not typed'}")
    return {**typed, **found}


def _flags(config: type[Config] | None) -> Collection[str]:
    return {field.name for field in dataclasses.fields(config)} if config is not None else ()


def _open(forget: Mapping[str, Any], chosen: Collection[str]) -> dict[str, Any]:
    """The flags of a forget set that were not chosen otherwise."""
    if set(WHOLE) & set(chosen):
        return {}
    return {flag: value for flag, value in forget.items() if not {flag, *RIVALS[flag]} & set(chosen)}


def table() -> list[tuple[str, ...]]:
    """One row a setup: name, the flags that it stands for, outputs of the model, what it is."""
    def words(flags: Mapping[str, Any]) -> str:
        return " ".join(word for flag, value in flags.items() for word in flag_words(flag, value))

    return [(f"`{name}`", f"`{words({**setup.data, **setup.forget})}`", str(setup.outputs), setup.about)
            for name, setup in SETUPS.items()]
