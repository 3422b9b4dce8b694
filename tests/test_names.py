"""What a person reads: settings by what differs, plans by a label, one computation in one row, LaTeX, the best setting."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import shell
from conftest import OWN
from grouped import grouped, planned
from pretended import SEEDS, change, four_methods, notes_of, pretend, row_of, table_of, text_of

from report import best, output
from report.labels import shown_names
from report.looks import kind_of
from report.names import Heading, architecture
from report.pairs import PICKING
from report.rows import FLOOR
from report.table import Cell, Line, Part, Table, latex, markdown
from report.variants import computation
from unlearn import METHODS
from utils import BadInput, read_record


def headings_of(root: Path, **filters: object) -> list[str]:
    return sorted(told.text for told in output.headings_of(table_of(root, **filters)).values())


def settle(folder: Path, group: str, **values: object) -> None:
    record = read_record(folder).record
    change(folder, settings=record["settings"] | {group: record["settings"].get(group, {}) | values})


# -------------------------------------------------------------------------------------------------------------- settings


def test_a_setting_is_told_by_its_data_network_and_forget_set(library: Path, tmp_path: Path) -> None:
    four_methods(library, tmp_path)
    assert headings_of(tmp_path) == ["digits · ResNet-8 · random 24 of 388"]
    (told,) = output.headings_of(table_of(tmp_path)).values()
    (label,) = {row.setting for row in table_of(tmp_path)}
    assert label in told.small and not re.search(r"[0-9a-f]{6}", told.text)


def test_settings_that_would_read_alike_are_told_apart_by_their_split_seeds_and_then_by_their_hash(
        library: Path, tmp_path: Path) -> None:
    for split_seed, name in ((1, ""), (2, "b")):
        for method in ("retrain", "NG"):
            run = pretend(library, tmp_path, method, 3, name, split_key=f"{name or 'a'}-split")
            settle(run, "forget", split_seed=split_seed)
    assert headings_of(tmp_path) == [f"digits · ResNet-8 · random 24 of 388 · split seed {seed}" for seed in (1, 2)]
    for method in ("retrain", "NG"):
        settle(tmp_path / "forget" / f"{method}-3b", "forget", split_seed=1)
    told = headings_of(tmp_path)
    assert len(set(told)) == 2 and all(re.search(r"random 24 of 388 · [^ ]{6}-[0-9a-f]{4}$", text) for text in told)


@pytest.mark.parametrize(("name", "told"), [("resnet18", "ResNet-18"), ("resnet20s", "ResNet-20"), ("vgg16_bn", "VGG-16"),
                                            ("vgg16_bn_lth", "VGG-16 (LTH)"), ("another", "another"), ("wrn_28_2", "WRN-28-2"),
                                            ("swin_t", "Swin-T"), ("torchvision:resnet18", "ResNet-18 (torchvision)")])
def test_networks_have_their_names_in_the_field(name: str, told: str) -> None:
    assert architecture(name) == told


# ----------------------------------------------------------------------------------------------------------------- names


def test_methods_that_are_one_computation_are_one_row_with_both_names(library: Path, tmp_path: Path) -> None:
    for seed in SEEDS:
        pretend(library, tmp_path, "retrain", seed)
    for method, seeds in (("FT_l1", (3, 5)), ("FT_prune", (3, 8))):
        for seed in seeds:
            folder = pretend(library, tmp_path, "FT", seed, f"-{method}")
            record = read_record(shell.only(library, "forget", unlearn=method).folder).record
            settings = read_record(folder).record["settings"]
            change(folder, settings=settings | {name: record["settings"][name] for name in ("cfg", "method")})
    table = table_of(tmp_path)
    row = row_of(table, "FT_l1 = FT_prune")
    assert row.seeds == [3, 5, 8]
    assert [row.method for row in table] == ["retrain", FLOOR, "FT_l1 = FT_prune"]
    assert sum(pair.seed == 3 for pair in row.pairs) == 1
    assert "FT_l1 = FT_prune: One computation under two names" in text_of(table)


def renamed(library: Path, root: Path, of: str, name: str, seed: int, **cfg: Any) -> None:
    """A run of a method under another name of it, with these settings other than the method's own."""
    folder = pretend(library, root, of, seed, f"-{name}-{len(cfg)}")
    settings = read_record(folder).record["settings"]
    change(folder, settings=settings | {"method": {"unlearn": name}, "cfg": settings["cfg"] | cfg})


