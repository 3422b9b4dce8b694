"""Faults of published unlearning code that no other test holds; TRAPS.md says which trap each of these is for."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
import torch
from conftest import equal, make_data, quiet_runtime, tiny_net
from test_shape import FILES, ROOT, SOURCES, module_of
from torch import nn

import arg_parser
import dataset
import models
import sources
import unlearn.label
from dataset import Batch, DataConfig, Images
from evaluation import accuracy, tow
from evaluation.accuracy import METRICS, EvaluationConfig
from trainer import Descent, cross_entropy
from utils import Run, RunConfig, Runtime, Saved, find_runs

TWO_DIGITS = 288  # training images of digits 0 and 1, validation included


# ----------------------------------------------------------------------------------------------------- it starts at all


@pytest.mark.parametrize("backwards", [False, True])
def test_every_module_can_be_imported(backwards: bool) -> None:
    """None is missing, and none needs another to have come before: in one order and in the other, the first of each package
    as the first of all. That imports make no circle is tested in test_shape.py."""
    names = sorted(map(module_of, SOURCES), reverse=backwards)
    tops = {name.partition(".")[0] for name in names}
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in tops}
    firsts = {name.partition(".")[0]: name for name in reversed(names) if "." in name}
    try:
        for name in names:
            if name in firsts.values() or name == names[0]:
                _forget(tops)
            importlib.import_module(name)
    finally:
        _forget(tops)
        sys.modules.update(kept)


def _forget(tops: set[str]) -> None:
    for loaded in [n for n in sys.modules if n.partition(".")[0] in tops]:
        del sys.modules[loaded]


def test_requirements_are_what_the_code_imports() -> None:
    """No package that is not there, none that nobody imports; ruff and pytest-xdist are run and not imported."""
    own = {path.stem for path in FILES} | {path.parent.name for path in FILES}
    imported = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    foreign = imported - own - sys.stdlib_module_names
    lines = (ROOT / "requirements.txt").read_text().split()
    required = {re.match(r"[\w-]+", line)[0] for line in lines}
    called = {{"sklearn": "scikit-learn", "PIL": "pillow"}.get(name, name) for name in foreign}
    assert called == required - {"ruff", "pytest-xdist"}


def few_images(folder: Path, name: str) -> np.ndarray:
    """Write a prepared NAME.npz of 10 training and 6 test images, the last class among them; the training labels."""
    source, random = sources.SOURCES[name], np.random.default_rng(5)
    y = np.append(random.integers(0, source.num_classes, 9), source.num_classes - 1)
    x = random.integers(0, 256, (16, source.size, source.size, 3), np.uint8)
    np.savez(folder / f"{name}.npz", x_train=x[:10], y_train=y, x_test=x[10:], y_test=y[:6])
    return y


@pytest.mark.parametrize("name", [name for name in sources.SOURCES.names() if name != "digits"])
def test_every_data_set_goes_through_the_stages(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, retrained, relabelled: an output for each class, and wrong labels of all of them for the forget set."""
    true, seen = few_images(tmp_path, name), {}

    def spy(model: nn.Module, batch: Batch) -> torch.Tensor:
        seen.update(zip(batch.index.tolist(), batch.y.tolist(), strict=True))
        return cross_entropy(model, batch)

    monkeypatch.setattr(unlearn.label, "cross_entropy", spy)
    words = ["--dataset", name, "--data", tmp_path, "--arch", "resnet20s", "--epochs", 1]
    shell.call("main_train.py", *words, save_dir=tmp_path)
    original = shell.only(tmp_path, "train")
    for method in ("retrain", "RL_og"):
        shell.forget(original, tmp_path, method, "--num_indexes_to_replace", 5)
    classes = sources.SOURCES[name].num_classes
    assert {shell.weights(run)["fc.weight"].shape[0] for run in
            (original, shell.only(tmp_path, "forget", unlearn="retrain"))} == {classes}
    with np.load(shell.only(tmp_path, "forget", unlearn="RL_og").folder / "splits.npz") as splits:
        forget, retain = splits["forget"].tolist(), splits["retain"].tolist()
    assert all(seen[i] == true[i] for i in retain) and all(seen[i] != true[i] for i in forget)
    drawn = [seen[i] for i in forget]
    assert max(drawn) < classes and len(set(drawn)) > 1
    assert classes == 10 or max(drawn) >= 10  # at 20 classes all 5 below: one in 32


