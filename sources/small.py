"""digits from scikit-learn; CIFAR-10, CIFAR-100 (also by super-class) and SVHN through torchvision, checksums kept."""

from __future__ import annotations

import http.client
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sources.arrays import Absent, Arrays, Source
from sources.pickled import load_plain
from sources.prepared import read_prepared
from utils import BadInput, reason

# CIFAR-100's twenty super-classes in label order, each with its five classes. The fine label of a class is its place in
# the alphabetical order of all hundred (Krizhevsky, "Learning multiple layers of features from tiny images", 2009).
SUPER_CLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
SUPER_OF = {fine: label for label, members in enumerate(SUPER_CLASSES.values()) for fine in members.split()}
CIFAR100_NAMES = tuple(sorted(SUPER_OF))
COARSE_LABELS = tuple(SUPER_OF[fine] for fine in CIFAR100_NAMES)
CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGIT_NAMES = tuple("0123456789")
CIFAR_FILES = {"cifar10": "cifar-10-batches-py batches.meta data_batch_1 data_batch_2 data_batch_3 data_batch_4 data_batch_5 "
                          "test_batch", "cifar100": "cifar-100-python meta train test"}


def read_digits(root: Path, download: bool) -> Arrays:
    """8 x 8 digits: grey 0-16 spread over 0-255, three equal channels, a fixed stratified split in original order."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    grey = np.rint(found.images * 255 / 16).astype(np.uint8)
    x, y = np.repeat(grey[..., None], 3, axis=3), found.target.astype(np.int64)
    train, test = map(np.sort, train_test_split(np.arange(len(y)), test_size=360, random_state=0, stratify=y))
    return Arrays(x[train], y[train], x[test], y[test], classes=DIGIT_NAMES)


def read_cifar10(root: Path, download: bool) -> Arrays:
    """CIFAR-10 from ROOT or, where the published code has it, ROOT/cifar10."""
    from torchvision.datasets import CIFAR10

    return _read_cifar("cifar10", CIFAR10, root, download)[0]


def read_cifar100(root: Path, download: bool) -> Arrays:
    """CIFAR-100 from ROOT or, where the published code has it, ROOT/cifar100."""
    from torchvision.datasets import CIFAR100

    return _read_cifar("cifar100", CIFAR100, root, download)[0]


def read_cifar20(cifar100: Source, root: Path, download: bool) -> Arrays:
    """CIFAR-100 by super-class, fine labels kept: from its own files, else from a prepared cifar100.npz."""
    from torchvision.datasets import CIFAR100

    prepared = root / "cifar100.npz"
    try:
        fine, folder = _read_cifar("cifar100", CIFAR100, root, download and not prepared.exists())
    except Absent:
        if not prepared.exists():
            raise
        fine = read_prepared(prepared, cifar100)
        labels = [np.array(COARSE_LABELS)[y] for y in (fine.y_train, fine.y_test)]
    else:  # the official super-classes; load() refuses any that the table above does not give
        labels = [np.array(load_plain(folder / part)["coarse_labels"]) for part in ("train", "test")]
    return Arrays(fine.x_train, labels[0], fine.x_test, labels[1], fine.y_train, fine.y_test, tuple(SUPER_CLASSES))


def cifar_files(name: str, root: Path) -> list[Path]:
    """The batches of CIFAR-10 or CIFAR-100 that are there; torchvision, which reads them, takes long to import."""
    folder, *names = CIFAR_FILES[name].split()
    home = next((h for h in (root, root / name) if (h / folder).exists()), root)
    return [home / folder / file for file in names if (home / folder / file).is_file()]


def cifar20_files(root: Path) -> list[Path]:
    """What cifar20 is read from: CIFAR-100's batches, else its prepared npz."""
    return cifar_files("cifar100", root) or [path for path in [root / "cifar100.npz"] if path.is_file()]


def svhn_files(root: Path) -> list[Path]:
    return [home / f"{part}_32x32.mat" for home in (root, root / "svhn") for part in ("train", "test")
            if (home / f"{part}_32x32.mat").is_file()]


def _read_cifar(name: str, reader: Any, root: Path, download: bool) -> tuple[Arrays, Path]:
    """The arrays and the folder of the batches. An archive that is there is unpacked without asking the network."""
    from torchvision.datasets.utils import check_integrity

    homes = [root, root / name]
    batches = next((h for h in homes if (h / reader.base_folder).exists()), None)
    packed = next((h for h in homes if check_integrity(h / reader.filename, reader.tgz_md5)), None)
    home = batches or packed or root
    unpack = packed == home or (batches is None and download)
    listed = [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]
    files = [(home / reader.base_folder / file, md5) for file, md5 in listed]
    fetched = [*files, (home / reader.filename, reader.tgz_md5)] if unpack else files
    train = _official(name, partial(reader, home, train=True, download=unpack), fetched, unpack)
    test = _official(name, partial(reader, home, train=False), files, False)
    arrays = [np.ascontiguousarray(train.data), np.array(train.targets),
              np.ascontiguousarray(test.data), np.array(test.targets)]
    return Arrays(*arrays, classes=CIFAR10_NAMES if name == "cifar10" else CIFAR100_NAMES), home / reader.base_folder


def read_svhn(root: Path, download: bool) -> Arrays:
    """SVHN's training and test images (not the extra ones) from ROOT or ROOT/svhn; the digit 0 has label 0."""
    from torchvision.datasets import SVHN

    listed = {part: SVHN.split_list[part][1:] for part in ("train", "test")}
    home = next((h for h in (root, root / "svhn") if any((h / file).exists() for file, _ in listed.values())), root)
    arrays: list[np.ndarray] = []
    for part, (file, md5) in listed.items():
        fetch = download and not (home / file).exists()
        found = _official("svhn", partial(SVHN, home, split=part, download=fetch), [(home / file, md5)], fetch)
        arrays += [np.ascontiguousarray(found.data.transpose(0, 2, 3, 1)), found.labels]
    return Arrays(*arrays, classes=DIGIT_NAMES)


def _official(name: str, build: Callable[[], Any], files: Sequence[tuple[Path, str]], fetch: bool) -> Any:
    """What torchvision builds from ``files`` (path, md5), or the error that says which is absent or damaged."""
    from torchvision.datasets.utils import check_integrity

    there = {path for path, _ in files if path.exists()}
    try:
        return build()
    except (OSError, RuntimeError, EOFError, tarfile.TarError, http.client.HTTPException) as error:
        if fetch:
            for path, md5 in files:
                if path not in there and not check_integrity(path, md5):
                    path.unlink(missing_ok=True)  # half a file would pass for a damaged one next time
            raise Absent(f"it could not be fetched and unpacked ({reason(error)})") from error
        absent = [path for path, _ in files if not path.exists()]
        if absent:
            raise Absent(f"{absent[0]} is missing") from error
        damaged = [path for path, md5 in files if not check_integrity(path, md5)]
        why = f"{damaged[0]} is damaged: its checksum is not the published one" if damaged else reason(error)
        raise BadInput(f"{name}: {why}; delete it and put the official file in its place") from error