def test_names_of_one_method_are_one_row_where_their_settings_are_equal_alone(library: Path, tmp_path: Path) -> None:
    """NG and negative_grad, whose defaults differ, are two rows by their own names, and one where both were set alike."""
    for seed in SEEDS[:2]:
        pretend(library, tmp_path, "retrain", seed)
        pretend(library, tmp_path, "raw", seed)
        pretend(library, tmp_path, "NG", seed)
        renamed(library, tmp_path, "NG", "negative_grad", seed, momentum=0.0, weight_decay=0.0)
    assert {row.method for row in table_of(tmp_path)} == {"retrain", FLOOR, "raw", "NG", "negative_grad"}
    assert {row.method for row in table_of(tmp_path, best="ToW_val")} >= {"NG", "negative_grad"}
    for seed in SEEDS[1:]:
        renamed(library, tmp_path, "NG", "negative_grad", seed)
    table = table_of(tmp_path)
    told = "NG = negative_grad (momentum=0.9, weight_decay=0.0005)", "NG = negative_grad (momentum=0.0, weight_decay=0.0)"
    assert {row.method for row in table} == {"retrain", FLOOR, "raw", *told}
    assert row_of(table, told[0]).seeds == [3, 5]  # of the third seed there is no retrain


def test_to_do_nothing_is_raw_by_any_name(library: Path, tmp_path: Path) -> None:
    for seed in SEEDS[:2]:
        pretend(library, tmp_path, "retrain", seed)
        renamed(library, tmp_path, "raw", "baseline", seed)
    row = row_of(table_of(tmp_path), "raw")
    assert row.is_raw and row.seeds == [3, 5] and "speed_up" not in row.numbers


def test_the_registry_says_which_methods_are_one_computation(library: Path) -> None:
    """Their models are the same, weight by weight; no other two methods' are."""
    same = {(name, METHODS[name].same_as) for name in OWN if METHODS[name].same_as}
    assert same == {("FT_prune", "FT_l1")}
    ours, theirs = (shell.weights(shell.only(library, "forget", unlearn=name)) for name in ("FT_prune", "FT_l1"))
    assert all((ours[name] == theirs[name]).all() for name in ours)


def plan_of(library: Path, root: Path, seed: int, text: str, label: str | None = None, name: str = "") -> Path:
    folder = pretend(library, root, "NG", seed, name)
    folder = planned(grouped(folder, "confidence"), f"plan {text}")
    settle(folder, "plan", plan_label=label)
    return folder


def test_written_plans_are_numbered_and_explained_under_the_table(library: Path, tmp_path: Path) -> None:
    for seed in SEEDS:
        pretend(library, tmp_path, "retrain", seed)
        plan_of(library, tmp_path, seed, "low:raw mid:NG high:NG", name="a")
        plan_of(library, tmp_path, seed, "low:FT mid:NG high:NG", name="b")
    table = table_of(tmp_path)
    assert {row.method.split(" (")[0] for row in table} == {"retrain", FLOOR, "plan 1", "plan 2"}
    text = " ".join(text_of(table).split())
    assert "plan 1: low:FT mid:NG high:NG." in text and "plan 2: low:raw mid:NG high:NG." in text


def test_a_label_names_a_plan_and_two_plans_of_one_label_stay_apart(library: Path, tmp_path: Path) -> None:
    for seed in SEEDS:
        pretend(library, tmp_path, "retrain", seed)
        plan_of(library, tmp_path, seed, "low:raw mid:NG high:NG", "gentle", "a")
    assert "gentle" in {row.method for row in table_of(tmp_path)}
    assert [row.method for row in table_of(tmp_path, unlearn=("gentle",))][2:] == ["gentle"]
    for seed in SEEDS:
        plan_of(library, tmp_path, seed, "low:FT mid:NG high:NG", "gentle", "b")
    found = shown_names([pair for row in table_of(tmp_path) for pair in row.pairs])
    assert sorted(name for name in found.values() if "gentle" in name) == ["gentle 1", "gentle 2"]


