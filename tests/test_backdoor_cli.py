"""main_backdoor.py from the shell: planting, cleansing, resuming, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shell
import torch
from conftest import equal, quiet_runtime
from pruned import leaks

import dataset
import models
import stages
from attack import backdoor
from attack.backdoor import PlantConfig
from dataset import DataConfig
from models import ModelConfig
from trainer import Descent
from unlearn import METHODS
from utils import Saved, find_runs, read_record

WHITE = ["--trigger_size", 2, "--trigger_margin", 0, "--trigger_value", 255]


def cleanse(root: Path, method: str, *words: object) -> None:
    plain = [*shell.THREE, *WHITE] if "--mask" not in words else []
    shell.call("main_backdoor.py", *plain, "--unlearn", method, *words, save_dir=root)


def trojan_of(root: Path) -> Saved:
    (found,) = find_runs(root, ("trojan",))
    return found


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense and an OMP model with the trigger, each cleansed by fine-tuning; not to be changed."""
    root = tmp_path_factory.mktemp("planted")
    cleanse(root / "dense", "FT", "--rate", 0, "--epochs", 16, "--unlearn_lr", 0.05, "--seed", 3)
    cleanse(root / "omp", "FT", "--rate", 0.8, "--epochs", 5, "--unlearn_epochs", 2)
    return root


def test_cleansing_keeps_accuracy_and_breaks_the_trigger(planted: Path) -> None:
    run = shell.only(planted / "dense", "backdoor")
    before, after = run.record["before"], run.record["metrics"]
    assert before["ASR"] > 60 and before["SA"] > 80
    assert after["ASR"] < before["ASR"] - 25 and after["SA"] > 80
    assert not run.record["collapsed"] and after["collapsed"] is None
    with np.load(run.folder / "outputs.npz") as outputs:
        labels, hit = outputs["test_labels"], outputs["stamped_logits"].argmax(1) == 0
        assert after["ASR"] == pytest.approx(100 * hit[labels != 0].mean())
        assert after["SA"] == pytest.approx(100 * (outputs["test_logits"].argmax(1) == labels).mean())
    with np.load(run.folder / "splits.npz") as splits:
        assert len(splits["forget"]) == round(0.1 * len(splits["train"])) and not set(splits["forget"]) & set(splits["val"])
    for folder in (run.folder, trojan_of(planted / "dense").folder):
        assert (folder / "trigger.png").stat().st_size > 1000


def test_record_names_trigger_and_training(planted: Path) -> None:
    run = trojan_of(planted / "omp")
    assert [run.setting(f"trigger_{word}") for word in ("size", "margin", "value")] == [2, 0, 255]
    assert run.setting("class_to_replace") == 0 and run.setting("protocol") == "sparse" and run.setting("schedule") == "step"
    assert run.record["pruning"]["rewind_epoch"] == 2 and run.record["remaining"] == pytest.approx(0.2, abs=1e-4)
    assert {"SA", "ASR", "ASR_all", "retain", "forget"} <= run.record["metrics"].keys()


def test_pruned_weights_stay_zero_through_the_cleanse(planted: Path) -> None:
    run, trojan = shell.only(planted / "omp", "backdoor"), trojan_of(planted / "omp")
    contents = [torch.load(found.folder / "model.pt", weights_only=True) for found in (trojan, run)]
    assert equal(contents[0]["mask"], contents[1]["mask"]) and len(contents[0]["mask"]) == 7
    for name, part in contents[0]["mask"].items():
        before, after = (content["state_dict"][name] for content in contents)
        assert not after[~part].any() and (before[part] != after[part]).any(), name


