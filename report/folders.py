"""Where the files of an analysis lie: a folder for each choice of runs and settings, in which no stale file stays.

Which files an analysis wrote stands beside them in ``<study>.files.json``, with their hashes, so that the next one takes away
what it does not write any more, and nothing that somebody else wrote or changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from utils import BadInput, digest_of, read_json, write_atomic

# settings that change no number: where things lie, and what is shown of them; every other one is in the folder's name
SILENT = ("save_dir", "out", "partial", "columns", "figures", "venue", "html", "pictures", "merge", "data", "device")
UNORDERED = ("unlearn", "seed", "features", "space")
LONGEST = 80  # letters of a folder's name
ENDING = ".files.json"
Content = bytes | Callable[[], Iterable[bytes]]  # of a file: all of it, or what gives its pieces, the same each time


def folder_of(cfg: Any) -> Path:
    """``--out``, else SAVE_DIR/analysis, and in it for whatever is set otherwise than by default a folder of that name."""
    if cfg.out is not None:
        return Path(cfg.out)
    name = name_of(cfg)
    return Path(cfg.save_dir) / "analysis" / name if name else Path(cfg.save_dir) / "analysis"


def name_of(cfg: Any) -> str:
    """Such as ``dataset=digits_seed=1,2``; "" where nothing is set. What a file system may not take goes, and a hash stands
    for it."""
    told = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg)
            if field.name not in SILENT and getattr(cfg, field.name) != field.default}
    told = {name: sorted(set(value)) if name in UNORDERED else value for name, value in told.items()}
    whole = "_".join(f"{name}={_word(value)}" for name, value in told.items())
    safe = re.sub(r"[^A-Za-z0-9_.,=+-]", "-", whole)
    return safe if safe == whole and len(safe) <= LONGEST else f"{safe[:LONGEST]}-{digest_of(told)[:6]}"


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def keep(folder: Path, study: str, files: Mapping[str, Content]) -> None:
    """Write all files of a study, then remove those that it wrote there before and does not any more.

    Raises:
        CannotWrite: a full disk or a closed place; what was there before stays then, but for files that were replaced.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot write {folder}: {error.strerror}; choose another --out") from error
    before, new = _listed(folder / f"{study}{ENDING}"), {name: _hash(content) for name, content in files.items()}
    _list(folder, study, before | new)  # one that is killed now leaves no file that nobody knows
    for name, content in files.items():
        write_atomic(folder / name, lambda file, it=content: file.writelines(_pieces(it)), "--out")
    others = {name for path in folder.glob(f"*{ENDING}") if path.name != f"{study}{ENDING}" for name in _listed(path)}
    for name in before.keys() - new.keys() - others:
        with contextlib.suppress(OSError):  # gone, or not ours to remove
            if _hash((folder / name).read_bytes()) == before[name]:
                (folder / name).unlink()
    _list(folder, study, new)


def _list(folder: Path, study: str, files: Mapping[str, str]) -> None:
    text = json.dumps({"files": dict(files)}, indent=1) + "\n"
    write_atomic(folder / f"{study}{ENDING}", lambda file: file.write(text.encode()), "--out")


def _listed(path: Path) -> dict[str, str]:
    """File -> hash; {} where there is no list, or what is there is none of ours."""
    try:
        found = read_json(path).get("files")
    except (ValueError, OSError, AttributeError, RecursionError):
        return {}
    plain = isinstance(found, dict) and all(isinstance(value, str) and Path(name).name == name for name, value in found.items())
    return found if plain else {}


def _pieces(content: Content) -> Iterable[bytes]:
    return (content,) if isinstance(content, bytes) else content()


def _hash(content: Content) -> str:
    found = hashlib.sha256()
    for piece in _pieces(content):
        found.update(piece)
    return found.hexdigest()
