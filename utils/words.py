"""What is said to the person at the terminal: lines on the screen, and errors that one line mends."""

from __future__ import annotations

import unicodedata
from typing import Any

LONGEST_WORD, LONGEST_LINE = 250, 2000  # of an error; a folder's name has no more than 255 letters


class BadInput(ValueError):
    """What the user can put right: one line that says what is wrong and what to do. Mains turn it into exit code 2."""


class CannotWrite(BadInput):
    """A full disk, or one closed to us; the run stays as it was, to go on once there is room."""


class Mended(BadInput):
    """What the command of a run puts right: the message ends where that belongs, and whoever knows the flags adds it.

    run: the folder and its record. again: whether the command is to repeat a finished run.
    """

    def __init__(self, message: str, run: Any, again: bool) -> None:
        super().__init__(message)
        self.run, self.again = run, again


class Unfinished(Mended):
    """What a stage needs was begun and not finished. where: what was asked for; more: what else is there."""

    def __init__(self, where: str, run: Any, more: str = "") -> None:
        super().__init__(f"{where}: {run.folder} is not finished ({run.record['status']}){more}; go on with it", run, False)


class Damaged(Mended):
    """A file of a finished run is missing or cannot be read; the run has to be repeated."""

    def __init__(self, file: Any, run: Any) -> None:
        what = "cannot be read, or is damaged" if file.exists() else "is missing"
        super().__init__(f"{file} {what}; repeat the run that wrote it with --force", run, True)


def say(text: str) -> None:  # the only way anybody here speaks to the person at the terminal
    print(text, flush=True)


def shown(value: Any, most: int = 60) -> str:
    """What somebody typed, in quotes where it is text, for an error: its beginning and its length where it is long."""
    text = repr(value)
    if len(text) <= most:
        return text
    count = f"{len(text) - 2 if isinstance(value, str) else len(text)} {'digits' if isinstance(value, int) else 'characters'}"
    return f"{text[: most // 2]}...{text[-1:] if isinstance(value, str) else ''} ({count})"


def is_control(letter: str) -> bool:
    """Whether a letter would move the cursor or change colours, ends a line, or is a byte that is no text."""
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")


def as_line(text: str) -> str:
    """An error as one line that any terminal shows: control characters written out, what is very long cut in its middle."""
    text = "".join(ascii(letter)[1:-1] if is_control(letter) and not letter.isspace() else letter for letter in text)
    words = [word if len(word) <= LONGEST_WORD else f"{word[:100]}...{word[-50:]}" for word in text.split()]
    line = " ".join(words)
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE * 2 // 3]} ... {line[-LONGEST_LINE // 4 :]}"
