"""Models that others made, and broken ones, as originals of every stage: what is assumed of them is said and recorded."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shell
import torch
from torch import Tensor

import sources
from models import ModelConfig
from utils import BadInput, Saved, find_runs

nowhere = pytest.fixture(autouse=True)(shell.nowhere)
State = dict[str, Tensor]
MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
RAW = ["main_forget.py", "--unlearn", "raw", *shell.FORGET]
# every stage that starts from an original, by what it is to do with one
STARTS = {
    "mask": ["generate_mask.py", *shell.FORGET],
    "raw": RAW,
    "FT": ["main_forget.py", "--unlearn", "FT", "--unlearn_epochs", 1, *shell.FORGET],
    "GA": ["main_forget.py", "--unlearn", "GA", "--unlearn_epochs", 1, *shell.FORGET],
    "retrain": ["main_forget.py", "--unlearn", "retrain", "--unlearn_epochs", 1, *shell.FORGET],
    "fisher": ["main_forget.py", "--unlearn", "fisher", *shell.FORGET],
    "RL": ["main_random.py", "--unlearn", "RL_og", "--unlearn_epochs", 1, *shell.FORGET],
    "plan": ["main_rum.py", "--unlearn", "FT", "--unlearn_epochs", 1, "--shuffle", "--num_indexes_to_replace", 21],
    "ho_ret": ["main_memorization.py", "--score", "ho_ret", "--ft_epochs", 1],
    "curvature": ["main_memorization.py", "--score", "loss_curvature"],
    "es": ["main_memorization.py", "--score", "es"],
}


def run(words: list[Any], *more: Any, save_dir: Path = Path("out")) -> None:
    shell.call(words[0], *words[1:], *more, save_dir=save_dir)


def refused(capsys: pytest.CaptureFixture[str], words: list[Any], *more: Any) -> str:
    """The one line that a stage ends in, with exit code 2 and no run left."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run(words, *more)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and "Traceback" not in said
    assert not list(Path("out").glob("*/*")) if Path("out").exists() else True
    return said


def bare(original: Saved, change: Callable[[State], Any], path: str = "ckpt.pth") -> str:
    torch.save(change(shell.weights(original)), path)
    return path


def unnormalised(state: State) -> State:
    return {key: value for key, value in state.items() if not key.startswith("normalize")}


def last(stage: str) -> dict[str, Any]:
    return max(find_runs(Path("out"), (stage,)), key=lambda run: (run.folder / "record.json").stat().st_mtime_ns).record


# ------------------------------------------------------------------------------------------------------ normalisation


def test_the_assumed_normalisation_is_said_and_recorded_and_a_flag_gives_another(
    original: Saved, capsys: pytest.CaptureFixture[str]
) -> None:
    file, metrics = bare(original, unnormalised), {}
    for words, mean, origin in (
        ([], list(sources.SOURCES["digits"].mean), "assumed, those of digits"),
        (["--normalize", "none"], [0.0] * 3, "the command line"),
        (["--mean", "0.1,0.2,0.3", "--std", "0.4,0.5,0.6"], MEAN, "the command line"),
    ):
        capsys.readouterr()
        run(RAW, *shell.THREE, "--checkpoint", file, *words)
        said = capsys.readouterr().out
        assert ("assumed the mean" in said) == (not words) and (bool(words) or "--normalize none" in said)
        record = last("forget")
        assert record["original"]["normalize"]["mean"] == pytest.approx(mean, abs=1e-6)
        assert record["original"]["normalize"]["from"] == origin
        metrics[str(words)] = record["metrics"]["test"]
        assert record["settings"]["model"]["normalize"] == ("none" if "none" in words else "dataset")
    assert len(find_runs(Path("out"), ("forget",))) == 3  # they change the model, so each has a folder of its own
    # the network was trained under the data set's own statistics
    assert original.record["metrics"]["test"] == pytest.approx(metrics["[]"])


