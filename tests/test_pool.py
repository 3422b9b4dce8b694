"""Pools of models: what each was shown, what its file keeps, how a pool grows, what makes it another one."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import quiet_runtime
from pools import contents, filled, make_pool, make_toy, quick, refusal, same

from memorization import engines
from memorization.engines import serial
from memorization.factory import Pool, fill
from models import ModelConfig
from utils import BadInput, CannotWrite, Runtime

# -------------------------------------------------------------------------------------------------------------- subsets


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_fraction_is_exact_uniform_and_differs_by_model_and_seed(share: float, tmp_path: Path) -> None:
    pool = make_pool(tmp_path, models=300, fraction=share)
    masks = np.stack([pool.mask(number) for number in range(300)])
    assert (masks.sum(1) == round(share * 60)).all() and len(np.unique(masks, axis=0)) == 300
    assert np.abs(masks.mean(0) - share).max() < 5 * (share * (1 - share) / 300) ** 0.5
    together = (masks[:, :1] & masks[:, 1:]).mean()
    assert together == pytest.approx(share * (round(share * 60) - 1) / 59, abs=0.05)
    other = make_pool(tmp_path, quiet_runtime(6), models=300, fraction=share)
    assert not np.array_equal(other.subset(0), pool.subset(0)) and other.folder != pool.folder


@pytest.mark.parametrize("count", [60, 61])
def test_half_shows_every_image_to_exactly_half_of_the_models(count: int, tmp_path: Path) -> None:
    rt = quiet_runtime()
    pool = make_pool(tmp_path, rt, make_toy(rt, count), models=10, subset="half")
    masks = np.stack([pool.mask(number) for number in range(10)])
    assert (masks.sum(0) == 5).all() and (masks[::2] == ~masks[1::2]).all() and len(np.unique(masks[::2], axis=0)) == 5
    assert set(masks.sum(1)) == {count // 2, count - count // 2}
    with pytest.raises(BadInput, match="--models 11: .*even"):
        quick(models=11, subset="half")


def test_given_subsets_are_what_the_models_see(tmp_path: Path) -> None:
    """Masks of different sizes, with the stack too; the content, not the file's name, makes the pool."""
    masks = np.random.default_rng(0).random((5, 60)) < 0.5
    for name, values in (("a", masks), ("b", masks), ("c", ~masks)):
        np.savez(tmp_path / f"{name}.npz", masks=values)
    pools = [make_pool(tmp_path, models=4, subset="given", subsets=str(tmp_path / f"{name}.npz"), engine="stack")
             for name in "abc"]
    assert pools[0].folder == pools[1].folder != pools[2].folder
    fill(pools[0])
    assert np.array_equal(pools[0].masks(), masks[:4]) and np.array_equal(pools[1].masks(), masks[:4])
    assert pools[2].present() == []


def test_bad_subsets_are_refused(tmp_path: Path) -> None:
    def given(name: str, **values: Any) -> Callable[[], Pool]:
        np.savez(tmp_path / name, **values)
        return lambda: make_pool(tmp_path, subset="given", subsets=str(tmp_path / name))

    fine = np.ones((4, 60), bool)
    refusal(given("a.npz", other=fine), "--subsets", "masks")
    refusal(given("b.npz", masks=fine.astype(int)), "bool masks [models, 60]", "int64")
    refusal(given("c.npz", masks=fine[:, :59]), "[4, 59]")
    refusal(given("d.npz", masks=fine[:3]), "3 masks", "--models 3")
    refusal(given("e.npz", masks=fine & (np.arange(4) != 2)[:, None]), "mask 2", "fewer than two")
    refusal(lambda: make_pool(tmp_path, subset="given", subsets=str(tmp_path / "none.npz")), "cannot read --subsets")
    refusal(lambda: quick(subset="given"), "--subsets FILE")
    refusal(lambda: quick(subsets="x.npz"), "--subset given")
    refusal(lambda: quick(subset="half", models=4, fraction=0.5), "--fraction is of --subset fraction", "half")
    refusal(lambda: quick(influence_above=0.5), "give --influence")
    refusal(lambda: make_pool(tmp_path, fraction=0.99), "fewer than two")
    assert not (tmp_path / "pool").exists()


# ---------------------------------------------------------------------------------------------------------------- files


def test_pool_keeps_masks_correctness_and_margins(tmp_path: Path) -> None:
    """Each against the models trained here again: margins log p_y - log (1 - p_y) to float16's precision."""
    pool = filled(tmp_path, models=3, keep_logits=True)
    assert pool.present() == [0, 1, 2] and pool.missing() == []
    records = list(pool.records())
    for t in serial(pool.setup, pool.subset, range(3)):
        for part, images in (("train", pool.data.images), ("test", pool.data.test)):
            p = t.logits[part].double().softmax(1).gather(1, images.y[:, None]).squeeze(1).numpy()
            right = t.logits[part].argmax(1).numpy() == images.y.numpy()
            assert np.array_equal(pool.correct(part)[t.number], right) and (part == "test" or 0 < right.mean() < 1)
            found = pool.margins(part)[t.number]
            assert found.dtype == np.float16 and np.allclose(found, np.log(p) - np.log1p(-p), rtol=2e-3, atol=1e-3)
            logits = records[t.number].logits[part]
            assert logits.dtype == np.float16 and np.allclose(logits, t.logits[part].numpy(), rtol=2e-3, atol=1e-3)
    assert np.array_equal(pool.masks().sum(1), [42, 42, 42]) and pool.masks()[1][pool.subset(1)].all()
    assert pool.seconds() == pytest.approx(sum(record.seconds for record in records)) and pool.seconds() > 0
    about = json.loads((pool.folder / "pool.json").read_text())
    assert (about["dataset"], about["arch"], about["seed"], about["recipe"]["pool_batch"]) == ("toy", "resnet8s", 5, 32)
    assert not list(pool.folder.glob("*.part")) and not list(pool.folder.glob("*.pt"))


