"""Entanglement by hand and by loops over examples, and the groups that are cut by it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_data
from scored import places
from test_proxies import make_job

import models
from memorization.entanglement import EsConfig, cut, es, features, levels
from memorization.registry import SCORES
from utils import BadInput, Runtime


def es_by_loops(retain: np.ndarray, forget: np.ndarray, centre: str) -> float:
    """The formula read aloud, float64."""
    mu_r, mu_s = sum(retain) / len(retain), sum(forget) / len(forget)
    mu = (mu_r + mu_s) / 2 if centre == "sets" else (sum(retain) + sum(forget)) / (len(retain) + len(forget))
    inside = sum(((f - mu_r) ** 2).sum() for f in retain) / len(retain)
    inside += sum(((f - mu_s) ** 2).sum() for f in forget) / len(forget)
    return float(inside / ((((mu_r - mu) ** 2).sum() + ((mu_s - mu) ** 2).sum()) / 2))


def test_es_by_hand() -> None:
    """R = {0, 2} and S = {4, 6} on a line: (1 + 1) / 4; with S = {4, 5, 6, 5}, all = 22/6 and (1 + 1/2) / (40/9)."""
    retain = torch.tensor([[0.0], [2.0]])
    assert es(retain, torch.tensor([[4.0], [6.0]])) == pytest.approx(0.5, abs=1e-12)
    four = torch.tensor([[4.0], [5.0], [6.0], [5.0]])
    apart = ((22 / 6 - 1) ** 2 + (5 - 22 / 6) ** 2) / 2
    assert es(retain, four) == pytest.approx(1.5 / 4, abs=1e-12)
    assert es(retain, four, "all") == pytest.approx(1.5 / apart, abs=1e-12)


@pytest.mark.parametrize("centre", ["sets", "all"])
@pytest.mark.parametrize("offset", [0.0, 500.0])
def test_es_is_that_of_a_loop(centre: str, offset: float) -> None:
    """Within 1e-9, for sets of unequal size, far from the origin too."""
    random = np.random.default_rng(21)
    retain, forget = ((offset + random.normal(m, s, (n, 5))).astype(np.float32) for m, s, n in ((0, 1, 40), (0.5, 2, 9)))
    expected = es_by_loops(retain.astype(np.float64), forget.astype(np.float64), centre)
    assert es(torch.from_numpy(retain), torch.from_numpy(forget), centre) == pytest.approx(expected, rel=1e-9)


def test_es_that_is_not_defined_is_refused() -> None:
    point = torch.ones(3, 2)
    for retain, forget in ((point, point[:0]), (point[:0], point), (point, point), (point, point * torch.nan)):
        with pytest.raises(BadInput, match="entanglement"):
            es(retain, forget)


@pytest.mark.parametrize("centre", ["sets", "all"])
@pytest.mark.parametrize("count", [3, 4, 7])
def test_chunks_are_those_of_a_loop(count: int, centre: str) -> None:
    """Ascending distance, ties in the one random order, leftovers in none; each chunk's ES against all the others (1e-9)."""
    random = np.random.default_rng(count)
    found = random.gamma(2, 1, (30, 4)).astype(np.float32)
    found[[25, 3, 14]] = found[11]  # equal distances
    distance, chunks, values = cut(torch.from_numpy(found), count, centre)
    wide = found.astype(np.float64)
    centroid = wide.mean(0)
    expected = [float(np.sqrt(((f - centroid) ** 2).sum())) for f in wide]
    assert np.abs(distance - expected).max() < 1e-12
    place = places(30)
    order = sorted(range(30), key=lambda i: (round(expected[i], 9), place[i]))
    size = 30 // count
    assert chunks.shape == (count, size) and chunks.ravel().tolist() == order[: count * size]
    for chunk, value in zip(chunks, values, strict=True):
        rest = np.setdiff1d(np.arange(30), chunk)
        assert value == pytest.approx(es_by_loops(wide[rest], wide[chunk], centre), rel=1e-9)


def test_levels_are_measured() -> None:
    """Not monotone in the distance: lowest, median and highest ES, wherever they are."""
    assert levels(np.array([3.0, 5.0, 9.0, 7.0, 1.0])).tolist() == [4, 1, 2]
    assert levels(np.array([3.0, 5.0, 9.0, 7.0])).tolist() == [0, 3, 2]
    assert levels(np.array([2.0, 1.0, 3.0])).tolist() == [1, 0, 2]


def test_features_are_of_the_plain_images_in_eval_mode(rt: Runtime, tmp_path: Path) -> None:
    """In order, float32, whatever the batch; the model stays as it is, in train mode if it was."""
    job = make_job(tmp_path, make_data(rt, aug=True))
    model, loader = job.model().train(), job.data.loader("train")
    found = features(model, loader, rt)
    x = job.data.images.x[job.data.splits.train].permute(0, 3, 1, 2).double() / 255
    twin = job.model().double().eval()
    with torch.no_grad():
        expected = torch.stack([models.embed(twin, image[None])[0] for image in x])
    assert found.dtype == torch.float32 and (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert model.training and expected.std() > 1e-3
    with pytest.raises(AssertionError):
        features(model, job.data.loader("train", rt, "es"), rt)


@pytest.mark.parametrize("chunks", [3, 4])
def test_score_is_of_the_training_split_alone(chunks: int, rt: Runtime, tmp_path: Path) -> None:
    """54 images of 60 in chunks of 54 // chunks; what validation looks like, or augmentation, changes nothing."""
    cfg = EsConfig(es_chunks=chunks)
    job = make_job(tmp_path, make_data(rt))
    found = SCORES["es"].apply(job, cfg)
    train, val, size = job.data.splits.train, job.data.splits.val, 54 // chunks
    feats = features(job.model(), job.data.loader("train"), rt)
    distance, members, values = cut(feats, chunks, "sets")
    group = np.full(60, -1)
    for chunk in range(chunks):
        group[train[members[chunk]]] = chunk
    assert np.array_equal(found["group"], group) and found["group"].dtype == np.int64
    assert np.bincount(group + 1).tolist() == [60 - size * chunks] + [size] * chunks
    assert np.array_equal(found["chunk_es"], values) and found["levels"].tolist() == levels(values).tolist()
    expected = [np.nan if g < 0 else values[g] for g in group]
    assert np.array_equal(found["es"], np.array(expected, np.float32), equal_nan=True) and found["es"].dtype == np.float32
    assert np.array_equal(found["distance"][train], distance) and np.isnan(found["distance"][val]).all()
    job.data.images.x[val] = 255 - job.data.images.x[val]
    job.data = dataclasses.replace(job.data, aug=True)
    again = SCORES["es"].apply(job, cfg)
    assert all(np.array_equal(again[name], found[name], equal_nan=True) for name in found)
    assert job.data.images.eval_batch >= 54 and not np.array_equal(np.sort(train[members[0]]), train[:size])


def test_more_chunks_than_examples_are_refused(rt: Runtime, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--es_chunks 55: the training split has only 54"):
        SCORES["es"].apply(make_job(tmp_path, make_data(rt)), EsConfig(es_chunks=55))
    with pytest.raises(BadInput, match="es_chunks"):
        EsConfig(es_chunks=2)
