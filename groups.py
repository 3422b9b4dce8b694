"""The forget set, and the groups in it: by number, class or file, by how much each example is memorized or entangled.

Scores come from files alone (``sources.scores``): one number for each training image (``memorization``, a proxy of it) or
a chunk of the entanglement experiment for each.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sources.arrays import Source
from sources.kept import ClassNumbers, check_fine, classes_of, labels_of
from sources.scores import POLARITY, PROXIES, arrays_in, read_scores
from utils import BadInput, Config, hp, read_whole_numbers, reading, run_of, say, sha256

LEVELS = ("low", "mid", "high")
LAST_SEED = 2**32 - 1  # of numpy's RandomState, by which the published code cuts and draws
ES_CHUNKS = (3, 12, 14)  # the published chunk ids, of 15


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForgetConfig(Config):
    """Which training examples are to be forgotten; every method and retrain of one setting get the same set."""

    # what was asked for; runs are told apart by the set itself (its split_key), however it was named
    split_seed: int = hp(1, "owns the choice of the forget set, and the order in which equal scores are taken; one original "
                         "serves any number of them", low=0, high=LAST_SEED, digest=False)
    num_indexes_to_replace: int | None = hp(None, "number of examples to forget", low=1, digest=False)
    forget_fraction: float | None = hp(None, "share of the candidates to forget, instead of a number", above=0, high=1,
                                       digest=False)
    class_to_replace: tuple[int, ...] = hp((-1,), "draw from these classes, all of them without a number; -1: from all",
                                           low=-1, digest=False)
    subclass_to_replace: ClassNumbers | None = hp(None, "the same of these sub-classes, by fine label (cifar20): 4 or 4,30",
                                                  digest=False)
    forget_mislabelled: bool = hp(False, "draw from the images that --label_noise gave a wrong label, all of them without "
                                  "a number", digest=False)
    forget_index: str | None = hp(None, "file with the training indices to forget: .npy, .npz, .json, or text with one "
                                  "a line", digest=False)
    mem: str | None = hp(None, "the N least (low), half (mid) or most (high) memorized examples, or a third of each (mix)",
                         choices=(*LEVELS, "mix"), digest=False)
    mem_proxy: str | None = hp(None, "go by this proxy instead of memorization (es: by measured entanglement)",
                               choices=PROXIES, digest=False)
    group_index: int | None = hp(None, "the first N examples of this chunk of the entanglement experiment (published: 3, 12 "
                                 "and 14; -1: a third of each)", low=-1, digest=False)
    scores: str | None = hp(None, "file of the scores (.npz), a published one too; without it, found by its record",
                            digest=False)
    any_scores: bool = hp(False, "take scores that are the same for all examples, whole numbers, or outside their definition",
                          digest=False)

    @property
    def score(self) -> str | None:
        """The name of the score that the groups are cut by; None where none is."""
        if self.group_index is not None:
            return "es"
        return self.mem_proxy or ("memorization" if self.mem or self.scores else None)

    def check(self, thirds: bool) -> None:
        """Refuse flags that contradict one another; with ``thirds`` a score may be named to refine a set chosen otherwise."""
        kinds = self.class_to_replace != (-1,) or self.subclass_to_replace is not None
        drawn = self.forget_fraction is not None or kinds or self.forget_mislabelled
        if self.forget_index is not None and (self.num_indexes_to_replace or drawn or self.mem or self.group_index is not None):
            raise BadInput("--forget_index names the forget set; leave the other flags that choose one away")
        if self.group_index is not None and (self.mem or self.mem_proxy):
            raise BadInput("--mem is for the memorization experiments and --group_index for the entanglement experiments; give "
                           "one of the two")
        if (self.mem or self.group_index is not None) and drawn:
            raise BadInput("--mem and --group_index choose from all classes by number; leave --forget_fraction, "
                           "--class_to_replace, --subclass_to_replace and --forget_mislabelled away")
        if (self.mem or self.group_index is not None) and self.num_indexes_to_replace is None:
            raise BadInput("say how many examples: --num_indexes_to_replace N")
        if not thirds and (self.mem_proxy or self.scores) and not self.mem and self.group_index is None:
            raise BadInput("say which group: --mem low, mid, high or mix (or --group_index)")


class Chosen(NamedTuple):
    """forget: int64 ascending, into the training images; groups: name -> int64 ascending, disjoint, together the forget
    set, or none; scores: name, path, sha256 of the score file, the seconds it took and ``ties``, or empty.

    ties: of each group the examples that were drawn by lot, from all that have the one score at its edge.
    """

    forget: np.ndarray
    groups: dict[str, np.ndarray]
    scores: dict[str, Any]


class Candidates(NamedTuple):
    """What there is to choose from: labels y int64 [N] of all training images, which of them train, and their key.

    mislabelled: int64, those of train with a wrong label. outputs: int64 [classes], the label of each class of the data set,
    -1 of one out of distribution; empty where the labels are the classes. fine: int64 [N], the sub-classes, or None;
    fine_ood: those of the images out of distribution; source: of the data set.
    """

    y: np.ndarray
    train: np.ndarray
    num_classes: int
    images_key: str
    mislabelled: np.ndarray = np.empty(0, np.int64)
    outputs: np.ndarray = np.empty(0, np.int64)
    fine: np.ndarray | None = None
    fine_ood: tuple[int, ...] = ()
    source: Source | None = None

    @property
    def map(self) -> np.ndarray:
        """``outputs``, of every candidate."""
        return self.outputs if len(self.outputs) else np.arange(self.num_classes)


def choose_forget(cfg: ForgetConfig, pool: Candidates, thirds: bool = False) -> Chosen:
    """The forget set; no part of validation, never all of training.

    Args:
        thirds: cut a set that was chosen otherwise into its least, middle and most memorized third, where a score is named.
    """
    cfg.check(thirds)
    groups: dict[str, np.ndarray] = {}
    ties: dict[str, int] = {}
    scores = _scores_of(cfg, pool) if cfg.score else None
    if cfg.forget_index is not None:
        gone = _read_indices(Path(cfg.forget_index), pool.train, len(pool.y))
    elif cfg.mem is not None or cfg.group_index is not None:
        groups, ties = _cut(cfg, pool, scores)
        gone = np.sort(np.concatenate(list(groups.values())))
    else:
        gone = _draw_forget(cfg, pool)
    if len(gone) == len(pool.train):
        raise BadInput(f"the forget set is the whole training set ({len(gone)} examples); forget fewer")
    ordered = cfg.score is not None and POLARITY[cfg.score] != 0
    if thirds and len(groups) < 2 and (ordered or not groups):  # a single chunk has no thirds, but may need none
        return given(cfg, pool, gone)
    return Chosen(gone, groups, _facts(cfg, groups, ties) if scores is not None else {})


def given(cfg: ForgetConfig, pool: Candidates, gone: np.ndarray) -> Chosen:
    """A forget set (int64, ascending) as it is, in thirds from the least to the most memorized where a score is named."""
    if not cfg.score:
        return Chosen(gone, {}, {})
    values = _oriented(cfg, _scores_of(cfg, pool), gone)
    groups, ties = refine(values, gone, tie_order(len(pool.y), cfg.split_seed)[gone])
    return Chosen(gone, groups, _facts(cfg, groups, ties))


# ------------------------------------------------------------------------------------------------------------ groups


class Cut(NamedTuple):
    """groups: low, mid and high, int64 ascending and disjoint; ties: of each the number that was drawn by lot, from among
    all examples that have the same score as the last one that belongs to it."""

    groups: dict[str, np.ndarray]
    ties: dict[str, int]


def tie_order(total: int, split_seed: int) -> np.ndarray:
    """The place of each of all training images (int64 [total]) in the one random order in which equal scores are taken.

    Data often lie class by class; by index, the least memorized would be of the first classes. numpy keeps RandomState's
    numbers as they are, so that the sets stay the same in later versions.
    """
    return np.random.RandomState([split_seed, 0x74696573]).permutation(total)


def cut(values: np.ndarray, index: np.ndarray, sizes: Mapping[str, int], middle: float, order: np.ndarray) -> Cut:
    """Low, mid and high of these sizes, disjoint.

    High is cut first, low from what is left, then mid as the nearest to ``middle``.

    Args:
        values: float64 [n], larger = more memorized; index: int64 [n], ascending.
        order: int64 [n], all different; equal values are taken from the smallest on.
    """
    if sum(sizes.values()) > len(index):
        raise BadInput(f"groups of {', '.join(str(sizes[level]) for level in LEVELS)} examples need {sum(sizes.values())}; "
                       f"there are {len(index)} training examples")
    left = np.arange(len(index))
    groups, ties = {}, {}
    for level, key in (("high", -values), ("low", values), ("mid", np.abs(values - middle))):
        ranked = left[np.lexsort((order[left], key[left]))]
        groups[level] = np.sort(index[ranked[: sizes[level]]])
        ties[level] = _by_lot(key[ranked], 0, sizes[level])
        left = np.sort(ranked[sizes[level] :])
    return Cut({level: groups[level] for level in LEVELS}, {level: ties[level] for level in LEVELS})


def _by_lot(ranked: np.ndarray, start: int, end: int) -> int:
    """How many of the places ``start`` to ``end`` of ascending values hold a value that other places hold too."""
    inside = ranked[start:end]
    shared = [value for value, other in ((inside[:1], ranked[:start]), (inside[-1:], ranked[end:])) if np.isin(value, other)]
    return int(np.isin(inside, shared).sum())


def refine(values: np.ndarray, index: np.ndarray, order: np.ndarray) -> Cut:
    """A given forget set in thirds, from the least to the most memorized; sizes differ by one at most.

    Args:
        values, index, order: as in ``cut``.
    """
    if len(index) < 3:
        raise BadInput(f"a forget set of {len(index)} examples has no thirds; forget three or more")
    ranked = np.lexsort((order, values))
    ends = np.cumsum([0, *thirds(len(index)).values()])
    parts = dict(zip(LEVELS, itertools.pairwise(ends), strict=True))
    return Cut({level: np.sort(index[ranked[a:b]]) for level, (a, b) in parts.items()},
               {level: _by_lot(values[ranked], a, b) for level, (a, b) in parts.items()})


def thirds(number: int) -> dict[str, int]:
    """The sizes of low, mid and high, together ``number``: what is left over goes to low, then to mid.

    As published, where low gets the one that is left over of 1,000; of two the published code takes only one.
    """
    if number < len(LEVELS):
        raise BadInput(f"--num_indexes_to_replace {number} has no thirds; take {len(LEVELS)} or more")
    return {level: (number + len(LEVELS) - 1 - place) // len(LEVELS) for place, level in enumerate(LEVELS)}


def _cut(cfg: ForgetConfig, pool: Candidates, scores: np.ndarray) -> Cut:
    number, mixed = cfg.num_indexes_to_replace, cfg.mem == "mix" or cfg.group_index == -1
    sizes = thirds(number) if mixed else dict.fromkeys(LEVELS, number)
    if cfg.score == "es":
        return _es_groups(cfg, pool, sizes)
    values = _oriented(cfg, scores, pool.train)
    middle = 0.5 if cfg.score == "memorization" else float(np.median(values))  # proxies have no scale of their own
    found = cut(values, pool.train, sizes, middle, tie_order(len(pool.y), cfg.split_seed)[pool.train])
    return found if mixed else Cut({cfg.mem: found.groups[cfg.mem]}, {cfg.mem: found.ties[cfg.mem]})


def _oriented(cfg: ForgetConfig, scores: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Scores of some training examples, larger = more memorized."""
    name = cfg.score
    if POLARITY[name] == 0:
        raise BadInput(f"--mem_proxy {name} is about groups and orders no examples; with it choose the set by --mem")
    values = POLARITY[name] * scores[index]
    if not np.isfinite(values).all():
        raise BadInput(f"the scores '{name}' are not finite for {int((~np.isfinite(values)).sum())} of {len(index)} training "
                       "examples; the file is of another split, or its run diverged: make it anew by main_memorization.py")
    return values


