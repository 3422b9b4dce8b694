"""Classes out of distribution from the shell: training, mask, unlearning and analysis; published setups; what is refused."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import shell
import torch
from conftest import short_config, tiny_net
from loaded import digits, load

import arg_parser
import models
import setups
from evaluation import accuracy
from evaluation.accuracy import EvaluationConfig
from report.forgotten import Album
from unlearn import METHODS
from unlearn.registry import Task
from utils import BadInput, Runtime, Saved

nowhere = pytest.fixture(autouse=True)(shell.nowhere)
FIVE = ["--dataset", "digits", "--arch", "resnet8s", "--classes", "0-4", "--batch_size", "64"]
ONE = ["--class_to_replace", "1"]  # of the classes 1, 2 and 4 that are left, by the outputs 0, 1 and 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original without the classes 0 and 3, its mask, and three methods that forget class 1."""
    root = tmp_path_factory.mktemp("ood")
    shell.call("main_train.py", *FIVE, "--ood_classes", "3,0", "--epochs", 1, "--seed", 1, save_dir=root)
    original = shell.only(root, "train")
    shell.call("generate_mask.py", "--checkpoint", original.folder, *ONE, save_dir=root)
    for method, more in {"retrain": [], "RL": ["--path", root], "NG": []}.items():
        shell.forget(original, root, method, *ONE, *more)
    return root


def test_later_stages_inherit_what_was_left_out(runs: Path, rt: Runtime) -> None:
    original = shell.only(runs, "train")
    assert models.Original(*original).setup["ood_classes"] == [0, 3]
    content = torch.load(original.folder / "model.pt", weights_only=True)
    assert content["num_classes"] == 3
    labels, split = digits().y_train, None
    own = np.isin(labels, (1, 2, 4))
    for run in (shell.only(runs, "mask"), *(shell.only(runs, "forget", unlearn=name) for name in ("retrain", "RL", "NG"))):
        assert run.setting("ood_classes") == [0, 3] and run.record["data_key"] == original.record["data_key"]
        assert "setup" not in run.record["settings"]
        split = split or run.record["split_key"]
        assert run.record["split_key"] == split
        if run.record["stage"] == "forget":
            arrays = accuracy.load_outputs(run.folder)
            for part in ("forget", "retain", "test"):
                raw = digits().y_test if part == "test" else labels
                raw = raw[np.isin(raw, (1, 2, 4))]
                wanted = [{1: 0, 2: 1, 4: 2}[y] for y in raw[arrays[f"{part}_index"]].tolist()]
                assert arrays[f"{part}_labels"].tolist() == wanted and arrays[f"{part}_logits"].shape[1] == 3
            assert set(labels[own][arrays["forget_index"]]) == {1} and run.record["whole_classes"] == [0]
            right = arrays["test_logits"].argmax(1) == arrays["test_labels"]
            rest = arrays["test_labels"] != 0
            assert run.record["metrics"]["test"] == pytest.approx(100 * right[rest].mean())
    again = accuracy.metrics_of(run.folder, run.record, EvaluationConfig(mia_draws=7))
    assert again["test"] == run.record["metrics"]["test"] and again["AUC_forget"] == run.record["metrics"]["AUC_forget"]
    assert set(load(rt, classes="0-4", ood_classes=(0, 3)).ood_test.y.tolist()) == {0, 3}


def test_the_rule_for_whole_classes_goes_by_outputs(rt: Runtime) -> None:
    """Class 4 is the output 2 of three: by its number there would be no such row."""
    data = load(rt, {"class_to_replace": (4,)}, classes="0-4", ood_classes=(0, 3), train_per_class=20, val_fraction=0.0)
    model = tiny_net(rt, 3)
    before = model.fc.weight.detach().clone()
    METHODS["fisher_new"].apply(model, data, short_config("fisher_new", alpha=1e-9), rt)
    gone = (model.fc.weight.abs().amax(1) < 0.3) & ((model.fc.weight - before).abs().amax(1) > 1e-3)
    assert data.splits.whole_classes == (2,) and gone.tolist() == [False, False, True]
    assert Task(METHODS["fisher_new"], model, data, rt, None, None, "exact").whole_classes == [2]


