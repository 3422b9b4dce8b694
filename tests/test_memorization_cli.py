"""Scores from the command line at toy size: pools that grow and are shared, proxies of the original, finding by record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shell
from scipy.stats import spearmanr

import trainer
from memorization import SCORES
from report import scores
from report.pairs import AnalysisConfig
from utils import find_runs

POOL = ["--dataset", "digits", "--arch", "resnet8s", "--classes", "0-2", "--subset", "half", "--recipe", "fast",
        "--pool_epochs", 1, "--engine", "serial", "--seed", 1]
NEEDS = {"es": ["--es_chunks", 4], "ho_ret": ["--ft_epochs", 1]}


def pool(save_dir: Path, models: int, *words: object) -> None:
    shell.call("main_memorization.py", *POOL, "--models", models, *words, save_dir=save_dir)


def arrays(folder: Path, name: str = "scores.npz") -> dict[str, np.ndarray]:
    with np.load(folder / name, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original on three digits, a pool of six models, and every score."""
    root = tmp_path_factory.mktemp("scored")
    shell.train(root, 1, "--record_curvature")
    pool(root, 6, "--influence", "--influence_above", 0.9)
    for name in SCORES.names():
        if name != "memorization":
            shell.call("main_memorization.py", "--mem_proxy", name, "--seed", 1, *NEEDS.get(name, []), save_dir=root)
    return root


def test_every_score_runs_on_an_original_and_is_compared(made: Path) -> None:
    """Each writes its scores by name, its polarity, cost and correlation with memorization, and figures."""
    truth = arrays(shell.only(made, "memorization", score="memorization").folder)["memorization"]
    for name in SCORES.names():
        run = shell.only(made, "memorization", score=name)
        found = arrays(run.folder)
        assert found[name].shape == (430,) and found[name].dtype == np.float32 and len(found["labels"]) == 430
        assert run.record["polarity"] == SCORES[name].polarity and "score" in run.record["seconds"]
        assert all((run.folder / figure).stat().st_size > 1000 for figure in run.record["figures"]) and run.record["figures"]
        if name in ("memorization", "es"):
            assert "spearman" not in run.record
            continue
        both = np.isfinite(found[name]) & np.isfinite(truth)
        rho = spearmanr(found[name][both], truth[both]).statistic
        assert run.record["compared"] == both.sum()
        assert run.record["spearman"] == (None if np.isnan(rho) else pytest.approx(rho))


def test_proxies_are_of_the_originals_own_training(made: Path) -> None:
    """The events beside the original are what its proxies hold: no second training, and none of validation."""
    original = shell.only(made, "train")
    events, splits = arrays(original.folder, "events.npz"), shell.only(made, "memorization", score="es")
    for name in ("confidence", "max_conf", "entropy", "bi_acc", "el2n", "forgetting"):
        scores = arrays(shell.only(made, "memorization", score=name).folder)[name]
        assert np.array_equal(scores, events[name], equal_nan=True)
        assert 380 < np.isfinite(scores).sum() < 400  # nine tenths of 430
    assert np.isfinite(events["loss_curvature"]).sum() == np.isfinite(events["confidence"]).sum()
    assert original.record["seconds"]["events"] > 0
    assert splits.record["parent"]["sha256"] == shell.only(made, "memorization", score="ho_ret").record["parent"]["sha256"]


