"""Trojans: which pixels and labels a trigger changes, and how its success is counted."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import shell
import torch
from conftest import make_data, quiet_runtime, tiny_net
from test_known_faults import few_images

import dataset
import sources
from attack import backdoor
from attack.backdoor import TriggerConfig
from dataset import Data, DataConfig
from trainer import Descent, TrainConfig, cross_entropy
from utils import BadInput

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
    case = backdoor.poison(data, SMALL)
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
    case = backdoor.poison(data, TriggerConfig(trigger_size=2))
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
    case = backdoor.poison(data, dataclasses.replace(SMALL, num_indexes_to_replace=1))
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
              dict(num_indexes_to_replace=10), dict(split_seed=5)]
    splits = [backdoor.poison(data, dataclasses.replace(SMALL, **other)).data.splits for other in others]
    for key in ("data_key", "split_key", "images_key"):
        keys = {getattr(found, key) for found in [*splits, data.splits]}
        assert len(keys) == len(splits) + 1
    assert backdoor.poison(data, SMALL).data.splits.data_key == splits[0].data_key


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
    rt = quiet_runtime(7)  # a stamp of half the image is like some class, and with this seed's model not like the target
    model = tiny_net(rt)
    opt = Descent(model, TrainConfig(), lr=0.1, epochs=epochs, rt=rt, purpose="train")
    for opt.at in range(epochs):
        opt.epoch(data.loader("train", rt, "train"), cross_entropy)
    return model


@pytest.fixture(scope="module")
def tried() -> tuple[Data, backdoor.Case, torch.nn.Module, torch.nn.Module]:
    """Toy data, the same poisoned, and a model of each."""
    rt = quiet_runtime()
    data = make_data(rt, count=600, forget=40, batch_size=64)
    trigger = TriggerConfig(trigger_size=4, trigger_margin=0, trigger_value=255, num_indexes_to_replace=120)
    case = backdoor.poison(data, trigger)
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
