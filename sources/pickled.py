"""Published pickles of arrays, read without running anything they ask for."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from utils import UNREADABLE, BadInput, open_regular, reason


def load_plain(path: Path) -> Any:
    """Plain containers of numpy arrays from a pickle of any protocol, Python 2's included (its text as latin1).

    Raises:
        BadInput: the file asks for anything else (refused before it is called), is cut off, or is no pickle.
    """
    try:
        with open_regular(path) as file:
            return _PlainUnpickler(file, encoding="latin1").load()
    except UNREADABLE as error:
        raise BadInput(f"{path} cannot be read safely ({reason(error)}); put the official file there") from error


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in protocol 2; the general ``_codecs.encode`` would reach every installed codec."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text encoded as {encoding!r}")
    return text.encode("latin1")


# taken from numpy's own reductions, so that they fit numpy 1 and 2, whose module names differ
_MAKERS = {
    "multiarray._reconstruct": np.empty(0).__reduce__()[0],
    "multiarray.scalar": np.float64(0).__reduce__()[0],
    "numeric._frombuffer": np.empty(1).__reduce_ex__(5)[0],
}
_ALLOWED = {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype, "_codecs.encode": _latin1} | {
    f"numpy.{core}.{name}": maker for core in ("core", "_core") for name, maker in _MAKERS.items()
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}; only arrays and plain containers are admitted")
        return _ALLOWED[f"{module}.{name}"]
