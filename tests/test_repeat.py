"""A record leads back to its command: the one that goes on with an unfinished run, or makes a finished one again."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell

import commands
from utils import Run, Saved, read_record

nowhere = pytest.fixture(autouse=True)(shell.nowhere)
ON = "--checkpoint {original}"
LINES = {
    "train": "main_train.py {three} --protocol sparse --epochs 3 --lr 0.05 --alpha 1e-5 --decreasing_lr 1,2 --seed 4 "
             "--val_seed 3 --val_fraction 0.2 --weight_decay 0 --record_curvature",
    "train on wrong labels": "main_train.py {three} --train_per_class 40 --label_noise 0.1 --noise_seed 2",
    "train, plainly": "main_train.py {three}",
    "imp by rate": "main_imp.py {three} --rate 0.2 --pruning_times 4 --rewind_epoch 1 --epochs 3 --seed 0",
    "imp by sparsity": "main_imp.py {three} --sparsity 0.87 --pruning_times 3 --prune_type lt --epochs 2 --protocol rum",
    "imp, dense": "main_imp.py {three} --sparsity 0 --epochs 2 --rewind_epoch 1",
    "omp at random": "main_imp.py {three} --random_prune --prune_type pt --epochs 2 --prune_scope layerwise_conv",
    "synflow": "main_synflow.py {three} --rate 0.9 --synflow_rounds 5 --epochs 2",
    "mask": f"generate_mask.py {ON} --density 0.3,0.5 --saliency_mode published --class_to_replace 1,2 "
            "--num_indexes_to_replace 7 --split_seed 5",
    "salun mask": f"generate_mask.py {ON} --num_indexes_to_replace 20",
    "prunes in turns": f"main_forget.py {ON} --unlearn FT_prune_bi --rate 0.5 --class_to_replace 1",
    "retrain": f"main_forget.py {ON} --unlearn retrain --unlearn_lr 0.2 --forget_fraction 0.1 --seed 9",
    "retrain, plainly": f"main_forget.py {ON} --unlearn retrain --num_indexes_to_replace 20",
    "by file": f"main_forget.py {ON} --unlearn NG --alpha 0.9 --batch_size 32 --aug --forget_index {{index}}",
    "salun": f"main_random.py {ON} --unlearn RL --path {{mask}} --mask_mode published --num_indexes_to_replace 20",
    "raw": f"main_forget.py {ON} --unlearn raw --num_indexes_to_replace 20 --mia svc",
    "of a bare file": "main_forget.py {three} --checkpoint {bare} --unlearn wfisher --damping 0.5 --num_indexes_to_replace 20",
    "a plan of its own": f"main_rum.py {ON} --plan 'low:raw mid:FT(unlearn_lr=0.1) high:RL(density=0.5)' --shuffle "
                         "--num_indexes_to_replace 21",
    "vanilla": f"main_rum.py {ON} --unlearn NG --plan_name vanilla --budget single --num_indexes_to_replace 20 --alpha 0.9",
    "by scores": f"main_rum.py {ON} --unlearn FT --mem_proxy confidence --mem mix --num_indexes_to_replace 21",
    "a proxy": f"main_memorization.py {ON} --mem_proxy ho_ret --ft_epochs 2",
    "an unlearned model": "main_forget.py --checkpoint {unlearned} --unlearn FT --class_to_replace 2",
    "a poisoned model": "main_backdoor.py {three} --unlearn FT --rate 0.5 --epochs 3 --trigger_size 3 --class_to_replace 2",
}


@pytest.fixture
def here(library: Path, original: Saved, tmp_path: Path) -> dict[str, str]:
    with np.load(shell.only(library, "mask").folder / "splits.npz") as splits:
        np.save(tmp_path / "index.npy", splits["forget"])
    (tmp_path / "bare.pt").write_bytes((original.folder / "model.pt").read_bytes())
    return {"three": shlex.join(shell.THREE), "original": str(original.folder), "index": str(tmp_path / "index.npy"),
            "mask": str(shell.only(library, "mask").folder), "bare": str(tmp_path / "bare.pt"),
            "unlearned": str(shell.only(library, "forget", unlearn="NG").folder)}


def begin(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Run a main until its first timed block, where it is killed; its record stays as it was then."""
    @contextlib.contextmanager
    def timed(*_: Any) -> Iterator[None]:
        raise KeyboardInterrupt
        yield

    with patch.context() as only_here, contextlib.suppress(KeyboardInterrupt):
        only_here.setattr(Run, "timed", timed)
        shell.STAGES[words[0]].main([*words[1:], *shell.QUIET])


