"""The benchmarks: every row runs, its answers are those of its plain twin, and tables are kept where they belong."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import quiet_runtime

from benchmarks import __main__ as bench
from benchmarks import goals, harness, plain, pool, processes, results
from benchmarks.harness import ROWS, Case, Context, Line, Row, Skipped, Spread, Took
from evaluation import mia
from memorization import engines
from utils import Runtime, RuntimeConfig

FOLDER = Path(bench.__file__).parent
EXACT = {"weights chosen otherwise": 0, "layers that keep another number": 0, "largest difference": 1e-12,
         "share of the mask that differs": 1e-3, "difference of variance": 1e-9, "difference of silhouette_all": 1e-9,
         "relative difference": 1e-2, "off float64": 1e-4}  # the textbook recursion rounds in float32


def started(words: Sequence[str], environment: Mapping[str, str] | None = None) -> Took:
    """In place of a process: what it would run is there, and answers as the training steps do."""
    if words[1] == "-m":
        assert importlib.util.find_spec(words[2]) is not None
    else:
        assert words[1] == "-c" or (harness.ROOT / words[1]).is_file()
    return Took(2.0, 1.0, "0.5 0.25 7", 100.0)


def test_every_row_runs_at_toy_size_and_answers_as_its_plain_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "launch", started)
    monkeypatch.setattr(pool.factory, "_spread", lambda pool, numbers, *_: engines.serial(pool.setup, pool.subset, numbers))
    monkeypatch.setattr(pool, "processor", lambda _: 0.0)
    seen: dict[str, int] = {}
    real = bench.measure

    def counted(row: Row, *rest: Any) -> Iterator[Line]:
        for line in real(row, *rest):
            seen[row.name] = seen.get(row.name, 0) + 1
            yield line

    monkeypatch.setattr(bench, "measure", counted)
    out = tmp_path / "RESULTS.md"
    words = ["--quick", "--rounds", "1", "--no_memory", "--threads", "1", "--device", "cpu", "--append", "--out", str(out)]
    bench.main(words)
    assert set(seen) == set(ROWS.names()) and len(seen) >= 18
    found = results.read(out.read_text())
    assert len(found) == sum(seen.values()) >= 30
    held = [(line.name, name, float(value)) for line in found for name, value in line.facts.items() if name in EXACT]
    assert len(held) >= 12 and not [one for one in held if one[2] > EXACT[one[1]]]


# ------------------------------------------------------------------------------------------------------------ measuring


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(quiet_runtime(), 1, True, tmp_path)


def lines_of(case: Case, c: Context, rounds: int) -> list[Line]:
    return list(harness.measure(Row("toy", "", 0, lambda _: iter([case])), c, rounds, memory=False))


def test_sides_are_measured_in_turns_and_ratios_are_of_one_round(context: Context) -> None:
    """Ours takes 1, 2, 4 s beside 10, 10, 80: the median ratio is 10, which is not that of the medians, 5."""
    order: list[str] = []

    def side(name: str, *walls: float) -> harness.Side:
        left = [99.0, *walls]  # the first is the warm-up

        def call() -> Took:
            order.append(name)
            return Took(wall := left.pop(0), 2 * wall, name)

        return lambda: call

    case = Case("toy", {"ours": side("a", 1, 2, 4), "plain": side("b", 10, 10, 80)}, work=8, unit="img/s",
                check=lambda answers: {"answers": "".join(answers.values())})
    (line,) = lines_of(case, context, 3)
    assert order == ["a", "b"] * 4
    assert line.wall == (10, 5, 20) and line.cpu == (10, 5, 20)
    assert line.ours == (2, 1, 4) and line.theirs == (10, 10, 80)
    assert line.facts == {"img/s": 4.0, "answers": "ab"}


def test_every_clock_waits_for_the_device(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that works on in the background is emulated by what it is asked: it is drained before each reading."""
    asked: list[str] = []
    monkeypatch.setattr(context.rt, "drain", lambda: asked.append("drain"))
    monkeypatch.setattr(harness.time, "perf_counter", lambda: asked.append("clock") or 0.0)
    case = Case("toy", {name: lambda: lambda: asked.append("work") for name in ("ours", "plain")})
    lines_of(case, context, 2)
    assert asked == ["drain", "clock", "work", "drain", "clock"] * 6


def test_threads_of_a_case_are_its_own(context: Context) -> None:
    seen: list[int] = []
    case = Case("toy", {name: lambda: lambda: seen.append(torch.get_num_threads()) for name in ("ours", "plain")}, threads=2)
    before = torch.get_num_threads()
    lines_of(case, context, 1)
    assert set(seen) == {2} and torch.get_num_threads() == before == 1


