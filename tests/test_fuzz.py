"""Random command lines of every stage, of all its flags and of values that nobody should give: parsed, or refused in a line."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import shell
from test_cli_words import pretend_to_train

import arg_parser
import stages
from utils import shown

NUMBERS = ["0", "-1", "1", "2", "3.5", "1e39", "-1e39", "1e-50", "-1e-3", "-.5", "nan", "-nan", "inf", "-inf", "4294967296",
           "9223372036854775808", "-9223372036854775809", "9" * 309, "-" + "9" * 309, "9" * 5000, "1_000", "0x10", "1e",
           "true", "١٢"]
WORDS = ["", " ", "--", "-", "-x", "=", "==", ",", "1,,2", "1,", "[]", "[1,2]", "1 2", "rumm", "low,low", "all", "FT", "low:FT",
         "low:FT(", "low:FT(unlearn_lr=1e39)", "all:FT(unlearn_epochs=" + "9" * 309 + ")", "a" * 5000, "x" * 100_000,
         "a/" * 3000, "two\nlines", "\x1b[31mred", "nul\0", "\udcff", "\u2028", "%s%d", "{}", "{name}", "0-" + "9" * 30, "1/0",
         "9" * 30 + "/1", "/dev/zero", "/dev/full", ".", "/", "fifo", "shut", "~", "http://nowhere", "🙂"]
STAGES = list(stages.STAGES)
COUNT = 330
nowhere = pytest.fixture(autouse=True)(shell.nowhere)


def flags_of(stage: str) -> list[str]:
    """Every flag that a stage has in one of its methods or scores, published spellings and negations too."""
    groups = stages.STAGES[stage][1]
    configs = [*groups.values(), *(registry[name].config for group, (_, registry) in stages.CHOOSERS.items() if group in groups
                                   for name in stages.allowed(stage))]
    names = {field.name for config in configs for field in dataclasses.fields(config)}
    return sorted(names | {"no_aug", "list", "num_workers", *stages.ALIASES, "no_such_flag"})


def command(stage: str, random: np.random.Generator, original: Path) -> list[str]:
    """One to three flags of a stage, each with one of the values or none, behind what the stage needs."""
    start = {"memorization": [["--score", "es"], []], "random": [["--unlearn", "RL"]], "rum": [["--unlearn", "NG"], []]}
    methods = [["--unlearn", name] for name in ("FT", "SCRUB", "wfisher", "retrain")]
    needed = start.get(stage, methods if "method" in stages.STAGES[stage][1] else [[]])
    words = [*needed[random.integers(len(needed))]]
    if "parent" in stages.STAGES[stage][1] and random.random() < 0.8:
        words += ["--checkpoint", str(original)]
    if "forget" in stages.STAGES[stage][1] and random.random() < 0.5:
        words += ["--num_indexes_to_replace", "20"]
    flags = flags_of(stage)
    for _ in range(random.integers(1, 4)):
        flag = flags[random.integers(len(flags))]
        values = NUMBERS if random.random() < 0.5 else WORDS
        value = values[random.integers(len(values))]
        flag = flag.replace("_", "-") if random.random() < 0.2 else flag
        forms = [[f"--{flag}", value], [f"--{flag}={value}"], [f"--{flag}"], [f"--{flag}", value, "3"]]
        words += forms[random.choice(4, p=[0.4, 0.4, 0.1, 0.1])]
    return words


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretend_to_train(tmp_path_factory.mktemp("originals"), "--dataset", "digits", "--arch", "resnet8s").folder


@pytest.mark.parametrize("stage", STAGES)
def test_any_command_line_is_parsed_or_refused_in_one_line(
    stage: str, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo("fifo")
    Path("shut").mkdir(mode=0)
    random, refused, wrong = np.random.default_rng([20, *stage.encode()]), 0, []
    before = shell.listing(tmp_path, original.parent)
    for _ in range(COUNT // len(STAGES)):
        words = command(stage, random, original)
        told = " ".join(shown(word) for word in words)
        try:
            arg_parser.entry(stage, "about")(lambda args: None)(words)
        except SystemExit as end:
            said, printed = capsys.readouterr().err, "--list" in words
            if end.code != 2 and not (printed and end.code == 0):
                wrong.append(f"{told}: exit {end.code}")
            elif not printed and not (said.count("\n") == 1 and said[:-1].isprintable() and len(said) < 400):
                wrong.append(f"{told}: {shown(said, 300)}")
            refused += 1
        except Exception as error:
            wrong.append(f"{told}: {type(error).__name__}: {shown(str(error), 200)}")
    Path("shut").chmod(0o700)
    assert not wrong, "\n".join([f"{len(wrong)} of {COUNT // len(STAGES)}", *wrong[:8]])
    assert shell.listing(tmp_path, original.parent) == before and refused > 10
