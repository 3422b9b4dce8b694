"""Crops and flips of a whole pass: alternating orientations, reflected crops, and where the images are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import TOY, quiet_runtime, toy_arrays

from batches import Alternating, Crops, Images, Loader


def alternating(flip: bool = True, count: int = 400) -> Images:
    x, y = toy_arrays(count, 3, size=12)
    return Images(x, y, TOY.__class__(**{**vars(TOY), "pad": 4, "flip": flip, "size": 12}), quiet_runtime(), aug="alternate")


def test_two_passes_that_follow_each_other_show_both_orientations_of_every_image() -> None:
    made, rt = alternating(), quiet_runtime()
    crops = made.augmentation(rt, "test")
    assert isinstance(crops, Alternating)
    index = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    seen = torch.stack([crops.draw(index)[0][index.argsort()] for _ in range(4)])
    assert torch.equal(seen[0] + seen[1], torch.ones(400, dtype=torch.int64)) and torch.equal(seen[0], seen[2])
    assert 150 < int(seen[0].sum()) < 250
    # an image's orientation is its own, whichever others are trained on
    some = made.augmentation(quiet_runtime(), "test").draw(index[:50])[0]
    assert torch.equal(some, seen[0][index[:50]])
    assert not torch.equal(made.augmentation(quiet_runtime(), "other").draw(torch.arange(400))[0], seen[0])
    assert not alternating(flip=False).augmentation(rt, "plain").draw(index)[0].any()


def test_the_orientation_goes_on_where_a_killed_run_stood() -> None:
    made, rt, again = alternating(), quiet_runtime(), quiet_runtime()
    crops, index = made.augmentation(rt, "test"), torch.arange(400)
    first = crops.draw(index)
    states, second = rt.streams(), crops.draw(index)
    again.restore_streams(states)
    assert torch.equal(made.augmentation(again, "test").draw(index), second) and not torch.equal(first, second)
    late = quiet_runtime()
    crops = made.augmentation(late, "test")
    late.restore_streams(states)
    assert torch.equal(crops.draw(index), second)


def test_reflected_crops_equal_a_loop_and_all_offsets_come_evenly() -> None:
    made = alternating(count=20)
    made.x.copy_(torch.randint(0, 256, made.x.shape, generator=torch.Generator().manual_seed(2)))
    crops = Crops(made, torch.Generator().manual_seed(3))
    index = torch.arange(20).repeat(250)
    drawn = crops.draw(index)
    out = made.pixels(index[:40], drawn[:, :40])
    assert out.dtype == torch.uint8
    for row, i, (mirrored, dy, dx) in zip(out.numpy(), index[:40].tolist(), drawn.T[:40].tolist(), strict=True):
        wide = np.pad(made.x[i].numpy(), ((2, 2), (2, 2), (0, 0)), mode="reflect")
        wide = wide[:, ::-1] if mirrored else wide
        assert np.array_equal(row, wide[dy : dy + 12, dx : dx + 12])
    counts = torch.bincount(drawn[1] * 5 + drawn[2], minlength=25)
    assert len(counts) == 25 and int((counts - 200).abs().max()) < 4 * math.sqrt(200)


def test_a_pass_that_is_broken_off_moves_the_streams_as_a_whole_one_does() -> None:
    """Order and crops are drawn on the CPU for the whole pass at its start, for whichever device."""
    made = alternating(count=50)
    states = []
    for stop in (1, 4):
        rt = quiet_runtime()
        loader = Loader(made, torch.arange(50), made.y, 16, rt.generator("order/a"), made.augmentation(rt, "a"))
        for _, _ in zip(range(stop), loader, strict=False):
            pass
        states.append(rt.streams())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert all(stream.device.type == "cpu" for stream in (rt.generator("x"),))


def test_whether_images_are_on_the_device_follows_from_its_whole_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulates a GPU by its answer about memory: a busy neighbour changes nothing, and crops count only where asked for."""
    x, y = toy_arrays(40, 3, size=12)
    source = TOY.__class__(**{**vars(TOY), "pad": 4, "flip": True, "size": 12})
    plain, cropped = x.nbytes, x.nbytes * (1 + 2 * (20 / 12) ** 2)

    def homes(total: float, free: float, aug: str) -> bool:
        rt = quiet_runtime()
        rt.cuda = True
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free, total))
        monkeypatch.setattr(rt, "device", torch.device("meta"))
        return Images(x, y, source, rt, aug=aug).home.type == "meta"

    for free in (0, 1e9):
        assert homes(1.1 * plain / 0.6, free, "") and not homes(0.9 * plain / 0.6, free, "")
        assert homes(1.1 * cropped / 0.6, free, "crop") and not homes(0.9 * cropped / 0.6, free, "crop")
