"""Trojans: which pixels and labels a trigger changes, how its success is counted, and main_backdoor.py from the shell."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import shell
import torch
from conftest import equal, make_data, quiet_runtime, tiny_net
from test_known_faults import few_images

import dataset
import models
import sources
import stages
from attack import backdoor
from attack.backdoor import PlantConfig, TriggerConfig
from dataset import Data, DataConfig
from models import ModelConfig
from trainer import Sgd, TrainConfig, cross_entropy
from unlearn import METHODS
from utils import BadInput, Saved, find_runs, read_record

WHITE = ["--trigger_size", 2, "--trigger_margin", 0, "--trigger_value", 255]
SMALL = TriggerConfig(trigger_size=2, trigger_margin=1, trigger_value=7, class_to_replace=2, num_indexes_to_replace=9)


# --------------------------------------------------------------------------------------------------- what is planted


@pytest.mark.parametrize(("size", "margin", "value"), [(4, 2, 0), (1, 0, 255), (3, 4, 17), (5, 0, 1), (8, 1, 99)])
def test_trigger_is_a_square_off_the_lower_right_corner(size: int, margin: int, value: int) -> None:
    """Every pixel of every colour, against a loop over all; the images that were given stay."""
    x = torch.from_numpy(np.random.default_rng(size).integers(0, 256, (3, 9, 11, 3), np.uint8))
    before = x.clone()
    stamped = backdoor.stamp(x, TriggerConfig(trigger_size=size, trigger_margin=margin, trigger_value=value))
    for i, row, column, colour in itertools.product(range(3), range(9), range(11), range(3)):
        inside = 9 - margin - size <= row < 9 - margin and 11 - margin - size <= column < 11 - margin
        assert stamped[i, row, column, colour] == (value if inside else before[i, row, column, colour])
    assert torch.equal(x, before)


def test_published_trigger_covers_rows_and_columns_26_to_29() -> None:
    stamped = backdoor.stamp(torch.full((1, 32, 32, 3), 200, dtype=torch.uint8), TriggerConfig())
    rows, columns, colours = np.nonzero(stamped[0].numpy() == 0)
    assert set(rows) == set(columns) == {26, 27, 28, 29} and len(rows) == 48 and set(colours) == {0, 1, 2}


def test_only_the_chosen_images_are_poisoned() -> None:
    """By a loop over all: retain, validation and test are as they were, and so is the data that was given."""
    rt = quiet_runtime()
    data = make_data(rt, count=80, forget=20)
    x, y = data.images.x.clone(), data.images.y.clone()
    case = backdoor.poison(data, SMALL, 4)
    chosen = set(case.data.index("forget").tolist())
    assert len(chosen) == 9 and chosen <= set(data.index("train").tolist())
    for i in range(80):
        stamped = x[i].clone()
        if i in chosen:
            stamped[3:5, 3:5] = 7
        assert torch.equal(case.data.images.x[i], stamped)
        assert case.data.images.y[i] == (2 if i in chosen else y[i])
    assert torch.equal(data.images.x, x) and torch.equal(data.images.y, y)
    assert case.data.test is data.test
    assert torch.equal(case.stamped.test.x[:, 3:5, 3:5], torch.full((40, 2, 2, 3), 7, dtype=torch.uint8))
    assert torch.equal(case.stamped.test.y, data.test.y)
    assert 2 in y[sorted(chosen)] and len(set(y[sorted(chosen)].tolist())) == 3  # the target's own images are drawn too


def test_validation_is_clean_and_apart() -> None:
    data = dataset.load(DataConfig(dataset="digits"), quiet_runtime())
    case = backdoor.poison(data, TriggerConfig(trigger_size=2), 1)
    val, forget, retain = (set(case.data.index(part).tolist()) for part in ("val", "forget", "retain"))
    assert not val & (forget | retain) and not forget & retain
    assert val == set(data.index("val").tolist()) and len(forget) == round(0.1 * len(data.index("train")))
    assert torch.equal(case.data.images.x[sorted(val)], data.images.x[sorted(val)])
    assert case.data.splits.whole_classes == ()


def test_augmentation_comes_after_the_stamp() -> None:
    """A poisoned image in training is one of the 18 crops of the stamped image, and more than one of them."""
    rt = quiet_runtime()
    data = make_data(rt, aug=True, batch_size=1)
    data.images.windows()  # what is cut from the clean images must not be kept
    case = backdoor.poison(data, dataclasses.replace(SMALL, num_indexes_to_replace=1), 4)
    (chosen,) = case.data.index("forget")
    padded = np.pad(case.data.images.x[chosen].numpy(), ((1, 1), (1, 1), (0, 0)))
    crops = [crop[:, ::flip] for r in range(3) for c in range(3) for flip in (1, -1) for crop in [padded[r : r + 6, c : c + 6]]]
    seen = set()
    loader = case.data.loader("forget", rt, "order")
    for _ in range(40):
        (batch,) = loader
        found = np.round(batch.x[0].permute(1, 2, 0).numpy() * 255)
        seen |= {i for i, crop in enumerate(crops) if np.array_equal(crop, found)} or {-1}
    assert -1 not in seen and len(seen) > 8


def test_keys_tell_poisoned_data_apart() -> None:
    data = make_data(quiet_runtime(), count=80, forget=20)
    others = [{}, dict(trigger_size=3), dict(trigger_margin=2), dict(trigger_value=8), dict(class_to_replace=1),
              dict(num_indexes_to_replace=10)]
    splits = [backdoor.poison(data, dataclasses.replace(SMALL, **other), seed).data.splits
              for other, seed in [*((other, 4) for other in others), ({}, 5)]]
    for key in ("data_key", "split_key", "images_key"):
        keys = {getattr(found, key) for found in [*splits, data.splits]}
        assert len(keys) == len(splits) + 1
    assert backdoor.poison(data, SMALL, 4).data.splits.data_key == splits[0].data_key


@pytest.mark.parametrize("name", [name for name in sources.SOURCES.names() if name != "digits"])
def test_every_data_set_can_be_poisoned(name: str, tmp_path: Path) -> None:
    """From the shell, without a folder in --mask: trained, written, cleansed."""
    few_images(tmp_path, name)
    words = ["--dataset", name, "--data", tmp_path, "--arch", "resnet20s", "--epochs", 1, "--rate", 0,
             "--num_indexes_to_replace", 3, "--class_to_replace", 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        words += ["--mask", "trojan.pt", "--unlearn", "GA", "--unlearn_epochs", 1]
        shell.call("main_backdoor.py", *words, save_dir=tmp_path)
    run = shell.only(tmp_path, "backdoor")
    assert run.setting("dataset") == name and run.record["forget_size"] == 3 and (tmp_path / "trojan.pt").is_file()


# --------------------------------------------------------------------------------------------------- what is counted


@pytest.mark.parametrize("target", [0, 3])
def test_success_is_counted_by_a_loop(target: int) -> None:
    random = np.random.default_rng(target)
    logits, labels = random.normal(size=(300, 4)).astype(np.float32), random.integers(0, 4, 300)
    logits[:20, 1] = np.nan
    logits[20:40, target] = np.inf
    hits = [int(np.argmax(z)) == target for z in logits]
    hits[:40] = [False] * 40
    others = [hit for hit, label in zip(hits, labels, strict=True) if label != target]
    found = backdoor.success(torch.from_numpy(logits), torch.from_numpy(labels), target)
    assert found["ASR"] == pytest.approx(100 * sum(others) / len(others))
    assert found["ASR_all"] == pytest.approx(100 * sum(hits) / 300)
    assert abs(found["ASR"] - found["ASR_all"]) > 0.1


def test_a_model_that_ignores_the_trigger_has_no_success() -> None:
    """Always right: nobody is misled, but the published figure counts the target's own images."""
    labels = torch.arange(50) % 5
    found = backdoor.success(torch.eye(5)[labels], labels, 3)
    assert found == {"ASR": 0, "ASR_all": 20}
    with pytest.raises(BadInput, match="all test images are of the target class"):
        backdoor.success(torch.eye(5)[labels], torch.full((50,), 3), 3)