def test_salun_cleanses_under_a_mask_of_the_stamped_images(planted: Path, tmp_path: Path) -> None:
    """Of the weights that the pruned model has left, those of the largest gradient of the stamped images' loss move alone."""
    trojan = trojan_of(planted / "omp")
    cleanse(tmp_path, "RL", "--mask", trojan.folder, "--density", 0.3, "--unlearn_epochs", 1)
    run = shell.only(tmp_path, "backdoor")
    before, after = (torch.load(found.folder / "model.pt", weights_only=True) for found in (trojan, run))
    rt = quiet_runtime()
    data = dataset.load(DataConfig(**trojan.record["settings"]["data"]), rt)
    plant = PlantConfig(**trojan.record["settings"]["plant"] | {"class_to_replace": 0})
    case = backdoor.poison(data, plant)
    model, mask = models.load(trojan.folder / "model.pt", ModelConfig(arch="resnet8s"), data, rt)
    assert backdoor.measure(model, case, rt).metrics.items() <= trojan.record["metrics"].items()
    slope = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for batch in case.data.loader("forget"):
        loss = torch.nn.functional.cross_entropy(model.eval()(batch.x), batch.y, reduction="sum")
        for (name, _), g in zip(model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
            slope[name] += g
    open_to = {name: mask.get(name, torch.ones_like(p, dtype=torch.bool)) for name, p in model.named_parameters()}
    left = torch.cat([slope[name].abs()[part] for name, part in open_to.items()]).sort(descending=True).values
    limit = left[int(0.3 * len(left)) - 1]
    for name, part in open_to.items():
        held = ~part | (slope[name].abs() < limit * 0.999)
        assert torch.equal(before["state_dict"][name][held], after["state_dict"][name][held]), name
    moved = sum(int((before["state_dict"][name] != after["state_dict"][name]).sum()) for name in open_to)
    assert 0.25 * len(left) < moved <= 0.3 * len(left) + 1 and run.record["seconds"]["mask"] > 0


def test_the_rate_of_the_cleanse_is_not_that_of_the_trojan(planted: Path, tmp_path: Path) -> None:
    """FT_prune_bi prunes the weights that a Trojan of rate 0.8 has left once more, by a flag of its own here."""
    trojan = trojan_of(planted / "omp")
    cleanse(tmp_path, "FT_prune_bi", "--mask", trojan.folder, "--unlearn_rate", 0.4, "--unlearn_epochs", 2)
    run = shell.only(tmp_path, "backdoor")
    settings = run.record["settings"]
    assert (settings["plant"]["rate"], settings["cfg"]["rate"]) == (0.8, 0.4)
    kept = [sum(int(part.sum()) for part in torch.load(found.folder / "model.pt", weights_only=True)["mask"].values())
            for found in (trojan, run)]
    assert kept[1] == round(0.6 * kept[0])


def test_a_poisoned_model_is_no_original_of_clean_stages(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Neither its run folder, nor model.pt in it, nor an exported file."""
    trojan = trojan_of(planted / "dense")
    export = torch.load(trojan.folder / "model.pt", weights_only=True) | {"record": json.dumps(trojan.record)}
    torch.save(export, tmp_path / "trojan.pt")
    for named in (trojan.folder, trojan.folder / "model.pt", tmp_path / "trojan.pt"):
        with pytest.raises(SystemExit) as end:
            shell.call("main_forget.py", "--checkpoint", named, "--unlearn", "raw", *shell.FORGET, save_dir=tmp_path)
        assert end.value.code == 2 and "is a poisoned model; cleanse it by main_backdoor.py" in capsys.readouterr().err


def test_a_poisoned_model_that_is_there_is_cleansed_again(planted: Path, tmp_path: Path) -> None:
    """By its run folder, its folder of run folders, its model.pt; all settings come from its record, nothing is trained."""
    trojan = trojan_of(planted / "dense")
    for number, named in enumerate((trojan.folder, planted / "dense", trojan.folder / "model.pt")):
        root = tmp_path / str(number)
        cleanse(root, "raw", "--mask", named)
        run = shell.only(root, "backdoor")
        assert run.record["metrics"] | {"collapsed": None} == run.record["before"] | {"collapsed": None}
        assert run.record["before"].items() <= trojan.record["metrics"].items()
        assert run.setting("trigger_size") == 2 and not find_runs(root, ("trojan", "round"))
        assert run.record["data_key"] == trojan.record["data_key"]


def test_a_path_where_nothing_is_gets_the_poisoned_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The published call: no folder in the path. The same file serves the same cleanse, which is then already done."""
    monkeypatch.chdir(tmp_path)
    words = [*shell.THREE, *WHITE, "--epochs", 1, "--rate", 0, "--mask", "here"]
    cleanse(tmp_path, "raw", *words)
    file = tmp_path / "here"
    content = torch.load(file, weights_only=True)
    assert json.loads(content["record"])["settings"]["plant"]["trigger_size"] == 2
    assert equal(content["state_dict"], shell.weights(trojan_of(tmp_path)))
    before = shell.listing(tmp_path)
    cleanse(tmp_path, "raw", "--mask", "here")
    cleanse(tmp_path, "raw", *words)
    assert shell.listing(tmp_path) == before
    assert shell.only(tmp_path, "backdoor").record["parent"]["path"] == "here"


def test_retrain_starts_anew_with_the_trojans_training(planted: Path, tmp_path: Path) -> None:
    """On the clean part alone: it never saw the trigger; rate, epochs and schedule are those of the poisoned model's."""
    cleanse(tmp_path, "retrain", "--mask", planted / "dense")
    run = shell.only(tmp_path, "backdoor")
    assert [run.record["settings"]["cfg"][name] for name in ("unlearn_epochs", "unlearn_lr", "schedule")] == [16, 0.1, "step"]
    assert run.record["metrics"]["ASR"] < 25 < 60 < run.record["before"]["ASR"]
    assert not torch.equal(shell.weights(run)["conv1.weight"], shell.weights(trojan_of(planted / "dense"))["conv1.weight"])


def test_retrain_of_a_pruned_trojan_begins_sparse(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trojan = trojan_of(planted / "omp")
    mask = torch.load(trojan.folder / "model.pt", weights_only=True)["mask"]
    found = leaks(monkeypatch, mask)
    cleanse(tmp_path, "retrain", "--mask", trojan.folder, "--unlearn_epochs", 2)
    assert found == [0, 0]


def test_synflow_prunes_the_poisoned_model(tmp_path: Path) -> None:
    words = [*shell.THREE, *WHITE, "--epochs", 1, "--prune", "synflow", "--rate", 0.7, "--unlearn", "FT_prune_bi"]
    shell.call("main_backdoor.py", *words, "--unlearn_epochs", 1, "--unlearn_rate", 0.6, save_dir=tmp_path)
    trojan, run = trojan_of(tmp_path), shell.only(tmp_path, "backdoor")
    assert trojan.record["pruning"]["synflow"] == 0.7 and trojan.record["remaining"] == pytest.approx(0.3, abs=1e-4)
    masks = [torch.load(found.folder / "model.pt", weights_only=True)["mask"] for found in (trojan, run)]
    left = [sum(int(part.sum()) for part in mask.values()) for mask in masks]
    assert left[1] == round(0.4 * left[0])


def test_a_cleanse_that_was_stopped_ends_as_if_never_stopped(planted: Path, tmp_path: Path) -> None:
    words = ["--mask", planted / "dense", "--unlearn_epochs", 3, "--resume_every", 0]
    cleanse(tmp_path / "whole", "RL_proximal", *words)
    with pytest.MonkeyPatch.context() as patch:
        shell.interrupt_step(patch, Descent, 10)
        with pytest.raises(KeyboardInterrupt):
            cleanse(tmp_path / "cut", "RL_proximal", *words)
    cleanse(tmp_path / "cut", "RL_proximal", *words)
    whole, cut = (shell.only(tmp_path / name, "backdoor") for name in ("whole", "cut"))
    assert equal(shell.weights(whole), shell.weights(cut)) and whole.record["metrics"] == cut.record["metrics"]


BAD = {
    "trigger beyond the image": (["--trigger_size", 7], "does not fit"),
    "margin beyond the image": (["--trigger_margin", 7], "does not fit"),
    "no trigger": (["--trigger_size", 0], "--trigger_size"),
    "trigger brighter than white": (["--trigger_value", 256], "--trigger_value"),
    "no such target": (["--class_to_replace", 3], "--class_to_replace 3"),
    "target below zero": (["--class_to_replace", -1], "--class_to_replace"),
    "more poison than images": (["--num_indexes_to_replace", 5000], "only"),
    "all images poisoned": (["--num_indexes_to_replace", 388], "whole training set"),
    "rate of one": (["--rate", 1], "--rate"),
    "rewind without OMP": (["--rate", 0, "--rewind_epoch", 1], "--rewind_epoch"),
    "rewind beyond training": (["--epochs", 3, "--rewind_epoch", 3], "--rewind_epoch 3"),
    "mask without a method for it": (["--unlearn", "RL_og", "--density", 0.5], "RL_og takes no saliency mask"),
    "rate of the cleanse": (["--unlearn", "FT_prune_bi", "--unlearn_rate", 2], "--unlearn_rate must lie in (0, 1); got 2"),
    "rate of the cleanse for another method": (["--unlearn_rate", 0.5], "--unlearn_rate is no flag of this method; it belongs "
                                               "to FT_prune_bi"),
    "place for what cannot be": (["--rate", 0.999999, "--mask", "new/folder/trojan.pt"], "leaves 0 of"),
    "flag of nothing": (["--mem", "high"], "--mem"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line_and_leaves_nothing(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                       capsys: pytest.CaptureFixture) -> None:
    words, told = BAD[case]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        shell.call("main_backdoor.py", *shell.THREE, "--trigger_size", 2, "--unlearn", "FT", *words, save_dir=tmp_path / "runs")
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and told in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("inside", ['{"stage": "trojan"}', "[]", "{", 3])
def test_files_of_others_hold_no_record(inside: object, tmp_path: Path) -> None:
    """Later stages read the settings of a record that is there."""
    torch.save({"record": inside}, tmp_path / "model.pt")
    assert models.record_inside(tmp_path / "model.pt") == {}


def test_what_is_no_trojan_or_another_one_is_refused(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    trojan = trojan_of(planted / "dense")
    bare, text = tmp_path / "bare.pt", tmp_path / "text"
    torch.save({"state_dict": shell.weights(trojan)}, bare)
    text.write_text("no model")
    record, damaged = read_record(trojan.folder).record, tmp_path / "damaged"
    damaged.mkdir()
    wrong = ["{", "[]", 3, json.dumps({"stage": "trojan", "status": "done"}), json.dumps(record | {"settings": {"plant": {}}})]
    for number, inside in enumerate(wrong):
        torch.save({"state_dict": shell.weights(trojan), "record": inside}, damaged / str(number))
    running = tmp_path / "running"
    running.mkdir()
    (running / "record.json").write_text(json.dumps(record | {"status": "running"}))
    other = ["--trigger_size", 3], ["--trigger_value", 0], ["--class_to_replace", 1], ["--split_seed", 8], ["--rate", 0.5]
    cases = [*((trojan.folder, words, words[0]) for words in other), (bare, [], "no poisoned model"), (text, [], str(text)),
             (shell.only(planted / "dense", "backdoor").folder, [], "no poisoned model"), 
             (running, [], "is not finished (running)"),
             (tmp_path, [], "0 finished poisoned models there; name one, or"),
             *((path, [], "names no trigger") for path in sorted(damaged.iterdir()))]
    for named, words, told in cases:
        before = shell.listing(tmp_path)
        with pytest.raises(SystemExit) as end:
            shell.call("main_backdoor.py", "--mask", named, "--unlearn", "FT", *words, save_dir=tmp_path / "runs")
        said = capsys.readouterr().err
        assert end.value.code == 2 and said.count("\n") == 1 and told in said, said
        assert shell.listing(tmp_path) == before


def test_a_place_that_cannot_be_written_is_refused_before_training(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemExit) as end:
        shell.call("main_backdoor.py", *shell.THREE, "--trigger_size", 2, "--unlearn", "FT", "--mask",
                   tmp_path / "file" / "a.pt", save_dir=tmp_path / "runs")
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and "choose another --mask" in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_settings_of_the_poisoned_model_give_its_plan() -> None:
    """OMP goes back to epoch 8, in a short training to its middle; a dense model is one training."""
    tried = (182, 0.95), (6, 0.5), (1, 0.5), (30, 0.0)
    plans = [PlantConfig(epochs=epochs, rate=rate).plan("step") for epochs, rate in tried]
    assert [plan.rewind_epoch for plan in plans] == [8, 3, 0, 0] and plans[2].prune_type == "lt"
    assert plans[0].shares == (1.0, 0.05) and plans[3].shares == (1.0,)
    assert PlantConfig(rewind_epoch=5).plan("step").rewind_epoch == 5


def test_every_method_may_cleanse() -> None:
    assert stages.allowed("backdoor") == METHODS.names()