def _es_groups(cfg: ForgetConfig, pool: Candidates, sizes: Mapping[str, int]) -> Cut:
    """The examples of each chunk that are nearest to the centroid, as many as ``sizes`` has for its level."""
    names = ["group", "distance", "levels", "chunk_es"]
    found, _ = arrays_in(Path(cfg.scores), names)
    missing = set(names) - set(found)
    if missing:
        raise BadInput(f"{cfg.scores} holds no chunks ({', '.join(sorted(missing))} missing); make them: python "
                       "main_memorization.py --score es")
    group, distance, levels, measured = (found[name] for name in names)
    count = np.size(measured)
    whole = {group.shape, distance.shape} == {pool.y.shape} and np.isin(levels, np.arange(count)).all()
    if not whole or len(np.unique(levels)) != len(LEVELS):
        raise BadInput(f"{cfg.scores}: the chunks do not fit the {len(pool.y)} training images; make them anew: python "
                       "main_memorization.py --score es --force")
    if cfg.group_index == -1 and count <= max(ES_CHUNKS):
        raise BadInput(f"--group_index -1 means the published chunks {ES_CHUNKS} of 15; {cfg.scores} has {count} chunks")
    if cfg.group_index == -1:  # their labels go by what was measured, which does not rise with the distance
        levels, sizes = sorted(ES_CHUNKS, key=lambda chunk: measured[chunk]), _equal(sizes)
    chunks = dict(zip(LEVELS, map(int, levels), strict=True))
    if cfg.mem in LEVELS:
        chunks = {cfg.mem: chunks[cfg.mem]}
    elif cfg.group_index not in (None, -1):
        chunks = {str(cfg.group_index): cfg.group_index}
    found, order = Cut({}, {}), tie_order(len(pool.y), cfg.split_seed)
    for name, chunk in chunks.items():
        if chunk >= count:
            raise BadInput(f"there is no chunk {chunk}: {cfg.scores} has the chunks 0-{count - 1}")
        members, size = pool.train[group[pool.train] == chunk], sizes.get(name, cfg.num_indexes_to_replace)
        if size > len(members):
            raise BadInput(f"chunk {chunk} has {len(members)} examples, not {size}; forget fewer, or make fewer, larger "
                           "chunks by main_memorization.py --score es --es_chunks N")
        ranked = members[np.lexsort((order[members], distance[members]))]
        found.groups[name], found.ties[name] = np.sort(ranked[:size]), _by_lot(distance[ranked], 0, size)
    return found


