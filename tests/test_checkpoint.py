"""Model files: they come back bit for bit, are safe to read, never half there; published and pruned ones go through."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import shell
import torch
from torch import Tensor, nn

import models
import utils
from models import ModelConfig
from pruner.magnitude import apply_mask
from sources import SOURCES
from utils import BadInput, Mask, Run, RunConfig, Runtime, Saved

DIGITS = SimpleNamespace(num_classes=3, outputs=np.arange(3), source=SOURCES["digits"])
PUBLISHED = ["--dataset", "digits", "--classes", "0-2", "--arch", "resnet8s", "--batch_size", "64", "--seed", "1"]


nowhere = pytest.fixture(autouse=True)(shell.nowhere)


def random_model(seed: int, arch: str = "resnet20s", imagenet: bool = False) -> nn.Module:
    """A model in which every parameter and every buffer was drawn anew, counters and normalisation too."""
    model, stream = models.build_empty(arch, 3, imagenet=imagenet), torch.Generator().manual_seed(seed)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=stream) + 0.5)
        else:
            value.copy_(torch.randint(1, 1000, value.shape, generator=stream))
    return model


def random_mask(model: nn.Module, seed: int = 4, share: float = 0.5) -> Mask:
    """About ``share`` of every convolution's weights may change."""
    stream = torch.Generator().manual_seed(seed)
    return {name: torch.rand(p.shape, generator=stream) < share for name, p in model.named_parameters() if p.dim() == 4}


def saved(tmp_path: Path, model: nn.Module, mask: Mask | None = None) -> Path:
    with Run(RunConfig(save_dir=str(tmp_path)), "train", "test", {}) as run:
        models.save(run, model, mask)
    return run.folder / "model.pt"


def load(path: Path, rt: Runtime, **config: Any) -> tuple[nn.Module, Mask | None]:
    return models.load(path, ModelConfig(**{"arch": "resnet20s"} | config), DIGITS, rt)


# -------------------------------------------------------------------------------------------------------- our model.pt


@pytest.mark.parametrize(("arch", "imagenet"), [("resnet20s", False), ("resnet18", True), ("vgg16_bn_lth", False)])
def test_every_weight_and_buffer_comes_back(arch: str, imagenet: bool, tmp_path: Path, rt: Runtime) -> None:
    model = random_model(1, arch, imagenet).to(memory_format=torch.channels_last)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    loaded, mask = load(saved(tmp_path, model), rt, arch=arch, imagenet_arch=imagenet)
    assert mask is None and (loaded.arch, loaded.num_classes, loaded.imagenet) == (arch, 3, imagenet)
    found = loaded.state_dict()
    assert list(found) == list(kept)
    assert all(found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in kept.items())
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in loaded.parameters() if p.dim() == 4)
    assert all(p.requires_grad for p in loaded.parameters())


def test_mask_of_a_pruned_model_comes_back(tmp_path: Path, rt: Runtime) -> None:
    model = random_model(2)
    mask = random_mask(model)
    apply_mask(model, mask)
    _, found = load(saved(tmp_path, model, mask), rt)
    assert found.keys() == mask.keys() and all(torch.equal(found[name], mask[name]) for name in mask)


@pytest.mark.parametrize("value", [1e-30, float("nan")])
def test_pruned_weights_that_moved_are_never_saved(value: float, tmp_path: Path) -> None:
    """They were evaluated as they are, so zeros in the file would be another model: our fault, and nothing is written."""
    model = random_model(2)
    mask = random_mask(model)
    apply_mask(model, mask)
    with torch.no_grad():
        model.conv1.weight[~mask["conv1.weight"]] = value
    with pytest.raises(AssertionError, match=r"pruned weights are not 0 in conv1\.weight"):
        saved(tmp_path, model, mask)
    assert not list(tmp_path.rglob("model.pt"))


