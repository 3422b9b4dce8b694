"""The chain train, mask, retrain, forget, random, analysis from the command line, and what its runs are."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import shell
import torch
from conftest import OWN, TRAINED

import arg_parser
import dataset
import models
import utils
from pruner.mask import largest
from unlearn import METHODS
from unlearn.saliency import saliency
from utils import Runtime, RuntimeConfig, Saved, find_runs

nowhere = pytest.fixture(autouse=True)(shell.nowhere)


REQUESTED = [name for name in OWN if not METHODS[name].whole]  # what a random forget set can be given to


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


# ------------------------------------------------------------------------------------------------------------ the chain


def test_chain_leaves_a_finished_record_of_every_stage_and_method(library: Path) -> None:
    assert {run.setting("unlearn") for run in find_runs(library, ("forget",))} == set(REQUESTED)
    for run in find_runs(library, ("train", "mask", "forget")):
        record = run.record
        assert record["stage"] == run.folder.parent.name
        assert record["status"] == "done" and record["schema"] == utils.SCHEMA
        assert run.setting("seed") == 1 and run.setting("classes") == "0-2" and run.setting("arch") == "resnet8s"
        assert re.fullmatch(r"[0-9a-f]{40}|unknown", record["commit"])
        assert record["torch"] == torch.__version__ and record["device"].startswith("cpu")
        assert 50 < record["peak_memory_mib"] < 20_000
        assert all(0 <= seconds < 100 for seconds in record["seconds"].values())
        assert not (run.folder / "state.pt").exists()
    assert {key for run in find_runs(library, ("mask", "forget")) for key in run.record["seconds"]} == {
        "mask", "unlearn", "evaluate"}


def test_children_name_their_original_by_its_hash(library: Path, original: Saved) -> None:
    digest = hashlib.sha256((original.folder / "model.pt").read_bytes()).hexdigest()
    for run in find_runs(library, ("mask", "forget")):
        parent = run.record["parent"]
        assert Path(parent["path"]) == original.folder / "model.pt" and parent["sha256"] == digest
        assert parent["training"] == original.record["settings"]["cfg"]
        assert run.record["data_key"] == original.record["data_key"]
    assert len({run.record["split_key"] for run in find_runs(library, ("mask", "forget"))}) == 1


@pytest.mark.parametrize("name", REQUESTED)
def test_metrics_are_those_of_the_stored_logits(name: str, library: Path) -> None:
    """Accuracies by hand in numpy from outputs.npz, whose indices are those of splits.npz."""
    run = shell.only(library, "forget", unlearn=name)
    outputs, splits = arrays(run.folder / "outputs.npz"), arrays(run.folder / "splits.npz")
    hits = {}
    for part, size in (("retain", 368), ("forget", 20), ("val", 42), ("test", 107)):
        logits, labels = outputs[f"{part}_logits"], outputs[f"{part}_labels"]
        assert logits.dtype == np.float32 and logits.shape == (size, 3) and labels.shape == (size,)
        assert np.array_equal(outputs[f"{part}_index"], splits.get(part, np.arange(107)))
        hits[part] = 100 * float((logits.argmax(1) == labels).mean())
    metrics = run.record["metrics"]
    assert {part: metrics[part] for part in hits} == pytest.approx(hits)
    assert metrics["UA"] == pytest.approx(100 - hits["forget"])
    assert (metrics["RA"], metrics["TA"]) == pytest.approx((hits["retain"], hits["test"]))
    assert metrics["MIA"] == metrics["mia"]["forget"]["confidence"]
    log = run.folder / "log.jsonl"
    rows = [json.loads(row) for row in log.read_text().splitlines()] if log.exists() else []
    own = [row["epoch"] for row in rows if "epoch" in row and row.get("phase") != "replay"]
    assert own == ([0] if name in TRAINED else [])
    assert {row["phase"] for row in rows if "phase" in row} == set(METHODS[name].phases)


def test_models_are_plain_and_differ_by_method(library: Path, original: Saved) -> None:
    seen = {}
    for run in [original, *find_runs(library, ("forget",))]:
        content = torch.load(run.folder / "model.pt", weights_only=True)
        assert (content["schema"], content["arch"], content["num_classes"]) == (utils.SCHEMA, "resnet8s", 3)
        pruned = {"mask"} if run.setting("unlearn") == "FT_prune_bi" else set()
        assert set(content) == {"schema", "state_dict", "arch", "num_classes", "imagenet"} | pruned
        weights = [value.flatten() for value in content["state_dict"].values() if value.is_floating_point()]
        seen[run.setting("unlearn")] = torch.cat(weights)
    assert torch.equal(seen["raw"], seen[None])
    # in its one epoch FT_prune does what FT_l1 does, and only counts small weights besides
    assert torch.equal(seen.pop("FT_prune"), seen["FT_l1"]) and seen.pop("raw") is not None
    names = list(seen)
    assert not [(a, b) for i, a in enumerate(names) for b in names[:i] if torch.equal(seen[a], seen[b])]


def test_salun_moves_only_the_weights_of_the_mask(library: Path, original: Saved) -> None:
    mask = torch.load(shell.only(library, "mask").folder / "with_0.5.pt", weights_only=True)
    total = sum(part.numel() for part in mask.values())
    assert all(part.dtype == torch.bool for part in mask.values())
    assert sum(int(part.sum()) for part in mask.values()) == total // 2
    run = shell.only(library, "forget", unlearn="RL")
    before, after = shell.weights(original), shell.weights(run)
    moved = {name: after[name] != before[name] for name in mask}
    assert not any(bool((moved[name] & ~mask[name]).any()) for name in mask)
    assert sum(int(part.sum()) for part in moved.values()) > 0.9 * total / 2
    assert run.record["mask"]["density"] == 0.5
    made = shell.only(library, "mask")
    assert run.record["seconds"]["mask"] == made.record["seconds"]["mask"] > 0


def test_published_saliency_is_of_means_over_batches_of_the_flag(library: Path, original: Saved, tmp_path: Path) -> None:
    """Of 20 images in batches of 7 the last six weigh as much as seven, so that other weights are salient."""
    words = ["--saliency_mode", "published", "--batch_size", 7]
    shell.call("generate_mask.py", "--checkpoint", original.folder, *shell.FORGET, *words, save_dir=tmp_path)
    run, rt = shell.only(tmp_path, "mask"), Runtime(RuntimeConfig(device="cpu"))
    found, exact = (torch.load(one.folder / "with_0.5.pt", weights_only=True) for one in (run, shell.only(library, "mask")))
    data = dataset.load(dataset.DataConfig(dataset="digits", classes="0-2"), rt)
    model, _ = models.load(original.folder / "model.pt", models.ModelConfig(arch="resnet8s"), data, rt)
    forget = data.subset(arrays(run.folder / "splits.npz")["forget"])
    forget.batch_size = 7
    expected = largest(saliency(model, forget, "published"), (0.5,))[0.5]
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert sum(int((found[name] != exact[name]).sum()) for name in exact) > 100


def test_several_densities_come_from_one_ranking(library: Path, original: Saved, tmp_path: Path) -> None:
    shell.call("generate_mask.py", "--checkpoint", original.folder, *shell.FORGET, "--density", "0.1,0.5,1",
               save_dir=tmp_path)
    folder = shell.only(tmp_path, "mask").folder
    low, half, full = (torch.load(folder / f"with_{d}.pt", weights_only=True) for d in ("0.1", "0.5", "1"))
    known = torch.load(shell.only(library, "mask").folder / "with_0.5.pt", weights_only=True)
    for name in low:
        assert not (low[name] & ~half[name]).any() and torch.equal(half[name], known[name]) and full[name].all()


def test_analysis_writes_its_tables_and_plots(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage, name, figures in (("analysis.py", "tow", {"tow", "accuracy", "margins", "cost", "cost_images"}),
                                 ("analysis_mia.py", "tow_mia", {"tow_mia", "mia", "cost_mia"})):
        out = tmp_path / stage
        shell.call(stage, "--out", out, save_dir=library)
        said = capsys.readouterr().out
        made = {f"{name}.csv", "runs.csv", f"{name}.md", f"{name}.tex", f"{name}.files.json", f"{name}_captions.md",
                f"{name.replace('tow', 'pairs')}.csv", *(f"{figure}.{end}" for figure in figures for end in ("png", "pdf"))}
        assert {path.name for path in out.iterdir()} == made
        assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in out.glob("*.png"))
        assert (out / f"{name}.md").read_text().strip() in said
        assert all(re.search(rf"^\| (?:\w+ = )*{method}[ (].*\|$", said, re.M) for method in REQUESTED)
        shell.call(stage, "--out", out, "--unlearn", "NG,GA", "--dataset", "digits", "--no_aug", "--seed", "1,2",
                   "--num_indexes_to_replace", 20, save_dir=library)
        rows = re.findall(r"^\| ([\w.]+)", capsys.readouterr().out, re.M)
        assert rows[:2] == ["method", "retrain"] and sorted(rows[2:]) == ["GA", "NG"]


# ---------------------------------------------------------------------------------------------------------------- seeds


def test_retrain_starts_elsewhere_than_the_original_of_the_same_seed(original: Saved, tmp_path: Path) -> None:
    """Retrained for no epoch, a model is its initialisation: that of the stream ``init/retrain``."""
    shell.forget(original, tmp_path, "retrain", *shell.FORGET, "--unlearn_epochs", 0)
    start = shell.weights(shell.only(tmp_path, "forget"))["conv1.weight"]
    args = arg_parser.parse("forget", ["--checkpoint", str(original.folder), "--unlearn", "retrain", *shell.FORGET])
    rt = Runtime(RuntimeConfig(seed=1, device="cpu"))
    data = dataset.load(args.data, rt)
    fresh = {purpose: models.new(args.model, data, rt, purpose).conv1.weight for purpose in ("train", "retrain")}
    assert torch.equal(start, fresh["retrain"])
    shared = float((start == fresh["train"]).float().mean())
    assert shared < 0.01, "the original of this seed begins with other weights"


def test_seeds_vary_the_training_and_not_the_forget_set(library: Path, original: Saved, tmp_path: Path) -> None:
    known = shell.only(library, "forget", unlearn="FT")
    shell.forget(original, tmp_path, "FT", *shell.FORGET, "--seed", 8)
    other = shell.only(tmp_path, "forget")
    assert other.record["split_key"] == known.record["split_key"]
    splits = [arrays(run.folder / "splits.npz") for run in (known, other)]
    assert all(np.array_equal(splits[0][part], splits[1][part]) for part in ("train", "val", "retain", "forget"))
    assert not torch.equal(shell.weights(known)["conv1.weight"], shell.weights(other)["conv1.weight"])


# -------------------------------------------------------------------------------------------------------- whole classes


def test_whole_class_by_index_file_is_the_whole_class(
    original: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However it is named, test accuracy is over the remaining classes, and test_all over all."""
    shell.forget(original, tmp_path / "class", "NG", "--class_to_replace", 1)
    named = shell.only(tmp_path / "class", "forget")
    forget = arrays(named.folder / "splits.npz")["forget"]
    np.save(tmp_path / "forget.npy", forget[::-1])
    (tmp_path / "forget.json").write_text(json.dumps(forget.tolist()))
    count = len(forget)
    for words in (["--forget_index", tmp_path / "forget.npy"], ["--forget_index", tmp_path / "forget.json"],
                  ["--forget_index", named.folder / "splits.npz"],
                  ["--class_to_replace", 1, "--num_indexes_to_replace", count],
                  ["--class_to_replace", 1, "--forget_fraction", 1]):
        capsys.readouterr()
        shell.forget(original, tmp_path / "class", "NG", *words)
        assert "already done" in capsys.readouterr().out, words
    shell.forget(original, tmp_path / "index", "NG", "--forget_index", tmp_path / "forget.npy")
    indexed = shell.only(tmp_path / "index", "forget")
    assert indexed.record["metrics"] == named.record["metrics"] and indexed.record["whole_classes"] == [1]
    outputs = arrays(named.folder / "outputs.npz")
    hit, rest = outputs["test_logits"].argmax(1) == outputs["test_labels"], outputs["test_labels"] != 1
    metrics = named.record["metrics"]
    assert 0 < rest.sum() < len(hit) and hit[rest].mean() != hit.mean()
    assert (metrics["test"], metrics["TA"], metrics["test_all"]) == pytest.approx(
        (100 * hit[rest].mean(), 100 * hit[rest].mean(), 100 * hit.mean()))


def test_all_but_one_of_a_class_is_no_whole_class(original: Saved, tmp_path: Path) -> None:
    shell.forget(original, tmp_path, "raw", "--class_to_replace", 1, "--num_indexes_to_replace", 131)
    run = shell.only(tmp_path, "forget")
    assert run.record["whole_classes"] == [] and run.record["forget_size"] == 131
    assert run.record["metrics"]["test"] == run.record["metrics"]["test_all"]