def _equal(sizes: Mapping[str, int]) -> dict[str, int]:
    """As many of each of the three published chunks: what is left over is left out, as published, and said."""
    each, number = min(sizes.values()), sum(sizes.values())
    if 3 * each < number:
        say(f"notice: --group_index -1 takes equal thirds, as published: {each} examples of each chunk, {3 * each} of the "
            f"{number} asked for")
    return dict.fromkeys(LEVELS, each)


# ------------------------------------------------------------------------------------------------------- score files


def _scores_of(cfg: ForgetConfig, pool: Candidates) -> np.ndarray:
    if cfg.scores is None:
        raise BadInput(f"the scores '{cfg.score}' are missing; name their file by --scores")
    run_of(Path(cfg.scores))
    values = read_scores(Path(cfg.scores), cfg.score, pool.y, pool.images_key, "insist by --any_scores", cfg.any_scores)
    own = values[pool.train]
    if not cfg.any_scores and cfg.score != "es" and (own == own[0]).all():
        raise BadInput(f"the scores '{cfg.score}' are {own[0]:g} for all {len(own)} training examples, so that groups would be "
                       "drawn by lot; name other scores by --scores or --mem_proxy, or insist by --any_scores")
    return values


def _facts(cfg: ForgetConfig, groups: Mapping[str, np.ndarray], ties: dict[str, int]) -> dict[str, Any]:
    """What a record keeps of the scores; the seconds are those of all that had to be computed for them."""
    for name, count in ties.items():
        if 3 * count > len(groups[name]):
            say(f"notice: {count} of the {len(groups[name])} examples of the group {name} have a score that others have too, "
                f"and were drawn by lot (--split_seed {cfg.split_seed})")
    path, seconds = Path(cfg.scores), 0.0
    if (run := run_of(path)) is not None:
        spent = run.record["seconds"]
        of_curvature = cfg.score == "loss_curvature" and path.name == "events.npz"
        seconds = sum(spent.get(name, 0.0) for name in (("curvature",) if of_curvature else ("events", "score", "pool")))
    return {"name": cfg.score, "path": str(path), "sha256": sha256(path), "seconds": round(seconds, 3),
            "ties": ties}


