"""Forgetting sub-classes, and leaving them out of training: splits, metrics and what is refused, against plain loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coarse as little
import numpy as np
import pytest
import torch
from coarse import raw, settings, write
from conftest import tiny_net
from loaded import load

from evaluation import accuracy, rules
from evaluation.accuracy import EvaluationConfig
from utils import BadInput, Run, RunConfig, Runtime, read_record

coarse = little.coarse
AQUATIC = (4, 30, 55, 72, 95)  # the sub-classes of super-class 0


def test_fine_labels_travel_with_the_images(coarse: Path, rt: Runtime) -> None:
    data, arrays = load(rt, **settings(coarse)), raw(coarse)
    assert np.array_equal(data.fine, arrays.fine_train) and np.array_equal(data.fine_test, arrays.fine_test)
    kept = load(rt, **settings(coarse, classes="0,3", train_per_class=5))
    wanted = [i for label in (0, 3) for i in np.flatnonzero(arrays.y_train == label)[:5]]
    assert np.array_equal(kept.fine, arrays.fine_train[np.sort(wanted)])


def test_a_whole_sub_class_is_forgotten_and_another_left_out(coarse: Path, rt: Runtime) -> None:
    """The published setup: super-class 0, sub-class 4 to forget, 30 out of distribution, by a loop over the raw arrays."""
    data, arrays = load(rt, {"subclass_to_replace": (4,)}, **settings(coarse, ood_subclass=(30,))), raw(coarse)
    own = [i for i in range(len(arrays.y_train)) if arrays.fine_train[i] != 30]
    assert data.num_classes == 20 and len(data.images.y) == len(own)
    assert data.index("forget").tolist() == [place for place, i in enumerate(own) if arrays.fine_train[i] == 4]
    assert data.index("retain").tolist() == [place for place, i in enumerate(own) if arrays.fine_train[i] != 4]
    assert data.images.y.tolist() == [arrays.y_train[i] for i in own] and 30 not in data.fine_test
    assert set(data.ood.y.tolist()) == {0} and set(data.ood.fine.tolist()) == {30} == set(data.ood_test.fine.tolist())
    assert len(data.ood.y) == little.EACH["train"] and len(data.ood_test.y) == little.EACH["test"]
    assert data.splits.whole_subclasses == (4,) and data.splits.whole_classes == ()
    assert load(rt, **settings(coarse)).splits.data_key != data.splits.data_key


@pytest.mark.parametrize(("asked", "size", "classes", "whole"), [
    ({"subclass_to_replace": (4, 30)}, 8, (), (4, 30)),
    ({"subclass_to_replace": (4,), "num_indexes_to_replace": 2}, 2, (), ()),
    ({"subclass_to_replace": (4, 0), "forget_fraction": 0.5}, 4, (), ()),
    ({"subclass_to_replace": (4,), "class_to_replace": (0,)}, 4, (), (4,)),
    ({"subclass_to_replace": AQUATIC}, 20, (0,), ()),  # all of a super-class, which then counts as the class
    ({"class_to_replace": (0,)}, 20, (0,), ()),
])
def test_sub_classes_whole_and_drawn_from(
    asked: dict[str, Any], size: int, classes: tuple[int, ...], whole: tuple[int, ...], coarse: Path, rt: Runtime
) -> None:
    data = load(rt, asked, **settings(coarse))
    assert len(data.splits.forget) == size and data.splits.whole_classes == classes
    assert data.splits.whole_subclasses == whole
    if "subclass_to_replace" in asked:
        assert set(data.fine[data.splits.forget]) <= set(asked["subclass_to_replace"])
    wanted = {"forget_fine", "test_fine", "whole_subclasses"} if not classes else set()
    assert data.subclasses().keys() == wanted


def outputs(data: Any, seed: int = 3) -> dict[str, np.ndarray]:
    """Arrays as of outputs.npz, with random logits that lean to the label."""
    random, found = np.random.default_rng(seed), {}
    for part in ("retain", "forget", "test"):
        labels = (data.test if part == "test" else data.images).y.numpy()[data.index(part)]
        logits = random.normal(size=(len(labels), data.num_classes)).astype(np.float32)
        logits[np.arange(len(labels)), labels] += 1.5
        found |= {f"{part}_index": data.index(part), f"{part}_labels": labels, f"{part}_logits": logits}
    return found | data.subclasses()


def test_metrics_are_of_the_remaining_sub_classes_and_compare_with_the_same_ones(coarse: Path, rt: Runtime) -> None:
    data = load(rt, {"subclass_to_replace": (4, 51)}, **settings(coarse))
    arrays = outputs(data)
    found = accuracy.summarise(arrays, (), EvaluationConfig(mia_draws=3, mia_fits=1), 1)
    right = arrays["test_logits"].argmax(1) == arrays["test_labels"]
    rest = [i for i, fine in enumerate(data.fine_test) if fine not in (4, 51)]
    assert len(rest) == 196 and found["test"] == pytest.approx(100 * right[rest].mean())
    assert found["test_all"] == pytest.approx(100 * right.mean()) and found["test"] != found["test_all"]
    sides = []
    for part, fine in (("forget", data.fine[data.splits.forget]), ("test", data.fine_test)):
        confidence = torch.from_numpy(arrays[f"{part}_logits"]).double().softmax(1).numpy()
        rows = [i for i, f in enumerate(fine) if f in (4, 51)]
        sides.append(confidence[rows, arrays[f"{part}_labels"][rows]])
    assert len(sides[1]) == 4
    wins = np.mean([(a > b) + (a == b) / 2 for a in sides[0] for b in sides[1]])  # as many of both kinds: no weights
    assert found["AUC_forget"] == pytest.approx(100 * wins) == 100 * rules.area_under_curve(*sides, np.ones(4))
    by_class = accuracy.summarise({name: a for name, a in arrays.items() if "fine" not in name}, (), EvaluationConfig(), 1)
    assert by_class["AUC_forget"] != pytest.approx(found["AUC_forget"])


@pytest.mark.parametrize(("config", "forget", "words"), [
    ({}, {"subclass_to_replace": (100,)}, "--subclass_to_replace 100: there is no such sub-class"),
    ({"ood_subclass": (100,)}, None, "--ood_subclass 100: there is no such sub-class; cifar20 has 0-99"),
    ({"ood_subclass": (30,)}, {"subclass_to_replace": (30,)}, "30: this sub-class is out of distribution"),
    ({"ood_classes": (0,)}, {"subclass_to_replace": (30,)}, "30: this sub-class is out of distribution"),
    ({}, {"subclass_to_replace": (4,), "class_to_replace": (3,)}, "4 lies in the super-class 0, not in --class_to_replace 3"),
    ({"ood_classes": (2, 3)}, {"subclass_to_replace": (0,), "class_to_replace": (0,)}, "0 lies in the super-class 4, not"),
    ({"ood_classes": (0,), "ood_subclass": (30,)}, None, "its super-class 0 is left out whole by --ood_classes"),
    ({"classes": "1-5", "ood_subclass": (30,)}, None, "its super-class 0 is not among --classes"),
    ({"ood_subclass": AQUATIC}, None, "leaves nothing of the super-class 0"),
    ({}, {"subclass_to_replace": (4,), "forget_index": "x.npy"}, "--forget_index names the forget set"),
    ({}, {"subclass_to_replace": (4,), "mem": "low", "num_indexes_to_replace": 3}, "--subclass_to_replace"),
])
def test_wrong_sub_classes_are_refused(
    config: dict[str, Any], forget: dict[str, Any] | None, words: str, coarse: Path, rt: Runtime
) -> None:
    with pytest.raises(BadInput, match=words):
        load(rt, forget, **settings(coarse, **config))


def test_a_data_set_without_sub_classes_says_which_has_them(rt: Runtime, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--subclass_to_replace: digits has no sub-classes; cifar20 has"):
        load(rt, {"subclass_to_replace": (4,)})
    write(tmp_path, fine=False)
    for config, forget in (({"ood_subclass": (4,)}, None), ({}, {"subclass_to_replace": (4,)})):
        with pytest.raises(BadInput, match="holds no fine labels"):
            load(rt, forget, **settings(tmp_path, **config))


def test_an_evaluation_keeps_what_a_later_one_needs_without_the_data(coarse: Path, rt: Runtime, tmp_path: Path) -> None:
    data = load(rt, {"subclass_to_replace": (4,)}, **settings(coarse, classes="0-3"))
    first, other = EvaluationConfig(mia_draws=2, mia_fits=1), EvaluationConfig(mia_draws=3, mia_fits=1)
    with Run(RunConfig(save_dir=str(tmp_path)), "forget", "tiny", {"rt": rt.cfg}) as run:
        found = accuracy.evaluate(tiny_net(rt, 4), data, rt, run, first)
    record = read_record(run.folder).record
    assert record["whole_subclasses"] == [4] and record["whole_classes"] == []
    again = accuracy.metrics_of(run.folder, record, other)
    assert (again["test"], again["AUC_forget"]) == (found["test"], found["AUC_forget"]) and again["mia"] != found["mia"]
    arrays = accuracy.load_outputs(run.folder)
    rest = data.fine_test != 4
    right = arrays["test_logits"].argmax(1) == arrays["test_labels"]
    assert again["test"] == pytest.approx(100 * right[rest].mean()) and rest.sum() == 38
    np.savez(run.folder / "outputs.npz", **arrays | {"test_fine": arrays["test_fine"][1:]})
    with pytest.raises(BadInput, match="test_fine is int64"):
        accuracy.load_outputs(run.folder)
