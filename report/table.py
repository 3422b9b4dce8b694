"""A table as data: Markdown, LaTeX and HTML are written from the same one; the CSV files hold the numbers in full."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterable, Sequence

from report.names import Heading

WIDTH = 118  # characters of a line of notes


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is read, and the number that a table is sorted by; run: id of the runs behind it, where they are not the line's."""

    text: str
    value: float | None = None
    run: str = ""


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


@dataclasses.dataclass(frozen=True)
class Part:
    """What tables say of one setting: its heading, verdicts in a sentence each, the tables.

    tag: letters and digits that no other setting has; "" of what is about several.
    """

    heading: Heading
    tables: tuple[Table, ...]
    verdicts: tuple[str, ...] = ()
    tag: str = ""


def grid(body: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, columns of equal width; the first line is the head."""
    widths = [max(len(line[i]) for line in body) for i in range(len(body[0]))]
    text = ["| " + " | ".join(word.ljust(w) for word, w in zip(line, widths, strict=True)) + " |" for line in body]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return text


def sentence(text: str) -> list[str]:
    """A sentence as lines that fit a screen, and an empty one."""
    return [*textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False), ""]


def markdown(parts: Iterable[Part]) -> str:
    """Headings, verdicts, tables, each with its notes below it."""
    lines: list[str] = []
    for part in parts:
        lines += [f"## {part.heading.text}", ""]
        for verdict in part.verdicts:
            lines += sentence(f"> {verdict}")
        for table in part.tables:
            lines += sentence(table.title) if table.title else []
            lines += [*grid([[_cell(word) for word in table.head],
                             *([_cell(cell.text) for cell in line.cells] for line in table.lines)]), ""]
            for note in table.notes:
                lines += sentence(note)
        lines += [*sentence(f"({part.heading.small})"), ""] if part.heading.small else [""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# ----------------------------------------------------------------------------------------------------------------- LaTeX

PLAIN = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
         "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$",
         "×": r"$\times$", "·": r"$\cdot$", "…": r"\ldots{}", "|": r"\textbar{}"}
EVERY = re.compile("|".join(map(re.escape, PLAIN)))


def escaped(text: str) -> str:
    """Text as LaTeX sets it; a minus before a digit is a minus."""
    found = EVERY.sub(lambda m: PLAIN[m[0]], text)
    return re.sub(r"(?<![\w.}])-(?=\d)", "$-$", found)


def latex(parts: Iterable[Part], name: str) -> str:
    """A table environment (booktabs) for each table; what stands around it in Markdown is its caption.

    Args:
        name: of the file; labels begin with it, so that several files go into one paper.
    """
    lines = ["% \\usepackage{booktabs}", ""]
    for part in parts:
        for number, table in enumerate(part.tables, 1):
            said = [part.heading.text + ".", *([table.title] if table.title else []), *part.verdicts, *table.notes]
            caption = escaped(" ".join(said))
            anchors = sum(line.anchor for line in table.lines)
            body = [" & ".join(escaped(cell.text) for cell in line.cells) + r" \\" for line in table.lines]
            if 0 < anchors < len(body) and all(line.anchor for line in table.lines[:anchors]):
                body.insert(anchors, r"\midrule")
            label = f"\\label{{tab:{'-'.join(filter(None, (name, part.tag, str(number))))}}}"
            lines += [r"\begin{table}", r"\centering", f"\\caption{{{caption}}}", label,
                      f"\\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}", r"\toprule",
                      " & ".join(map(escaped, table.head)) + r" \\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}",
                      r"\end{table}", ""]
    return "\n".join(lines)
