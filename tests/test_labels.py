"""Few images a class, and labels made wrong: exact counts, the same in every stage, other keys, and asked to be forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import loaded
import numpy as np
import pytest
import shell
from conftest import quiet_runtime
from loaded import load
from scipy.stats import chi2
from scored import digits as scored_digits
from scored import memorization_run

import sources
from dataset import DataConfig
from sources.labels import first_of_each, mislabel
from sources.scores import find_scores
from utils import BadInput, Runtime, Saved

digits = pytest.fixture(scope="module")(loaded.digits)
nowhere = pytest.fixture(autouse=True)(shell.nowhere)
NOISE = {"label_noise": 0.1}


# ------------------------------------------------------------------------------------------------------------- few images


def test_the_first_images_of_each_class_are_kept_in_their_order(rt: Runtime, digits: sources.Arrays) -> None:
    data = load(rt, train_per_class=12, val_fraction=0.25)
    seen, kept = dict.fromkeys(range(10), 0), []
    for place, label in enumerate(digits.y_train.tolist()):
        seen[label] += 1
        kept += [place] if seen[label] <= 12 else []
    assert np.array_equal(data.images.x.numpy(), digits.x_train[kept]) and len(kept) == 120
    assert data.images.y.tolist() == digits.y_train[kept].tolist()
    assert data.test.y.tolist() == digits.y_test.tolist()
    assert np.bincount(data.images.y[data.splits.train]).tolist() == [9] * 10
    assert np.bincount(data.images.y[data.splits.val]).tolist() == [3] * 10


def test_classes_without_an_image_do_not_count() -> None:
    assert first_of_each(np.array([4, 1, 4, 1, 4]), 2).tolist() == [0, 1, 2, 3]
    with pytest.raises(BadInput, match="--train_per_class 3: the class 1 has only 2"):
        first_of_each(np.array([4, 1, 4, 1, 4]), 3)


# ----------------------------------------------------------------------------------------------------------- wrong labels


@pytest.mark.parametrize("share", [0.05, 0.15, 0.4])
def test_so_many_labels_are_wrong_and_no_other(share: float, rt: Runtime) -> None:
    """Of the images that train; those of validation and test keep theirs, and the cut is that without wrong labels."""
    clean, data = load(rt), load(rt, label_noise=share)
    differ = np.flatnonzero(clean.images.y.numpy() != data.images.y.numpy())
    assert len(differ) == round(share * len(clean.splits.train))
    assert data.splits.mislabelled.tolist() == differ.tolist() and np.isin(differ, clean.splits.train).all()
    assert np.array_equal(data.splits.train, clean.splits.train) and np.array_equal(data.splits.val, clean.splits.val)
    assert np.array_equal(data.test.y, clean.test.y) and np.array_equal(data.images.x, clean.images.x)
    assert set(data.images.y[data.splits.train].tolist()) == set(range(10))


def test_every_other_class_is_as_likely() -> None:
    y = np.repeat([2, 3, 5, 7], 3000)
    noisy, wrong = mislabel(y, np.arange(len(y)), 0.5, 1)
    for label in (2, 3, 5, 7):
        counts = [int((noisy[wrong][y[wrong] == label] == other).sum()) for other in (2, 3, 5, 7)]
        assert counts.pop((2, 3, 5, 7).index(label)) == 0
        expected = sum(counts) / 3
        assert sum((count - expected) ** 2 / expected for count in counts) < chi2.ppf(0.9999, 2)
    drawn = np.histogram(wrong, 4, (0, len(y)))[0]
    assert ((drawn - 1500) ** 2 / 1500).sum() < chi2.ppf(0.9999, 3)


def test_wrong_labels_are_those_of_the_noise_seed_alone(rt: Runtime) -> None:
    first, other = load(rt, **NOISE), load(rt, **NOISE, noise_seed=2)
    assert not np.array_equal(first.splits.mislabelled, other.splits.mislabelled)
    for again in (load(quiet_runtime(99), **NOISE, batch_size=7), load(rt, {"class_to_replace": (1,)}, **NOISE)):
        assert np.array_equal(again.images.y, first.images.y)
        assert again.splits.data_key == first.splits.data_key


@pytest.mark.parametrize(("y", "train", "share", "said"), [
    ([0, 1, 0, 1], [0, 1, 2, 3], 0.1, "--label_noise 0.1 of 4 training images is less than one"),
    ([2, 2, 2, 0], [0, 1, 2], 0.5, "--label_noise needs two classes; .* of the class 2"),
    ([0, 1], [0, 1], 0.5, "no training image of the class [01] is left")])
def test_noise_that_cannot_be_is_refused(y: list[int], train: Any, share: float, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        mislabel(np.array(y), np.array(train), share, 1)


# ------------------------------------------------------------------------------------------------------------------- keys


def test_other_images_or_labels_have_other_keys(rt: Runtime) -> None:
    """Of the data and of the training images, by which scores are told apart; the test images stay the same ones."""
    asked = [{}, {"train_per_class": 12}, {"train_per_class": 20}, NOISE, {"label_noise": 0.2}, {**NOISE, "noise_seed": 2},
             {**NOISE, "train_per_class": 20}, {**NOISE, "val_seed": 2}]
    found = [load(rt, **config).splits for config in asked]
    assert len({splits.data_key for splits in found}) == len({splits.images_key for splits in found}) == len(asked)
    assert len({splits.test_key for splits in found}) == 1
    with pytest.raises(BadInput, match="data differ.*--train_per_class, --label_noise and --noise_seed"):
        load(rt, data_key=found[0].data_key, **NOISE)


def test_settings_that_change_no_image_leave_the_keys(rt: Runtime, tmp_path: Path, digits: sources.Arrays) -> None:
    kept = np.concatenate([np.flatnonzero(digits.y_train == label)[:15] for label in range(10)])
    np.savez(tmp_path / "digits.npz", x_train=digits.x_train[kept], y_train=digits.y_train[kept], x_test=digits.x_test,
             y_test=digits.y_test)
    keys = load(rt, data=str(tmp_path)).splits.keys()
    assert load(rt, data=str(tmp_path), train_per_class=15).splits.keys() == keys
    assert load(rt, data=str(tmp_path), noise_seed=5).splits.keys() == keys
    assert load(rt, data=str(tmp_path), train_per_class=14).splits.keys() != keys


def test_scores_of_other_labels_are_not_found(tmp_path: Path) -> None:
    """A pool of models on one data set, and one on the same images with wrong labels: each finds its own."""
    total = len(scored_digits().candidates.y)
    runs = {share: memorization_run(tmp_path, f"noise-{share}", np.linspace(0, 1, total), f"p{share}", 4, label_noise=share)
            for share in (None, 0.1, 0.2)}
    for share, folder in runs.items():
        wanted = DataConfig(dataset="digits", classes="0-2", label_noise=share).of_labels()
        assert find_scores("memorization", None, [tmp_path], wanted, None) == folder / "scores.npz"
    for other in ({"noise_seed": 2}, {"val_seed": 2}, {"train_per_class": 12}):
        wanted = DataConfig(dataset="digits", classes="0-2", label_noise=0.1, **other).of_labels()
        with pytest.raises(BadInput, match=r"no scores 'memorization'.*--label_noise 0\.1"):
            find_scores("memorization", None, [tmp_path], wanted, None)


# ------------------------------------------------------------------------------------------------------------- the stages


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return shell.train(tmp_path_factory.mktemp("noisy"), 1, "--train_per_class", 40, "--label_noise", 0.2)


def test_wrong_labels_are_inherited_recorded_and_can_be_forgotten(noisy: Saved, tmp_path: Path, rt: Runtime) -> None:
    shell.forget(noisy, tmp_path, "NG", "--forget_mislabelled")
    run = shell.only(tmp_path, "forget")
    wrong = load(rt, classes="0-2", train_per_class=40, label_noise=0.2).splits.mislabelled
    with np.load(run.folder / "splits.npz") as splits:
        assert splits["forget"].tolist() == splits["mislabelled"].tolist() == wrong.tolist() and len(wrong) == round(0.2 * 108)
    assert run.setting("label_noise") == 0.2 and run.setting("train_per_class") == 40
    assert run.record["forget_size"] == run.record["mislabelled"] == len(wrong)
    assert run.record["data_key"] == noisy.record["data_key"]


def test_some_of_the_wrong_labels_are_forgotten(rt: Runtime) -> None:
    labels = load(rt, **NOISE).images.y
    of_class = load(rt, {"forget_mislabelled": True, "class_to_replace": (3, 5)}, **NOISE).splits
    assert of_class.forget.tolist() == [i for i in of_class.mislabelled if labels[i] in (3, 5)]
    half = load(rt, {"forget_mislabelled": True, "forget_fraction": 0.5}, **NOISE).splits
    assert len(half.forget) == round(len(half.mislabelled) / 2) and np.isin(half.forget, half.mislabelled).all()
    assert half.facts()["mislabelled"] == len(half.forget)
    drawn = load(rt, {"forget_fraction": 0.5}, **NOISE).splits
    assert drawn.facts()["mislabelled"] == len(set(drawn.forget) & set(drawn.mislabelled)) > 0


@pytest.mark.parametrize(("words", "said"), [
    ("--label_noise 0.1 --forget_mislabelled", ["--label_noise 0.1", "has 0.2"]),
    ("--train_per_class 30 --forget_mislabelled", ["--train_per_class 30", "has 40"]),
    ("--noise_seed 2 --forget_mislabelled", ["--noise_seed 2", "has 1"]),
    ("--forget_mislabelled --num_indexes_to_replace 90", ["90", "only 22"]),
    ("--forget_mislabelled --mem high --num_indexes_to_replace 9", ["--mem", "--forget_mislabelled", "leave"]),
    ("--forget_mislabelled --forget_index x.npy", ["--forget_index", "leave"])])
def test_what_does_not_fit_the_original_is_refused(words: str, said: list[str], noisy: Saved, tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, tmp_path, said, "main_forget.py", "--checkpoint", noisy.folder, "--unlearn", "raw", *words.split())


@pytest.mark.parametrize(("words", "said"), [
    ("--train_per_class 0", ["--train_per_class must lie in [1, inf"]),
    ("--train_per_class 900", ["--train_per_class 900", "has only", "smaller"]),
    ("--label_noise 0", ["--label_noise must lie in (0, 1)"]), ("--label_noise 1", ["--label_noise must lie in (0, 1)"]),
    ("--label_noise 10%", ["--label_noise", "takes a number"]), ("--label_noise 1e-6", ["less than one", "larger share"]),
    ("--noise_seed -1", ["--noise_seed must lie in [0, 4294967295]"])])
def test_data_that_cannot_be_are_refused(words: str, said: list[str], tmp_path: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, tmp_path, said, "main_train.py", *shell.THREE, *words.split())


def test_there_is_nothing_mislabelled_in_clean_data(original: Saved, tmp_path: Path,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, tmp_path, ["--forget_mislabelled", "--label_noise SHARE"], "main_forget.py", "--checkpoint",
            original.folder, "--unlearn", "raw", "--forget_mislabelled")


def refused(capsys: pytest.CaptureFixture[str], save_dir: Path, said: list[str], stage: str, *words: Any) -> None:
    """Exit code 2, one line with all that is to be said, and nothing written."""
    with pytest.raises(SystemExit) as end:
        shell.call(stage, *words, save_dir=save_dir)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and all(word in error for word in said), error
    assert list(save_dir.iterdir()) == []