def test_pool_grows_and_the_largest_is_taken(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """More models later train the new ones alone, in the same pool; the forget set goes by the larger."""
    trained = []
    real = trainer.Descent.__init__
    monkeypatch.setattr(trainer.Descent, "__init__", lambda self, *a, **k: (trained.append(1), real(self, *a, **k))[1])
    pool(tmp_path, 4)
    before = len(trained)
    pool(tmp_path, 6)
    assert len(list((tmp_path / "pool").iterdir())) == 1 and len(trained) - before <= before - 1  # the estimate trains one too
    small, large = sorted(find_runs(tmp_path, ("memorization",)), key=lambda run: run.record["models"])
    assert (small.record["models"], large.record["models"]) == (4, 6)
    (table,) = scores.tables(AnalysisConfig(save_dir=str(tmp_path)), [])
    assert [line[2] for line in table.csv[1:]] == ["memorization"] and table.csv[1][4] == large.record["seconds"]["pool"] + (
        large.record["seconds"]["score"])
    same, seen = arrays(shell.only(made, "memorization", score="memorization").folder), arrays(large.folder)
    assert all(np.array_equal(same[name], seen[name]) for name in ("memorization", "n_in", "n_out", "std_error"))
    original = shell.train(tmp_path)
    capsys.readouterr()
    shell.forget(original, tmp_path, "raw", "--mem", "high", "--num_indexes_to_replace", 20)
    assert f"scores: {large.folder / 'scores.npz'}" in capsys.readouterr().out
    run = shell.only(tmp_path, "forget")
    train, forget = (arrays(run.folder, "splits.npz")[part] for part in ("train", "forget"))
    assert seen["memorization"][forget].min() >= np.sort(seen["memorization"][train])[-20]
    assert run.record["scores"]["name"] == "memorization" and run.record["scores"]["seconds"] > 0


def test_shard_waits_for_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A shard trains its own models and writes no scores; the last one to come does."""
    pool(tmp_path, 4, "--shard", "0/2")
    assert not (tmp_path / "memorization").exists() and "1/2" in capsys.readouterr().out
    pool(tmp_path, 4, "--shard", "1/2")
    assert shell.only(tmp_path, "memorization").record["models"] == 4


def test_finished_score_is_compared_again(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run again: already done, and the correlation stands in the line."""
    shell.call("main_memorization.py", "--score", "confidence", "--seed", 1, save_dir=made)
    said = capsys.readouterr().out
    assert "already done" in said and "smaller = more memorized; Spearman with memorization" in said


def test_influence_is_written_on_request(made: Path) -> None:
    """Pairs above the threshold: indices within their images, values beyond 0.9 either way."""
    pairs = arrays(shell.only(made, "memorization", score="memorization").folder, "influence.npz")
    assert len(pairs["value"]) and (np.abs(pairs["value"]) > 0.9).all()
    assert pairs["train_index"].max() < 430 and pairs["test_index"].max() < 107


@pytest.mark.parametrize("words, said", [
    (["--subset", "fraction", "--models", 4], "were seen by all or by none of the 4 models"),
    (["--models", 4, "--scores", "none.npz"], "--scores is what a proxy is compared with")])
def test_pool_that_cannot_be_scored_is_not_trained(words: list[object], said: str, tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    """Too few models, or a flag without use: said before the first model, and nothing is written."""
    with pytest.raises(SystemExit):
        shell.call("main_memorization.py", *POOL, *words, save_dir=tmp_path)
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_file_to_compare_with_is_read_before_the_work(made: Path, capsys: pytest.CaptureFixture[str],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.Descent, "epoch", None)
    with pytest.raises(SystemExit):
        shell.call("main_memorization.py", "--score", "ho_ret", "--ft_epochs", 2, "--seed", 1, "--scores", "no.npz",
                   save_dir=made)
    assert "cannot read the scores in no.npz" in capsys.readouterr().err


def test_unlearned_model_has_no_learning_events_of_its_own(made: Path, tmp_path: Path,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    """The errors say whose to name; the original's own file cuts groups, at the cost of what recording took."""
    original = shell.only(made, "train")
    shell.forget(original, tmp_path, "raw", "--num_indexes_to_replace", 20)
    unlearned = shell.only(tmp_path, "forget")
    group = ["--mem_proxy", "bi_acc", "--mem", "high", "--num_indexes_to_replace", 20]
    with pytest.raises(SystemExit):
        shell.forget(unlearned, tmp_path, "raw", *group)
    told = capsys.readouterr()
    assert "is of a forget run" in told.err and "--scores" in told.err and "was asked to forget 20 examples" in told.out
    with pytest.raises(SystemExit):
        shell.call("main_memorization.py", "--score", "bi_acc", "--checkpoint", unlearned.folder, save_dir=tmp_path)
    assert "is of a forget run" in (said := capsys.readouterr().err) and "--checkpoint" in said
    copy, recording = shell.only(made, "memorization", score="bi_acc"), original.record["seconds"]["events"]
    reading = copy.record["seconds"]["score"]
    for file, cost in ((original.folder / "events.npz", recording), (copy.folder / "scores.npz", recording + reading)):
        shell.forget(unlearned, tmp_path / file.stem, "raw", *group, "--scores", file)
        assert shell.only(tmp_path / file.stem, "forget").record["scores"]["seconds"] == pytest.approx(cost, abs=6e-4)


def test_seconds_of_recorded_curvature_are_counted(made: Path, tmp_path: Path) -> None:
    """By the events beside the original as by a copy of them; none of the other events, which the curvature needs not."""
    original = shell.only(made, "train")
    recording = original.record["seconds"]["curvature"]
    assert recording > 2 * original.record["seconds"]["events"] > 0  # two more passes a step, forwards and back
    shell.call("main_memorization.py", "--checkpoint", original.folder, "--score", "loss_curvature", "--curvature", "recorded",
               save_dir=tmp_path)
    copy = shell.only(tmp_path, "memorization")
    assert copy.record["seconds"]["events"] == recording
    for file, cost in ((original.folder / "events.npz", recording),
                       (copy.folder / "scores.npz", recording + copy.record["seconds"]["score"])):
        shell.forget(original, tmp_path / file.stem, "raw", "--mem", "high", "--mem_proxy", "loss_curvature",
                     "--num_indexes_to_replace", 20, "--scores", file)
        assert shell.only(tmp_path / file.stem, "forget").record["scores"]["seconds"] == pytest.approx(cost, abs=6e-4)


def test_curvature_that_a_finished_run_lacks_is_told(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell.train(tmp_path)
    capsys.readouterr()
    shell.train(tmp_path, 1, "--record_curvature")
    assert "recorded no loss curvature" in capsys.readouterr().out
    shell.train(made, 1, "--record_curvature")
    assert "recorded no loss curvature" not in capsys.readouterr().out
