"""analysis_distribution.py: every number from the models themselves, its pairing by seed, its files, and what it keeps."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
import torch
from conftest import make_data
from grouped import csv_lines
from pretended import change
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_samples, silhouette_score

import dataset
import models
from dataset import DataConfig, Images
from evaluation import distribution as measures
from models import ModelConfig
from report import distribution, draw, embedded, folders, lineup
from report.clouds import Clouds
from report.distribution import DistributionConfig
from report.pairs import gather
from utils import Runtime, RuntimeConfig, files_of, read_record, sha256

SEEDS, METHODS = (3, 5), ("retrain", "FT", "NG")
nowhere = pytest.fixture(autouse=True)(shell.nowhere)


@pytest.fixture(autouse=True)
def quick_planes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Principal components in place of t-SNE, which test_distribution.py holds against scikit-learn's."""
    def plane(points: np.ndarray, seed: int, perplexity: float) -> np.ndarray:
        return (seed * PCA(2, random_state=seed).fit_transform(points) / perplexity).astype(np.float32)

    monkeypatch.setattr(measures, "tsne", plane)


def moved(source: Path, target: Path, seed: int, name: str) -> str:
    """A model's file with other weights for each seed and method; its hash."""
    content = torch.load(source, weights_only=True)
    draw = torch.Generator().manual_seed(seed * 1000 + len(name))
    for value in content["state_dict"].values():
        if value.is_floating_point() and value.dim() > 1:
            value.add_(0.05 * torch.randn(value.shape, generator=draw))
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, target)
    return sha256(target)