def test_a_plan_label_is_for_a_written_plan(capsys: pytest.CaptureFixture, library: Path, tmp_path: Path) -> None:
    original = shell.only(library, "train").folder
    for words in (["--unlearn", "NG", "--plan_label", "mine"], ["--plan", "low:raw mid:NG high:NG", "--plan_label", " "],
                  ["--plan", "low:raw mid:NG high:NG", "--plan_label", "NG fast"],
                  ["--plan", "low:raw mid:NG high:NG", "--plan_label", "vanilla"]):
        with pytest.raises(SystemExit) as caught:
            shell.call("main_rum.py", "--checkpoint", original, *shell.FORGET, "--shuffle", *words, save_dir=tmp_path)
        assert caught.value.code == 2 and "--plan_label" in capsys.readouterr().err
    assert not list(tmp_path.rglob("record.json"))


def test_a_finished_plan_takes_another_label_and_nothing_else_changes(library: Path, tmp_path: Path) -> None:
    original = shell.only(library, "train").folder
    words = ["--checkpoint", original, *shell.FORGET, "--shuffle", "--plan", "low:raw mid:raw high:GA(unlearn_epochs=1)"]
    shell.call("main_rum.py", *words, "--plan_label", "first", save_dir=tmp_path)
    before = shell.only(tmp_path, "rum").record
    shell.call("main_rum.py", *words, "--plan_label", "second", save_dir=tmp_path)
    after = shell.only(tmp_path, "rum").record
    assert (before["settings"]["plan"].pop("plan_label"), after["settings"]["plan"].pop("plan_label")) == ("first", "second")
    assert before == after


# ---------------------------------------------------------------------------------------------------------------- tables


def test_columns_are_nine_at_most_and_others_by_name(library: Path, tmp_path: Path) -> None:
    table = table_of(four_methods(library, tmp_path))

    def head(**flags: object) -> list[str]:
        return [word.strip() for word in next(line for line in text_of(table, **flags).splitlines()
                                              if line.startswith("| method ")).split("|")[1:-1]]

    assert len(head()) == 9 and head()[:3] == ["method", "n", "ToW"] and "forget, %" in head()
    assert len(head(columns=("all",))) > 12
    assert head(columns=("val", "ToW")) == ["method", "n", "val, %", "ToW"]
    with pytest.raises(BadInput, match="--columns Tow: no such measure.*ToW"):
        head(columns=("Tow",))


