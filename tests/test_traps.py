"""TRAPS.md is whole and true: every numbered trap once, each with tests that are there or a reason of a known kind."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).resolve().parent
TABLE = (TESTS / "TRAPS.md").read_text()
COUNTS = {"RUM A": 15, "RUM B": 22, "Sparse B": 36, "Eval ": 17, "OUR ": 39, "Num ": 18, "Hole ": 29,
          "FAST ": 26, "CUDA ": 19}
IDS = [f"{group}{number}" for group, count in COUNTS.items() for number in range(1, count + 1)]
PARTS = "memorization and RUM|sparsity and second-order methods|Reminiscence attack"
REASON = re.compile(rf"(later: ({PARTS}) \(.+\)|(not ours|by design): \w.+ .+)")
TEST = re.compile(r"`(test_\w+\.py)::(test_\w+)(?:\[([^\]`]+)\])?`")


class Trap(NamedTuple):
    """A row: its id, the fault in a few words, and the tests or the reason."""

    id: str
    fault: str
    held_by: str


def rows(text: str) -> list[Trap]:
    """The rows of every table of the file but the heads; a line of a table that is not three cells fails."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith(("| id |", "| --- |"))]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(len(row) == 3 and all(row) for row in cells), [row for row in cells if len(row) != 3 or not all(row)]
    return [Trap(*row) for row in cells]


@functools.cache
def functions(path: Path) -> set[str]:
    """Names of the tests that pytest collects from a file."""
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def absent(held_by: str) -> Iterator[str]:
    """What a cell names that is not there: a file, a test in it, or a case in its text."""
    found = list(TEST.finditer(held_by))
    if held_by.count("::") != len(found):
        yield f"not all of this is `file.py::test`: {held_by}"
    for match in found:
        file, name, case = match.groups()
        path = TESTS / file
        if not path.is_file() or name not in functions(path) or (case and f"\n{case} |" not in path.read_text()):
            yield match.group()


def test_every_trap_stands_there_once_and_in_order() -> None:
    assert [trap.id for trap in rows(TABLE)] == IDS


def test_every_trap_says_what_goes_wrong() -> None:
    faults = [trap.fault for trap in rows(TABLE)]
    assert all(len(fault) > 15 for fault in faults) and len(set(faults)) == len(faults)


@pytest.mark.parametrize("trap", rows(TABLE), ids=lambda trap: trap.id)
def test_trap_is_held_by_a_test_or_has_a_reason(trap: Trap) -> None:
    """A cell begins with a test, or with one of the words for why there is none."""
    assert not list(absent(trap.held_by))
    assert TEST.match(trap.held_by) or REASON.fullmatch(trap.held_by)


@pytest.mark.parametrize("held_by", [
    "`test_traps.py::test_that_is_not_there`", "`test_that_is_not_there.py::test_rows`", "test_traps.py::rows",
    "`test_traps.py::test_a` `", "`test_errors.py::test_there_are_enough_bad_inputs[no such case]`"])
def test_names_of_what_is_not_there_are_found(held_by: str) -> None:
    assert list(absent(held_by))


@pytest.mark.parametrize("reason", [
    "", "later", "later: some day (perhaps)", "later: memorization and RUM", "not ours:", "because: of this and that",
    "by design: so"])
def test_reasons_of_other_words_are_none(reason: str) -> None:
    assert not REASON.fullmatch(reason)
