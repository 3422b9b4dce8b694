"""README and docs are true: tables are the generated ones, and all commands parse unchanged and run at toy size."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from torch.distributed.run import get_args_parser

import arg_parser
import models
import processes
import sources
from utils import machine

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


def commands_of(text: str) -> list[str]:
    """The lines of its bash blocks that call Python; those of torchrun as one process has them, which makes the same run."""
    lines = [re.sub(r"^torchrun --nproc_per_node \d+ ", "python ", line) for line in lines_of(text)]
    return [line for line in lines if line.startswith("python ")]


def lines_of(text: str) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]


# in a sentence or a table; M stands for a method, D for a folder
SHORT = sorted({words for name, text in PAGES.items() if name != "README.md"
                for words in re.findall(r"`((?:main|generate|analysis)_?\w*\.py --[^`]+)`", text)})
COMMANDS = {name: commands_of(text) for name, text in PAGES.items()}
STAGE_OF = {prog: stage for stage, (prog, _) in arg_parser.STAGES.items()}
TOY = {"dataset": "digits", "arch": "resnet8s", "epochs": "1", "unlearn_epochs": "1", "num_indexes_to_replace": "24",
       "batch_size": "256", "msteps": "1", "models": "20", "pool_epochs": "1", "ft_epochs": "1",
       "tsne_points": "30", "over_epochs": "1", "replay_epochs": "1", "image_size": "8"}
SETUP = ["--dataset", "digits", "--ood_classes", "8,9"]
MADE = {"README.md": ("ToW-MIA", {"tow.csv", "tow.md", "tow.png", "tow.pdf", "accuracy.png", "margins.png", "cost.png",
                                  "tow_mia.csv", "mia.png"}),
        "reminiscence.md": ("raw sum", {"table.md", "table.csv", "distribution_logits.png"})}


def test_readme_has_a_command_for_every_stage() -> None:
    assert {command.split()[1] for command in COMMANDS["README.md"]} >= set(STAGE_OF)


def test_tables_are_the_generated_ones() -> None:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "scripts" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert tables.filled(README) == README, "run make tables"


def test_torchrun_takes_its_lines_for_a_stage_that_several_processes_compute() -> None:
    lines = [shlex.split(line)[1:] for text in PAGES.values() for line in lines_of(text) if line.startswith("torchrun ")]
    assert lines
    for words in lines:
        asked = get_args_parser().parse_args(words)
        assert int(asked.nproc_per_node) > 1 and STAGE_OF[asked.training_script] in processes.TOGETHER


def test_make_targets_and_scripts_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for text in PAGES.values():
        for target in re.findall(r"(?:`|^)make\s+([\w-]+)", text, re.M):
            assert re.search(rf"^{target}:", makefile, re.M), target
        for script in re.findall(r"scripts/\w+\.sh", text):
            assert (ROOT / script).stat().st_mode & 0o111, script
        for file in re.findall(r"scripts/[\w/]+\.(?:py|json)", text):
            assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("command", [line for lines in COMMANDS.values() for line in lines if line.split()[1] in STAGE_OF]
                         + [re.sub(r" M\b", " amnesiac", f"python {words}") for words in SHORT])
def test_command_parses_unchanged(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = shlex.split(command)
    file = tmp_path / "model.pt"
    file.write_bytes(b"x")
    monkeypatch.setattr("models.find_original", lambda typed, narrow, results_only: models.Original(file, {}))
    monkeypatch.setattr("arg_parser.find_scores", lambda *_: tmp_path / "scores.npz")
    if {"--list", "--help"} & set(words):
        with pytest.raises(SystemExit) as end:
            arg_parser.parse(STAGE_OF[words[1]], words[2:])
        assert end.value.code == 0
    else:
        arg_parser.parse(STAGE_OF[words[1]], words[2:])


def toy(words: list[str]) -> list[str]:
    """The command with only data set, architecture, counts and epochs replaced."""
    out = list(words)
    for place, word in enumerate(words[:-1]):
        if word.startswith("--") and word[2:] in TOY:
            out[place + 1] = TOY[word[2:]]
    if "--rewind_epoch" in words:  # it lies within the epochs
        out[words.index("--rewind_epoch") + 1], out[words.index("--epochs") + 1] = "1", "2"
    if "--setup" in words:  # the published data are not here
        place = words.index("--setup")
        out[place : place + 2] = SETUP if words[1] == "main_train.py" else [*SETUP, "--class_to_replace", "4"]
    return [re.sub(r"unlearn_epochs=\d+", "unlearn_epochs=1", word) for word in out if word not in ("--imagenet_arch",)]


@pytest.mark.parametrize("page", [page for page, lines in COMMANDS.items() if lines])
def test_commands_run_in_order_at_toy_size(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                           capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(machine.PLACE, str(tmp_path / "cache"))
    monkeypatch.setattr("report.output.FIGURED", 3)  # figures where there are few settings, as in the first analyses
    whole = sources.load("digits", tmp_path, download=False)
    parts = {"x_train": whole.x_train[:400], "y_train": whole.y_train[:400], "x_test": whole.x_test[:100],
             "y_test": whole.y_test[:100]}
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "digits.npz", **parts)
    np.savez("scores.npz", memorization=np.random.default_rng(0).random(400))
    for command in COMMANDS[page]:
        words = toy(shlex.split(command))
        if {"--list", "--help"} & set(words):
            continue
        main = importlib.import_module(words[1].removesuffix(".py").replace("/", ".")).main
        quiet = [] if words[1].startswith(("analysis", "scripts/")) else ["--no_progress", "--device", "cpu"]
        if words[1] == "main_memorization.py" and "--models" in words and "--recipe fast" not in command:
            quiet += ["--engine", "serial"]  # processes of its own are started by one pool, which takes seconds
            quiet += [] if "--arch" in words else ["--arch", TOY["arch"], "--pool_epochs", "1"]
        quiet = ["--device", "cpu", "--budget", "0.01"] if words[1] == "main_calibrate.py" else quiet
        main([*words[2:], *quiet])
    said = capsys.readouterr().out
    assert "| retrain" in said and MADE[page][0] in said
    made = {path.name for path in (tmp_path / "runs").rglob("*")}
    assert MADE[page][1] <= made
