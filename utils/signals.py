"""Ctrl-C and SIGTERM end a run in the same way: where it stands, with its state on the disk."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM, as job queues send it; raised where the process stands, so that files and locks are left in order."""


def exit_code(stop: KeyboardInterrupt) -> int:
    """As a shell counts it: 128 and the signal's number."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises ``Terminated`` inside the block; in a thread of somebody's own nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


@contextlib.contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that are started inside the block do not hear the terminal's Ctrl-C, from their first moment on.

    Their parent ends them; two traces of one Ctrl-C help nobody.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is ignored, a new program ignores too
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)


def no_more() -> None:
    """From here on the process ends; another Ctrl-C would only cut its last line short."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
