"""What a stage does around a training step, on a CUDA device. Nearly every body runs on the CPU as well, so that it is known to
work up to the device; the CPU's part of a comparison is then with itself.

Left to ``test_cuda.py``: methods, pruning, second order and the pool's engines in float32.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
import torch
from conftest import TOY, make_data, short_config
from pools import make_toy, subsets
from torch import Tensor, nn

import models
import trainer
from dataset import Data, Images
from memorization import engines, entanglement, events
from memorization.engines import Recipe, Setup, serial, stacked
from models import ModelConfig
from models.resnet import BasicBlock, Projection, ResNet
from trainer import Descent, ScheduleConfig, TrainConfig, cross_entropy, predict
from unlearn import METHODS, persample
from utils import Run, RunConfig, Runtime, RuntimeConfig

ROOT = Path(__file__).resolve().parents[2]
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
PLACE = "cuda"  # of tests whose body the CPU's tests run elsewhere
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]
every_device = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def settings_come_back() -> Iterator[None]:
    """A runtime on a GPU sets torch's switches for the whole process."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


def runtime(device: str, **more: Any) -> Runtime:
    return Runtime(RuntimeConfig(**{"seed": 5, "device": device, "precision": "fp32", "progress": False, **more}))


def net(rt: Runtime, arch: str = "resnet8s") -> models.Classifier:
    """The same weights on every device."""
    with runtime("cpu").seeded("model"):
        model = models.build(arch, 3, (0.5,) * 3, (0.25,) * 3)
    return model.to(rt.device, memory_format=torch.channels_last)


def agree(found: Tensor, expected: Tensor, share: float) -> None:
    """Within a share of the largest."""
    found, expected = found.cpu().double(), expected.cpu().double()
    assert found.shape == expected.shape and torch.isfinite(found).all()
    assert float((found - expected).abs().max()) <= share * float(expected.abs().max())