def test_memory_is_of_a_process_that_makes_one_side_alone(context: Context) -> None:
    made: list[str] = []
    held = {name: lambda name=name: made.append(name) or (lambda: None) for name in ("ours", "plain")}
    peak = harness.once(Row("toy", "", 0, lambda _: iter([Case("none", {}), Case("toy", held)])), context, 1, "plain")
    assert made == ["plain"] and peak > 50


def test_a_process_tells_its_peak_and_its_processor_seconds() -> None:
    took = harness.launch(harness.python("-S", "-c", "x = b'x' * 2**27; n = sum(range(10**6)); print('done')"))
    assert took.answer.strip() == "done" and took.peak > 128 and 0 < took.cpu <= took.wall * os.cpu_count()


def test_a_process_that_fails_is_told_in_one_line() -> None:
    with pytest.raises(harness.BadInput, match="code 3"):
        harness.launch(harness.python("-S", "-c", "raise SystemExit(3)"))


# -------------------------------------------------------------------------------------------------------------- tables


def line(name: str, wall: float = 3.0) -> Line:
    one = Spread(1.5, 1.25, 2000.4)
    return Line(name, "plain", one, one, Spread(wall, 2.0, 4.0), one, 100.0, None, {"img/s": 12.5, "solvers": "a + b"})


def test_a_table_goes_under_its_machine_and_a_rerun_beneath_it(tmp_path: Path) -> None:
    """And what people wrote around it stays; the table of a running run is replaced by its longer one."""
    path = tmp_path / "RESULTS.md"
    path.write_text("# Measured\n\n## Others\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n")
    one, other = results.Head("A", "2026-01-01 10:00:00, x"), results.Head("B", "2026-01-02 10:00:00, x")
    results.append(one, [line("loader")], path)
    results.append(one, [line("loader"), line("epoch")], path)
    results.append(other, [line("loader", 5.0)], path)
    results.append(results.Head("A", "2026-01-03 10:00:00, x"), [line("loader", 7.0)], path)
    text = path.read_text()
    assert text.startswith("# Measured\n\n## Others\n\n| a | b |") and text.count("## `make bench`: A") == 1
    found = [(r.machine, r.told[:10], r.name, r.wall.median) for r in results.read(text)]
    assert found == [("A", "2026-01-01", "loader", 3), ("A", "2026-01-01", "epoch", 3), ("A", "2026-01-03", "loader", 7),
                     ("B", "2026-01-02", "loader", 5)]
    (first, *_) = results.read(text)
    assert first.facts == {"img/s": "12.5", "solvers": "a + b"} and first.memory == (100.0, None)
    assert first.seconds == (1.5, 1.25, 2000)


def test_what_is_done_is_kept_when_a_run_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    def cases(_: Context) -> Iterator[Case]:
        yield Case("first", {"ours": lambda: int, "plain": lambda: int})
        yield Case("second", {"ours": lambda: stop, "plain": lambda: int})

    monkeypatch.setattr(bench, "chosen", lambda _: [Row("toy", "", 0, cases)])
    out = tmp_path / "RESULTS.md"
    with pytest.raises(SystemExit) as end:
        bench.main(["--rounds", "1", "--no_memory", "--device", "cpu", "--threads", "1", "--append", "--out", str(out)])
    assert end.value.code == 130 and [one.name for one in results.read(out.read_text())] == ["first"]


def test_a_row_that_this_machine_cannot_measure_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def none(_: Context) -> Iterator[Case]:
        raise Skipped("no units")
        yield

    monkeypatch.setattr(bench, "chosen", lambda _: [Row("toy", "", 600, none)])
    bench.main(["--device", "cpu", "--threads", "1"])
    said = capsys.readouterr().out
    assert "toy: left out; no units" in said and "about 10 min" in said


@pytest.mark.parametrize(("words", "told"), [
    (["nothing"], "unknown benchmark 'nothing'"), (["--rounds", "0"], "--rounds"), (["--threads", "0"], "--threads"),
    (["--quick", "--append"], "mean nothing"),
    pytest.param(["--device", "cuda", "loader"], "torch sees no CUDA device", marks=pytest.mark.skipif(
        torch.cuda.is_available(), reason="there is one"))])
