"""Scores that the records lead to: of the original itself, of its data set, of the one model; no other run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
from pretended import change
from scored import by_hand, digits, memorization_run, places, scored_original, tied

from dataset import DataConfig
from memorization.report import memorization_of
from sources.scores import find_scores
from stages import ScoreConfig
from utils import BadInput, Run, RunConfig, Saved, sha256

scored = pytest.fixture(scope="module")(scored_original)


def scores_used(original: Saved, save_dir: Path, *words: Any) -> dict[str, Any]:
    """What the record of a mask says of the scores."""
    shell.call("generate_mask.py", "--checkpoint", original.folder, "--num_indexes_to_replace", 20, *words, save_dir=save_dir)
    return shell.only(save_dir, "mask").record["scores"]


def test_recorded_proxies_are_those_of_the_original_itself(tmp_path: Path) -> None:
    """Two originals that differ by their seed; each is unlearned by its own events, whichever was trained last."""
    originals = {seed: shell.train(tmp_path, seed) for seed in (1, 2)}
    sets = {}
    for seed, original in originals.items():
        found = scores_used(original, tmp_path / f"out{seed}", "--mem", "high", "--mem_proxy", "confidence")
        assert Path(found["path"]) == original.folder / "events.npz" and found["name"] == "confidence"
        assert found["seconds"] == pytest.approx(original.record["seconds"]["events"], abs=1e-3)
        with np.load(original.folder / "events.npz") as events, \
                np.load(shell.only(tmp_path / f"out{seed}", "mask").folder / "splits.npz") as splits:
            worst = splits["train"][np.argsort(events["confidence"][splits["train"]], kind="stable")[:20]]
            assert splits["forget"].tolist() == sorted(worst)
            sets[seed] = splits["forget"]
    assert not np.array_equal(sets[1], sets[2])


def test_memorization_is_found_by_its_data_set(scored: tuple[Saved, Path], tmp_path: Path) -> None:
    """Another data set's run does not count; of one pool the larger; of two pools none, with the list; --scores wins."""
    original, random = scored[0], np.random.default_rng(9)
    total = len(digits().candidates.y)
    memorization_run(tmp_path / "a", "other", tied(random, 3), "p", 9, classes="0-3")
    few = memorization_run(tmp_path / "a", "few", tied(random, total), "p", 4)
    found = scores_used(original, tmp_path / "a", "--mem", "high")
    assert Path(found["path"]) == few / "scores.npz" and found["seconds"] == 41
    assert found["sha256"] == sha256(few / "scores.npz")
    roots = [tmp_path / "a"]
    wanted = {"dataset": "digits", "classes": "0-2"}
    more = memorization_run(tmp_path / "a", "more", tied(random, total), "p", 40)
    assert find_scores("memorization", None, roots, wanted, None) == more / "scores.npz"
    memorization_run(tmp_path / "a", "elsewhere", tied(random, total), "q", 4)
    with pytest.raises(BadInput, match="several runs") as said:
        find_scores("memorization", None, roots, wanted, None)
    assert all(str(tmp_path / "a" / "memorization" / name) in str(said.value) for name in ("few", "more", "elsewhere"))
    named = scores_used(original, tmp_path / "b", "--mem", "high", "--scores", scored[1])
    assert named["path"] == str(scored[1])


def test_a_proxy_is_compared_with_the_largest_pool_of_its_own_images(tmp_path: Path) -> None:
    """Of another data set however large does not count; a file that is named goes before all."""
    data, random, made = digits(), np.random.default_rng(3), {}
    for name, models, key in (("most", 9, data.splits.images_key), ("few", 4, data.splits.images_key), ("other", 40, "others")):
        scores = random.random(len(data.candidates.y))
        made[name] = memorization_run(tmp_path, name, scores, name, models) / "scores.npz", scores
        change(made[name][0].parent, images_key=key)
    path, found = memorization_of(data, [tmp_path], None)
    assert path == made["most"][0] and np.array_equal(found, made["most"][1])
    assert memorization_of(data, [tmp_path], str(made["few"][0]))[0] == made["few"][0]
    assert memorization_of(data, [tmp_path / "nowhere"], None) is None


def test_a_measured_proxy_is_of_the_one_model(scored: tuple[Saved, Path], tmp_path: Path) -> None:
    """Two runs of one proxy, on two models: the one whose parent has the original's hash."""
    folders = {}
    for name in ("ours", "theirs"):
        settings = {"data": DataConfig(dataset="digits", classes="0-2"), "choice": ScoreConfig(score="ho_ret")}
        with Run(RunConfig(save_dir=str(tmp_path)), "memorization", name, settings, parent={"sha256": name}) as run:
            run.save_arrays("scores.npz", ho_ret=np.zeros(3))
        folders[name] = run.folder
    for name, folder in folders.items():
        assert find_scores("ho_ret", scored[0], [tmp_path], {}, name) == folder / "scores.npz"
    with pytest.raises(BadInput, match=r"main_memorization\.py --score ho_ret"):
        find_scores("ho_ret", scored[0], [tmp_path], {}, "nobody's")


def test_held_out_retraining_is_found_by_the_forget_stage(scored: tuple[Saved, Path], tmp_path: Path) -> None:
    """Measured by one main, used by the next one for the same original, and no other."""
    words = ["--checkpoint", scored[0].folder, "--score", "ho_ret", "--ft_epochs", 1]
    shell.call("main_memorization.py", *words, save_dir=tmp_path)
    run = shell.only(tmp_path, "memorization")
    shell.forget(scored[0], tmp_path, "raw", "--mem", "high", "--mem_proxy", "ho_ret", "--num_indexes_to_replace", 20)
    forgot = shell.only(tmp_path, "forget")
    assert forgot.record["scores"]["path"] == str(run.folder / "scores.npz")
    with np.load(run.folder / "scores.npz") as file, np.load(forgot.folder / "splits.npz") as splits:
        values = file["ho_ret"][splits["train"]]
        assert splits["forget"].tolist() == by_hand(values, splits["train"], 20, 0, places(len(file["ho_ret"])))["high"]
    other = shell.train(tmp_path / "other", 2)
    with pytest.raises(SystemExit):
        shell.forget(other, tmp_path, "raw", "--mem", "high", "--mem_proxy", "ho_ret", "--num_indexes_to_replace", 20)
