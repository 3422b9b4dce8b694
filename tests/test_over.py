"""Over-unlearning and replay: both phases by hand, what the first one sees, the record, resuming, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyNet, equal, make_data, quiet_runtime, short_config, snapshot, tiny_net
from torch.nn import functional as F

from dataset import Images
from models.modes import normalising
from trainer import Descent, predict
from unlearn import METHODS, over
from unlearn.phases import ReplayConfig
from utils import BadInput, Run, RunConfig

TAKERS, FAMILY = over.takers(), {"our", "orthogonality", "rl_our", "orth_no_our"}
TRAINING = [name for name in TAKERS if hasattr(METHODS[name].config, "unlearn_lr")]
PARTS = {"replay_epochs": (2, 1, 1), "replay_factors": (1.0, 0.5, 0.2), "replay_l1": (0.02, 0.01, 0.0)}


def config(name: str, **values: Any) -> Any:
    """Short settings of NAME_our; what NAME's own test settings need comes under their names in the first phase."""
    made = METHODS[f"{name}_our"].config
    inner = {over.RENAMED.get(key, key): value for key, value in vars(short_config(name)).items()}
    return made(**inner | {"replay_lr": 0.05} | {key: value for key, value in values.items() if hasattr(made, key)})


def apply(name: str, **values: Any) -> TinyNet:
    rt, model = quiet_runtime(), tiny_net(quiet_runtime())
    METHODS[f"{name}_our"].apply(model, make_data(rt, batch_size=8), config(name, **values), rt)
    return model


def by_hand(model: TinyNet, cfg: Any, momentum: float = 0.9) -> None:
    """The replay by torch.optim: a new optimiser for each part, the penalty written out."""
    rt = quiet_runtime()
    loader = make_data(rt, batch_size=8).loader("retain", rt, "unlearn/replay")
    model.train()
    for epochs, factor, l1 in zip(cfg.replay_epochs, cfg.replay_factors, cfg.replay_l1, strict=True):
        opt = torch.optim.SGD(model.parameters(), lr=factor * cfg.replay_lr, momentum=momentum, weight_decay=5e-4)
        for batch in (batch for _ in range(epochs) for batch in loader):
            opt.zero_grad()
            penalty = sum(p.abs().sum() for p in model.parameters())
            (F.cross_entropy(model(batch.x), batch.y) + l1 * penalty).backward()
            opt.step()


def test_both_phases_of_an_ascent_are_those_by_hand() -> None:
    """Ascent on the forget set with batch norm's statistics held, then three parts of replay; within 1e-5."""
    cfg = config("GA", over_lr=0.03, over_epochs=2, momentum=0.9, weight_decay=0.0, **PARTS)
    rt, theirs = quiet_runtime(), tiny_net(quiet_runtime())
    loader = make_data(rt, batch_size=8).loader("forget", rt, "unlearn")
    opt = torch.optim.SGD(theirs.parameters(), lr=0.03, momentum=0.9)
    theirs.train()
    with normalising(theirs, "batch"):
        for batch in (batch for _ in range(2) for batch in loader):
            opt.zero_grad()
            (-F.cross_entropy(theirs(batch.x), batch.y)).backward()
            opt.step()
    by_hand(theirs, cfg)
    ours = apply("GA", over_lr=0.03, over_epochs=2, weight_decay=0.0, **PARTS)
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(snapshot(ours).values(), snapshot(theirs).values(), strict=True))


@pytest.mark.parametrize("name", TAKERS)
def test_the_second_phase_of_every_method_is_the_replay_by_hand(name: str) -> None:
    """Whatever the first left: without replay the model is that of phase 1, from which the hand's replay starts."""
    theirs = apply(name, replay_epochs=(0,))
    by_hand(theirs, config(name, **PARTS))
    ours = apply(name, **PARTS)
    for (key, a), b in zip(snapshot(ours).items(), snapshot(theirs).values(), strict=True):
        assert (a - b).abs().max() < 1e-5 * max(1.0, float(b.abs().max())), key