# ------------------------------------------------------------------------------------------- by number, class or file

def _draw_forget(cfg: ForgetConfig, pool: Candidates) -> np.ndarray:
    count, fraction, wanted = cfg.num_indexes_to_replace, cfg.forget_fraction, cfg.class_to_replace
    if count and fraction:
        raise BadInput("give --num_indexes_to_replace or --forget_fraction, not both")
    if -1 in wanted and len(wanted) > 1:
        raise BadInput(f"--class_to_replace {','.join(map(str, wanted))}: -1 means all classes and stands alone")
    if -1 in wanted and not (count or fraction or cfg.forget_mislabelled or cfg.subclass_to_replace):
        raise BadInput("say what to forget: --num_indexes_to_replace N (with --mem, by memorization), --forget_fraction F, "
                       "--class_to_replace C, --subclass_to_replace S or --forget_index FILE")
    if cfg.forget_mislabelled and not len(pool.mislabelled):
        raise BadInput("--forget_mislabelled: no training image has a wrong label; train an original with --label_noise SHARE")
    among = pool.mislabelled if cfg.forget_mislabelled else pool.train
    flag, asked = "--class_to_replace", wanted
    if -1 not in wanted:
        among = among[np.isin(pool.y[among], labels_of(wanted, pool.map))]
    if cfg.subclass_to_replace:
        flag, asked = "--subclass_to_replace", cfg.subclass_to_replace
        among = among[np.isin(_subclasses(cfg, pool)[among], asked)]
    if not len(among):
        kind = "mislabelled" if cfg.forget_mislabelled else "training"
        raise BadInput(f"{flag} {','.join(map(str, asked))}: no {kind} example is of {'it' if len(asked) == 1 else 'these'}")
    if fraction:
        count = max(1, round(fraction * len(among)))
    if count is None:
        return among
    if count > len(among):
        raise BadInput(f"--num_indexes_to_replace {count}: only {len(among)} training examples to draw from")
    # as published, where the seed less 1 draws; seed 0, which is none there, is the last of RandomState's
    random = np.random.RandomState((cfg.split_seed - 1) % (LAST_SEED + 1))
    return np.sort(random.choice(among, count, replace=False))