def test_latex_has_every_cell_and_escapes_what_is_special() -> None:
    lines = tuple(Line((Cell(name), Cell("97.4 ±0.6")), anchor=anchor) for name, anchor in
                  (("retrain", True), ("RUM^F FT_l1 (mask 50 %)", False), ("a & b # {c} ~ $d \\e", False)))
    table = Table("mean", ("method", "forget, %"), lines, ("A note.",))
    text = latex([Part(Heading("digits · ResNet-8 · 10 %", "small"), (table,), ("No headroom_here.",), "tag")], "tow")
    body = text[text.index(r"\toprule"):text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 4 and all(len(re.findall(r"(?<!\\)&", row)) == 1 for row in rows)
    assert r"RUM\textasciicircum{}F FT\_l1 (mask 50 \%) & 97.4 $\pm$0.6 \\" in rows
    assert r"a \& b \# \{c\} \textasciitilde{} \$d \textbackslash{}e" in text
    assert body.index(r"\midrule", body.index("retrain")) < body.index("RUM") and text.count(r"\midrule") == 2
    assert r"No headroom\_here. A note." in text and r"\label{tab:tow-tag-1}" in text
    assert not re.search(r"(?<!\\)%", text.split("\n", 1)[1])


def test_markdown_keeps_a_bar_in_a_name_inside_its_cell() -> None:
    text = markdown([Part(Heading("h", ""), (Table("", ("method",), (Line((Cell("a|b"),)),)),))])
    assert "| a\\|b" in text


# ------------------------------------------------------------------------------------------------------------------ best


@pytest.fixture
def several(library: Path, tmp_path: Path) -> Path:
    root = four_methods(library, tmp_path)
    for seed in SEEDS:
        pretend(library, root, "NG", seed, name="b", alpha=0.8)
        pretend(library, root, "NG", seed, name="c", alpha=0.7)
    return root


@pytest.mark.parametrize("measure", PICKING)
def test_best_shows_one_setting_of_each_method_and_says_of_how_many(measure: str, several: Path) -> None:
    table = table_of(several)
    rivals = [row for row in table if row.method.startswith("NG")]
    found = best.pick(table, measure)
    (chosen,) = [row for row in found if row.method.startswith("NG")]
    values = [row.numbers[measure].mean for row in rivals]
    assert len(rivals) == 3 and chosen.numbers[measure].mean == (max if measure == "ToW_val" else min)(values)
    assert chosen.told.endswith(f"[best of 3 by {measure}]") and len(found) == len(table) - 2
    assert [row.told for row in found if "best of" in row.told] == [chosen.told]
    text = " ".join(text_of(found, best=measure).split())
    assert f"picked by {measure}, which no test image enters, over the seeds 3 5 8 that are shown" in text
    assert "picked by" not in text_of(table) and best.pick(table, None) == table


def test_no_test_image_moves_what_is_picked(several: Path) -> None:
    """Other test accuracies, in all runs: the same settings."""
    def chosen() -> set[str]:
        return {row.method for row in best.pick(table_of(several), "ToW_val") if row.picked}

    before = chosen()
    for seed in SEEDS:
        for name in ("", "b", "c"):
            folder = several / "forget" / f"NG-{seed}{name}"
            metrics = read_record(folder).record["metrics"]
            change(folder, metrics=metrics | {"test": (50.0, 80.0, 20.0)["bc".find(name) + 1 if name else 0]})
    assert chosen() == before


def test_a_collapsed_setting_or_one_of_fewer_seeds_is_not_picked(several: Path) -> None:
    first = next(row for row in best.pick(table_of(several), "ToW_val") if row.picked)
    change(first.pairs[0].run.folder, collapsed=True)
    second = next(row for row in best.pick(table_of(several), "ToW_val") if row.picked)
    assert second.method != first.method
    change(second.pairs[0].run.folder, status="running")
    third = next(row for row in best.pick(table_of(several), "ToW_val") if row.picked)
    assert third.method not in (first.method, second.method)


@pytest.mark.parametrize(("label", "kind"), [
    ("RUM", ("RUM", "RUM")), ("RUM (mask 0.5)", ("RUM", "RUM (mask 0.5)")), ("plan 2", ("plan", "plan 2")),
    ("gentle", ("plan", "gentle")), ("shuffle gentle", ("shuffle", "gentle")),
    ("RUM^F NG", ("RUM^F", "NG")), ("shuffle RUM", ("shuffle", "RUM")), ("vanilla RL (mask 0.5)", ("vanilla", "RL (mask 0.5)")),
    ("NG (alpha=0.8)", ("method alone", "NG (alpha=0.8)"))])
def test_a_plan_is_told_from_a_method_alone_by_its_name(label: str, kind: tuple[str, str]) -> None:
    assert kind_of(label) == kind


def test_random_labels_without_a_mask_are_one_method_under_two_names(library: Path, tmp_path: Path) -> None:
    """RL without --path and RL_og: the same weights, and one row; with a mask RL is another."""
    original = shell.only(library, "train")
    shell.forget(original, tmp_path, "RL", *shell.FORGET)
    alone, masked = (shell.only(root, "forget", unlearn="RL") for root in (tmp_path, library))
    ours, theirs, salun = (shell.weights(run) for run in (alone, shell.only(library, "forget", unlearn="RL_og"), masked))
    assert all((ours[name] == theirs[name]).all() for name in ours) and any((ours[n] != salun[n]).any() for n in ours)
    assert computation(alone) == "RL_og" != computation(masked)


def test_a_run_made_twice_counts_once_and_is_said(library: Path, tmp_path: Path) -> None:
    """As where a forget set was named once by its number and once by its file: the rest of the analysis is there."""
    root = four_methods(library, tmp_path)
    again = pretend(library, root, "NG", 5, "again")
    change(again, finished="2999-01-01T00:00:00Z")
    row = row_of(table_of(root), "NG")
    assert row.seeds == list(SEEDS) and again not in {pair.run.folder for pair in row.pairs}
    (said,) = notes_of(root).splitlines()
    assert said == f"note: one computation, so that the first to finish is taken: {root / 'forget' / 'NG-5'}, {again}"
    change(again, finished="2000-01-01T00:00:00Z")
    assert again in {pair.run.folder for pair in row_of(table_of(root), "NG").pairs}