@pytest.fixture(scope="module")
def bench(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of an original, retrain, FT and NG, all of other weights, on one forget set; FT lacks a seed."""
    root = tmp_path_factory.mktemp("models")
    for seed in SEEDS:
        source = shell.only(library, "train").folder / "model.pt"
        parent = moved(source, root / "train" / f"original-{seed}" / "model.pt", seed, "the original")
        for method in METHODS:
            if (method, seed) == ("FT", 5):
                continue
            run = shell.only(library, "forget", unlearn=method)
            folder = root / "forget" / f"{method}-{seed}"
            shutil.copytree(run.folder, folder)
            moved(run.folder / "model.pt", folder / "model.pt", seed, method)
            record = json.loads((folder / "record.json").read_text())
            record["settings"]["rt"]["seed"] = seed
            record["parent"] |= {"sha256": parent, "path": str(root / "train" / f"original-{seed}" / "model.pt")}
            (folder / "record.json").write_text(json.dumps(record | {"files": files_of(folder)}))
    return root


def look(root: Path, out: Path, **flags: Any) -> distribution.Written:
    return distribution.write(DistributionConfig(save_dir=str(root), out=str(out), **flags))


def features(file: Path, run: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Penultimate features and logits of retain and forget, by a hook on the plain model; labels, -1 of the forgotten."""
    record = read_record(run).record
    rt = Runtime(RuntimeConfig(device="cpu", progress=False))
    known = {name: value for name, value in record["settings"]["data"].items() if name != "classes"}
    data = dataset.load(DataConfig(**known, classes="0-2"), rt)
    model = models.load(file, ModelConfig(arch="resnet8s"), data, rt)[0].eval()
    split = np.load(run / "splits.npz")
    index = np.sort(np.concatenate([split["retain"], split["forget"]]))
    caught: list[torch.Tensor] = []
    handle = model.avgpool.register_forward_hook(lambda module, given, out: caught.append(out.flatten(1)))
    with torch.no_grad():
        logits = model(data.images.x[torch.from_numpy(index)].permute(0, 3, 1, 2) / 255)
    handle.remove()
    labels = np.where(np.isin(index, split["forget"]), -1, data.images.y.numpy()[index])
    return {"penultimate": caught[0].numpy(), "logits": logits.numpy()}, labels


def by_hand(points: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    gone = points[labels == -1].astype(np.float64)
    spread = {label: ((points[labels == label] - points[labels == label].mean(0)) ** 2).sum(1).mean() for label in (0, 1, 2)}
    centres = {label: points[labels == label].mean(0) for label in (0, 1, 2)}
    nearest = min(centres, key=lambda label: np.linalg.norm(gone - centres[label], axis=1).mean())
    both = np.isin(labels, (-1, nearest))
    variance = ((gone - gone.mean(0)) ** 2).sum(1).mean()
    return {"variance": variance, "relative_variance": variance / np.mean(list(spread.values())),
            "silhouette": silhouette_score(points[both], labels[both]),
            "silhouette_all": silhouette_samples(points, labels)[labels == -1].mean()}


def test_every_number_is_that_of_its_own_model(bench: Path, tmp_path: Path) -> None:
    """Of each method, seed and kind of features, recomputed from model.pt; none is another's."""
    look(bench, tmp_path, venue="none")
    lines = csv_lines(tmp_path / "distribution.csv")
    told = {(line["method"], int(line["seed"]), line["features"], line["space"]): line for line in lines}
    assert len(told) == len(lines) == (2 + 5) * 4
    seen = set()
    for method, seed in [("original", 3), ("original", 5), ("retrain", 3), ("retrain", 5), ("FT", 3), ("NG", 3), ("NG", 5)]:
        run = bench / "forget" / f"{'retrain' if method == 'original' else method}-{seed}"
        file = bench / "train" / f"original-{seed}" / "model.pt" if method == "original" else run / "model.pt"
        found, labels = features(file, run)
        for name, points in found.items():
            line = told[method, seed, name, "own"]
            for measure, value in by_hand(points, labels).items():
                assert float(line[measure]) == pytest.approx(value, rel=2e-3, abs=2e-4), (method, seed, name, measure)
            assert 0 <= float(line["overlap"]) <= 1 and line["overlap_raw"] == "" and int(line["points"]) == len(labels)
            assert line["model"] == str(file)
            seen.add(line["variance"])
    assert len(seen) == 14


def test_planes_are_of_the_same_images_and_their_numbers_of_the_planes(bench: Path, tmp_path: Path) -> None:
    cfg = DistributionConfig(save_dir=str(bench), out=str(tmp_path), tsne_points=60, features=("logits",))
    entries = lineup.entries_of(gather(cfg).pairs, bench)
    assert lineup.Looker(cfg.asked, cfg.kept, Runtime(RuntimeConfig(device="cpu", progress=False)), None).all(entries) == []
    taken = [seen.taken["logits", "tsne"] for entry in entries for seen in entry.seen.values()]
    assert len(taken) == 7 and all(np.array_equal(taken[0], other) for other in taken) and len(taken[0]) == 60
    for entry in entries:
        for seed, seen in entry.seen.items():
            points, labels = features(entry.jobs[seed].file, bench / "forget" / f"retrain-{seed}")
            assert np.array_equal(seen.marked, labels == -1) and seen.marked[taken[0]].sum() == 20
            plane = 42 * PCA(2, random_state=42).fit_transform(points["logits"][taken[0]]) / 30
            assert np.allclose(np.abs(seen.planes["logits"]), np.abs(plane), rtol=1e-2, atol=1e-2)
            want = by_hand(seen.planes["logits"], labels[taken[0]])
            own = entry.of_seed(seed, ("logits", "tsne"))
            assert own["silhouette"] == pytest.approx(want["silhouette"], abs=1e-6)
            assert own["variance"] == pytest.approx(want["variance"], rel=1e-5)
            assert own.keys() >= {"overlap", "overlap_raw"}


def test_means_and_differences_are_by_seed(bench: Path, tmp_path: Path) -> None:
    """FT has one of retrain's two seeds: its difference is to that seed's retrain alone. The table says what the files say."""
    text = look(bench, tmp_path, venue="none").text
    every = {(line["method"], line["features"], line["space"], int(line["seed"])): line
             for line in csv_lines(tmp_path / "distribution.csv")}
    means = csv_lines(tmp_path / "distribution_means.csv")
    assert len(means) == 4 * 4
    for line in means:
        place = line["features"], line["space"]
        seeds = [int(seed) for seed in line["seeds"].split()]
        assert seeds == [3] if line["method"] == "FT" else seeds == [3, 5]
        for name in ("variance", "silhouette", "overlap"):
            own, retrain = ({seed: float(every[method, *place, seed][name]) for seed in seeds}
                            for method in (line["method"], "retrain"))
            assert float(line[name]) == pytest.approx(np.mean(list(own.values())))
            apart = [own[seed] - retrain[seed] for seed in seeds]
            if line["method"] == "retrain":
                assert line[f"{name}_from_retrain"] == ""
                continue
            assert float(line[f"{name}_from_retrain"]) == pytest.approx(np.mean(apart), abs=1e-12)
            if len(seeds) == 2:
                half = 12.7062 * np.std(apart, ddof=1) / math.sqrt(2)
                assert float(line[f"{name}_from_retrain_high"]) == pytest.approx(np.mean(apart) + half, rel=1e-4, abs=1e-9)
            assert f"{float(line[name]):.3f}" in text or name == "variance"
            told = re.escape(f"({np.mean(apart):+.3f})")
            assert re.search(rf"\| {line['method']} .*{told}", text) or name == "variance"
    assert text.startswith((tmp_path / "distribution.md").read_text())
    order = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][:5]
    assert order == ["method", "original", "retrain", "FT", "NG"]
    assert "Healthy is what retrain has" in text


def test_pictures_show_the_planes_and_say_what_healthy_is(bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Clouds] = []
    real = draw.files_of
    monkeypatch.setattr(draw, "files_of", lambda chart, style: drawn.append(chart) or real(chart, style))
    look(bench, tmp_path, features=("logits",))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"distribution.csv", "distribution.md", "distribution.tex", "distribution_means.csv",
                     "distribution_logits.png", "distribution_logits.pdf", "distribution_captions.md",
                     "distribution.files.json", "embeddings"}
    (chart,) = drawn
    assert [panel.name for panel in chart.panels] == ["original", "retrain", "FT", "NG"]
    lines = {line["method"]: line for line in csv_lines(tmp_path / "distribution.csv")
             if (line["space"], line["seed"]) == ("tsne", "3")}
    for panel in chart.panels:
        group = panel.points[panel.marked].astype(np.float64)
        assert panel.marked.sum() == 20 and set(panel.labels) == {0, 1, 2}
        assert float(lines[panel.name]["variance"]) == pytest.approx(measures.variance(group))
    caption = (tmp_path / "distribution_captions.md").read_text()
    assert "black the 20 forgotten" in caption and "seed 3" in caption and "Healthy is what retrain has" in caption
    look(bench, tmp_path, features=("logits",), venue="none")
    assert not {path.name for path in tmp_path.iterdir()} & {"distribution_logits.png", "distribution_captions.md"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many points each model was asked about, in order."""
    found: list[int] = []
    real = embedded.features_of

    def counted(model: models.Classifier, scene: embedded.Scene, rt: Runtime) -> dict[str, np.ndarray]:
        found.append(len(scene.index))
        return real(model, scene, rt)

    monkeypatch.setattr(embedded, "features_of", counted)
    yield found


def test_a_second_call_asks_no_model_again(bench: Path, tmp_path: Path, asked: list[int]) -> None:
    """Another subsample asks all again; one spoiled file, its own model; and the numbers stay."""
    flags = {"features": ("logits",), "venue": "none", "seed": (3,)}
    look(bench, tmp_path, **flags)
    first = (tmp_path / "distribution.csv").read_bytes()
    assert len(asked) == 4
    look(bench, tmp_path, **flags)
    assert len(asked) == 4 and (tmp_path / "distribution.csv").read_bytes() == first
    spoiled = sorted((tmp_path / "embeddings").iterdir())[0]
    spoiled.write_bytes(spoiled.read_bytes()[:100])
    look(bench, tmp_path, **flags)
    assert len(asked) == 5 and (tmp_path / "distribution.csv").read_bytes() == first
    for more in ({"tsne_points": 50}, {"tsne_seed": 1}, {"perplexity": 5.0}):
        before = len(asked)
        look(bench, tmp_path, **flags, **more)
        assert len(asked) == before + 4, more
        assert (tmp_path / "distribution.csv").read_bytes() != first, more


def test_another_model_in_the_same_place_is_asked_anew(bench: Path, tmp_path: Path, asked: list[int]) -> None:
    root = Path(shutil.copytree(bench, tmp_path / "runs"))
    flags = {"features": ("logits",), "space": ("own",), "venue": "none", "seed": (3,)}
    look(root, tmp_path / "out", **flags)
    before = csv_lines(tmp_path / "out" / "distribution.csv")
    shutil.copy(root / "forget" / "NG-5" / "model.pt", root / "forget" / "NG-3" / "model.pt")
    change(root / "forget" / "NG-3")
    look(root, tmp_path / "out", **flags)
    after = csv_lines(tmp_path / "out" / "distribution.csv")
    assert len(asked) == 5
    assert [a["method"] for a, b in zip(after, before, strict=True) if a["variance"] != b["variance"]] == ["NG"]


def test_what_was_stopped_goes_on(bench: Path, tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    real = lineup.look

    def stop(*args: Any) -> Any:
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(lineup, "look", stop)
        with pytest.raises(KeyboardInterrupt):
            look(bench, tmp_path, venue="none", seed=(3,))
    assert not (tmp_path / "distribution.csv").exists()
    look(bench, tmp_path, venue="none", seed=(3,))
    assert len(asked) == 4 and len(csv_lines(tmp_path / "distribution.csv")) == 4 * 4


def test_a_missing_model_is_said_and_is_not_all(bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an original that is nowhere, and of a run whose model.pt stayed elsewhere; the others are there."""
    root = Path(shutil.copytree(bench, tmp_path / "runs"))
    shutil.rmtree(root / "train" / "original-5")
    for seed in SEEDS:  # the old path leads to the bench itself
        for method in METHODS:
            if (folder := root / "forget" / f"{method}-{seed}").is_dir():
                record = read_record(folder).record
                change(folder, parent=record["parent"] | {"path": f"gone/original-{seed}/model.pt"})
    (root / "forget" / "NG-3" / "model.pt").unlink()
    words = ["--features", "logits", "--space", "own", "--venue", "none", "--out", tmp_path / "out"]
    with pytest.raises(SystemExit) as end:
        shell.call("analysis_distribution.py", *words, save_dir=root)
    assert end.value.code == 1
    said = capsys.readouterr().out
    assert re.search(r"passed over: original, seed 5: .*original-5.* is nowhere here", said)
    assert re.search(r"passed over: NG, seed 3: .*NG-3/model.pt is missing", said)
    there = {(line["method"], line["seed"]) for line in csv_lines(tmp_path / "out" / "distribution.csv")}
    assert there == {("original", "3"), ("retrain", "3"), ("retrain", "5"), ("FT", "3"), ("NG", "5")}
    shell.call("analysis_distribution.py", *words, "--partial", save_dir=root)


def test_raw_is_the_original_and_stands_in_for_a_lost_one(library: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(library, tmp_path / "runs", ignore=shutil.ignore_patterns("train", "mask")))
    for folder in (root / "forget").iterdir():
        run = read_record(folder)
        if run.setting("unlearn") not in ("raw", "retrain", "FT"):
            shutil.rmtree(folder)
        else:
            change(folder, parent=run.record["parent"] | {"path": "gone/model.pt", "sha256": "0" * 64})
    written = look(root, tmp_path / "out", features=("logits",), space=("own",), venue="none")
    lines = csv_lines(tmp_path / "out" / "distribution.csv")
    assert written.whole and [line["method"] for line in lines] == ["original", "retrain", "FT"]
    assert "-raw-" in lines[0]["model"]


def test_a_diverged_model_has_no_numbers_and_stops_nobody(bench: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(bench, tmp_path / "runs"))
    file = root / "forget" / "NG-3" / "model.pt"
    content = torch.load(file, weights_only=True)
    next(value for value in content["state_dict"].values() if value.dim() > 1).fill_(math.nan)
    torch.save(content, file)
    change(root / "forget" / "NG-3")
    text = look(root, tmp_path / "out").text
    assert re.search(r"\| NG +\| 2 \| - ", text) and "| FT " in text
    lines = {(line["method"], line["seed"]): line for line in csv_lines(tmp_path / "out" / "distribution.csv")}
    assert lines["NG", "3"]["variance"] == "" != lines["NG", "5"]["variance"]


def test_classes_out_of_distribution_are_shown_as_the_original_never_saw_them(tmp_path: Path) -> None:
    """Each among the retained images, by the original; the table has their mean."""
    root = tmp_path / "runs"
    five = ["--dataset", "digits", "--arch", "resnet8s", "--classes", "0-4", "--ood_classes", "0,3", "--batch_size", 64]
    shell.call("main_train.py", *five, "--epochs", 1, save_dir=root)
    original = shell.only(root, "train")
    for method in ("retrain", "FT"):
        shell.forget(original, root, method, "--class_to_replace", 1)
    written = look(root, tmp_path / "out", tsne_points=200)
    lines = csv_lines(tmp_path / "out" / "distribution.csv")
    groups = {(line["method"], line["group"]) for line in lines}
    assert groups == {(name, "forgotten") for name in ("original", "retrain", "FT")} | {
        ("original, never seen", f"class {c}") for c in (0, 3)}
    never = [line for line in lines if line["method"] == "original, never seen"
             and (line["features"], line["space"]) == ("penultimate", "own")]
    rt = Runtime(RuntimeConfig(device="cpu", progress=False))
    data = dataset.load(DataConfig(dataset="digits", classes="0-4", ood_classes=(0, 3), any_size=True), rt)
    model = models.load(original.folder / "model.pt", ModelConfig(arch="resnet8s"), data, rt)[0].eval()
    retain = np.load(shell.only(root, "forget", unlearn="FT").folder / "splits.npz")["retain"]
    with torch.no_grad():
        known, odd = (models.embed(model, images.permute(0, 3, 1, 2) / 255).numpy()
                      for images in (data.images.x[torch.from_numpy(retain)], data.ood.x))
    for line, c in zip(never, (0, 3), strict=True):
        own = odd[data.ood.y.numpy() == c]
        labels = np.concatenate([np.full(len(own), -1), data.images.y.numpy()[retain]])
        assert float(line["variance"]) == pytest.approx(((own - own.mean(0)) ** 2).sum(1).mean(), rel=1e-3)
        every = silhouette_samples(np.concatenate([own, known]), labels)
        assert float(line["silhouette_all"]) == pytest.approx(every[labels == -1].mean(), abs=1e-4)
    (mean,) = [line for line in csv_lines(tmp_path / "out" / "distribution_means.csv")
               if line["method"] == "original, never seen" and (line["features"], line["space"]) == ("penultimate", "own")]
    assert float(mean["variance"]) == pytest.approx(np.mean([float(line["variance"]) for line in never]))
    assert "(class 0, class 3), each among the retained" in written.text
    assert "Never seen: black is" in (tmp_path / "out" / "distribution_captions.md").read_text()


def test_what_was_never_seen_is_told_by_class_or_by_sub_class(rt: Runtime) -> None:
    """By the sub-class where only that was left out of its class; in the order of their numbers, the images in their own."""
    plain = make_data(rt)
    x, y, fine = plain.test.x[:6].numpy(), np.array([3, 0, 3, 0, 0, 3]), np.array([31, 12, 30, 2, 12, 31])
    data = dataclasses.replace(plain, outputs=np.array([0, 1, 2, -1]), ood=Images(x, y, plain.source, rt, fine))
    scene = embedded.never_seen(data, plain.splits.retain)
    count = len(plain.splits.retain)
    assert scene.names == ("class 3", "sub-class 2", "sub-class 12")
    assert list(scene.group[count:]) == [0, 2, 0, 1, 2, 0] and set(scene.group[:count]) == {-1}
    seen, labels = scene.of_group(2)
    assert seen.sum() == count + 2 and (labels == measures.FORGOTTEN).sum() == 2
    assert np.array_equal(labels[:count], plain.images.y.numpy()[plain.splits.retain])
    assert embedded.never_seen(plain, plain.splits.retain) is None


def test_folders_are_told_apart_by_all_that_changes_a_number() -> None:
    other = {"features": ("logits",), "space": ("own",), "tsne_points": 50, "tsne_seed": 1, "perplexity": 5.0, "seed": (3,)}
    named = [folders.name_of(DistributionConfig(**{name: value})) for name, value in other.items()]
    assert len(set(named)) == len(other) and all(name in told for name, told in zip(other, named, strict=True))
    own = {field.name for field in dataclasses.fields(DistributionConfig)} - set(folders.SILENT)
    assert set(other) <= own and not own & {"data", "device", "venue"}
    both = [DistributionConfig(features=features).asked for features in (("logits", "penultimate"), ("penultimate", "logits"))]
    assert both[0] == both[1] and folders.name_of(DistributionConfig()) == ""