def test_imagenet_stem_trains_on_the_same_batches(tmp_path: Path) -> None:
    """The stem is a matter of the model alone: no other data set, loader or schedule comes with it."""
    few_images(tmp_path, "cifar10")
    words = ["--dataset", "cifar10", "--data", str(tmp_path), "--arch", "resnet18", "--epochs", "1", *shell.QUIET]
    args, plain = (arg_parser.parse("train", [*words, *more]) for more in (["--imagenet_arch"], []))
    assert (args.data, args.cfg) == (plain.data, plain.cfg)
    rt = Runtime(args.rt)
    data = dataset.load(args.data, rt)
    model = models.new(args.model, data, rt, "train")
    assert model.conv1.kernel_size == (7, 7)
    opt = Descent(model, args.cfg, lr=0.01, epochs=1, rt=rt, purpose="train")
    assert math.isfinite(opt.epoch(data.loader("train", rt, "train"), cross_entropy))


# ------------------------------------------------------------------------------------------------- splits, seeds, views


@dataclasses.dataclass
class Chain:
    """An original of seed 1 and what seed 4 made of it, and how each image was read meanwhile."""

    original: Saved
    root: Path
    # stage -> (in a training step, augmented, images of training, indices) of every batch
    reads: dict[str, list[tuple[bool, bool, bool, list[int]]]]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    root, reads, stepping = tmp_path_factory.mktemp("chain"), {}, []
    real_batch, real_epoch = Images.pixels, Descent.epoch

    def batch(self: Images, index: torch.Tensor, augment: Any) -> torch.Tensor:
        rows.append((bool(stepping), augment is not None, len(self.y) == TWO_DIGITS, index.tolist()))
        return real_batch(self, index, augment)

    def epoch(self: Descent, *args: Any, **more: Any) -> float:
        stepping.append(True)
        try:
            return real_epoch(self, *args, **more)
        finally:
            stepping.pop()

    words = ["--checkpoint", root, "--seed", 4, "--num_indexes_to_replace", 30]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Images, "pixels", batch)
        patch.setattr(Descent, "epoch", epoch)
        rows = reads["train"] = []
        original = shell.train(root, 1, "--classes", "0,1", "--aug")
        rows = reads["mask"] = []
        shell.call("generate_mask.py", *words, save_dir=root)
        for method in ("NG", "SCRUB"):
            rows = reads[method] = []
            shell.call("main_forget.py", *words, "--unlearn", method, "--unlearn_epochs", 1,
                       *(["--rewind"] if method == "SCRUB" else []), save_dir=root)
    return Chain(original, root, reads)


def test_another_seed_forgets_only_what_the_original_was_trained_on(chain: Chain) -> None:
    """Forget and retain are together the images of the original's steps; the validation images were in none."""
    trained = {i for stepping, _, _, index in chain.reads["train"] if stepping for i in index}
    for run in find_runs(chain.root, ("mask", "forget")):
        assert run.setting("seed") == 4
        with np.load(run.folder / "splits.npz") as splits:
            forget, retain, val = (set(splits[part].tolist()) for part in ("forget", "retain", "val"))
        assert len(forget) == 30 and not forget & retain
        assert forget | retain == trained
        assert val == set(range(TWO_DIGITS)) - trained and len(val) > 20


def test_only_training_steps_see_augmented_images(chain: Chain) -> None:
    """With --aug: saliency, validation, rewinding and every accuracy are of the images as they are."""
    for stage, rows in chain.reads.items():
        assert {augmented == stepping for stepping, augmented, _, _ in rows} == {True}, stage
        assert any(not stepping for stepping, *_ in rows)
        assert any(stepping for stepping, *_ in rows) == (stage != "mask")
    assert all(training for *_, training, _ in chain.reads["mask"])


def test_seed_zero_is_a_seed(tmp_path: Path) -> None:
    """Through the stages: equal to itself whatever the global state, other than seed 1, inherited, and searched for."""
    found = {}
    for place, seed in (("a", 0), ("b", 0), ("a", 1)):
        torch.manual_seed(len(found))
        np.random.seed(len(found))
        run = shell.train(tmp_path / place, seed, "--classes", "0,1", "--val_seed", 0)
        found[place, seed] = shell.weights(run)
        assert run.setting("seed") == seed and run.setting("val_seed") == 0
    assert equal(found["a", 0], found["b", 0])
    assert not torch.equal(found["a", 0]["conv1.weight"], found["a", 1]["conv1.weight"])
    shell.call("main_forget.py", "--seed", 0, "--unlearn", "raw", *shell.FORGET, save_dir=tmp_path / "a")
    assert shell.only(tmp_path / "a", "forget").setting("seed") == 0
    assert equal(shell.weights(shell.only(tmp_path / "a", "forget")), found["a", 0])
    inherited = ["--checkpoint", tmp_path / "b", "--unlearn", "raw", *shell.FORGET]
    shell.call("main_forget.py", *inherited, save_dir=tmp_path / "b")
    assert shell.only(tmp_path / "b", "forget").setting("seed") == 0


