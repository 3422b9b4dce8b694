"""A smaller training set, and one with wrong labels: what a network has to learn by heart, in known amounts."""

from __future__ import annotations

import numpy as np

from utils import BadInput

STREAM = 0x6E6F6973  # keeps these draws apart from all others of the same seed


def first_of_each(y: np.ndarray, number: int) -> np.ndarray:
    """The first images of each class, in the data set's order; of labels y int64 [N], as indices int64, ascending.

    Raises:
        BadInput: a class has fewer. One without any image, as in a part of a data set, is passed over.
    """
    classes, counts = np.unique(y, return_counts=True)
    if counts.min() < number:
        few = counts.argmin()
        raise BadInput(f"--train_per_class {number}: the class {classes[few]} has only {counts[few]} images to train on; name "
                       "a smaller number")
    return np.sort(np.concatenate([np.flatnonzero(y == c)[:number] for c in classes]))


def mislabel(y: np.ndarray, train: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels with some of them wrong, and whose: symmetric label noise of an exact number of images.

    Args:
        y: int64 [N], the given labels; train: int64, the indices that train. All others keep their labels.
        share: of ``train``, rounded to whole images, which are drawn without replacement; each gets one of the other classes
            that have training images, all alike.
        seed: owns both draws.

    Returns:
        int64 [N], and the indices of the wrong ones, int64 ascending.

    Raises:
        BadInput: no image is as much as that share, there is no other class, or a class would lose all its images.
    """
    classes, count = np.unique(y[train]), round(share * len(train))
    if not count:
        raise BadInput(f"--label_noise {share:g} of {len(train)} training images is less than one; name a larger share")
    if len(classes) < 2:
        raise BadInput(f"--label_noise needs two classes; all training images are of the class {classes[0]}")
    random = np.random.RandomState([seed, STREAM])
    wrong = np.sort(random.choice(train, count, replace=False))
    steps = random.randint(1, len(classes), count)  # around the ring of classes: never back to the own one
    noisy = y.copy()
    noisy[wrong] = classes[(np.searchsorted(classes, y[wrong]) + steps) % len(classes)]
    if len(lost := np.setdiff1d(classes, noisy[train])):
        raise BadInput(f"--label_noise {share:g}: no training image of the class {lost[0]} is left; name a smaller share, or "
                       "another --noise_seed")
    return noisy, wrong