def test_an_analysis_tells_the_class_by_the_data_set_and_what_was_left_out(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs with other classes out of distribution are another table, though they forget the same class."""
    root = shutil.copytree(runs, tmp_path / "runs")
    shell.call("main_train.py", *FIVE, "--ood_classes", "0,2", "--epochs", 1, "--seed", 1, save_dir=root)
    other = shell.only(root, "train", ood_classes=(0, 2))
    for method in ("retrain", "NG"):
        shell.forget(other, root, method, *ONE)
    capsys.readouterr()
    shell.call("analysis.py", "--venue", "none", save_dir=root)
    said = capsys.readouterr().out
    assert "without classes 0,3 · class 1 (" in said and "without classes 0,2 · class 1 (" in said
    with open(root / "analysis" / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["network"] for row in rows} == {f"digits resnet8s without classes 0,{other}" for other in (2, 3)}
    assert len({row["setting"] for row in rows}) == 2
    shell.call("analysis.py", "--venue", "none", "--ood_classes", "3,0", save_dir=root)
    said = capsys.readouterr().out
    assert "without classes 0,3" in said and "without classes 0,2" not in said and "| RL " in said


def test_forgotten_images_stand_above_their_class_in_the_data_set(runs: Path) -> None:
    (grid,), _ = Album(4).of(SimpleNamespace(run=shell.only(runs, "forget", unlearn="NG"), groups={}))
    assert [shot.label for shot in grid.shots] == ["1"] * 4


def test_scores_are_asked_for_with_what_was_left_out(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--checkpoint", str(shell.only(runs, "train").folder), "--mem", "low", "--num_indexes_to_replace", "9"]
    assert "python main_memorization.py --dataset digits --classes 0-4 --ood_classes 0,3 " in refused(runs, words, capsys)


TYPED = {  # what is typed, and the message
    "the forgotten class": (["--class_to_replace", "3"], "--class_to_replace 3: this class is out of distribution"),
    "class trained on": ([*ONE, "--ood_classes", "0,2,3"], "was trained on class 2, which is then not out of distribution"),
    "fewer than were left out": ([*ONE, "--ood_classes", "3"], "has 0,3; leave the flag away"),
    "sub-class of digits": (["--subclass_to_replace", "4"], "digits has no sub-classes; cifar20 has"),
    "sub-class left out": ([*ONE, "--ood_subclass", "4"], "was trained on sub-class 4"),
    "no list": ([*ONE, "--ood_classes", "x"], "--ood_classes: the list takes numbers and ranges"),
    "two words": ([*ONE, "--ood_classes", "0", "3"], "with commas: 0,3"),
    "unknown setup": (["--setup", "cifar100-5"], "did you mean 'cifar100_5'?"),
    "setup of another data set": (["--setup", "cifar10_sample"], "the original in"),
    "setup without a class to forget": (["--setup", "cifar20_6"], "name another one to forget: --class_to_replace C"),
}


def refused(root: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    before = shell.listing(root)
    with pytest.raises(SystemExit) as end:
        shell.call("main_forget.py", "--unlearn", "NG", *words, save_dir=root)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and shell.listing(root) == before
    return said


@pytest.mark.parametrize("wrong", TYPED)
def test_what_contradicts_the_original_is_refused(wrong: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, told = TYPED[wrong]
    assert told in refused(runs, ["--checkpoint", str(shell.only(runs, "train").folder), *words], capsys)


@pytest.mark.parametrize(("gone", "told"), [
    ([], "a model of 3 outputs, but the data set has 5 classes"),
    (["--ood_classes", "0"], "a model of 3 outputs, but of the 5 classes of the data set 4 are left beside 1 of --ood_classes"),
    (["--ood_classes", "0,2,3"], "a model of 3 outputs, but of the 5 classes of the data set 2 are left beside 3")])
def test_outputs_of_a_bare_file_must_fit_the_map(
    gone: list[str], told: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = shutil.copy(shell.only(runs, "train").folder / "model.pt", tmp_path / "bare.pt")
    assert told in refused(tmp_path, ["--checkpoint", str(file), *FIVE, *ONE, *gone], capsys)
    torch.save(torch.load(file, weights_only=True)["state_dict"], tmp_path / "theirs.pt")  # as others publish theirs
    assert told in refused(tmp_path, ["--checkpoint", str(tmp_path / "theirs.pt"), *FIVE, *ONE, *gone], capsys)


def test_a_target_class_goes_by_the_map(rt: Runtime) -> None:
    from attack import backdoor

    case = backdoor.poison(load(rt, ood_classes=(0, 3)), backdoor.TriggerConfig(class_to_replace=4))
    assert case.target == 2 and set(case.data.images.y[case.data.splits.forget].tolist()) == {2}
    with pytest.raises(BadInput, match="3: this class is out of distribution"):
        backdoor.poison(load(rt, ood_classes=(0, 3)), backdoor.TriggerConfig(class_to_replace=3))


# --------------------------------------------------------------------------------------------------------------- setups


def parsed(stage: str, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    file = tmp_path / "model.pt"
    file.write_bytes(b"x")
    monkeypatch.setattr("models.find_original", lambda typed, narrow, results_only: models.Original(file, {}))
    return arg_parser.parse(stage, words)


@pytest.mark.parametrize("name", setups.SETUPS)
@pytest.mark.parametrize("stage", ["train", "forget"])
def test_a_setup_is_the_same_as_its_flags(
    name: str, stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = next(row for row in setups.table() if row[0] == f"`{name}`")
    flags = row[1].strip("`").split()
    more = ["--unlearn", "NG", *(["--class_to_replace", "0"] if name == "cifar20_6" else [])] if stage == "forget" else []
    if stage == "train":
        cut = next((i for i, word in enumerate(flags) if word in ("--class_to_replace", "--subclass_to_replace",
                                                                   "--forget_fraction")), len(flags))
        flags = flags[:cut]
    short = parsed(stage, ["--setup", name, *more], monkeypatch, tmp_path)
    assert f"notice: --setup {name} stands for {' '.join(flags)}\n" in capsys.readouterr().out
    assert short.settings == parsed(stage, [*flags, *more], monkeypatch, tmp_path).settings
    assert "setup" not in short.settings


def test_setups_have_their_published_numbers() -> None:
    """Classes out of distribution, outputs and what is forgotten, as in the reference's tables and drivers."""
    found = {name: (setup.data.get("ood_classes"), setup.outputs) for name, setup in setups.SETUPS.items()}
    five, six = (12, 16, 17, 18, 19), (4, 12, 16, 17, 18, 19)
    assert found == {"cifar20_5": (five, 15), "cifar20_6": (six, 14), "cifar100_5": (five, 95), "imagenet64_6": (six, 94),
                     "cifar20_sub": (None, 20), "cifar10_sample": (None, 10), "cifar20_sample": (None, 20)}
    total = {"cifar20": 20, "cifar100": 100, "imagenet64": 100, "cifar10": 10}
    for setup in setups.SETUPS.values():
        assert setup.outputs == total[setup.data["dataset"]] - len(setup.data.get("ood_classes") or ())
        assert not set(setup.forget.get("class_to_replace", ())) & set(setup.data.get("ood_classes") or ())


@pytest.mark.parametrize(("name", "typed", "wanted"), [
    ("cifar20_5", ["--ood_classes", "12", "--class_to_replace", "7"], {"ood_classes": (12,), "class_to_replace": (7,)}),
    ("cifar20_5", ["--num_indexes_to_replace", "9"], {"class_to_replace": (4,), "num_indexes_to_replace": 9}),
    ("cifar20_5", ["--subclass_to_replace", "0"], {"class_to_replace": (-1,), "subclass_to_replace": (0,)}),
    ("cifar20_sub", ["--class_to_replace", "1"], {"class_to_replace": (1,), "subclass_to_replace": None}),
    ("cifar10_sample", ["--num_indexes_to_replace", "9"], {"forget_fraction": None, "num_indexes_to_replace": 9}),
    ("cifar20_5", ["--forget_index", "x.npy"], {"class_to_replace": (-1,), "ood_classes": (12, 16, 17, 18, 19)})])
def test_what_is_typed_wins_over_a_setup(
    name: str, typed: list[str], wanted: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    args = parsed("forget", ["--setup", name, "--unlearn", "NG", *typed], monkeypatch, tmp_path)
    found = {flag: getattr(args.forget, flag, None) if hasattr(args.forget, flag) else getattr(args.data, flag)
             for flag in wanted}
    assert found == wanted


def test_a_setup_filters_an_analysis_and_leaves_a_backdoors_target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cfg = arg_parser.parse("analysis", ["--setup", "cifar20_5"]).cfg
    assert (cfg.dataset, cfg.ood_classes, cfg.class_to_replace) == ("cifar20", (12, 16, 17, 18, 19), (4,))
    planted = arg_parser.parse("backdoor", ["--setup", "cifar20_5", "--unlearn", "FT"])
    assert planted.data.ood_classes == (12, 16, 17, 18, 19) and planted.plant.class_to_replace == 0


def test_a_run_of_a_setup_repeats_without_it(runs: Path) -> None:
    import commands

    words = commands.command_of(shell.only(runs, "train"))
    assert words[words.index("--ood_classes") + 1] == "0,3"
    again = arg_parser.parse("train", words[2:])
    recorded = shell.only(runs, "train").record["settings"]["data"]
    assert list(again.data.ood_classes) == recorded["ood_classes"] and isinstance(shell.only(runs, "train"), Saved)