def test_file_holds_tensors_and_plain_values_alone(tmp_path: Path) -> None:
    """So that it loads with ``weights_only=True`` and needs none of our classes."""
    model = random_model(3)
    mask = random_mask(model)
    apply_mask(model, mask)
    content = torch.load(saved(tmp_path, model, mask), weights_only=True)
    assert type(content) is dict and (content["schema"], content["num_classes"]) == (utils.SCHEMA, 3)
    assert all(type(value) in (int, str, bool, dict) for value in content.values())
    tensors = {**content["state_dict"], **content["mask"]}
    assert all(type(value) is Tensor and value.is_contiguous() for value in tensors.values())
    assert not any(value.requires_grad for value in tensors.values())
    bare = models.build_empty("resnet20s", 3)
    bare.load_state_dict(content["state_dict"])


def test_file_cut_anywhere_is_refused(tmp_path: Path, rt: Runtime) -> None:
    whole = saved(tmp_path, random_model(4)).read_bytes()
    cut = tmp_path / "cut.pt"
    for size in {0, 1, 4, 100, *np.linspace(1000, len(whole) - 1, 12).astype(int)}:
        cut.write_bytes(whole[:size])
        with pytest.raises(BadInput, match="empty" if size == 0 else "truncated"):
            load(cut, rt)
    cut.write_bytes(whole)
    load(cut, rt)


@pytest.mark.parametrize(("change", "says"), [
    ({"schema": utils.SCHEMA + 1}, "schema 2"), ({"schema": None}, "schema None"),
    ({"arch": "resnet32s"}, "arch resnet32s, not resnet20s"),
    ({"num_classes": 10}, "a model of 10 outputs, but the data set has 3 classes"),
    ({"imagenet": True}, "imagenet True, not False"), ({"arch": None}, "no model of this version"),
])
def test_file_of_something_else_is_refused(change: dict[str, Any], says: str, tmp_path: Path, rt: Runtime) -> None:
    path = saved(tmp_path, random_model(5))
    torch.save({**torch.load(path, weights_only=True), **change}, path)
    with pytest.raises(BadInput, match=says):
        load(path, rt)


@pytest.mark.parametrize("key", ["state_dict", "arch", "num_classes", "imagenet"])
def test_file_without_one_of_its_parts_is_refused(key: str, tmp_path: Path, rt: Runtime) -> None:
    path = saved(tmp_path, random_model(6))
    content = torch.load(path, weights_only=True)
    del content[key]
    torch.save(content, path)
    with pytest.raises(BadInput, match=str(path)):
        load(path, rt)


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    utils.write_atomic(path, lambda file: file.write(b"old"))

    def half(file: Any) -> None:
        file.write(b"ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        utils.write_atomic(path, half)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    utils.write_atomic(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


# ----------------------------------------------------------------------------------------------------- published files


def published(original: Saved, change: str = "") -> dict[str, Any]:
    """What the published projects write of a trained model, with a normalisation of its own."""
    state = shell.weights(original)
    state["normalize.mean"], state["normalize.std"] = torch.tensor([0.2, 0.3, 0.4]), torch.tensor([0.5, 0.6, 0.7])
    if change == "module.":
        state = {f"module.{name}": value for name, value in state.items()}
    if change == "old":
        state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    return {"state_dict": state, "epoch": 3, "best_sa": np.float64(93.5), "result": {"train": [1.0, 2.0]}}


@pytest.mark.parametrize("change", ["", "module.", "old"])
def test_published_file_is_evaluated_as_it_is(change: str, original: Saved, tmp_path: Path) -> None:
    """Its logits are those of a plain model with its weights and its own normalisation, on the prepared images."""
    path = tmp_path / "0model_SA_best.pth.tar"
    torch.save(published(original, change), path)
    shell.forget(Saved(path, {}), tmp_path / "out", "raw", *PUBLISHED, *shell.FORGET)
    run = shell.only(tmp_path / "out", "forget")
    assert run.record["parent"]["path"] == str(path) and run.record["parent"]["training"] is None
    plain = models.build("resnet8s", 3, (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)).eval()
    plain.load_state_dict(published(original)["state_dict"])
    with np.load(run.folder / "outputs.npz") as file:
        logits, labels, index = (file[f"forget_{name}"] for name in ("logits", "labels", "index"))
    x, y = training_digits()
    with torch.no_grad():
        wanted = plain(torch.from_numpy(x[index]).permute(0, 3, 1, 2).float() / 255).numpy()
    assert np.array_equal(labels, y[index])
    np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-4)  # logits are some hundreds here


