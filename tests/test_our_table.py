"""The table of the Reminiscence sweeps, two files joined and published figures beside ours; the sweeps' commands."""

from __future__ import annotations

import csv
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import arg_parser
import models
from report.rows import FLOOR
from report.settings import named
from scripts import our_table, recipe
from setups import SETUPS
from utils import Saved

ROOT = Path(our_table.ROOT)
CLASS = "cifar20 resnet18 without classes 12,16,17,18,19, forget class 4 (2250 images), 0a1b2c-3d4e"
BEAVER, OTTER = (f"cifar20 resnet18 without sub-classes 30, forget sub-class {n} (450 images), {n}-a" for n in (4, 55))
STAGE_OF = {prog: stage for stage, (prog, _) in arg_parser.STAGES.items()}


def write(folder: Path, name: str, *lines: dict[str, object]) -> None:
    folder.mkdir(exist_ok=True)
    with open(folder / name, "w", newline="") as file:
        out = csv.DictWriter(file, list(dict.fromkeys(key for line in lines for key in line)))
        out.writeheader()
        out.writerows(lines)


def accuracy(setting: str, method: str, ta: float, **more: object) -> dict[str, object]:
    return {"setting": setting, "method": method, "n": 3, "collapsed": 0, "TA": ta, "TA_low": ta - 1, "TA_high": ta + 2, **more}


def lying(setting: str, method: str, features: str, space: str, silhouette: float) -> dict[str, object]:
    return {"setting": setting, "method": method, "features": features, "space": space, "n": 3, "silhouette": silhouette}