def _subclasses(cfg: ForgetConfig, pool: Candidates) -> np.ndarray:
    """The sub-class of every training image, where those that are to be forgotten are among them."""
    flag = "--subclass_to_replace"
    check_fine(pool.fine, pool.source, flag)
    gone = np.flatnonzero(pool.map < 0)
    for number in cfg.subclass_to_replace:
        own = pool.y[pool.fine == number]
        if not len(own) and number in pool.fine_ood:
            raise BadInput(f"{flag} {number}: this sub-class is out of distribution (--ood_classes, --ood_subclass), so that "
                           "no model was trained on it; name another, or an original that was trained on this one")
        if not len(own):
            raise BadInput(f"{flag} {number}: there is no such sub-class here; there are "
                           f"{','.join(map(str, np.unique(pool.fine)))}")
        above = classes_of([np.bincount(own).argmax()], gone)[0]  # of most images, for some may have a wrong label
        if cfg.class_to_replace != (-1,) and above not in cfg.class_to_replace:
            raise BadInput(f"{flag} {number} lies in the super-class {above}, not in --class_to_replace "
                           f"{','.join(map(str, cfg.class_to_replace))}; leave --class_to_replace away")
    return pool.fine


def _read_indices(path: Path, train: np.ndarray, total: int) -> np.ndarray:
    with reading(f"cannot read --forget_index {path}", "it takes training indices: .npy, .npz with 'forget', a .json list, or "
                 "text with one a line"):
        read = read_whole_numbers(path, "forget")
    gone = np.unique(read)
    if len(gone) < len(read):
        raise BadInput(f"--forget_index {path}: {len(read) - len(gone)} indices are there more than once")
    if gone[0] < 0 or gone[-1] >= total:
        raise BadInput(f"--forget_index {path}: indices go from 0 to {total - 1}; got {gone[0]} to {gone[-1]}")
    outside = len(np.setdiff1d(gone, train))
    if outside:
        raise BadInput(f"--forget_index {path}: {outside} of the indices are in the validation split; "
                       "train with --val_fraction 0 or choose others")
    return gone
