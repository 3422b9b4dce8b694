"""The demos: stages side by side in the right order, what is on the screen, what a failure and Ctrl-C leave."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path

import pytest
from pretended import of_csv, pretend

import analysis
import stages
from report.rows import FLOOR
from scripts import demo, demo_privacy, demo_sparse, recipe
from scripts.jobs import Job, hand_out, work
from unlearn import METHODS
from unlearn.plan import PlanConfig

ROOT = Path(demo.ROOT)
TABLES = ("analysis", "analysis_mia")
PRETENDED = """
import sys, time
def main(words):
    print("I am", *words)
    with open({seen!r}, "a") as file:
        file.write(words[0] + "\\n")
    if words[1:] == ["bad"]:
        print("main_pretended.py: error: bad input", file=sys.stderr)
        sys.exit(2)
    if words[1:] == ["raise"]:
        raise RuntimeError("a fault")
    if words[1:] == ["done"]:
        print("runs/x: already done; 3 s")
    if words[1:] == ["long"]:
        time.sleep(60)
"""


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stage ``main_pretended`` that writes down the first word of each of its command lines here."""
    (tmp_path / "main_pretended.py").write_text(PRETENDED.format(seen=str(tmp_path / "seen.txt")))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "main_pretended", raising=False)
    return tmp_path / "seen.txt"


def handed_out(todo: list[Job]) -> str:
    """What a worker's log holds when all is done; the worker is a thread, which starts at once."""
    log, (ours, theirs) = io.StringIO(), Pipe()
    thread = threading.Thread(target=work, args=(theirs,))
    thread.start()
    try:
        hand_out(todo, [ours], log)
    finally:
        ours.close()
        thread.join()
    return log.getvalue()


def job(name: str, *more: str, after: tuple[Job, ...] = ()) -> Job:
    return Job("main_pretended", [name, *more], f"the {name}", after)


# ------------------------------------------------------------------------------------------------------------- the jobs


def test_jobs_wait_for_what_they_come_after(seen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last, first = job("original"), job("pool")
    second = job("mask", after=(first, last))
    log = handed_out([second, job("late", after=(second,)), first, last])
    assert seen.read_text().split() == ["pool", "original", "mask", "late"]
    assert "$ python main_pretended.py mask\nI am mask\n" in log
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("]")[0] for line in lines] == ["[1/4", "[2/4", "[3/4", "[4/4"] and "the pool" in lines[0]


