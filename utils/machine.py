"""What this machine can do, and what was measured on it: one small file a network, for later runs to read.

They lie in the user's cache folder, under the tool's name, or in the folder that the environment names; without a place to
write to, everything works, and is measured anew.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from utils.files import digest_of, make_folder, write_json
from utils.readers import UNREADABLE, read_json
from utils.words import CannotWrite, say

NAME = "lethe"  # of this tool
PLACE = f"{NAME.upper()}_CACHE"  # variable of the environment
FORM = 1  # of the files
NATIVE = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # in torch's words: units of x86, then of ARM
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
# what a file may hold, and what each has to be
KNOWN: dict[str, Callable[[Any], bool]] = {
    "bf16_speed": lambda x: type(x) in (int, float) and 0 < x < 1e6,
    "eval_batch": lambda x: type(x) is int and 1 <= x <= 2**20,
    "threads": lambda x: type(x) is int and 1 <= x <= 4096,
    "layout": lambda x: x in LAYOUTS,
}

_told: set[str] = set()


class Network(NamedTuple):
    """What the speed of a step depends on: the architecture, its stem, what it resizes to, and pixels a side."""

    arch: str
    imagenet_arch: bool
    input_size: int | None
    image_size: int


@functools.cache
def processor() -> str:
    """The name that the processor gives itself, else its kind."""
    with contextlib.suppress(OSError, UnicodeDecodeError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


@functools.cache
def threads() -> int:
    """Those that torch began with: the environment's, else one for each core."""
    return torch.get_num_threads()


def native_bf16() -> bool:
    """Whether the processor computes in bf16 itself; emulated it is 12-20 times slower than float32 (measured)."""
    told = getattr(torch.cpu, "get_capabilities", dict)()
    return any(bool(told.get(name)) for name in NATIVE)


def identity(device: str) -> dict[str, Any]:
    """The machine, as far as what is fastest depends on it."""
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    return {"device": device, "processor": name, "threads": threads(), "torch": torch.__version__}


def place() -> Path:
    """The folder of the files."""
    if os.environ.get(PLACE):
        return Path(os.environ[PLACE])
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / NAME


def path_of(device: str, network: Network) -> Path:
    digest = digest_of([FORM, identity(device), network])
    return place() / f"{network.arch.replace(':', '_').replace('/', '_')}-{network.image_size}-{digest}.json"


def read(device: str, network: Network) -> dict[str, Any]:
    """What was measured of a network on this machine, by the names of KNOWN; what cannot be used is told once, and left out."""
    path = path_of(device, network)
    try:
        found = read_json(path)
        values = {name: found["values"][name] for name in KNOWN if name in found["values"]}
        wrong = [name for name, value in values.items() if not KNOWN[name](value)]
    except FileNotFoundError:
        return {}
    except UNREADABLE as error:
        _once(f"notice: {path} cannot be used ({str(error).splitlines()[0] if str(error) else type(error).__name__}); what it "
              "said of this machine is left out")
        return {}
    if wrong:
        _once(f"notice: {path} is left out: {wrong[0]} is {values[wrong[0]]!r}")
        return {}
    return values


def write(device: str, network: Network, values: Mapping[str, Any], measured: Mapping[str, Any]) -> Path | None:
    """Keep what was measured, beside what is kept already; where, or None where it cannot be, which is told once.

    Args:
        values: by the names of KNOWN. measured: the numbers behind them, for people to read.
    """
    path = path_of(device, network)
    content = {"form": FORM, "machine": identity(device), "network": network._asdict(),
               "values": {**read(device, network), **values}, "measured": dict(measured)}
    try:
        make_folder(path.parent)
        write_json(path, content)
    except CannotWrite as error:
        _once(f"notice: {str(error).partition(';')[0]}: what is measured of this machine is not kept; {PLACE} in the "
              "environment names another folder")
        return None
    return path


def _once(text: str) -> None:
    if text not in _told:
        _told.add(text)
        say(text)
