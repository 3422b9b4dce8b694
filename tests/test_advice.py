"""What errors and notices advise can be done: every flag and every program that they name is there, for whom it is said."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_shape import MAINS, ROOT, SOURCES

import stages
from unlearn import over

FLAG, PROGRAM = re.compile(r"(?<![\w-])--([a-z][\w]*)"), re.compile(r"\b(\w+\.py)\b")
COMMAND = re.compile(r"(\w+\.py)((?: --?[\w]+(?: [^-;,()\s]+)?)+)")
WORDS = {"help", "list", "no_", "nproc_per_node"}  # of argparse, of a negation that is put together, and of torchrun


def flags_of(stage: str) -> set[str]:
    """Every flag that a stage takes with one of its methods or scores, and their negations."""
    names = stages.allowed(stage) if {"method", "choice"} & stages.STAGES[stage][1].keys() else [None]
    groups = [group for name in names for group in stages.chosen(stage, name)[0].items()]
    found = {stages.flag_of(stage, group, field.name) for group, config in groups for field in dataclasses.fields(config)}
    return found | {f"no_{flag}" for flag in found}


ALL = set().union(*map(flags_of, stages.STAGES)) | stages.ALIASES.keys() | WORDS | over.FLAGS
# file -> the stages whose errors it writes, where those are not nearly all
OF = {"attack/backdoor.py": ["backdoor", "forget"], "generate_mask.py": ["mask"],
      "unlearn/saliency.py": ["mask", "random", "backdoor"], "unlearn/plan.py": ["rum"], "unlearn/rum.py": ["rum"],
      "pruner/plan.py": ["imp", "synflow", "forget"], "pruner/synflow.py": ["synflow"],
      "prune.py": ["imp", "synflow", "forget"],
      "trainer.py": ["train", "imp", "forget", "memorization"], "report/pairs.py": ["analysis", "forget"],
      "report/output.py": ["analysis", "forget"], "memorization/pool.py": ["memorization"],
      "memorization/feldman.py": ["memorization"], "memorization/factory.py": ["memorization"],
      "memorization/engines.py": ["memorization"], "memorization/entanglement.py": ["memorization"],
      "memorization/proxies.py": ["memorization"], "groups.py": ["forget", "mask", "random", "rum"],
      "pruner/mask.py": ["forget", "random", "mask"], "dataset.py": ["train", "imp", "synflow", "forget", "memorization"],
      "models/originals.py": ["forget"], "models/files.py": ["train", "forget"], "sources/scores.py": ["forget"],
      "unlearn/influence.py": ["forget"], "unlearn/dampening.py": ["forget"]}


def said(path: Path) -> Iterator[tuple[int, str]]:
    """The texts of a file that are no docstrings, with their lines; of an f-string the parts that stand there."""
    tree = ast.parse(path.read_text())
    silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            yield node.lineno, node.value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_flags_and_programs_that_a_text_names_are_there(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    known = set().union(*map(flags_of, OF[name])) | stages.ALIASES.keys() | WORDS if name in OF else ALL
    programs = {main.name for main in MAINS}
    wrong = [f"{line}: --{flag}" for line, text in said(path) for flag in FLAG.findall(COMMAND.sub("", text))
             if flag not in known]
    wrong += [f"{line}: {program}" for line, text in said(path) for program in PROGRAM.findall(text)
              if program.startswith(("main_", "analysis", "generate_")) and program not in programs]
    assert not wrong


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_command_that_a_text_spells_out_is_parsed(path: Path) -> None:
    """Each ``main_x.py --flag`` within one text has flags of that program."""
    programs = {program: stage for stage, (program, _) in stages.STAGES.items()}
    wrong = []
    for line, text in said(path):
        for command in COMMAND.finditer(text):
            stage = programs.get(command[1])
            takes = flags_of(stage) | stages.ALIASES.keys() | WORDS if stage else set()
            wrong += [f"{line}: {command[0]}" for flag in FLAG.findall(command[2]) if stage and flag not in takes]
    assert not wrong
