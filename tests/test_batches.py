"""Batches: their examples and order, augmentation against torchvision, and data that stay on the host."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import loaded
import numpy as np
import pytest
import torch
from conftest import TOY, make_data, quiet_runtime, toy_arrays
from loaded import load
from scipy.stats import chi2
from torch import Tensor

import dataset
import sources
from batches import Crops
from dataset import DataConfig, Images, Loader
from utils import BadInput, Runtime

CPU = torch.device("cpu")
digits = pytest.fixture(scope="module")(loaded.digits)


# -------------------------------------------------------------------------------------------------------------- batches


def source_of(pad: int, flip: bool, size: int = 6) -> sources.Source:
    return dataclasses.replace(TOY, pad=pad, flip=flip, size=size)


def images_of(count: int, pad: int = 0, flip: bool = False, size: int = 6) -> Images:
    x, y = toy_arrays(count, 3, size=size)
    return Images(x, y, source_of(pad, flip, size), quiet_runtime())


def cropped(images: Images, index: Tensor, stream: torch.Generator) -> Tensor:
    """The images of an index as a pass augments them."""
    return images.batch(index, Crops(images, stream).draw(index))


def loader_of(count: int, batch_size: int, shuffle: int | None = None, offset: int = 0) -> Loader:
    images = images_of(count + offset)
    index = torch.arange(offset, count + offset)
    stream = None if shuffle is None else torch.Generator().manual_seed(shuffle)
    return Loader(images, index, images.y[index], batch_size, stream)


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [
    (10, 4, [4, 4, 2]), (9, 4, [4, 5]), (8, 4, [4, 4]), (5, 4, [5]), (3, 4, [3]), (1, 4, [1]), (4, 1, [1, 1, 2]),
    (2, 1, [2]), (257, 256, [257])])
@pytest.mark.parametrize("shuffle", [None, 1])
def test_every_example_comes_once_and_no_batch_is_a_single_one(
    count: int, batch_size: int, sizes: list[int], shuffle: int | None
) -> None:
    """But for a set of one: a last batch of one example joins the one before."""
    loader = loader_of(count, batch_size, shuffle, offset=3)
    for _ in range(2):
        batches = list(loader)
        assert [len(batch.y) for batch in batches] == sizes and len(loader) == len(sizes) and loader.size == count
        index = torch.cat([batch.index for batch in batches])
        assert sorted(index.tolist()) == list(range(3, count + 3))
        assert torch.equal(torch.cat([batch.y for batch in batches]), loader.images.y[index])
        if shuffle is None:
            assert index.tolist() == list(range(3, count + 3))


def test_order_is_that_of_its_stream_and_anew_in_every_pass() -> None:
    def passes(seed: int) -> list[list[int]]:
        loader = loader_of(40, 16, seed)
        return [[i for batch in loader for i in batch.index.tolist()] for _ in range(3)]

    first, again, other = passes(1), passes(1), passes(2)
    assert first == again and first[0] != other[0]
    assert len({tuple(order) for order in first}) == 3


def test_purposes_have_orders_of_their_own(rt: Runtime) -> None:
    def order(runtime: Runtime, purpose: str, part: str = "train") -> list[int]:
        return [i for batch in load(runtime, aug=True).loader(part, runtime, purpose) for i in batch.index.tolist()]

    known = order(quiet_runtime(5), "unlearn")
    assert known == order(quiet_runtime(5), "unlearn")
    assert known != order(quiet_runtime(5), "train") and known != order(quiet_runtime(6), "unlearn")
    assert sorted(known) == load(rt).splits.train.tolist()
    # augmentation has a stream of its own: it does not move the order
    plain = load(quiet_runtime(5), aug=False)
    runtime = quiet_runtime(5)
    assert known == [i for batch in plain.loader("train", runtime, "unlearn") for i in batch.index.tolist()]


def test_parts_have_orders_and_crops_of_their_own(rt: Runtime) -> None:
    """Retain and forget set of one size under one purpose; crops of one image in every place, so that no order shows."""
    data, places, crops = make_data(rt, forget=27, aug=True), {}, {}
    for part in ("retain", "forget"):
        index = torch.cat([batch.index for batch in data.loader(part, rt, "unlearn")])
        places[part] = np.searchsorted(data.index(part), index.numpy()).tolist()
    data.images.x[:], data.images._windows = data.images.x[0].clone(), []
    for part in ("retain", "forget", "retain again"):
        crops[part] = torch.cat([batch.x for batch in data.loader(part.split()[0], rt, "unlearn")])
    assert sorted(places["retain"]) == sorted(places["forget"]) == list(range(27)) and places["retain"] != places["forget"]
    assert torch.equal(crops["retain"], crops["retain again"]) and not torch.equal(crops["retain"], crops["forget"])
    other = torch.cat([batch.x for batch in data.loader("retain", rt, "unlearn/0.1")])
    assert not torch.equal(crops["retain"], other)


def test_evaluation_batches_are_the_pixels_in_order(rt: Runtime, digits: sources.Arrays) -> None:
    data = load(rt, {"num_indexes_to_replace": 300}, aug=True)
    for part in ("train", "retain", "forget", "val", "test"):
        x, y = (digits.x_test, digits.y_test) if part == "test" else (digits.x_train, digits.y_train)
        wanted = data.index(part)
        batches = list(data.loader(part))
        assert torch.cat([batch.index for batch in batches]).tolist() == wanted.tolist()
        assert torch.cat([batch.y for batch in batches]).tolist() == y[wanted].tolist()
        pixels = torch.cat([batch.x for batch in batches])
        assert pixels.dtype == torch.float32
        # bit for bit what float32 division gives
        assert np.array_equal(pixels.numpy(), x[wanted].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("aug", [False, True])
def test_batches_are_channels_last(aug: bool, rt: Runtime) -> None:
    for loader in (load(rt, aug=aug).loader("train", rt, "test"), load(rt, aug=aug).loader("val")):
        for batch in itertools.islice(loader, 2):
            assert batch.x.is_contiguous(memory_format=torch.channels_last)


def test_relabelled_keeps_examples_and_order() -> None:
    loader = loader_of(20, 8, shuffle=4, offset=2)
    labels = torch.arange(100, 120)
    new = loader.relabelled(labels)
    for batch in new:
        assert torch.equal(batch.y, batch.index - 2 + 100)
        assert torch.equal(batch.x, loader.images.batch(batch.index, None))
    assert torch.equal(loader.labels, loader.images.y[loader.index]), "the loader itself keeps its labels"
    with pytest.raises(AssertionError):
        loader.relabelled(labels[1:])


def test_relabelled_and_summed_loaders_shuffle_and_augment_as_their_first(rt: Runtime) -> None:
    data = make_data(rt, aug=True)
    forget, retain = (data.loader(part, rt, "unlearn") for part in ("forget", "retain"))
    for made in (forget.relabelled(forget.labels), forget + retain):
        assert made.augment is forget.augment is not None and made.shuffle is forget.shuffle is not None
        assert made.batch_size == forget.batch_size == 16


def test_sum_of_loaders_has_the_examples_of_both_mixed() -> None:
    images, stream = images_of(60), torch.Generator().manual_seed(1)
    first = Loader(images, torch.arange(0, 30), torch.full((30,), 7), 8, stream)
    second = Loader(images, torch.arange(30, 60), torch.full((30,), 8), 8, stream)
    both = first + second
    assert both.size == 60 and len(both) == 8
    batches = list(both)
    for batch in batches:
        assert torch.equal(batch.y, torch.where(batch.index < 30, 7, 8))
    assert sorted(i for batch in batches for i in batch.index.tolist()) == list(range(60))
    assert sum(7 in batch.y and 8 in batch.y for batch in batches) > 5


# --------------------------------------------------------------------------------------------------------- augmentation


def plain_crops(image: np.ndarray, pad: int, flip: bool) -> dict[tuple[int, int, bool], np.ndarray]:
    """Every crop of the zero-padded image by a loop over pixels, and each mirrored left to right."""
    height, width, channels = image.shape
    crops, offsets = {}, range(2 * pad + 1)
    for dy, dx, mirrored in itertools.product(offsets, offsets, (False, True) if flip else (False,)):
        crop = np.zeros_like(image)
        for row, column in itertools.product(range(height), range(width)):
            y, x = row + dy - pad, column + dx - pad
            if 0 <= y < height and 0 <= x < width:
                crop[row, width - 1 - column if mirrored else column] = image[y, x]
        crops[dy, dx, mirrored] = crop
    return crops


@pytest.mark.parametrize(("pad", "flip"), [(0, True), (1, False), (2, True), (2, False)])
def test_augmented_image_is_a_plain_crop_of_its_own_image(pad: int, flip: bool) -> None:
    """Rows differ from columns and images from one another, so that another axis or another image would not match."""
    images = images_of(12, pad, flip)
    images.x.copy_(torch.randint(1, 256, images.x.shape, generator=torch.Generator().manual_seed(2)))
    known = [plain_crops(image, pad, flip) for image in images.x.numpy()]
    index = torch.tensor([5, 0, 11, 5, 7, 3, 2] * 20)
    found = (cropped(images, index, torch.Generator().manual_seed(3)) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    seen = set()
    for place, crop in zip(index.tolist(), found, strict=True):
        matches = [how for how, wanted in known[place].items() if np.array_equal(crop, wanted)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len({how[:2] for how in seen}) > 0.9 * (2 * pad + 1) ** 2 and len({how[2] for how in seen}) == 1 + flip


def test_augmentation_leaves_the_images_as_they_are() -> None:
    images = images_of(10, 2, True)
    before = images.x.clone()
    stream = torch.Generator().manual_seed(1)
    one, two = (cropped(images, torch.arange(10), stream) for _ in range(2))
    assert torch.equal(images.x, before) and not torch.equal(one, two)
    assert torch.equal(one, cropped(images, torch.arange(10), torch.Generator().manual_seed(1)))


def marked(size: int) -> np.ndarray:
    """An image [size, size, 3] in which every pixel has another colour: its row, its column, and 255."""
    rows, columns = np.mgrid[0:size, 0:size]
    return np.stack([rows + 1, columns + 1, np.full_like(rows, 255)], 2).astype(np.uint8)


def placed(batch: Tensor, pad: int) -> np.ndarray:
    """How each of some crops [B, 3, H, W] of the marked image was made: (dy, dx, mirrored), int [B, 3]."""
    pixels = (batch * 255).round().long().numpy()
    middle = batch.shape[-1] // 2
    row, left, right = pixels[:, 0, middle, middle], pixels[:, 1, middle, middle - 1], pixels[:, 1, middle, middle]
    mirrored = left > right
    dx = np.where(mirrored, left - 1 - middle + pad, right - 1 - middle + pad)
    return np.stack([row - 1 - middle + pad, dx, mirrored], 1)


def test_augmentation_is_distributed_as_that_of_torchvision() -> None:
    """The 81 offsets and two directions of RandomCrop(32, padding=4) and RandomHorizontalFlip, all and evenly."""
    from torchvision.transforms import Compose, RandomCrop, RandomHorizontalFlip

    image, outcomes = marked(32), 9 * 9 * 2
    images = Images(image[None], np.zeros(1, np.int64), source_of(4, True, 32), quiet_runtime())
    drawn = cropped(images, torch.zeros(outcomes * 60, dtype=torch.int64), torch.Generator().manual_seed(8))
    ours = placed(drawn, 4)
    kinds, counts = np.unique(ours, axis=0, return_counts=True)
    assert len(kinds) == outcomes and kinds.min() == 0 and kinds[:, :2].max() == 8
    statistic = ((counts - 60) ** 2 / 60).sum()
    assert chi2.ppf(0.001, outcomes - 1) < statistic < chi2.ppf(0.999, outcomes - 1)

    theirs = Compose([RandomCrop(32, padding=4), RandomHorizontalFlip()])
    plain = torch.from_numpy(image).permute(2, 0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        peers = torch.stack([theirs(plain) for _ in range(1500)])
    assert {tuple(kind) for kind in placed(peers / 255, 4)} == {tuple(kind) for kind in kinds}
    # the same crops, pixel for pixel
    own = {tuple(kind): x for kind, x in zip(ours.tolist(), (drawn * 255).round().byte(), strict=True)}
    assert all(torch.equal(own[tuple(kind)], x) for kind, x in zip(placed(peers / 255, 4).tolist(), peers, strict=True))


def test_only_training_is_augmented_and_only_where_asked(rt: Runtime, digits: sources.Arrays) -> None:
    assert load(rt, aug=True).loader("train", rt, "a").augment is not None
    assert load(rt, aug=True).loader("train").augment is None
    assert load(rt, aug=False).loader("train", rt, "a").augment is None
    with pytest.raises(BadInput, match="--aug: svhn"):
        dataset.load(DataConfig(dataset="svhn", aug=True), rt)


# ------------------------------------------------------------------------------------------- data that stay on the host


def test_batches_from_the_host_are_those_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two names of the CPU stand for host and device; pinning needs a GPU."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)

    def batches(host: bool) -> list[dataset.Batch]:
        images = images_of(50, 1, True)
        images.device = torch.device("cpu", 0) if host else CPU
        assert (images.home == images.device) != host
        order, crops = (torch.Generator().manual_seed(seed) for seed in (1, 2))
        return list(Loader(images, torch.arange(50), images.y, 16, order, Crops(images, crops)))

    for one, two in zip(batches(False), batches(True), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        assert two.x.is_contiguous(memory_format=torch.channels_last)


def test_ahead_gives_every_item_in_order() -> None:
    assert list(dataset.ahead(iter(range(1000)), depth=3)) == list(range(1000))
    assert list(dataset.ahead(iter([]))) == [] and list(dataset.ahead(iter([None, ()]))) == [None, ()]


def test_ahead_passes_exceptions_on_after_the_items_before() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ZeroDivisionError("third")

    got = dataset.ahead(items())
    assert (next(got), next(got)) == (1, 2)
    with pytest.raises(ZeroDivisionError, match="third"):
        next(got)


def test_ahead_works_in_another_thread_and_no_further_ahead_than_its_depth() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(50):
            made.append(threading.get_ident())
            yield i

    got = dataset.ahead(items(), depth=2)
    assert next(got) == 0
    wait_until(lambda: len(made) >= 4)
    time.sleep(0.05)
    assert len(made) == 4, "one given, two ready, one in the hand"
    assert set(made).isdisjoint({threading.get_ident()})
    assert list(got) == list(range(1, 50))


def test_ahead_ends_its_thread_when_nobody_listens_any_more() -> None:
    before = threading.active_count()
    for got in (dataset.ahead(itertools.count()), dataset.ahead(itertools.count(), depth=1)):
        assert next(got) == 0
        got.close()
    wait_until(lambda: threading.active_count() == before)


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
