"""What a person reads for a setting: what differs between the settings at hand; hashes stand in small print."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from report.settings import Setting


class Heading(NamedTuple):
    """text: of a setting, as short as its neighbours allow; small: what else it is, its hash among it."""

    text: str
    small: str


def headings(settings: Iterable[Setting]) -> dict[str, Heading]:
    """Setting's label -> heading."""
    return {setting.label: Heading(setting.label, "") for setting in settings}