def test_bad_input_is_one_line_and_code_2(words: list[str], told: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        bench.main(words)
    said = capsys.readouterr()
    assert end.value.code == 2 and told in said.err and said.err.count("\n") == 1 and not said.out


def test_goals_are_held_against_the_last_line_of_their_very_name() -> None:
    def of(name: str, wall: float, base: str = "plain", **facts: float) -> Line:
        return dataclasses.replace(line(name, wall), base=base, cpu=Spread(wall, wall, wall), facts=facts)

    head, recursion = results.Head("A", "2026-01-01 10:00:00, x"), "influence recursion resnet20s, 400 examples"
    lines = [of("loader, crop and flip", 7.9), of("loader, crop and flip", 8.1), of("loader, evaluation", 7.9),
             of(recursion, 3.5, **{"relative difference": 1e-5}),
             of(f"{recursion}, one thread", 1.2, **{"relative difference": 0.1}),
             of("epoch resnet20s, batches of 256", 1.25), of("--help", 0.9, base="import torch")]
    found = goals.table(results.read(results.put("", head.section, head.title, results.table(lines)))).splitlines()
    met = {row.split(" | ")[1]: row.strip("| ").split(" | ")[-1] for row in found[2:]}
    assert met["loader with crop and flip, CPU"] == "yes" and met["loader for evaluation, CPU"] == "NO"
    assert met["influence recursion, one thread, CPU"] == "NO" and met["the same on all threads"] == "yes"
    assert met["training, ResNet-20"] == met["--help, above a bare import of torch"] == "yes"
    assert met["FT with evaluation as a process"] == "not measured" and len(found) == 2 + len(goals.GOALS)
    assert {goal.id for goal in goals.GOALS} == {f"P{number}" for number in range(1, 15)}


# --------------------------------------------------------------------------------------------------------- any device


def test_nothing_is_pinned_to_the_processor() -> None:
    """Every ``.numpy()`` of what may be on a device goes by ``.cpu()``, and no tensor or generator names "cpu"."""
    bad = []
    for path in FOLDER.glob("*.py"):
        if path.name in ("defaults.py", "plain.py", "first_minutes.py"):  # a CPU's study; the host's side; both devices
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "numpy":
                of = ast.unparse(node.func.value)
                if not of.endswith(".cpu()") and of not in ("probs", "labels"):
                    bad.append(f"{path.name}:{node.lineno} {of}.numpy()")
            if isinstance(node, ast.keyword) and node.arg == "device" and "'cpu'" in ast.unparse(node.value):
                bad.append(f"{path.name}:{node.lineno} device='cpu'")
    assert not bad


def test_the_plain_loops_move_each_batch_to_the_model() -> None:
    """Emulated by the meta device, on which an addition with a tensor of the host would raise."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).to("meta")
    batches = [(torch.zeros(2, 3, 2, 2), torch.zeros(2, dtype=torch.int64))]
    (moved,) = plain.moved(batches, model)
    assert {t.device.type for t in moved} == {"meta"} and model(moved[0]).shape == (2, 3)


def test_side_processes_get_the_device_and_the_threads(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sequence[str]] = []
    monkeypatch.setattr(harness, "launch", lambda words: seen.append(words) or Took(0, 0, "loaded\n12.5\n"))
    case = Case("toy", {name: lambda: int for name in ("ours", "plain")})
    (line,) = harness.measure(Row("loader", "", 0, lambda _: iter([case])), context, 1)
    assert line.memory == line.base_memory == 12.5 and len(seen) == 2
    args = bench.parsed(list(seen[1][3:]))
    assert (args.what, args.side, args.case, args.threads, args.device, args.quick) == (["loader"], "plain", 0, 1, "cpu", True)


# ----------------------------------------------------------------------------------------------------------- plain twins


def test_plain_features_are_those_of_the_attack() -> None:
    logits, labels = torch.randn(50, 4, generator=torch.Generator().manual_seed(1)), torch.arange(50) % 4
    ours = mia.features(mia.Outputs(logits, labels))
    for mine, theirs in zip(ours.values(), plain.features(logits.softmax(1), labels), strict=True):
        assert np.allclose(np.asarray(mine, np.float64).reshape(50, -1), theirs, atol=1e-4)


def test_the_plain_script_does_what_the_stage_does(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One epoch over retain, five accuracies and shares that are no numbers of nothing; the weights have moved."""
    from benchmarks import plain_script

    rt = Runtime(RuntimeConfig(device="cpu", progress=False))
    found = processes.prepare(Context(rt, 1, True, tmp_path), 100, 40, 12, "resnet8s")
    plain_script.main(*found.plain[2:])
    loss, numbers = map(ast.literal_eval, capsys.readouterr().out.splitlines()[-2:])
    assert 0 < loss < 50 and len(numbers) == 4 + 5 and all(0 <= value <= 1 for value in numbers)
    weights = Path(found.plain[3])
    before = torch.load(weights, weights_only=True)["state_dict"]
    after = torch.load(f"{weights}.unlearned", weights_only=True)
    assert before.keys() == after.keys() and not torch.equal(before["fc.weight"], after["fc.weight"])