# ------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("on_host", [False, True])
@every_device
def test_augmented_batches_are_those_of_the_cpu(device: str, on_host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two passes, on images that stay on the device and on images that stay on the host."""
    theirs = make_data(runtime("cpu"), aug=True).loader("train", runtime("cpu"), "p")
    if on_host:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (1, 1))
    rt = runtime(device)
    ours = make_data(rt, aug=True).loader("train", rt, "p")
    assert ours.images.home.type == ("cpu" if on_host else device)
    for _ in range(2):
        for a, b in zip(ours, theirs, strict=True):
            assert a.x.device.type == device and all(torch.equal(mine.cpu(), his) for mine, his in zip(a, b, strict=True))


def readers() -> int:
    """Threads but that of the progress bars."""
    return sum("tqdm" not in type(thread).__module__ for thread in threading.enumerate())


@pytest.mark.parametrize("name", ["NG", "fisher", "RL_proximal", "wfisher", "SCRUB"])
@every_device
def test_methods_take_images_from_the_host(device: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that read ahead are gone afterwards, also where a method leaves a pass unfinished."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (2**30, 1))
    rt, before = runtime(device), readers()
    data, model = make_data(rt, aug=True), net(rt)
    monkeypatch.undo()
    METHODS[name].apply(model, data, short_config(name), rt)
    assert all(torch.isfinite(p).all() for p in model.parameters()) and readers() <= before


@every_device
def test_poisoned_images_train_on_the_device(device: str) -> None:
    """Images that are replaced stay where they were."""
    rt = runtime(device)
    data = make_data(rt, aug=True)
    x, y = data.images.x.clone(), data.images.y.clone()
    x[:10, :2, :2], y[:10] = 255, 0
    poisoned = dataclasses.replace(data, images=data.images.replaced(x, y))
    trainer.train(net(rt), poisoned.loader("train", rt, "train"), TrainConfig(lr=0.01, epochs=1), rt, None)
    assert poisoned.images.x.device.type == device


# ------------------------------------------------------------------------------------------------------------ training


@every_device
def test_events_and_curvature_are_those_of_the_cpu(device: str) -> None:
    """Of two epochs in float32: sums over ten thousand operations, so within 2 % of the largest."""
    found = []
    for place in ("cpu", device):
        rt = runtime(place, deterministic=True)
        data = make_data(rt)
        watch = events.Events(len(data.images.y), rt, curvature=True)
        trainer.train(net(rt), data.loader("train", rt, "train"), TrainConfig(lr=0.01, epochs=2), rt, None, watch=watch)
        found.append(watch.arrays(data.images.y.cpu().numpy(), "key"))
        assert watch.seconds > 0 and watch.curvature_seconds > 0
    for name in (*events.MEANS, "el2n", "loss_curvature"):
        theirs, ours = (np.nan_to_num(part[name]) for part in found)
        assert np.abs(ours - theirs).max() <= 0.02 * np.abs(theirs).max() + (0.5 if name == "bi_acc" else 0), name


@every_device
def test_predictions_and_embeddings_are_those_of_the_cpu_in_float32(device: str) -> None:
    """Where training may use TF32 as well: 1e-5, which TF32's 1e-3 does not reach."""
    found = []
    for place in ("cpu", device):
        rt = runtime(place)
        data, model = make_data(rt), net(rt)
        found.append((predict(model, data.loader("train"), rt)[0], entanglement.features(model, data.loader("train"), rt)))
    for ours, theirs in zip(found[1], found[0], strict=True):
        agree(ours, theirs, 1e-5)


@pytest.mark.parametrize("arch", ["resnet8s", "vit"])
@every_device
def test_killed_training_goes_on_bit_for_bit(device: str, arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deterministic kernels, augmentation, and dropout (vit, of one narrow block); killed in the third of four epochs."""
    states = []
    for kill in (None, 9, None):
        rt = runtime(device, deterministic=True)
        data = make_data(rt, aug=True)
        if arch == "vit":
            with runtime("cpu").seeded("model"):
                model = models.ARCHS["vit"].build(3, models.Normalize((0.5,) * 3, (0.25,) * 3), 8, width=16, depth=1, heads=2,
                                                  head_width=8, hidden=16)
                model.reset_parameters()
            data = of_side(rt, 8)
            model = model.to(rt.device)
        else:
            model = net(rt)
        folder = tmp_path / ("whole" if not states else "cut")
        with monkeypatch.context() as patch:
            if kill is not None:
                shell.interrupt_step(patch, Descent, kill)
            run = Run(RunConfig(save_dir=str(folder), resume_every=0), "train", "toy", {"cfg": TrainConfig()})
            try:
                with run:
                    trainer.train(model, data.loader("train", rt, "train"), TrainConfig(lr=0.01, epochs=4), rt, run)
            except KeyboardInterrupt:
                assert kill and list(folder.rglob("state.pt"))
                states.append(None)
                continue
        states.append({key: value.cpu().clone() for key, value in model.state_dict().items()})
    assert states[1] is None and all(torch.equal(states[0][key], states[2][key]) for key in states[0])


def of_side(rt: Runtime, side: int) -> Data:
    """The toy data at another size."""
    data, random = make_data(rt, aug=True), np.random.default_rng(0)
    x = random.integers(0, 256, (len(data.images.y), side, side, 3), np.uint8)
    return dataclasses.replace(data, images=Images(x, data.images.y.cpu().numpy(), TOY, rt), aug=True)


@pytest.mark.parametrize("name", ["stem", "vgg"])
@every_device
def test_deterministic_steps_of_networks_with_max_pools(device: str, name: str) -> None:
    """An ImageNet stem; VGG's pooling to 7 x 7 of a map of 2 x 2, at a few channels. Twice the same, bit by bit."""
    ends = []
    for _ in range(2):
        rt = runtime(device, deterministic=True)
        normalize = models.Normalize((0.5,) * 3, (0.25,) * 3)
        with runtime("cpu").seeded("model"):
            if name == "stem":
                model: nn.Module = ResNet(BasicBlock, (1, 1), (8, 16), Projection, 3, normalize, imagenet=True)
            else:
                pools = nn.MaxPool2d(2), nn.MaxPool2d(2), models.layers.AveragePool((7, 7))
                model = nn.Sequential(normalize, nn.Conv2d(3, 8, 3, 4, 1), *pools, nn.Flatten(), nn.Linear(8 * 49, 3))
        model, data = model.to(rt.device), of_side(rt, 32)
        opt = Descent(model, ScheduleConfig(), lr=0.01, epochs=1, rt=rt, purpose="train")
        opt.epoch(data.loader("train", rt, "train"), cross_entropy)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*ends)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@CUDA
def test_compiled_training_with_a_short_last_batch_is_the_plain_one(mode: str) -> None:
    """54 images in batches of 16; then a plan's next step on the compiled model, which measures a mask without the compiler."""
    ends = []
    for compiled in ("off", mode):
        rt = runtime("cuda", compile=compiled)
        data, model = make_data(rt), net(rt)
        trainer.train(model, data.loader("train", rt, "train"), TrainConfig(lr=0.01, epochs=2), rt, None)
        METHODS["SCRUB"].apply(model, data, short_config("SCRUB", unlearn_lr=1e-4), rt)
        ends.append(torch.cat([value.flatten() for value in persample.squared_means(model, data.loader("forget")).values()]))
        ends.append(predict(model, data.loader("test"), rt)[0])
    agree(ends[3], ends[1], 0.05)
    agree(ends[2], ends[0], 0.2)


# -------------------------------------------------------------------------------------------------- gradients of examples


@every_device
def test_gradients_of_many_examples_in_one_chunk_are_those_of_small_ones(device: str) -> None:
    """200 examples in one chunk, a group of each convolution for every one, against chunks of 5; G G^T in blocks."""
    rt = runtime(device)
    data, model = make_data(rt, count=230, forget=200), net(rt)
    loader = data.loader("forget")
    params = dict(model.named_parameters())
    few = 5 * persample.COPIES * (persample._bytes(params) + persample._activations(model, next(iter(loader)).x[:1]))
    large, small = (persample.squared(model, [next(iter(loader))], budget=budget) for budget in (2**40, few))
    for name in large:
        agree(large[name], small[name], 1e-4)
    piece = persample.piece(loader, 0, 24)
    whole, blocks = (persample.gram(model, piece, budget) for budget in (2**40, 8 * 2 * persample._bytes(params)))
    agree(blocks, whole, 1e-4)


# --------------------------------------------------------------------------------------------------------------- pools


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("device", "graphs"), [("cpu", False), *(pytest.param("cuda", g, marks=CUDA) for g in (False, True))])
def test_stack_with_a_short_batch_agrees_with_one_after_another(device: str, precision: str, graphs: bool) -> None:
    """42 augmented images in batches of 16, two epochs; deterministic, so that TF32 is no part of the difference."""
    rt = runtime(device, precision=precision, deterministic=True)
    setup = Setup(make_toy(rt, aug=True), ModelConfig(arch="resnet8s"), Recipe(pool_epochs=2, pool_batch=16), rt)
    cuts = dict(enumerate(subsets(setup, [0, 1, 2], 42)))
    alone = {one.number: one.logits["train"] for one in serial(setup, cuts.__getitem__, range(3))}
    for one in stacked(setup, cuts.__getitem__, range(3), 3, graphs):
        agree(one.logits["train"], alone[one.number], 0.01 if precision == "fp32" else 0.1)