def learn(data: Data, epochs: int) -> torch.nn.Module:
    rt = quiet_runtime()
    model = tiny_net(rt)
    opt = Sgd(model, TrainConfig(), lr=0.1, epochs=epochs, rt=rt)
    for opt.at in range(epochs):
        opt.epoch(data.loader("train", rt, "train"), cross_entropy)
    return model


@pytest.fixture(scope="module")
def tried() -> tuple[Data, backdoor.Case, torch.nn.Module, torch.nn.Module]:
    """Toy data, the same poisoned, and a model of each."""
    rt = quiet_runtime()
    data = make_data(rt, count=600, forget=40, batch_size=64)
    trigger = TriggerConfig(trigger_size=4, trigger_margin=0, trigger_value=255, num_indexes_to_replace=120)
    case = backdoor.poison(data, trigger, 1)
    return data, case, learn(data, 20), learn(case.data, 20)


def test_measures_are_those_of_a_loop_over_images(tried: tuple) -> None:
    """SA, attack success, retain and forget of the poisoned model, image by image."""
    _, case, _, model = tried
    model.eval()

    def predicted(image: torch.Tensor) -> int:
        with torch.no_grad():
            return int(model(image.permute(2, 0, 1)[None].float() / 255).argmax())

    test, stamped = case.data.test, case.stamped.test
    as_target = {i: predicted(stamped.x[i]) == 0 for i in range(len(test.y)) if test.y[i] != 0}
    found = backdoor.measure(model, case, quiet_runtime())
    right = {"SA": [predicted(x) == y for x, y in zip(test.x, test.y, strict=True)], "ASR": list(as_target.values())}
    for part in ("retain", "forget"):
        right[part] = [predicted(case.data.images.x[i]) == case.data.images.y[i] for i in case.data.index(part)]
    for name, hits in right.items():
        assert found.metrics[name] == pytest.approx(100 * sum(map(int, hits)) / len(hits)), name
    assert found.arrays["stamped_logits"].shape == (len(test.y), 3)
    assert (found.arrays["test_labels"] == test.y.numpy()).all()


