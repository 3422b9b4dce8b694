"""What was read from files, kept for the next who asks as long as there is room and the file is as it was."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


class Kept:
    """Arrays by file; those asked for longest ago go where all together would pass ``room`` bytes.

    They are shared: nobody writes into them.
    """

    def __init__(self, room: int) -> None:
        self.room, self.held = room, 0
        self._known: OrderedDict[tuple[str, int, int], Arrays] = OrderedDict()

    def get(self, path: Path, read: Callable[[], Arrays]) -> Arrays:
        """The arrays of a file, read where it is not known at its present size and time of change."""
        try:
            there = path.stat()
        except OSError:
            return read()  # which says what is wrong
        key = (str(path.absolute()), there.st_size, there.st_mtime_ns)
        if key not in self._known:
            self._known[key] = read()
            self.held += _size(self._known[key])
        self._known.move_to_end(key)
        found = self._known[key]
        while self.held > self.room and self._known:
            self.held -= _size(self._known.popitem(last=False)[1])
        return dict(found)


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())
