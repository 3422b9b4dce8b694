"""What is said to the person at the terminal: lines on the screen, and errors that one line mends."""

from __future__ import annotations


class BadInput(ValueError):
    """What the user can put right: one line that says what is wrong and what to do. Mains turn it into exit code 2."""


class CannotWrite(BadInput):
    """A full disk, or one closed to us; the run stays as it was, to go on once there is room."""


def say(text: str) -> None:  # the only way anybody here speaks to the person at the terminal
    print(text, flush=True)
