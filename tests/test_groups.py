"""Groups of the forget set by scores: exact, disjoint, the same for every stage, from files that are of the same data."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
from scored import by_hand, places, scored_original, tied, write_chunks

from groups import LEVELS, Candidates, Chosen, ForgetConfig, choose_forget, cut, refine, thirds, tie_order
from sources.scores import POLARITY
from utils import BadInput, Saved, read_record, sha256

FALLING = {"confidence", "max_conf", "bi_acc"}  # with memorization; by what the words mean, not by the table in the code
RISING = {"memorization", "entropy", "ho_ret", "loss_curvature", "el2n", "forgetting"}

scored = pytest.fixture(scope="module")(scored_original)


def pool(random: np.random.Generator, count: int = 120) -> Candidates:
    """Labels of ``count`` images of three classes, of which some 90 % train."""
    train = np.flatnonzero(random.random(count) < 0.9)
    return Candidates(random.integers(0, 3, count), train, 3, "of-these-images")


def choose(folder: Path, among: Candidates, thirds: bool = False, **settings: Any) -> Chosen:
    """The forget set by the scores in scores.npz of a folder."""
    return choose_forget(ForgetConfig(scores=str(folder / "scores.npz"), **settings), among, thirds)


def listed(found: dict[str, np.ndarray]) -> dict[str, list[int]]:
    return {name: index.tolist() for name, index in found.items()}


# ------------------------------------------------------------------------------------------------------ the cut itself


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("middle", [0.5, 0.0, -0.13])
def test_groups_are_disjoint_and_exact_for_every_size(seed: int, middle: float) -> None:
    random = np.random.default_rng(seed)
    index = np.sort(random.choice(500, random.integers(30, 70), replace=False))
    values, place = tied(random, len(index)), places(500)
    order = np.array(place)[index]
    for size in range(1, len(index) // 3 + 1):
        found = cut(values, index, dict.fromkeys(LEVELS, size), middle, order).groups
        assert list(found) == list(LEVELS)
        assert all(len(part) == size and (np.diff(part) > 0).all() for part in found.values())
        assert len(np.unique(np.concatenate(list(found.values())))) == 3 * size
        assert listed(found) == by_hand(values, index, size, middle, place)
    with pytest.raises(BadInput, match=f"there are {len(index)} training"):
        cut(values, index, dict.fromkeys(LEVELS, len(index) // 3 + 1), middle, order)


def test_every_image_has_a_place_of_its_own_and_seeds_shuffle_them() -> None:
    orders = [tie_order(400, seed) for seed in (0, 1, 2, 2**32 - 1)]
    assert all(sorted(order.tolist()) == list(range(400)) for order in orders)
    assert np.array_equal(orders[1], places(400)) and np.array_equal(tie_order(400, 1), orders[1])
    assert all(abs(np.corrcoef(a, b)[0, 1]) < 0.2 for a, b in itertools.combinations([*orders, np.arange(400)], 2))


def test_the_least_memorized_are_of_all_classes_where_data_lie_by_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """400 images of ten classes, one class after another, of which hardly any was ever forgotten."""
    y = np.repeat(np.arange(10), 40)
    among = Candidates(y, np.arange(400), 10, "of-these-images")
    counts = np.where(np.random.default_rng(0).random(400) < 0.1, 3, 0)
    np.savez(tmp_path / "scores.npz", forgetting=counts)
    settings = {"mem": "low", "mem_proxy": "forgetting", "num_indexes_to_replace": 40}
    found = choose(tmp_path, among, **settings)
    assert np.bincount(y[found.forget], minlength=10).max() <= 10  # hypergeometric: above 10 with probability 0.002
    assert (counts[found.forget] == 0).all()
    assert found.scores["ties"] == {"low": 40}
    assert "notice: 40 of the 40 examples of the group low" in capsys.readouterr().out
    assert not np.array_equal(choose(tmp_path, among, split_seed=2, **settings).forget, found.forget)
    assert np.array_equal(choose(tmp_path, among, **settings).forget, found.forget)


def test_ties_are_counted_where_others_have_the_same_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And told from a third of the group on; a score that a group has to itself is no tie."""
    among = Candidates(np.arange(60) % 3, np.arange(60), 3, "of-these-images")
    scores = np.concatenate([np.linspace(-0.3, -0.1, 10), np.zeros(20), np.linspace(0.1, 0.4, 12), np.full(18, 0.9)])
    np.savez(tmp_path / "scores.npz", memorization=scores)
    for number, low in ((10, 0), (13, 3), (15, 5), (16, 6)):
        found = choose(tmp_path, among, mem="low", num_indexes_to_replace=number)
        assert found.scores["ties"] == {"low": low}
        assert ("notice: " in capsys.readouterr().out) == (3 * low > number)
    assert choose(tmp_path, among, mem="high", num_indexes_to_replace=18).scores["ties"] == {"high": 0}
    assert choose(tmp_path, among, mem="high", num_indexes_to_replace=17).scores["ties"] == {"high": 17}
    # high takes the 18 of 0.9, low the ten below 0 and eight of the zeros, mid those above 0 and six zeros of twelve
    assert choose(tmp_path, among, mem="mix", num_indexes_to_replace=54).scores["ties"] == {"low": 8, "mid": 6, "high": 0}
    # of all sixty: 10 + 10 zeros, 10 zeros + 10, 2 + 18
    whole = refine(scores, np.arange(60), np.arange(60))
    assert whole.ties == {"low": 10, "mid": 10, "high": 0}