def training_digits() -> tuple[np.ndarray, np.ndarray]:
    """The first three digits of the training split as the source reads them."""
    read = SOURCES["digits"].read(Path("unused"), False)
    keep = read.y_train < 3
    return read.x_train[keep], read.y_train[keep]


def test_published_file_can_be_unlearned_retrained_and_masked(
    original: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no record, so the command that analysis prints says all that a record would."""
    path, out = tmp_path / "0checkpoint.pth.tar", tmp_path / "out"
    torch.save(published(original), path)
    file = Saved(path, {})
    shell.call("generate_mask.py", *PUBLISHED, "--checkpoint", path, *shell.FORGET, save_dir=out)
    shell.forget(file, out, "RL", *PUBLISHED, *shell.FORGET, "--path", out)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        shell.call("analysis.py", save_dir=out)
    command = shlex.split(re.search(r"make it: (.*)", capsys.readouterr().out)[1])
    shell.STAGES[command[1]].main([*command[2:], *shell.QUIET, "--unlearn_epochs", "1"])
    shell.call("analysis.py", save_dir=out)
    assert shell.only(out, "forget", unlearn="retrain").setting("unlearn_lr") == 0.1  # the protocol's
    mean = shell.weights(shell.only(out, "forget", unlearn="RL"))["normalize.mean"]
    assert mean.flatten().tolist() == pytest.approx([0.2, 0.3, 0.4])


# ------------------------------------------------------------------------------------------------------- pruned models


@pytest.fixture(scope="session")
def pruned(library: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Saved, Mask]:
    """A published file with weight_orig and weight_mask of every convolution, and those masks."""
    state = shell.weights(shell.only(library, "train"))
    mask = random_mask(models.build_empty("resnet8s", 3), share=0.3)
    for name, part in mask.items():
        state[f"{name}_orig"], state[f"{name}_mask"] = state.pop(name) + 0.01, part.float()
    path = tmp_path_factory.mktemp("pruned") / "1model_SA_best.pth.tar"
    torch.save({"state_dict": state}, path)
    return Saved(path, {}), mask


@pytest.mark.parametrize("method", ["raw", "retrain", "FT", "FT_l1", "GA", "NG", "SCRUB", "RL_og"])
def test_pruned_weights_stay_exactly_zero(method: str, pruned: tuple[Saved, Mask], tmp_path: Path) -> None:
    file, mask = pruned
    shell.forget(file, tmp_path, method, *PUBLISHED, *shell.FORGET)
    run = shell.only(tmp_path, "forget")
    content = torch.load(run.folder / "model.pt", weights_only=True)
    given = torch.load(file.folder, weights_only=True)["state_dict"]
    assert content["mask"].keys() == mask.keys()
    for name, part in mask.items():
        weight = content["state_dict"][name]
        assert torch.equal(content["mask"][name], part)
        assert not weight[~part].any(), name
        assert bool((weight[part] != 0).float().mean() > 0.99), name
        assert torch.equal(weight[part], given[f"{name}_orig"][part]) == (method == "raw"), name


def test_pruned_model_goes_on_through_the_stages(pruned: tuple[Saved, Mask], tmp_path: Path) -> None:
    """Its model.pt carries the mask to the next stage, and a saliency mask acts besides it."""
    file, mask = pruned
    shell.forget(file, tmp_path / "first", "FT", *PUBLISHED, *shell.FORGET)
    first = shell.only(tmp_path / "first", "forget")
    out = tmp_path / "second"
    shell.call("generate_mask.py", "--checkpoint", first.folder, *shell.FORGET, save_dir=out)
    shell.forget(first, out, "RL", *shell.FORGET, "--path", out)
    salient = torch.load(shell.only(out, "mask").folder / "with_0.5.pt", weights_only=True)
    before, after = shell.weights(first), shell.weights(shell.only(out, "forget"))
    moved = {name: before[name] != after[name] for name in salient}
    for name in salient:
        free = salient[name] & mask[name] if name in mask else salient[name]
        assert not (moved[name] & ~free).any(), name
    assert sum(int(part.sum()) for part in moved.values()) > 1000
    assert all(not after[name][~part].any() for name, part in mask.items())
