"""Records: their arithmetic by hand, runs in turns, and the printed row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import shell

from benchmarks import record
from benchmarks.harness import Took
from benchmarks.record import TARGETS, Seen, judge
from utils import BadInput, Saved

TARGET = TARGETS["cifar10-86"]


def test_the_bound_is_that_of_the_rules_arithmetic() -> None:
    """Three seeds with a deviation of 0.2 lose 2.920 x 0.2 / sqrt(3) = 0.337 points."""
    mean, low = record.bound([86.2, 86.4, 86.6])
    assert mean == pytest.approx(86.4) and mean - low == pytest.approx(0.3372, abs=1e-4)


@pytest.mark.parametrize(("accuracies", "valid"), [([86.2, 86.4, 86.6], True), ([86.1, 86.3, 86.5], False),
                                                   ([86.0, 86.0, 86.0], True), ([85.9, 85.9, 85.9], False)])
def test_a_record_is_valid_where_the_bound_reaches_the_target(accuracies: list[float], valid: bool) -> None:
    found = judge(TARGET, [Seen(100, value) for value in accuracies], [])
    assert found.valid is valid and found.faster is None and found.saved is None


def test_a_record_is_faster_by_paired_differences_alone() -> None:
    """Seeds that vary by 20 s hide nothing where each is 5 s faster; where one of three is slower, nothing is told apart."""
    before = [Seen(100, 87), Seen(120, 87), Seen(140, 87)]
    assert judge(TARGET, [Seen(95, 87), Seen(114.9, 87), Seen(135.1, 87)], before).faster is True
    assert judge(TARGET, [Seen(80, 87), Seen(125, 87), Seen(139, 87)], before).faster is False


def test_two_seeds_make_no_record(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(BadInput, match="at least 3"):
        judge(TARGET, [Seen(1, 90)] * 2, [])
    for seeds in ("1,2", "1,1,1"):
        with pytest.raises(SystemExit) as end:
            record.main(["cifar10-86", "--seeds", seeds])
        assert end.value.code == 2 and "at least 3" in capsys.readouterr().err


def test_runs_are_in_turns_and_every_seed_is_in_the_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    order: list[tuple[str, int]] = []

    def run(target: record.Target, words: Sequence[str], seed: int) -> Seen:
        order.append((" ".join(words), seed))
        return Seen(10.0 + seed + 50 * ("old" in words), 87 + seed / 100)

    monkeypatch.setattr(record, "run", run)
    record.main(["cifar10-86", "--seeds", "1,2,3", "--against", "--arch old", "--", "--arch", "new"])
    assert order == [(f"--arch {who}", seed) for seed in (1, 2, 3) for who in ("new", "old")]
    row = capsys.readouterr().out.splitlines()[-1]
    assert "| 12.0 | 11.0, 12.0, 13.0 | 87.02" in row and "87.01, 87.02, 87.03 | yes | yes, by 50.0 s (at least 50.0)" in row
    assert "`main_train.py --arch new`" in row
    table = (Path(record.__file__).parent / "RECORDS.md").read_text().splitlines()
    columns = next(line for line in table if "| date |" in line)
    assert row.count(" | ") == columns.count(" | ")


def test_accuracy_is_that_of_the_record(original: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    def launched(words: Sequence[str]) -> Took:
        assert Path(words[1]).name == "main_train.py" and words[words.index("--seed") + 1] == "4"
        place = Path(words[words.index("--save_dir") + 1]) / "train"
        place.mkdir()
        (place / "one").symlink_to(original.folder.resolve())
        return Took(12.5, 20.0)

    monkeypatch.setattr(record, "launch", launched)
    assert record.run(TARGET, ["--arch", "resnet8s"], 4) == (12.5, original.record["metrics"]["test"])


def test_a_pool_counts_seconds_of_a_model_and_the_mean_of_their_accuracies(tmp_path: Path) -> None:
    """Two models of a hundred, so that nothing is estimated yet."""
    shell.call("main_memorization.py", *shell.THREE, "--recipe", "fast", "--pool_epochs", 1, "--models", 100, "--shard", "1/50",
               "--engine", "serial", "--keep_logits", save_dir=tmp_path)
    target = TARGETS["pool-80"]
    shares = []
    for path in tmp_path.rglob("model-*.npz"):
        with np.load(path) as file:
            shares.append(100 * np.unpackbits(file["correct_test"], count=len(file["logits_test"])).mean())
    assert len(shares) == 2 and target.cost(tmp_path, 30.0) == 15.0
    assert target.quality(tmp_path) == pytest.approx(np.mean(shares))