def test_margins_beyond_float16_are_cut(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    pool.folder.mkdir(parents=True)
    logits = {"train": torch.zeros(60, 3), "test": torch.zeros(20, 3)}
    logits["train"][:, 0] = 1e6
    pool.save(engines.Trained(0, logits, 1.0))
    record = pool.read(0)
    assert np.isfinite(record.margins["train"]).all() and np.abs(record.margins["train"]).max() == 65504
    assert np.array_equal(record.correct["train"], pool.data.images.y.numpy() == 0)


def test_pool_grows_and_a_lost_model_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is there stays untouched; what was lost or damaged is bit for bit what it was, apart from its seconds."""
    small = filled(tmp_path, models=3)
    kept = [(small.path(n).read_bytes(), small.path(n).stat().st_mtime_ns) for n in range(3)]
    large = filled(tmp_path, models=5)
    assert large.folder == small.folder and large.present() == [0, 1, 2, 3, 4] and small.present() == [0, 1, 2]
    assert [(small.path(n).read_bytes(), small.path(n).stat().st_mtime_ns) for n in range(3)] == kept
    assert "5 models, 2 of them to train here" in capsys.readouterr().out and len(small.masks()) == 3
    before = [contents(large, n) for n in range(5)]
    assert not same(before[0], before[1])
    large.path(1).unlink()
    large.path(3).write_bytes(large.path(3).read_bytes()[:-300])
    assert large.missing() == [1, 3]
    fill(large)
    assert f"{large.path(3)} is damaged" in capsys.readouterr().out
    assert all(same(contents(large, n), before[n]) for n in range(5))


def test_every_damage_of_a_file_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = filled(tmp_path, models=2)
    whole = pool.path(0).read_bytes()
    before, noticed = contents(pool, 0), 0
    for place in np.random.default_rng(0).integers(0, len(whole), 30):
        spoiled = bytearray(whole)
        spoiled[place] ^= 0xFF
        pool.path(0).write_bytes(spoiled)
        if pool.read(0) is None:
            noticed += 1
        else:  # in the archive's padding, where nothing is read
            assert same(contents(pool, 0), before)
    assert noticed > 15 and capsys.readouterr().out.count("is damaged") == noticed
    for content in (b"", b"no archive", pool.path(1).read_bytes()):  # the last: a whole file of another model
        pool.path(0).write_bytes(content)
        assert pool.read(0) is None and "trained anew" in capsys.readouterr().out
    pool.path(0).write_bytes(whole)
    assert pool.read(0) is not None
    foreign = make_pool(tmp_path, models=2, pool_lr=0.06)
    foreign.folder.mkdir()
    foreign.path(0).write_bytes(whole)
    assert foreign.read(0) is None and "another pool" in capsys.readouterr().out


def test_logits_asked_for_later_are_added(tmp_path: Path) -> None:
    plain = filled(tmp_path, models=2)
    before = [contents(plain, n) for n in range(2)]
    asked = make_pool(tmp_path, models=2, keep_logits=True)
    assert asked.folder == plain.folder and asked.missing() == [0, 1]
    fill(asked)
    assert asked.missing() == plain.missing() == []
    for n in range(2):
        now = contents(asked, n)
        assert {"logits_train", "logits_test"} == now.keys() - before[n].keys()
        assert all(np.array_equal(now[name], before[n][name]) for name in before[n])


def test_identity_is_of_what_decides_the_models_and_nothing_else(tmp_path: Path) -> None:
    rt = quiet_runtime()
    base = make_pool(tmp_path, rt)
    alike = [dict(models=9), dict(shard="1/3"), dict(engine="stack", stack=2), dict(keep_logits=True), dict(influence=True),
             dict(recipe="fast"), dict(engine="processes", pool_workers=3)]
    assert all(make_pool(tmp_path, rt, **values).folder == base.folder for values in alike)
    different = [dict(pool_epochs=2), dict(pool_lr=0.06), dict(pool_batch=31), dict(momentum=0.8), dict(weight_decay=0.0),
                 dict(schedule="linear"), dict(warmup=1), dict(decreasing_lr=(3,)), dict(lr_gamma=0.2),
                 dict(label_smoothing=0.1), dict(fraction=0.6), dict(subset="half")]
    folders = [make_pool(tmp_path, rt, **values).folder for values in different]
    folders += [make_pool(tmp_path, rt, make_toy(rt, **values)).folder for values in (dict(aug=True), dict(seed=2))]
    folders += [make_pool(tmp_path, Runtime(dataclasses.replace(rt.cfg, **values))).folder
                for values in (dict(seed=6), dict(precision="bf16"))]
    folders += [Pool(tmp_path, quick(), make_toy(rt), ModelConfig(**net), rt).folder
                for net in (dict(arch="resnet20s"), dict(arch="resnet18"), dict(arch="resnet18", imagenet_arch=True))]
    assert len({base.folder, *folders}) == len(folders) + 1


def test_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "pool").write_text("in the way")
    with pytest.raises(CannotWrite, match="--save_dir"):
        fill(make_pool(tmp_path))


def test_leftovers_of_killed_processes_go(tmp_path: Path) -> None:
    pool = filled(tmp_path, models=2)
    old, fresh = pool.folder / ".model-00000.npz.1.part", pool.folder / ".model-00001.npz.2.part"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    fill(make_pool(tmp_path, models=3))
    assert not old.exists() and fresh.exists()