@pytest.mark.parametrize("count", range(3, 40))
def test_refinement_cuts_a_given_set_into_thirds(count: int) -> None:
    random = np.random.default_rng(count)
    index, values = np.sort(random.choice(500, count, replace=False)), tied(random, count)
    place = places(500)
    found = refine(values, index, np.array(place)[index]).groups
    order = [i for *_, i in sorted(zip(values.tolist(), np.array(place)[index].tolist(), index.tolist(), strict=True))]
    sizes = [len(found[level]) for level in LEVELS]
    assert sum(sizes) == count and max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)
    ends = np.cumsum([0, *sizes])
    assert listed(found) == {level: sorted(order[a:b]) for level, (a, b) in zip(LEVELS, itertools.pairwise(ends), strict=True)}


# -------------------------------------------------------------------------------------------------- chosen by the flags


def test_middle_of_memorization_is_a_half_and_of_a_proxy_its_median(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    among = pool(random)
    skewed = random.random(len(among.y)) ** 4  # the median is far from one half
    np.savez(tmp_path / "scores.npz", memorization=skewed, entropy=skewed, confidence=1 - skewed)
    own = skewed[among.train]
    for name, middle in ((None, 0.5), ("entropy", np.median(own)), ("confidence", np.median(own))):
        found = choose(tmp_path, among, mem="mid", mem_proxy=name, num_indexes_to_replace=12).forget
        assert found.tolist() == by_hand(own, among.train, 12, middle, places(120))["mid"]


@pytest.mark.parametrize("name", sorted(FALLING | RISING))
def test_high_is_most_memorized_under_every_score(name: str, tmp_path: Path) -> None:
    random = np.random.default_rng(len(name))
    among = pool(random)
    memorized = (random.permutation(len(among.y)) / len(among.y)).astype(np.float32)
    np.savez(tmp_path / "scores.npz", **{name: 1 - memorized if name in FALLING else memorized})
    order = among.train[np.argsort(memorized[among.train])]
    settings = {"mem_proxy": None if name == "memorization" else name, "num_indexes_to_replace": 20}
    assert set(choose(tmp_path, among, mem="high", **settings).forget) == set(order[-20:])
    assert set(choose(tmp_path, among, mem="low", **settings).forget) == set(order[:20])


def test_every_score_has_a_polarity() -> None:
    assert {n: p for n, p in POLARITY.items() if p} == dict.fromkeys(FALLING, -1) | dict.fromkeys(RISING, 1)
    assert POLARITY["es"] == 0


@pytest.mark.parametrize(("number", "low", "mid", "high"), [
    (3, 1, 1, 1), (24, 8, 8, 8), (60, 20, 20, 20), (100, 34, 33, 33), (26, 9, 9, 8), (4, 2, 1, 1)])
def test_mix_is_the_three_groups_of_a_third(number: int, low: int, mid: int, high: int, tmp_path: Path) -> None:
    """Of as many as were asked for: what is left over goes to low, as published (1,000: 333 + 333 + 334), then to mid."""
    random = np.random.default_rng(number)
    among = pool(random)
    scores = tied(random, len(among.y))
    np.savez(tmp_path / "scores.npz", memorization=scores)
    mixed = choose(tmp_path, among, mem="mix", num_indexes_to_replace=number)
    assert listed(mixed.groups) == by_hand(scores[among.train], among.train, (low, mid, high), 0.5, places(120))
    assert mixed.forget.tolist() == sorted(i for part in mixed.groups.values() for i in part) and len(mixed.forget) == number
    for level, size in (("low", low), ("mid", mid), ("high", high)):
        alone = choose(tmp_path, among, mem=level, num_indexes_to_replace=size)
        assert list(alone.groups) == [level]
        assert number % 3 or alone.forget.tolist() == mixed.groups[level].tolist()
    with pytest.raises(BadInput, match="2 has no thirds; take 3 or more"):
        choose(tmp_path, among, mem="mix", num_indexes_to_replace=2)


def test_a_thousand_in_the_mix_are_as_published() -> None:
    """333 of high and of mid, 334 of low, as Python's floors of N // 3 and -N // 3 have it."""
    number = 1000
    ranked = list(range(2000))
    published = {"high": len(ranked[: number // 3]), "mid": len(ranked[: number // 3]), "low": len(ranked[-number // 3:])}
    assert thirds(number) == published and sum(published.values()) == number


@pytest.mark.parametrize("name", ["memorization", "confidence", "forgetting"])
def test_numbers_outside_their_definition_are_refused_unless_meant(name: str, tmp_path: Path) -> None:
    """Out of bounds, whole and all the same; what no image that trains has is no matter, and a count is whole by nature."""
    random = np.random.default_rng(6)
    among = pool(random)
    fine = random.random(120)
    wrong = {"above": fine + 1, "below": fine - 1.5, "whole": np.arange(120) % 2, "same": np.full(120, 0.5)}
    for kind, values in wrong.items():
        np.savez(tmp_path / "scores.npz", **{name: values})
        settings = {"mem": "high", "num_indexes_to_replace": 12, "mem_proxy": None if name == "memorization" else name}
        if name == "forgetting" and kind in ("above", "whole"):
            choose(tmp_path, among, **settings)
            continue
        with pytest.raises(BadInput, match="--any_scores"):
            choose(tmp_path, among, **settings)
        found = choose(tmp_path, among, any_scores=True, **settings).forget
        sign = -1 if name == "confidence" else 1
        assert found.tolist() == by_hand(sign * values[among.train] * 1.0, among.train, 12, 0.5, places(120))["high"]
    values = np.where(np.isin(np.arange(120), among.train), fine, np.nan) + 0j
    np.savez(tmp_path / "scores.npz", **{name: values})
    with pytest.raises(BadInput, match="one real number"):
        choose(tmp_path, among, any_scores=True, mem="high", num_indexes_to_replace=12, mem_proxy=settings["mem_proxy"])


def test_a_set_chosen_otherwise_is_refined_by_the_scores(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    among = pool(random)
    scores, place = tied(random, len(among.y)), np.array(places(120))
    np.savez(tmp_path / "scores.npz", memorization=scores, max_conf=0.5 - scores / 2)
    plain = choose_forget(ForgetConfig(num_indexes_to_replace=31), among)
    for settings in ({}, {"mem_proxy": "max_conf"}):
        found = choose(tmp_path, among, thirds=True, num_indexes_to_replace=31, **settings)
        assert found.forget.tolist() == plain.forget.tolist() and not plain.groups
        assert listed(found.groups) == listed(refine(scores[plain.forget], plain.forget, place[plain.forget]).groups)
    high = choose(tmp_path, among, thirds=True, mem="high", num_indexes_to_replace=30)
    assert high.forget.tolist() == choose(tmp_path, among, mem="high", num_indexes_to_replace=30).forget.tolist()
    assert listed(high.groups) == listed(refine(scores[high.forget], high.forget, place[high.forget]).groups)


def test_validation_images_need_no_score(tmp_path: Path) -> None:
    """And they are never chosen, whatever score they have."""
    random = np.random.default_rng(3)
    among = pool(random)
    scores = np.full(len(among.y), np.nan)
    scores[among.train] = tied(random, len(among.train))
    np.savez(tmp_path / "scores.npz", memorization=scores)
    sets = [choose(tmp_path, among, mem="mix", num_indexes_to_replace=30).forget]
    np.savez(tmp_path / "scores.npz", memorization=np.nan_to_num(scores, nan=1))
    sets.append(choose(tmp_path, among, mem="mix", num_indexes_to_replace=30).forget)
    assert np.array_equal(*sets) and np.isin(sets[0], among.train).all()


# --------------------------------------------------------------------------------------------------- published files


def test_published_files_are_read_as_they_are(tmp_path: Path) -> None:
    """Scores alone under their key; and the released file, whose labels are there to be checked."""
    random = np.random.default_rng(4)
    among = pool(random)
    scores = random.random(len(among.y)).astype(np.float32)
    files = ({"memorization": scores, "influence": scores[:3, None]},
             {"tr_mem": scores, "tr_labels": among.y.astype(np.int32), "tt_labels": among.y[:5], "infl_matrix_class0": scores})
    expected = by_hand(scores[among.train].astype(np.float64), among.train, 15, 0.5, places(120))
    for content in files:
        np.savez(tmp_path / "scores.npz", **content)
        assert listed(choose(tmp_path, among, mem="mix", num_indexes_to_replace=45).groups) == expected
    np.savez(tmp_path / "scores.npz", tr_mem=scores, tr_labels=np.roll(among.y, 1))
    with pytest.raises(BadInput, match="of another data set: its labels differ"):
        choose(tmp_path, among, mem="mix", num_indexes_to_replace=45)


# ----------------------------------------------------------------------------------------------------- chunks by ES


def test_chunks_give_their_examples_nearest_to_the_centroid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(5)
    among = pool(random, 600)
    made = write_chunks(tmp_path / "scores.npz", among, random)

    def nearest(chunk: int, size: int) -> list[int]:
        members = [i for i in among.train.tolist() if made["group"][i] == chunk]
        return sorted(sorted(members, key=lambda i: (made["distance"][i], places(600)[i]))[:size])

    for chunk in range(15):
        found = choose(tmp_path, among, group_index=chunk, num_indexes_to_replace=9)
        assert found.forget.tolist() == nearest(chunk, 9) and list(found.groups) == [str(chunk)]
    published = sorted((3, 12, 14), key=lambda chunk: made["chunk_es"][chunk])
    mixed = choose(tmp_path, among, group_index=-1, num_indexes_to_replace=27)
    assert listed(mixed.groups) == {level: nearest(chunk, 9) for level, chunk in zip(LEVELS, published, strict=True)}
    assert set(mixed.scores["ties"]) == set(LEVELS) and max(mixed.scores["ties"].values()) > 0
    published = choose(tmp_path, among, group_index=-1, num_indexes_to_replace=29)  # the published floor of a third of each
    assert listed(published.groups) == listed(mixed.groups) and "27 of the 29 asked for" in capsys.readouterr().out
    measured = choose(tmp_path, among, mem="mix", mem_proxy="es", num_indexes_to_replace=27)
    assert listed(measured.groups) == {level: nearest(c, 9) for level, c in zip(LEVELS, made["levels"], strict=True)}
    for level, chunk in zip(LEVELS, made["levels"], strict=True):
        found = choose(tmp_path, among, mem=level, mem_proxy="es", num_indexes_to_replace=9)
        assert found.forget.tolist() == nearest(chunk, 9)


def test_a_single_chunk_can_be_unlearned_whole_and_not_refined(tmp_path: Path) -> None:
    random = np.random.default_rng(6)
    among = pool(random, 600)
    write_chunks(tmp_path / "scores.npz", among, random)
    found = choose(tmp_path, among, thirds=True, group_index=3, num_indexes_to_replace=9)
    assert list(found.groups) == ["3"]
    with pytest.raises(BadInput, match="orders no examples"):
        choose(tmp_path, among, thirds=True, mem_proxy="es", num_indexes_to_replace=9)


@pytest.mark.parametrize("changed", [
    {"levels": np.array([1, 2, 15])}, {"levels": np.array([1, 2, 2])}, {"levels": np.array([1, 2])},
    {"group": np.zeros(4, np.int64)}, {"distance": np.zeros((2, 300))}, {"chunk_es": np.arange(3.0)},
    {"distance": np.array([None, "x"])}], ids=lambda changed: ",".join(f"{k}{v.shape}" for k, v in changed.items()))
def test_chunks_that_do_not_fit_are_bad_input(changed: dict[str, np.ndarray], tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    among = pool(random, 600)
    made = write_chunks(tmp_path / "scores.npz", among, random, **changed)
    if "chunk_es" in changed:
        made["levels"][:] = [2, 3, 4]
        np.savez(tmp_path / "scores.npz", **(made | changed))
    with pytest.raises(BadInput, match=r"scores\.npz"):
        choose(tmp_path, among, mem="mix", mem_proxy="es", num_indexes_to_replace=9)


# ------------------------------------------------------------------------------------------- through the command line


@pytest.mark.parametrize("words", ["--mem mix --num_indexes_to_replace 30", "--mem low --num_indexes_to_replace 20",
                                   "--mem mid --mem_proxy confidence --num_indexes_to_replace 15"])
def test_every_stage_forgets_the_same_groups(words: str, scored: tuple[Saved, Path], tmp_path: Path) -> None:
    """Mask, methods of both mains, retrain and the plan; the file that each leaves gives the set once more."""
    original, scores = scored
    asked = [*words.split(), "--scores", scores]
    none = ["--unlearn_epochs", 0]
    shell.call("generate_mask.py", "--checkpoint", original.folder, *asked, save_dir=tmp_path)
    for method in ("retrain", "NG"):
        shell.forget(original, tmp_path, method, *asked, *none)
    shell.call("main_random.py", "--checkpoint", original.folder, "--unlearn", "RL_og", *none, *asked, save_dir=tmp_path)
    shell.call("main_rum.py", "--checkpoint", original.folder, "--unlearn", "raw", *asked, save_dir=tmp_path)
    runs = [shell.only(tmp_path, "mask"), shell.only(tmp_path, "rum"),
            *(shell.only(tmp_path, "forget", unlearn=method) for method in ("retrain", "NG", "RL_og"))]
    with np.load(runs[0].folder / "splits.npz") as file:
        first = dict(file)
    for run in runs:
        with np.load(run.folder / "splits.npz") as file:
            assert all(np.array_equal(file[part], first[part]) for part in ("train", "val", "retain", "forget"))
            made = [file[name] for name in file.files if name.startswith("group_")]
            assert np.array_equal(np.sort(np.concatenate(made)), file["forget"])
        assert run.record["split_key"] == runs[0].record["split_key"]
        assert run.record["scores"]["sha256"] == sha256(scores)
        assert sum(run.record["groups"].values()) == run.record["forget_size"] == len(first["forget"])
    assert read_record(runs[0].folder).record["groups"].keys() == runs[2].record["groups"].keys()
    values = np.load(scores)[runs[0].setting("mem_proxy") or "memorization"][first["train"]]
    sign = -1 if "confidence" in words else 1
    middle = 0.5 if "--mem_proxy" not in words else np.median(sign * values)
    level, size = words.split()[1], int(words.split()[-1])
    known = by_hand(sign * values, first["train"], size // 3 if level == "mix" else size, middle, places(430))
    assert first["forget"].tolist() == sorted(i for name in known for i in known[name] if level in ("mix", name))

    shell.forget(original, tmp_path / "again", "NG", "--forget_index", runs[0].folder / "splits.npz", *none)
    again = shell.only(tmp_path / "again", "forget")
    assert again.record["split_key"] == runs[0].record["split_key"] and again.folder.name == runs[3].folder.name