def test_retrain_and_the_next_stage_keep_the_normalisation_of_the_file(original: Saved) -> None:
    """Retrained and unlearned again, the model normalises as the file that it goes back to."""
    state = shell.weights(original)
    torch.save({**state, "normalize.mean": torch.tensor(MEAN), "normalize.std": torch.tensor(STD)}, "own.pt")
    torch.save(unnormalised(state), "none.pt")
    for file, words in (("own.pt", []), ("none.pt", ["--mean", "0.1,0.2,0.3", "--std", "0.4,0.5,0.6"])):
        out = Path(f"out_{file}")
        run(STARTS["retrain"], *shell.THREE, "--checkpoint", file, *words, save_dir=out)
        (made,) = find_runs(out, ("forget",))
        assert shell.weights(made)["normalize.mean"].tolist() == pytest.approx(MEAN)
        assert shell.weights(made)["normalize.std"].tolist() == pytest.approx(STD)
        run(RAW, "--checkpoint", made.folder, save_dir=out)
        again = next(found for found in find_runs(out, ("forget",)) if found.setting("unlearn") == "raw")
        assert shell.weights(again)["normalize.mean"].tolist() == pytest.approx(MEAN)


@pytest.mark.parametrize(("words", "says"), [
    (["--mean", "0.5,0.5,0.5"], "three numbers each"), (["--mean", "0.5,0.5", "--std", "1,1"], "three numbers each"),
    (["--std", "0,1,1", "--mean", "0.5,0.5,0.5"], "--std must lie in (0"),
    (["--normalize", "none", "--mean", "0.5,0.5,0.5", "--std", "1,1,1"], "leave --mean and --std away"),
    (["--normalize", "zero"], "dataset, none"),
    (["--mean", "0.1,0.2,0.3", "--std", "1,1,1"], "has a normalisation of its own"),
    (["--normalize", "none"], "has a normalisation of its own"),
])
def test_a_normalisation_that_cannot_be_is_refused(
    words: list[str], says: str, original: Saved, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, RAW, *shell.THREE, "--checkpoint", bare(original, dict), *words)
    if "own" in says:  # with a run of ours it is the record that says so
        said = refused(capsys, RAW, "--checkpoint", original.folder, *words)
        assert f"the original in {original.folder} has" in said


def test_normalisation_typed_for_training_is_the_models(tmp_path: Path) -> None:
    cfg = ModelConfig(arch="resnet8s", mean=tuple(MEAN), std=tuple(STD))
    source = type("Source", (), {"mean": (0.0,) * 3, "std": (1.0,) * 3})
    assert cfg.statistics(source) == (tuple(MEAN), tuple(STD)) and cfg.typed
    assert ModelConfig(normalize="none").statistics(source) == ((0.0,) * 3, (1.0,) * 3)
    assert ModelConfig().statistics(source) == (source.mean, source.std) and not ModelConfig().typed
    with pytest.raises(BadInput):
        ModelConfig(mean=(0.1,) * 3)


def test_wrapped_weights_and_masks_pass_through_the_stages(library: Path, original: Saved) -> None:
    """{'net': {'module.x': ...}, 'acc': ...} as --checkpoint, and a mask wrapped alike as --path."""
    wrapped = bare(original, lambda s: {"net": {f"module.{k}": v for k, v in s.items()}, "acc": 91.2})
    mask = torch.load(shell.only(library, "mask").folder / "with_0.5.pt", weights_only=True)
    torch.save({"state_dict": {f"module.{k}": v.float() for k, v in mask.items()}}, "mask.pt")
    run(RAW, *shell.THREE, "--checkpoint", wrapped)
    assert last("forget")["metrics"]["test"] == pytest.approx(original.record["metrics"]["test"])
    run(["main_random.py", "--unlearn", "RL", "--unlearn_epochs", 1, "--path", "mask.pt", *shell.FORGET], *shell.THREE,
        "--checkpoint", wrapped)
    assert last("forget")["mask"]["density"] == 0.5