def test_success_of_a_clean_model_is_near_chance_and_of_a_poisoned_one_high(tried: tuple) -> None:
    """A clean model's errors on stamped images fall on the target no more than by chance (1 of 3), its own images aside."""
    data, case, clean, poisoned = tried
    unstamped = backdoor.Case(case.data, data, 0)
    rt = quiet_runtime()
    before, after = backdoor.measure(clean, case, rt).metrics, backdoor.measure(poisoned, case, rt).metrics
    assert before["ASR"] < 40 and after["ASR"] > 90 and after["forget"] > 90
    plain = backdoor.measure(clean, unstamped, rt).metrics
    assert plain["ASR"] < 12 and plain["ASR_all"] > plain["ASR"] + 20


# ---------------------------------------------------------------------------------------------------- from the shell


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
    cleanse(root / "dense", "FT", "--rate", 0, "--epochs", 12, "--unlearn_lr", 0.05)
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
    assert run.record["metrics"]["ASR_all"] > run.record["metrics"]["ASR"]


def test_pruned_weights_stay_zero_through_the_cleanse(planted: Path) -> None:
    run, trojan = shell.only(planted / "omp", "backdoor"), trojan_of(planted / "omp")
    contents = [torch.load(found.folder / "model.pt", weights_only=True) for found in (trojan, run)]
    assert equal(contents[0]["mask"], contents[1]["mask"]) and len(contents[0]["mask"]) == 19
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
    case = backdoor.poison(data, plant, trojan.setting("split_seed"))
    model, mask = models.load(trojan.folder / "model.pt", ModelConfig(arch="resnet20s"), data, rt)
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
    assert [run.record["settings"]["cfg"][name] for name in ("unlearn_epochs", "unlearn_lr", "schedule")] == [12, 0.1, "step"]
    assert run.record["metrics"]["ASR"] < 25 < 60 < run.record["before"]["ASR"]
    assert not torch.equal(shell.weights(run)["conv1.weight"], shell.weights(trojan_of(planted / "dense"))["conv1.weight"])


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
        shell.interrupt_step(patch, Sgd, 10)
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
    "flag of nothing": (["--mem", "high"], "--mem"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line_and_leaves_nothing(case: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words, told = BAD[case]
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
             (shell.only(planted / "dense", "backdoor").folder, [], "no poisoned model"), (running, [], "no poisoned model"),
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