def test_loading_a_data_set_leaves_those_loaded_before() -> None:
    """Sizes, classes and augmentation are each data set's own: the batches of the first stay bit-identical."""
    rt = quiet_runtime()
    first = dataset.load(DataConfig(dataset="digits", aug=True, batch_size=100), rt)

    def batches() -> list[Batch]:
        return [*first.loader("train", quiet_runtime(), "order"), *first.loader("test")]

    before = batches()
    other = dataset.load(DataConfig(dataset="digits", aug=False, classes="3,5,8", batch_size=7), rt)
    assert other.num_classes == 3 and len([*other.loader("test", rt, "order")]) > 1
    for a, b in zip(before, batches(), strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)


def test_every_pass_augments_anew() -> None:
    """Compared image by image, as the orders differ: most are cropped elsewhere; of 9 places one is the same."""
    rt = quiet_runtime()
    loader = dataset.load(DataConfig(dataset="digits", aug=True), rt).loader("train", rt, "train")
    one, two = ({int(i): x for batch in loader for i, x in zip(batch.index, batch.x, strict=True)} for _ in range(2))
    assert one.keys() == two.keys() and 0.8 < np.mean([not torch.equal(one[i], two[i]) for i in one]) < 0.95


# ----------------------------------------------------------------------------------------------------------- evaluation


def test_metrics_are_over_all_examples(tmp_path: Path) -> None:
    """Of 2,100 retain, 1,500 forget, 400 validation and 2,000 test examples, not of the first thousand of each."""
    rt = quiet_runtime()
    data, model = make_data(rt, count=4000, forget=1500), tiny_net(rt).eval()
    with Run(RunConfig(save_dir=str(tmp_path)), "forget", "toy", {"rt": rt.cfg}) as run:
        found = accuracy.evaluate(model, data, rt, run, EvaluationConfig())
    for part, size in (("retain", 2100), ("forget", 1500), ("val", 400), ("test", 2000)):
        images, index = (data.test if part == "test" else data.images), torch.from_numpy(data.index(part))
        with torch.no_grad():
            hits = model(images.x[index].permute(0, 3, 1, 2).float() / 255).argmax(1) == images.y[index]
        assert len(hits) == size and found[part] == pytest.approx(100 * float(hits.double().mean()))
        assert abs(100 * float(hits[:1000].double().mean()) - found[part]) > 1e-6 or size < 1000


def test_too_much_forgetting_costs_as_much_as_too_little() -> None:
    """MIA 20 points above retrain's or below it: the same ToW-MIA and gap, both worse than retrain's own value."""
    ref = {"mia": 0.3, "retain": 0.99, "test": 0.85, "forget": 0.84}
    scores = [tow.tow_mia(ref | {"mia": 0.3 + shift}, ref) for shift in (-0.2, -0.1, 0.0, 0.1, 0.2)]
    assert scores == pytest.approx(scores[::-1]) and scores[0] < scores[1] < scores[2] == 1
    scores = [tow.tow(ref | {"forget": 0.84 + shift}, ref) for shift in (-0.1, 0.0, 0.1)]
    assert scores[0] == pytest.approx(scores[2]) and scores[0] < scores[1]
    ours = {"UA": 16.0, "RA": 99.0, "TA": 85.0, "MIA": 30.0}
    gaps = [tow.average_gap(ours | {"MIA": value}, ours) for value in (10.0, 30.0, 50.0)]
    assert gaps == [5, 0, 5]
    assert METRICS["MIA"][1] == METRICS["UA"][1] == "as retrain's" and METRICS["privacy"][1] == "50"


def test_mask_of_a_bare_state_dict_is_of_its_weights(chain: Chain, tmp_path: Path) -> None:
    """The same mask as from the run folder that holds them; fresh weights would give another."""
    torch.save(shell.weights(chain.original), tmp_path / "bare.pt")
    data = ["--dataset", "digits", "--arch", "resnet8s", "--classes", "0,1", "--num_indexes_to_replace", 30]
    shell.call("generate_mask.py", "--checkpoint", tmp_path / "bare.pt", *data, save_dir=tmp_path)
    files = [shell.only(root, "mask").folder / "with_0.5.pt" for root in (tmp_path, chain.root)]
    assert equal(*(torch.load(file, weights_only=True) for file in files))
