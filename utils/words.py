"""What is said to the person at the terminal: lines on the screen, and errors that one line mends."""

from __future__ import annotations

import contextlib
import os
import sys
import unicodedata
from typing import Any, TextIO

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

    def __init__(self, file: Any, run: Any, what: str = "") -> None:
        what = what or ("cannot be read, or is damaged" if file.exists() else "is missing")
        super().__init__(f"{file} {what}; repeat the run that wrote it with --force", run, True)


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


def visible(text: str) -> str:
    """Control characters written out, but for spaces and ends of lines."""
    return "".join(ascii(letter)[1:-1] if is_control(letter) and not letter.isspace() else letter for letter in text)


def as_line(text: str) -> str:
    """An error as one line that any terminal shows: control characters written out, what is very long cut in its middle."""
    words = [word if len(word) <= LONGEST_WORD else f"{word[:100]}...{word[-50:]}" for word in visible(text).split()]
    line = " ".join(words)
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE * 2 // 3]} ... {line[-LONGEST_LINE // 4 :]}"


def say(text: str) -> None:
    """The only way anybody here speaks to the person at the terminal; control characters are written out."""
    put(f"{visible(text)}\n", sys.stdout)


def put(text: str, stream: TextIO | None) -> None:
    """Write to a standard stream. One that is closed or full is told once, and stops nobody: results are on the disk.

    What the terminal's encoding lacks is written as its escape.
    """
    try:
        if stream is None:  # closed before Python began
            return
        try:
            stream.write(text)
        except UnicodeEncodeError:
            known = stream.encoding or "ascii"
            stream.write(text.encode(known, "backslashreplace").decode(known))
        stream.flush()
    except (OSError, ValueError) as error:  # ValueError: closed by Python itself
        _drop(stream)
        if stream is sys.stdout:
            told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            put(f"notice: nothing can be written to standard output ({told}); the work goes on, and results go to their "
                "files\n", sys.stderr)


def _drop(stream: TextIO) -> None:
    """Lead a stream that takes nothing more to nowhere, what it still holds too, which Python writes at its end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()
