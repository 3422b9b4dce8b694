"""Outputs that a finished run has on the disk are not predicted again, where they are of the very same model and images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
import torch
from conftest import make_data, quiet_runtime, tiny_net

from evaluation import predicted
from utils import Saved, find_runs, read_arrays

nowhere = pytest.fixture(autouse=True)(shell.nowhere)


@pytest.fixture
def root(original: Saved, tmp_path: Path) -> Path:
    shutil.copytree(original.folder, tmp_path / "train" / original.folder.name)
    return tmp_path


def raw(root: Path, *words: Any, unlearn: str = "raw") -> tuple[Saved, int, dict[str, np.ndarray]]:
    """A run from the one original, the images that its evaluation reads, and its outputs."""
    shell.call("main_forget.py", "--unlearn", unlearn, *shell.FORGET, "--force", *words, save_dir=root)
    run = shell.only(root, "forget", unlearn=unlearn)
    return run, run.record["images_read"]["evaluate"], read_arrays(run.folder / "outputs.npz", {})


def test_raw_reads_no_image_and_has_the_logits_of_a_pass_of_its_own(
        root: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, read, found = raw(root)
    monkeypatch.setattr(predicted, "_known", lambda *rest: None)
    alone, every, expected = raw(root)
    assert read == 0 and every == sum(len(index) for name, index in expected.items() if name.endswith("_index"))
    assert found.keys() == expected.keys() and "notice" not in capsys.readouterr().out
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5 if name.endswith("logits") else 0)
        assert found[name].dtype == values.dtype
    assert shared.record["metrics"] == alone.record["metrics"]


def test_another_cut_of_the_same_images_is_served_too_and_a_run_that_starts_from_raw(root: Path) -> None:
    first, read, _ = raw(root)
    shell.call("main_forget.py", "--unlearn", "raw", *shell.FORGET, "--split_seed", 7, "--checkpoint", first.folder,
               save_dir=root / "other")
    second = shell.only(root / "other", "forget")
    found = read_arrays(second.folder / "outputs.npz", {})
    assert read == second.record["images_read"]["evaluate"] == 0
    assert second.record["split_key"] != first.record["split_key"]
    original = shell.only(root, "train")
    logits = read_arrays(original.folder / "outputs.npz", {})
    place = {index: row for row, index in enumerate(logits["train_index"])}
    rows = [place[index] for index in found["forget_index"]]
    assert np.array_equal(found["forget_logits"], logits["train_logits"][rows])


def test_a_method_that_moves_the_weights_is_predicted(root: Path) -> None:
    assert raw(root, unlearn="GA")[1] > 0


@pytest.mark.parametrize("field", ["weights", "eval_batch", "layout", "device", "processor", "threads", "torch"])
def test_outputs_of_another_model_machine_or_setting_are_not_taken(field: str, root: Path) -> None:
    path = shell.only(root, "train").folder / "record.json"
    record = json.loads(path.read_text())
    record["outputs"][field] = record["outputs"][field] + 1 if isinstance(record["outputs"][field], int) else "another"
    path.write_text(json.dumps(record))
    assert raw(root)[1] > 0


def test_damaged_outputs_are_told_and_predicted_again(root: Path, capsys: pytest.CaptureFixture) -> None:
    path = shell.only(root, "train").folder / "outputs.npz"
    whole = path.read_bytes()
    damaged = {"short": whole[:-9], "bits": whole[:999] + bytes(64) + whole[1063:], "none": None}
    for kind, content in damaged.items():
        path.write_bytes(content) if content is not None else path.unlink()
        assert raw(root)[1] > 0, kind
        assert "its outputs are predicted again" in capsys.readouterr().out, kind


def test_an_original_of_an_older_version_is_predicted_in_silence(root: Path, capsys: pytest.CaptureFixture) -> None:
    (run,) = find_runs(root, ("train",))
    record = {name: value for name, value in run.record.items() if name != "outputs"}
    (run.folder / "outputs.npz").unlink()
    record["files"].pop("outputs.npz")
    (run.folder / "record.json").write_text(json.dumps(record))
    assert raw(root)[1] > 0 and "notice" not in capsys.readouterr().out


def test_labels_and_images_that_are_not_there_are_predicted() -> None:
    """The same index under another label, and an index that the run did not have."""
    rt = quiet_runtime()
    data = make_data(rt)
    arrays = {"train_index": data.splits.train, "train_labels": data.loader("train").labels.numpy(),
              "train_logits": np.arange(len(data.splits.train) * 3.0).reshape(-1, 3)}
    found = predicted._cut(arrays, data, ["train"], ["forget", "retain"])
    for part in ("forget", "retain"):
        rows = np.searchsorted(data.splits.train, data.index(part))
        assert np.array_equal(found[f"{part}_logits"], arrays["train_logits"][rows])
    other = arrays | {"train_labels": np.roll(arrays["train_labels"], 1)}
    assert predicted._cut(other, data, ["train"], ["forget"]) is None
    fewer = {name: values[:-1] for name, values in arrays.items()}
    assert predicted._cut(fewer, data, ["train"], ["retain"]) is None
    assert predicted._cut(arrays, data, ["train"], ["test"]) is None


def test_the_key_of_weights_is_of_every_bit_and_of_the_structure() -> None:
    model = tiny_net(quiet_runtime())
    key = predicted.weights_key(model)
    assert predicted.weights_key(tiny_net(quiet_runtime())) == key
    seen = {key}
    for value in model.state_dict().values():
        kept = value.clone()
        value.view(-1)[-1] = torch.nextafter(kept.view(-1)[-1], torch.tensor(9.0)) if value.is_floating_point() else 7
        seen.add(predicted.weights_key(model))
        value.copy_(kept)
    model.arch = "other"
    seen.add(predicted.weights_key(model))
    assert len(seen) == 2 + len(model.state_dict())