def begun(save_dir: Path) -> dict[Path, Any]:
    """The settings of every run in a folder, whichever its stage and status."""
    return {path.parent: json.loads(path.read_text())["settings"] for path in sorted(save_dir.glob("*/*/record.json"))}


@pytest.mark.parametrize("line", LINES)
def test_the_command_of_a_record_meets_the_same_folder_with_the_same_settings(
    line: str, here: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path("runs") if line.endswith("plainly") else Path("two words")
    elsewhere = [] if place.name == "runs" else ["--save_dir", str(place)]
    begin([*shlex.split(LINES[line].format_map(here)), *elsewhere], monkeypatch)
    before = begun(place)
    assert before
    stage = {"main_imp.py": "imp", "main_backdoor.py": "trojan", "main_rum.py": "rum"}.get(LINES[line].split()[0], "*")
    (folder,) = [path for path in before if path.match(f"{stage}/*")]
    words = commands.command_of(read_record(folder))
    assert words[0] == "python" and len(words) < 40
    begin(words[1:], monkeypatch)
    assert begun(place) == before, shlex.join(words)


def test_an_unfinished_run_is_named_with_the_command_that_goes_on_with_it(
    here: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An original, an OMP that was killed in its trainings, a mask, a poisoned model: each where it is looked for."""
    for line, place, then in (
        ("train", "a", "main_forget.py --unlearn FT --num_indexes_to_replace 20 --save_dir a"),
        ("imp by rate", "b", "main_forget.py --unlearn FT --num_indexes_to_replace 20 --mask b"),
        ("synflow", "c", "main_memorization.py --mem_proxy ho_ret --save_dir c"),
        ("salun mask", "d", "main_random.py --unlearn RL --checkpoint {original} --num_indexes_to_replace 20 --path d"),
        ("a poisoned model", "e", "main_backdoor.py {three} --unlearn FT --mask e"),
    ):
        begin([*shlex.split(LINES[line].format_map(here)), "--save_dir", place], monkeypatch)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            begin(shlex.split(then.format_map(here)), monkeypatch)
        said = capsys.readouterr().err
        kind = {"b": "imp", "c": "synflow", "d": "mask", "e": "trojan"}.get(place, "train")
        (folder,) = Path(place, kind).iterdir()
        assert end.value.code == 2 and said.count("\n") == 1 and f"{folder} is not finished (running)" in said
        before = begun(Path(place))
        begin(shlex.split(said.rpartition(": python ")[2]), monkeypatch)
        assert begun(Path(place)) == before


def test_a_moved_parent_is_found_by_its_hash(library: Path, original: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in (original, shell.only(library, "mask")):
        shutil.copytree(run.folder, Path("moved", run.folder.parent.name, run.folder.name))
    (folder,) = Path("moved/mask").iterdir()
    record = json.loads((folder / "record.json").read_text())
    record["parent"]["path"], record["status"] = "gone/train/a/model.pt", "running"
    (folder / "record.json").write_text(json.dumps(record))
    words = commands.command_of(read_record(folder))
    assert words[words.index("--checkpoint") + 1] == str(Path("moved/train") / original.folder.name / "model.pt")
    begin(words[1:], monkeypatch)
    assert list(Path("moved/mask").iterdir()) == [folder]


def test_the_command_says_no_more_than_is_needed(here: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for line, told in (("train, plainly", "main_train.py --dataset digits --arch resnet8s --classes 0-2 --batch_size 64"),
                       ("retrain, plainly", f"main_forget.py --unlearn retrain --checkpoint {here['original']}/model.pt "
                                            "--num_indexes_to_replace 20")):
        begin(shlex.split(LINES[line].format_map(here)), monkeypatch)
        (folder,) = [path for path in begun(Path("runs")) if path.parent.name == ("train" if "train.py" in told else "forget")]
        words = [word for word in commands.command_of(read_record(folder)) if word not in ("--device", "cpu", "--no_progress")]
        assert sorted(words) == sorted(["python", *told.split()])