def test_weights_and_masks_that_changed_places_are_told(
    library: Path, original: Saved, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = shell.only(library, "mask").folder / "with_0.5.pt"
    assert "it is a mask: give that by --path" in refused(capsys, RAW, *shell.THREE, "--checkpoint", mask)
    words = ["main_random.py", "--unlearn", "RL", "--checkpoint", original.folder, *shell.FORGET]
    for file in (bare(original, dict), original.folder / "model.pt"):
        said = refused(capsys, words, "--path", file)
        assert "weights of a model and no mask; give it by --checkpoint" in said or "is of a train run" in said


# ------------------------------------------------------------------------------------------------------ broken models


@pytest.mark.parametrize("start", STARTS)
def test_an_original_that_is_not_finite_is_refused_as_such_by_every_stage(
    start: str, original: Saved, capsys: pytest.CaptureFixture[str]
) -> None:
    file = bare(original, lambda s: {k: torch.full_like(v, torch.nan) if k == "conv1.weight" else v for k, v in s.items()})
    said = refused(capsys, STARTS[start], *shell.THREE, "--checkpoint", file)
    assert "the original itself is broken" in said and "conv1.weight" in said and "learning rate" not in said


@pytest.mark.parametrize(("change", "says"), [
    (lambda s: {k: torch.zeros_like(v) if k.endswith("weight") else v for k, v in s.items()}, "all its weights are 0"),
    (lambda s: {k: -v if k.endswith("running_var") else v for k, v in s.items()}, "outputs are not finite"),
    (lambda s: {**s, "fc.bias": torch.tensor([0.0, torch.inf, 0.0])}, "fc.bias"),
    (lambda s: {**s, "fc.weight": s["fc.weight"].to_sparse()}, "sparse tensor"),
])
def test_other_broken_originals_are_refused(
    change: Callable[[State], Any], says: str, original: Saved, capsys: pytest.CaptureFixture[str]
) -> None:
    for start in ("FT", "curvature", "plan"):
        assert says in refused(capsys, STARTS[start], *shell.THREE, "--checkpoint", bare(original, change))


def test_weights_to_rewind_to_are_whole(original: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    file = bare(original, lambda s: {**s, "fc.bias": torch.full((3,), torch.nan)})
    said = refused(capsys, ["main_imp.py", "--rewind_pth", file, "--epochs", 2, "--rate", 0.5], *shell.THREE)
    assert "the model to rewind to itself is broken" in said and "fc.bias" in said


def test_an_original_at_chance_is_said_and_recorded(original: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    """A bare file is asked about its training images; a run's record tells. Either goes on: a method may be tried on it."""
    generator = torch.Generator().manual_seed(0)
    shuffled = bare(original, lambda s: {**s, "fc.weight": torch.randn(3, 64, generator=generator) * 1e-3})
    for start, stage in (("mask", "mask"), ("plan", "rum"), ("es", "memorization")):
        capsys.readouterr()
        run(STARTS[start], *shell.THREE, "--checkpoint", shuffled)
        said = capsys.readouterr().out
        assert said.count("is broken already") == 1 and "--mean and --std" in said
        record = last(stage)["original"]
        assert record["broken"] and record["accuracy"] < 66.67
    record = json.loads((original.folder / "record.json").read_text())
    copied = Path("copied/train/a")
    copied.mkdir(parents=True)
    for accuracy, broken in ((99.5, False), (40.0, True)):
        record["metrics"]["train"] = accuracy
        (copied / "record.json").write_text(json.dumps(record))
        (copied / "model.pt").write_bytes((original.folder / "model.pt").read_bytes())
        run(STARTS["mask"], "--checkpoint", copied, "--force")
        assert ("is broken already" in capsys.readouterr().out) == broken
        assert last("mask")["original"] | {"normalize": 0} == {"normalize": 0, "accuracy": accuracy, "broken": broken}


# ------------------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_damaged_model_of_a_run_is_mended_by_the_command_that_is_told(
    how: str, library: Path, original: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = shell.train(tmp_path / "t")
    file = trained.folder / "model.pt"
    whole = shell.weights(trained)
    file.write_bytes(file.read_bytes()[:100]) if how == "cut" else file.unlink()
    for start in ("FT", "mask", "plan", "curvature"):
        said = refused(capsys, STARTS[start], "--checkpoint", trained.folder)
        assert str(file) in said and ("is damaged" in said if how == "cut" else "is missing" in said)
        assert "repeat the run that wrote it with --force: python main_train.py" in said
    words = shlex.split(said.rpartition(": python ")[2])
    shell.STAGES[words[0]].main([*words[1:], *shell.QUIET])
    assert all(torch.equal(value, whole[name]) for name, value in shell.weights(trained).items())
    run(RAW, "--checkpoint", trained.folder)