def cells(text: str, method: str) -> list[str]:
    """Of the first line of a method."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {method} "))
    return [word.strip() for word in line.split("|")[1:-1]]


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """Both files, in the order that analyses write them; the distribution of two kinds."""
    names = ("retrain", "raw", FLOOR, "ssd_tuning_our", "our", "ssd_tuning")
    write(tmp_path, "tow.csv", *(accuracy(CLASS, name, 60.0 + place) for place, name in enumerate(names)))
    kinds = (("logits", "tsne", 0.0), ("penultimate", "own", 0.5))
    named = ("original", "retrain", "ssd_tuning_our", "our", "ssd_tuning", "original, never seen")
    write(tmp_path, "distribution_means.csv", *(lying(CLASS, name, features, space, start + place / 10)
                                                for features, space, start in kinds for place, name in enumerate(named)))
    return tmp_path


def test_every_method_has_the_numbers_of_both_files(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    our_table.main([str(both), "--out", str(both / "table")])
    text = capsys.readouterr().out
    assert cells(text, "original") == ["original", "3", "61.00 ±2.00", "0.000"]
    assert cells(text, "ssd_tuning") == ["ssd_tuning", "3", "65.00 ±2.00", "0.400"]
    assert cells(text, "original, never seen") == ["original, never seen", "3", "-", "0.500"]
    assert our_table.shown({"TA": "60", "TA_low": "57", "TA_high": "61"}, "TA") == "60.00 ±3.00"
    assert "t-SNE plane of the logits" in text and FLOOR not in text
    assert (both / "table.md").read_text() == text
    with open(both / "table.csv", newline="") as file:
        lines = {line["method"]: line for line in csv.DictReader(file)}
    assert (lines["our"]["TA"], lines["our"]["TA_high"], lines["our"]["silhouette"]) == ("64.0", "66.0", "0.3")


def test_another_space_is_another_column(both: Path) -> None:
    found = our_table.read(both, "penultimate", "own")
    text = our_table.report(found, "penultimate", "own")
    assert cells(text, "retrain")[-1] == "0.600" and "space of the penultimate features itself" in text


def test_a_method_with_replay_stands_below_the_method(both: Path) -> None:
    (methods,) = our_table.read(both, "logits", "tsne").values()
    assert list(methods) == ["original", "retrain", "ssd_tuning", "ssd_tuning_our", "our", "original, never seen"]
    named = ["NG (alpha=0.9)", "NG_our", "RUM", "FT_l1 = FT_prune", "orth_no_our", "retrain"]
    assert sorted(named, key=our_table.order) == ["retrain", "FT_l1 = FT_prune", "NG (alpha=0.9)", "NG_our", "orth_no_our",
                                                  "RUM"]


def test_published_figures_stand_beside_ours_as_they_are_defined_there(tmp_path: Path) -> None:
    """UA is the accuracy on the forget set there, and MIA what the entropy calls member."""
    more = {"forget": 3.0, "RA": 98.5, "MIA_entropy": 80.0, "seconds": 20.0}
    write(tmp_path, "tow.csv", accuracy(CLASS, "badteacher (bt_retain_share=0.2)", 69.0, **more),
          accuracy(CLASS, "amnesiac", 60.0))
    write(tmp_path, "distribution_means.csv", lying(CLASS, "badteacher (bt_retain_share=0.2)", "logits", "tsne", 0.7))
    found = our_table.read(tmp_path, "logits", "tsne")
    (methods,) = found.values()
    text = "\n".join(our_table.beside(methods, "cifar20_5"))
    wanted = ["69.00 / 69.45", "3.00 / 4.69", "98.50 / 99.99", "20.00 / 15.44", "20.00 / 26.48", "- / 53.03", "0.7000 / 0.6266",
              "- / 0.0256"]
    assert cells(text, "badteacher (bt_retain_share=0.2)")[1:] == wanted and "amnesiac" not in text
    assert text in our_table.report(found, "logits", "tsne")
    assert "/ 69.45" not in our_table.report(found, "penultimate", "tsne")


@pytest.mark.parametrize("changes", [("resnet18", "resnet34"), ("18,19", "18"), ("class 4", "class 40"),
                                     ("class 4", "classes 4,5"), ("resnet18", "resnet18 95 % pruned"),
                                     ("class 4 (2250 images)", "2250 images")])
def test_another_setting_has_no_published_figures(changes: tuple[str, str]) -> None:
    assert our_table.setup_of(CLASS) == "cifar20_5" and our_table.setup_of(CLASS.replace("cifar20", "cifar100")) == "cifar100_5"
    assert our_table.setup_of(CLASS.replace(*changes)) is None


def test_settings_are_told_as_the_tables_name_them() -> None:
    """What the published setups are known by."""
    setup = SETUPS["cifar20_5"]
    run = Saved(Path(), {"settings": {"data": dict(setup.data), "model": {"arch": "resnet18"}}})
    assert named(run) == CLASS.partition(", forget ")[0]


def test_several_sub_classes_have_their_mean_first(tmp_path: Path) -> None:
    write(tmp_path, "tow.csv", accuracy(BEAVER, "raw", 60.0), accuracy(OTTER, "raw", 70.0), accuracy(BEAVER, "NG", 50.0),
          accuracy(OTTER, "NG", 54.0), accuracy(OTTER, "GA", 10.0), accuracy(BEAVER, "FT", 9.0), accuracy(CLASS, "NG", 1.0))
    write(tmp_path, "distribution_means.csv", lying(BEAVER, "NG", "logits", "tsne", 0.2),
          lying(OTTER, "NG", "logits", "tsne", 0.4))
    means = our_table.over_settings(our_table.read(tmp_path, "logits", "tsne"))
    (kind,) = means
    assert kind == "cifar20 resnet18, forget sub-class, mean over 2 forget sets" and list(means[kind]) == ["original", "NG"]
    assert (float(means[kind]["NG"]["TA"]), float(means[kind]["NG"]["silhouette"])) == (52.0, pytest.approx(0.3))


def test_a_folder_without_both_tables_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "tow.csv", accuracy(CLASS, "raw", 60.0))
    with pytest.raises(SystemExit) as end:
        our_table.main([str(tmp_path)])
    assert end.value.code == 2 and "analysis_distribution.py: FileNotFoundError" in capsys.readouterr().err.splitlines()[-1]


# ------------------------------------------------------------------------------------------------------------- the sweeps

# writes its command lines down in place of doing what they say, but for recipes
PRETENDED = """#!/bin/sh
if [ "$1" = scripts/recipe.py ]; then exec {python} -S "$@"; fi
echo "$@" >> {log}
"""
SWEEPS = ["our_class", "our_subclass", "our_sample"]


def commands(sweep: str, tmp_path: Path, **more: str) -> list[list[str]]:
    """What a sweep calls, in order."""
    python = tmp_path / "python"
    python.write_text(PRETENDED.format(python=shlex.quote(sys.executable), log=tmp_path / "log"))
    python.chmod(0o755)
    env = os.environ | {"PYTHON": str(python), "SAVE_DIR": str(tmp_path / "runs"), "SEEDS": "1", "SUBCLASSES": "4 30",
                        "FORGOTTEN": "4 30", **more}
    done = subprocess.run(["bash", str(ROOT / "scripts" / f"{sweep}.sh")], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in (tmp_path / "log").read_text().splitlines()]


@pytest.mark.parametrize("size", ["full", "small"])
@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_command_of_a_sweep_is_one_that_its_stage_takes(sweep: str, size: str, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    called = commands(sweep, tmp_path, SIZE=size)
    original = tmp_path / "model.pt"
    original.write_bytes(b"x")
    monkeypatch.setattr("models.find_original", lambda typed, narrow, results_only: models.Original(original, {}))
    for words in called:
        if words[0] in STAGE_OF:
            arg_parser.parse(STAGE_OF[words[0]], words[1:])
    stages = [words[0] for words in called]
    assert stages[0] == "main_train.py" and stages[-4:-1] == ["analysis.py", "analysis_mia.py", "analysis_distribution.py"]
    methods = [words[words.index("--unlearn") + 1] for words in called if "--unlearn" in words]
    assert {"raw", "retrain", "our"} <= set(methods) and any(name.endswith("_our") for name in methods)
    masked = [words for words in called if {"salun", "sfron"} & set(words)]
    assert all("--path" in words and called[called.index(words) - 1][0] == "generate_mask.py" for words in masked)


def test_sub_classes_change_places_and_none_is_forgotten_that_was_never_seen(tmp_path: Path) -> None:
    called = commands("our_subclass", tmp_path, SPARSE="1", METHODS="amnesiac")
    pairs = {(words[words.index("--ood_subclass") + 1], words[words.index("--subclass_to_replace") + 1]) for words in called
             if "--subclass_to_replace" in words}
    assert pairs == {("4", "30"), ("30", "4")}
    assert all("5e-5" in words for words in called if words[0] == "main_train.py")


def test_a_method_that_a_recipe_lacks_has_no_flags(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(ROOT / "scripts" / "recipes" / "digits_privacy_resnet8s.json")
    recipe.main([file, "SCRUB", "--or_defaults"])
    recipe.main([file, "amnesiac", "--or_defaults"])
    assert capsys.readouterr().out == "\n--unlearn_lr 0.001 --unlearn_epochs 3\n"
    with pytest.raises(SystemExit):
        recipe.main([file, "SCRUB"])
