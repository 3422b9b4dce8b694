"""Which classes of a data set take part: those kept, those left out of training, and which output each of them has.

Three numberings meet here. The label in the files; the class of the data set, which is the same but for --classes, which
keeps some labels and numbers them from 0; and the output of the model. Classes out of distribution (--ood_classes) have no
output, so that from there on outputs and classes differ: one map leads from the one to the other, for the images to train
on, to forget, to test and out of distribution alike. Flags name classes of the data set; models, labels of batches and
stored logits go by outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sources.arrays import Arrays, Source
from utils import BadInput, shown


def class_spans(text: str, flag: str = "--classes") -> list[tuple[int, int]]:
    """Numbers and ranges such as 0-99 or 1,5,7 as (first, last), ascending, with neighbours merged."""
    try:
        ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    except ValueError:
        ends = [[]]
    if any(len(span) not in (1, 2) or span[0] > span[-1] for span in ends):
        raise BadInput(f"{flag} takes numbers and ranges such as 0-99 or 1,5,7; got {shown(text)}")
    merged: list[tuple[int, int]] = []
    for first, last in sorted((span[0], span[-1]) for span in ends):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return merged


def parse_classes(text: str, total: int) -> list[int]:
    """``0-4,7`` -> [0, 1, 2, 3, 4, 7]; ascending, at least two, all below ``total``."""
    spans = class_spans(text)
    keep = [c for first, last in spans for c in range(first, min(last, total) + 1)]
    if len(keep) < 2 or spans[-1][1] >= total:
        raise BadInput(f"--classes needs two or more of the classes 0-{total - 1}; got {shown(text)}")
    return keep


class ClassList(str):
    """A list of classes in one spelling, so that the same classes meet in the same run folder, however they were written."""

    def __new__(cls, text: str) -> ClassList:
        return super().__new__(cls, ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in class_spans(text)))


class ClassNumbers(tuple):
    """Some classes, or sub-classes, as numbers: ascending, each once, however they were written (12,16-19)."""

    MOST = 100_000  # no data set here has as many

    def __new__(cls, given: str | Iterable[int]) -> ClassNumbers:
        if isinstance(given, str):
            spans = class_spans(given, "the list")
            if spans[-1][1] >= cls.MOST:
                raise BadInput(f"there are no {cls.MOST} classes; got {shown(given)}")
            given = [number for first, last in spans for number in range(first, last + 1)]
        return super().__new__(cls, sorted(set(given)))


class Part(NamedTuple):
    """Images uint8 [N, H, W, 3] with labels and sub-classes (fine labels; None where the data set has none), int64 [N]."""

    x: np.ndarray
    y: np.ndarray
    fine: np.ndarray | None


class Kept(NamedTuple):
    """A data set after --classes, --ood_classes and --ood_subclass.

    train, test: labelled by output. ood, ood_test: what was left out of them, labelled by class of the data set; None where
    nothing was. outputs: int64 [classes], the output of each class, -1 of one out of distribution. key: what of this the
    keys of the data tell, for JSON.
    """

    train: Part
    test: Part
    ood: Part | None
    ood_test: Part | None
    outputs: np.ndarray
    key: list[Any]


def keep(a: Arrays, source: Source, classes: str | None = None, ood_classes: Sequence[int] | None = None,
         ood_subclass: Sequence[int] | None = None) -> Kept:
    """The images of the classes to keep, apart from those of classes and sub-classes that are to be left out.

    The number of classes is the data set's (or that of the names in a prepared npz), whichever labels happen to be there.

    Args:
        classes: to keep, by label in the files. ood_classes: of these, numbered from 0. ood_subclass: by fine label.

    Raises:
        BadInput: no such class or sub-class, or one that leaves nothing to train on.
    """
    total = len(a.classes) or source.num_classes
    labels = list(range(total)) if classes is None else parse_classes(classes, total)
    number = np.full(total, -1)
    number[labels] = np.arange(len(labels))
    outputs = output_map(len(labels), ood_classes or ())
    if ood_subclass:
        _check_subclasses(a, source, ood_subclass, number, outputs)
    if classes is None and not ood_classes and not ood_subclass:
        train, test = Part(a.x_train, a.y_train, a.fine_train), Part(a.x_test, a.y_test, a.fine_test)
        return Kept(train, test, None, None, outputs, labels)
    train, ood = _apart(a.x_train, number[a.y_train], a.fine_train, outputs, ood_subclass or ())
    test, ood_test = _apart(a.x_test, number[a.y_test], a.fine_test, outputs, ood_subclass or ())
    if not len(train.y) or not len(test.y):
        raise BadInput(f"{f'--classes {classes}' if classes else '--ood_classes'}: no training or no test image there is of "
                       "the classes that are left")
    if not ood_classes and not ood_subclass:
        return Kept(train, test, None, None, outputs, labels)
    left_out = {"ood_classes": list(ood_classes or ()), "ood_subclass": list(ood_subclass or ())}
    return Kept(train, test, ood, ood_test, outputs, [labels, left_out])


def output_map(count: int, ood_classes: Iterable[int]) -> np.ndarray:
    """The output of each of ``count`` classes, int64 [count]: the remaining ones in order from 0, -1 out of distribution.

    The published code moves the labels to retain so, but keeps the number of the forgotten class and gives it to the images
    out of distribution, which is wrong as soon as a class below it was left out; here all go by this map.
    """
    gone = sorted(set(ood_classes))
    if gone and gone[-1] >= count:
        raise BadInput(f"--ood_classes {gone[-1]}: the data set has the classes 0-{count - 1}")
    if count - len(gone) < 2:
        raise BadInput(f"--ood_classes {','.join(map(str, gone))} leaves {count - len(gone)} of {count} classes to train on; "
                       "leave two or more")
    outputs = np.full(count, -1, np.int64)
    rest = np.setdiff1d(np.arange(count), np.array(gone, np.int64))
    outputs[rest] = np.arange(len(rest))
    return outputs


def classes_of(outputs: Iterable[int], ood_classes: Iterable[int] | None) -> list[int]:
    """The classes of the data set that some outputs stand for: the other way round than ``output_map``."""
    found = []
    gone = sorted(set(() if ood_classes is None else ood_classes))
    for output in outputs:
        number = int(output)
        for left_out in gone:  # ascending: each one at or below moves the class on
            number += left_out <= number
        found.append(number)
    return found


def labels_of(classes: Sequence[int], outputs: np.ndarray, flag: str = "--class_to_replace") -> np.ndarray:
    """The labels, int64 [n], of some classes of the data set by the map of ``Data.outputs``.

    Raises:
        BadInput: no such class, or one out of distribution.
    """
    for number in classes:
        if number >= len(outputs):
            raise BadInput(f"{flag} {number}: the data set has the classes 0-{len(outputs) - 1}")
        if outputs[number] < 0:
            gone = ",".join(map(str, np.flatnonzero(outputs < 0)))
            raise BadInput(f"{flag} {number}: this class is out of distribution (--ood_classes {gone}), so that no model was "
                           "trained on it; name another class, or an original that was trained on this one")
    return outputs[np.array(classes, np.int64)]


def _apart(x: np.ndarray, y: np.ndarray, fine: np.ndarray | None, outputs: np.ndarray,
           ood_subclass: Sequence[int]) -> tuple[Part, Part]:
    """The images with an output, labelled by it, and those without, labelled by class; y is -1 of those to drop."""
    out = (y >= 0) & (outputs[y] < 0)
    if ood_subclass and fine is not None:
        out |= (y >= 0) & np.isin(fine, ood_subclass)
    own = (y >= 0) & ~out
    return (Part(x[own], outputs[y[own]], None if fine is None else fine[own]),
            Part(x[out], y[out], None if fine is None else fine[out]))


def check_fine(fine: np.ndarray | None, source: Source, flag: str) -> None:
    """Refuse a flag about sub-classes where the data set has none (BadInput)."""
    if fine is None and source.coarse:
        raise BadInput(f"{flag}: the prepared {source.name}.npz holds no fine labels (fine_train and fine_test); put "
                       f"{source.layout} in its place")
    if fine is None:
        raise BadInput(f"{flag}: {source.name} has no sub-classes; cifar20 has (the fine labels of CIFAR-100)")


def _check_subclasses(a: Arrays, source: Source, ood_subclass: Sequence[int], number: np.ndarray, outputs: np.ndarray) -> None:
    flag = "--ood_subclass"
    check_fine(a.fine_train, source, flag)
    y = number[a.y_train]
    y = np.where(y >= 0, outputs[y], -2)
    for fine in ood_subclass:
        own = np.unique(a.y_train[a.fine_train == fine])
        if not len(own):
            raise BadInput(f"{flag} {fine}: there is no such sub-class; {source.name} has 0-{a.fine_train.max()}")
        above = number[own[0]]
        if above < 0:
            raise BadInput(f"{flag} {fine}: its super-class {own[0]} is not among --classes; leave the flag away")
        if outputs[above] < 0:
            raise BadInput(f"{flag} {fine}: its super-class {above} is left out whole by --ood_classes; name one of the two")
    left = np.setdiff1d(y, y[~np.isin(a.fine_train, ood_subclass)])
    if len(left := left[left >= 0]):
        told = classes_of(left, np.flatnonzero(outputs < 0))[0]
        raise BadInput(f"{flag} {','.join(map(str, ood_subclass))} leaves nothing of the super-class {told}; name it by "
                       "--ood_classes, or fewer sub-classes")
