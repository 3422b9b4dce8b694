"""The recipes of scripts/recipes: every one is a command line that main_forget.py takes, and holds the published numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import shell
from test_cli_words import pretend_to_train
from test_shape import ROOT

import arg_parser
from scripts import recipe
from unlearn import METHODS, plan

FILES = sorted((ROOT / "scripts" / "recipes").glob("*.json"))
ENTRIES = [(path.stem, method, group) for path in FILES for method, entry in recipe.read(path).items()
           for group in (None, *entry.get("by_group", {}))]
# of the Reminiscence project's tables: data set and network, the method, its numbers there under our flags
PUBLISHED = """
cifar20_vit boundary_shrink epsilon 0.4 unlearn_epochs 10
cifar20_vit Wfisher alpha 10000
cifar20_vit scrub unlearn_lr 6e-4 unlearn_epochs 9
cifar20_vit our unlearn_lr 8e-4 replay_lr 4e-4
cifar100_resnet18 sfron unlearn_lr 1e-3 unlearn_epochs 8
cifar100_resnet18 Wfisher alpha 0.005
cifar100_resnet18 our unlearn_lr 1.2e-3 replay_lr 5e-3
cifar10_resnet18_sample relabel unlearn_lr 6.5e-4 unlearn_epochs 3
cifar10_resnet18_sample Wfisher alpha 130
cifar10_resnet18_sample FisherForgetting alpha 7e-8
cifar10_resnet18_sample negative_grad alpha 0.7 unlearn_lr 0.04 unlearn_epochs 8
cifar20_vit_sample salun unlearn_lr 1.2e-3 unlearn_epochs 15
cifar20_vit_sample FisherForgetting alpha 1e-8
cifar20_resnet18 ssd_tuning_our alpha 0.005 ssd_lambda 0.4
cifar20_resnet18 amnesiac_our over_lr 2.5e-3
cifar20_resnet18 Wfisher_our alpha 120
cifar20_resnet18 negative_grad unlearn_lr 0.01 unlearn_epochs 2
cifar20_resnet18_subclass finetune unlearn_lr 0.1 unlearn_epochs 15
cifar20_resnet18_subclass Wfisher alpha 105
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretend_to_train(tmp_path_factory.mktemp("originals"), "--dataset", "digits", "--arch", "resnet20s").folder


@pytest.mark.parametrize(("name", "method", "group"), ENTRIES)
def test_every_recipe_is_a_command_line(name: str, method: str, group: str | None, bare: Path) -> None:
    """What is typed arrives, and nothing is left over; salun's mask is not of a recipe."""
    entry = recipe.read(ROOT / "scripts" / "recipes" / f"{name}.json")[method]
    words = ["--checkpoint", str(bare), "--unlearn", method, *recipe.flags(entry, group), *shell.FORGET]
    args = arg_parser.parse("forget", [*words, *(["--path", "mask.pt"] if METHODS[method].needs_mask else [])])
    for flag, value in recipe.values(entry, group).items():
        found = getattr(args.cfg if hasattr(args.cfg, flag) else args.data, flag)
        asked = tuple(map(float, str(value).split(","))) if isinstance(found, tuple) else value
        assert found == asked, flag


def test_published_numbers_of_the_reminiscence_project_are_kept() -> None:
    lines = [line.split() for line in PUBLISHED.split("\n") if line]
    assert {f"reminiscence_{name}" for name, *_ in lines} == {path.stem for path in FILES if path.stem.startswith("remi")}
    for name, method, *words in lines:
        flags = recipe.read(ROOT / "scripts" / "recipes" / f"reminiscence_{name}.json")[method]["flags"]
        assert {flag: float(value) for flag, value in zip(words[::2], words[1::2], strict=True)}.items() <= flags.items()


@pytest.mark.parametrize("path", [p for p in FILES if "plans" in json.loads(p.read_text())], ids=lambda path: path.stem)
def test_its_rum_is_a_plan(path: Path) -> None:
    """The least memorized are left alone, the middle ones fine-tuned away, the most memorized unlearned by SalUn."""
    made = plan.make(plan.PlanConfig(plan=json.loads(path.read_text())["plans"]["rum"]), None, None, "rum")
    assert [(step.group, step.method.name, step.density) for step in made.steps] == [
        ("low", "raw", None), ("mid", "finetune", None), ("high", "salun", 0.5)]
    assert [dataclasses.asdict(step.cfg).get("unlearn_epochs") for step in made.steps] == [None, 5, 3]
