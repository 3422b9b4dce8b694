"""How a person calls a program of this suite again: by the path that they called this one by."""

from __future__ import annotations

import sys
from pathlib import Path


def program(name: str) -> list[str]:
    """``python`` and the script, beside the one that runs now; its bare name where that is none of this suite."""
    beside = Path(sys.argv[0]).parent / name if sys.argv and sys.argv[0] else Path(name)
    return ["python", str(beside) if beside.is_file() else name]