@pytest.mark.parametrize("name", TAKERS)
def test_the_first_phase_is_the_method_itself_on_its_own_settings(name: str) -> None:
    """With an empty retain set where it trains; a method of one step reads the retain set's statistics."""
    rt, theirs = quiet_runtime(), tiny_net(quiet_runtime())
    data = make_data(rt, batch_size=8)
    if name in TRAINING:
        real = data.loader
        object.__setattr__(data, "loader", lambda part, *a: real(part, *a).none() if part == "retain" else real(part, *a))
    METHODS[name].apply(theirs, data, config(name).first(), rt)
    assert equal(snapshot(apply(name, replay_epochs=(0,))), snapshot(theirs))
    assert not equal(snapshot(theirs), snapshot(tiny_net(quiet_runtime())))


@pytest.mark.parametrize("name", TRAINING)
def test_the_first_phase_reads_no_retain_image(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the replay reads all of retain, and nothing else."""
    read, real, data = [], Images.pixels, make_data(quiet_runtime())

    def batch(self: Images, index: torch.Tensor, augment: Any) -> torch.Tensor:
        read.extend(index.tolist())
        return real(self, index, augment)

    monkeypatch.setattr(Images, "pixels", batch)
    apply(name, replay_epochs=(0,))
    assert read and not set(read) & set(data.index("retain").tolist())
    first = len(read)
    read.clear()
    apply(name, replay_epochs=(1,))
    assert sorted(read[first:]) == data.index("retain").tolist()


def test_the_last_epochs_of_a_replay_are_without_augmentation_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = [], Images.pixels

    def batch(self: Images, index: torch.Tensor, augment: Any) -> torch.Tensor:
        seen.append((augment is not None, index.tolist()))
        return real(self, index, augment)

    monkeypatch.setattr(Images, "pixels", batch)

    def order(plain: int) -> tuple[list[bool], list[list[int]]]:
        seen.clear()
        rt, cfg = quiet_runtime(), config("GA", over_epochs=0, replay_epochs=(3,), replay_plain_epochs=plain)
        METHODS["GA_our"].apply(tiny_net(rt), make_data(rt, batch_size=42, aug=True), cfg, rt)
        return [kind for kind, _ in seen], [index for _, index in seen]

    assert order(2)[0] == [True, False, False] and order(0)[0] == [True] * 3 and order(2)[1] == order(0)[1]


# -------------------------------------------------------------------------------------------------- record and resuming


def one_run(name: str, folder: Path, patch: pytest.MonkeyPatch, kill_at: int = 0) -> tuple[dict[str, Any], Run, int]:
    steps, real = [], Descent._step

    def step(self: Descent, rate: float) -> None:
        steps.append(rate)
        if len(steps) == kill_at:
            raise KeyboardInterrupt
        real(self, rate)

    rt = quiet_runtime()
    data, model = make_data(rt, aug=True), tiny_net(rt)
    cfg = config(name, over_epochs=3, replay_plain_epochs=1, **PARTS)
    with patch.context() as inner:
        inner.setattr(Descent, "_step", step)
        with Run(RunConfig(save_dir=str(folder), resume_every=0), "forget", name, {"cfg": cfg}) as run:
            with run.timed(rt, "unlearn"):
                METHODS[f"{name}_our"].apply(model, data, cfg, rt, run)
            run.result(expected={part: 100 * float((o.argmax(1) == y).double().mean()) for part in ("forget", "retain", "val")
                                 for o, y in [predict(model, data.loader(part), rt)]})
    return snapshot(model), run, len(steps)


@pytest.mark.parametrize("name", ["GA", "RL", "SCRUB", "ssd"])
def test_a_killed_run_goes_on_in_its_phase_bit_for_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in either phase and right between them: same weights and log; no finished epoch is repeated."""
    state, run, steps = one_run(name, tmp_path / "whole", monkeypatch)
    rows = (run.folder / "log.jsonl").read_text()
    batches = len(make_data(quiet_runtime()).loader("retain", quiet_runtime()))
    replayed = 4 * batches
    kills = {steps - replayed + 1: replayed, steps: batches, steps - batches - 1: 2 * batches}
    if steps > replayed:
        kills[(steps - replayed) // 2 + 1] = steps
    for kill_at, left in kills.items():
        folder = tmp_path / str(kill_at)
        with pytest.raises(KeyboardInterrupt):
            one_run(name, folder, monkeypatch, kill_at)
        resumed, again, its = one_run(name, folder, monkeypatch)
        assert equal(resumed, state) and (again.folder / "log.jsonl").read_text() == rows and its <= left
        assert again.values["phases"]["over"]["forget"] == run.values["phases"]["over"]["forget"]
        assert again.read == run.read and not (again.folder / "state.pt").exists()


def test_the_record_tells_both_phases_with_accuracy_and_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last one the accuracy is the model's; evaluation between phases is no cost of the method."""
    _, run, _ = one_run("GA", tmp_path, monkeypatch)
    record = json.loads((run.folder / "record.json").read_text())
    assert list(record["phases"]) == ["over", "replay"]
    first, last = record["phases"].values()
    assert {part: last[part] for part in ("forget", "retain", "val")} == pytest.approx(record["expected"])
    assert first["retain"] != last["retain"]
    assert first["seconds"] + last["seconds"] == pytest.approx(record["seconds"]["unlearn"], abs=0.01)
    data = make_data(quiet_runtime())
    sizes = {part: len(data.index(part)) for part in ("forget", "retain", "val")}
    assert record["images_read"] == {"unlearn": 3 * sizes["forget"] + 4 * sizes["retain"], "evaluate": 2 * sum(sizes.values())}
    rows = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [row["phase"] for row in rows] == ["over"] * 3 + ["replay"] * 4
    assert [row["lr"] for row in rows[3:]] == pytest.approx([0.05, 0.05, 0.025, 0.01])


def test_a_state_of_another_form_is_told_and_the_run_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                capsys: pytest.CaptureFixture[str]) -> None:
    state, run, steps = one_run("GA", tmp_path / "whole", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        one_run("GA", tmp_path / "spoilt", monkeypatch, steps)
    path = next((tmp_path / "spoilt").glob("*/*/state.pt"))
    torch.save(torch.load(path, weights_only=True) | {"opt": {"moments": [], "model": {}}}, path)
    resumed, _, its = one_run("GA", tmp_path / "spoilt", monkeypatch)
    assert its == steps and equal(resumed, state) and "lacks opt.count; the run starts anew" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", [name for name in METHODS.names() if name not in TAKERS])
def test_a_method_that_does_not_read_the_forget_set_has_no_our(name: str) -> None:
    why = "is of this family already" if name in FAMILY else "does not read the forget set"
    with pytest.raises(BadInput, match=f"--unlearn {name}_our: {name} {why}"):
        METHODS[f"{name}_our"]
    assert f"{name}_our" not in METHODS and f"{name}_our" not in METHODS.names()


def test_every_method_that_reads_the_forget_set_has_one() -> None:
    assert {name for name in METHODS.names() if "forget" in METHODS[name].uses} - FAMILY == set(TAKERS)
    assert all(f"{name}_our" in METHODS and METHODS[f"{name}_our"].uses == METHODS[name].uses | {"retain"} for name in TAKERS)
    with pytest.raises(BadInput, match="unknown unlearning method 'GB_our'"):
        METHODS["GB_our"]


def test_replay_takes_one_number_for_all_parts_or_one_for_each() -> None:
    two = ReplayConfig(replay_epochs=(2, 1), replay_l1=(0.1,), replay_factors=(1.0, 0.5))
    assert two.parts() == [(2, 1.0, 0.1), (1, 0.5, 0.1)]
    with pytest.raises(BadInput, match="--replay_factors has 3 numbers, --replay_epochs 2; give one for all, or one for each"):
        ReplayConfig(replay_epochs=(2, 1), replay_factors=(1.0, 0.5, 0.2))
    with pytest.raises(BadInput, match="--over_lr must lie in"):
        METHODS["GA_our"].config(over_lr=0.0)