def test_what_was_done_before_is_counted(seen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handed_out([job("a", "done"), job("b"), job("c", "done")])
    said = capsys.readouterr().out
    assert said.count("\n") == 2 and "[2/3]" in said and "the b" in said and said.endswith("2 of 3 were done before\n")


@pytest.mark.parametrize(("how", "told"), [("bad", "error: bad input\nthe b ended with code 2"),
                                           ("raise", "RuntimeError: a fault\nthe b ended with code 1")])
def test_a_job_that_fails_ends_all_and_is_told(how: str, told: str, seen: Path) -> None:
    with pytest.raises(SystemExit) as end:
        handed_out([job("a"), job("b", how), job("c")])
    assert f"{told}: python main_pretended.py b {how}" in str(end.value)
    assert seen.read_text().split() == ["a", "b"]


def test_a_stopped_demo_leaves_no_process(seen: Path, tmp_path: Path) -> None:
    """Ctrl-C of a terminal goes to the whole group; SIGTERM ends it in the same way."""
    code = ("from pathlib import Path; from scripts.jobs import Job, follow\n"
            "todo = [Job('main_pretended', ['a', 'long'], 'the a')]\n"
            f"if __name__ == '__main__': follow(todo, Path({str(tmp_path)!r}))")
    (tmp_path / "start.py").write_text(code)
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    process = subprocess.Popen([sys.executable, str(tmp_path / "start.py")], env=os.environ | {"PYTHONPATH": path},
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: seen.exists() and seen.read_text() == "a\n")
    os.killpg(process.pid, signal.SIGINT)
    said, error = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT and "the same command goes on" in said and "Traceback" not in error
    wait_for(lambda: not alive(process.pid))  # Python's own helper ends a moment later


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(known: Callable[[], bool]) -> None:
    for _ in range(600):
        if known():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


@pytest.mark.parametrize("todo", [demo.jobs("out", [1, 2]), demo_sparse.jobs("out", "1"),
                                  demo_privacy.jobs("out", [1, 2])])
def test_every_command_of_the_demos_has_flags_of_its_stage(todo: list[Job]) -> None:
    names = {stage: script.removesuffix(".py") for stage, (script, _) in stages.STAGES.items()}
    for one in todo:
        stage = next(stage for stage, script in names.items() if script == one.stage)
        groups, entry = stages.chosen(stage, stages.peek(one.words, "unlearn") or stages.peek(one.words, "score")
                                      or ("memorization" if stage == "memorization" else None))
        known = {stages.flag_of(stage, group, field.name) for group, config in groups.items()
                 for field in dataclasses.fields(config)}
        typed = {word.removeprefix("--").removeprefix("no_") for word in one.words if word.startswith("--")}
        assert typed <= known, one.command
    assert len({one.command for one in todo}) == len({one.what for one in todo}) == len(todo)


def test_jobs_of_the_demo_come_after_what_they_read() -> None:
    todo = demo.jobs("out", [1, 2])
    for one in todo:
        before = {other.stage for other in closure(one)}
        assert "main_train" in before or one.stage == "main_train" or "--shard" in one.words, one.what
        assert one.stage != "main_random" or "generate_mask" in before
        assert "--mem" not in one.words or len([other for other in closure(one) if "--shard" in other.words]) == demo.SHARDS
        seeds = {stages.peek(other.words, "seed") for other in closure(one)} - {None}
        assert one.stage in TABLES or seeds <= {stages.peek(one.words, "seed")}
    assert all(len(closure(one)) == len(todo) - 2 for one in todo[-2:])


def closure(one: Job) -> set[Job]:
    """All jobs that it comes after, in one step or several."""
    return set(one.after).union(*map(closure, () if one.stage in TABLES else one.after))


def test_the_recipe_of_the_demo_is_of_methods_and_their_settings() -> None:
    tuned = recipe.read(demo.RECIPE)
    assert set(demo.METHODS) - {"raw"} <= tuned.keys()
    for name, entry in tuned.items():
        for kind in demo.FORGET_SETS:
            METHODS[name].config(**recipe.values(entry, kind))
    PlanConfig(plan=demo.PLAN)


# ----------------------------------------------------------------------------------------------------------- the last screen


def test_numbers_on_the_screen_are_those_of_the_table(library: Path, tmp_path: Path) -> None:
    for seed in (3, 5, 8):
        for method in ("retrain", "raw", "FT", "NG"):
            pretend(library, tmp_path, method, seed)
    analysis.main(["--save_dir", str(tmp_path), "--out", str(tmp_path), "--venue", "none"])
    shown = {line[:18].strip(): line[18:].split() for line in demo.report(tmp_path).splitlines()[1:]}
    with (tmp_path / "tow.csv").open(newline="") as file:
        lines = {line["method"]: line for line in csv.DictReader(file)}
    assert list(shown)[:2] == [FLOOR, "raw"] and shown.keys() == lines.keys() - {"retrain"}
    for method, words in shown.items():
        mean, ends = of_csv(lines[method], "ToW")
        assert words == [f"{mean:.2f}", f"[{ends[0]:.2f},", f"{ends[1]:.2f}]"]


def line_of(method: str, setting: str, tow: float, width: float = 0.02, run: str = "", reason: str = "") -> dict[str, str]:
    return {"method": method, "setting": setting, "ToW": str(tow), "ToW_low": str(tow - width), "ToW_high": str(tow + width),
            "nobody_best": reason, "runs": run}


def test_a_set_without_headroom_is_told_and_not_shown(library: Path, tmp_path: Path) -> None:
    run = str(pretend(library, tmp_path, "retrain", 3))
    lines = [line_of("retrain", place, 1, 0, run) for place in "ab"]
    reason = "no headroom: the original itself lies within delta of retrain (1 points)"
    lines += [line_of("raw", "a", 0.93, reason=reason)]
    lines += [line_of(FLOOR, "a", 0.94), line_of("raw", "b", 0.7), line_of(FLOOR, "b", 0.94)]
    lines += [line_of("FT (unlearn_lr=0.1)", "a", 0.91), line_of("FT (unlearn_lr=0.1)", "b", 0.81)]
    lines.append(line_of("RUM", "b", 0.85))
    head, *text, told = demo.screen(lines).splitlines()
    assert [line.split("  ")[0] for line in text] == [FLOOR, "raw", "RUM", "FT"] and "0.91" not in "".join(text)
    assert told.startswith("not shown: random") and head.count("random") == 1
    assert told.endswith(": no headroom: the original itself lies within delta of retrain")


def test_the_last_screen_is_one_screen(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    """With every method of the demo on each of three sets."""
    run = str(pretend(library, tmp_path, "retrain", 3))
    names = ["raw", FLOOR, *demo.METHODS[1:], "RL (mask 0.5)", "RUM"]
    names += [f"{kind} {name}" for kind in ("RUM^F", "shuffle", "vanilla") for name in demo.REFINED]
    lines = [line_of("retrain", place, 1, 0, run) for place in "abc"]
    lines += [line_of(name, place, 0.9 if name == FLOOR else 0.5) for name in names for place in "abc"]
    monkeypatch.setattr(demo, "follow", lambda todo, out: None)
    monkeypatch.setattr(demo, "report", lambda out: demo.screen(lines))
    demo.main([])
    text = capsys.readouterr().out.splitlines()
    assert len(text) <= 45 and max(map(len, text)) <= 120 and len(text) > len(names)


# ------------------------------------------------------------------------------------------------------ what a class leaves


def test_planes_of_a_seed_wait_for_its_runs_alone_and_tables_for_all() -> None:
    todo = demo_privacy.jobs("out", [1, 2])
    (planes,) = [one for one in todo if "tsne" in one.words]
    assert {stages.peek(one.words, "seed") for one in planes.after} == {"1"} and len(planes.after) == 11
    assert all(set(one.after) == {other for other in todo if other.stage.startswith("main")} for one in todo[-2:])


def test_the_privacy_demo_ends_with_its_table_and_picture_and_then_only_redraws(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """At toy size, its jobs one after another in this process."""
    small = ["--train_per_class", "20", "--device", "cpu"]
    monkeypatch.setattr(demo_privacy, "DATA", [*demo_privacy.DATA[:-1], "1", *small])
    monkeypatch.setattr(demo_privacy, "METHODS", ("amnesiac",))
    monkeypatch.setattr(demo_privacy, "POINTS", "20")
    monkeypatch.setattr(demo_privacy, "follow", lambda todo, out: [importlib.import_module(one.stage).main(list(one.words))
                                                                   for one in todo])
    screens = []
    for _ in range(2):
        demo_privacy.main(["--out", str(tmp_path), "--seeds", "1"])
        screens.append(capsys.readouterr().out)
    assert screens[1].count(": already done; ") == 6
    text = screens[1][screens[1].rindex("\nDigits without"):]
    lines = {line.split("|")[1].strip(): [word.strip() for word in line.split("|")[2:-1]] for line in text.splitlines()
             if line.startswith("|")}
    assert list(lines)[2:] == ["original", "retrain", "amnesiac", "amnesiac_our", "our", "original, never seen"]
    with (tmp_path / "tow.csv").open(newline="") as file:
        (own,) = [line for line in csv.DictReader(file) if line["method"] == "amnesiac_our"]
    with (tmp_path / "distribution_means.csv").open(newline="") as file:
        (inside,) = [line for line in csv.DictReader(file) if line["method"] == "amnesiac_our"]
    assert lines["amnesiac_our"][:2] == [f"{float(own['ToW']):.2f}", f"{float(own['UA']):.1f}"]
    assert lines["amnesiac_our"][-2] == f"{float(inside['silhouette_all']):.3f}"
    assert max(map(len, text.replace(str(tmp_path), "runs/demo_privacy").splitlines())) <= 120, text
    assert (tmp_path / "picture" / "distribution_penultimate.png").is_file() and "distribution_penultimate.png" in text