@CUDA
def test_memory_of_a_stack_is_planned_by_its_steps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A card that is said to be small takes fewer models; one that is not takes all that are asked for."""
    setup = Setup(make_toy(runtime("cuda")), ModelConfig(arch="resnet8s"), Recipe(pool_batch=16), runtime("cuda"))
    subset = subsets(setup, [0], 42)[0]
    assert engines.fitting(setup, subset, 4)[0] == 4
    peak = torch.cuda.max_memory_allocated()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (0, peak))
    assert 1 <= engines.fitting(setup, subset, 4)[0] < 4 and "notice" in capsys.readouterr().out


@CUDA
def test_two_processes_on_one_card_make_a_pools_models(tmp_path: Path) -> None:
    """From the shell, as nothing else starts a process as a stage does."""
    words = ["main_memorization.py", "--dataset", "digits", "--classes", "0-1", "--arch", "resnet8s", "--no_progress",
             "--models", 4, "--subset", "half", "--pool_epochs", 1, "--engine", "processes", "--pool_workers", 2,
             "--save_dir", tmp_path, "--device", PLACE]
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("model-*.npz"))) == 4


# -------------------------------------------------------------------------------------------------------------- stages


@CUDA
def test_the_stages_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train with all proxies, mask, unlearn, retrain, a plan, scores by held-out retraining and entanglement, tables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shell, "QUIET", ["--device", PLACE, "--no_progress"])
    original = shell.train(tmp_path, 1, "--record_curvature")
    on = ["--checkpoint", original.folder, *shell.FORGET]
    shell.call("generate_mask.py", *on, save_dir=tmp_path)
    for method in ("retrain", "SCRUB"):
        shell.forget(original, tmp_path, method, *shell.FORGET)
    shell.call("main_random.py", *on, "--unlearn", "RL", "--unlearn_epochs", 1, "--path", tmp_path, save_dir=tmp_path)
    for score in ("ho_ret", "es"):
        shell.call("main_memorization.py", "--checkpoint", original.folder, "--score", score, save_dir=tmp_path)
    shell.call("analysis.py", save_dir=tmp_path)
    for file in tmp_path.rglob("record.json"):
        record = json.loads(file.read_text())
        assert record["status"] == "done"
        assert record["device"].startswith("cpu") == (PLACE == "cpu")
