"""A table as data: Markdown, LaTeX and HTML are written from the same one; the CSV files hold the numbers in full."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is read, and the number that a table is sorted by."""

    text: str
    value: float | None = None


@dataclasses.dataclass(frozen=True)
class Line:
    """cells; run: id of the group of runs behind the line; anchor: whether the others are compared with it."""

    cells: tuple[Cell, ...]
    run: str = ""
    anchor: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """title: of this table, under its setting's heading; about: head -> what it means; notes: sentences of this table alone."""

    title: str
    head: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    about: dict[str, str] = dataclasses.field(default_factory=dict)


def markdown(table: Table) -> list[str]:
    """Lines of text, columns of equal width; without title and notes."""
    body = [list(table.head), *([cell.text for cell in line.cells] for line in table.lines)]
    widths = [max(len(line[i]) for line in body) for i in range(len(body[0]))]
    text = ["| " + " | ".join(word.ljust(w) for word, w in zip(line, widths, strict=True)) + " |" for line in body]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return text
