"""Precision, threads, layout and evaluation batch by what was measured on a machine: the same results, told in the record."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell
import torch
from conftest import equal, make_data, quiet_runtime, snapshot, tiny_net
from pools import make_pool, make_toy

import arg_parser
import calibration
import commands
import dataset
import main_calibrate
import models
from dataset import DataConfig
from memorization import engines, events, factory
from models import ModelConfig
from report import missing
from trainer import Descent, ScheduleConfig, cross_entropy, predict
from unlearn import persample
from unlearn.saliency import saliency
from utils import BadInput, Run, Runtime, RuntimeConfig, Saved, machine
from utils.machine import Network

DIGITS = Network("resnet8s", False, None, 8)
nowhere = pytest.fixture(autouse=True)(shell.nowhere)
WORDS = ["--dataset", "digits", "--arch", "resnet8s", "--device", "cpu"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for what is measured."""
    monkeypatch.setenv(machine.PLACE, str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "_told", set())
    return tmp_path / "cache"


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that has bf16, as torch tells of one."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": True})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of a step in bf16, which a test puts in, where float32 takes 1.5: each is used up by one measurement."""
    seconds: list[float] = []

    def compared(ways: dict[str, Any], budget: float) -> dict[str, float]:
        assert set(ways) == {"fp32", "bf16"}
        return {"fp32": 1.5, "bf16": seconds.pop()}

    monkeypatch.setattr(calibration, "compared", compared)
    monkeypatch.setattr(calibration, "precisions", lambda cfg, network: {"fp32": None, "bf16": None})
    return seconds


def parsed(*words: Any) -> RuntimeConfig:
    return arg_parser.parse("train", [*WORDS, *map(str, words)]).rt


# ------------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(("told", "has"), [
    ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"bf16": True, "neon": True}, True), ({"sve_bf16": True}, True),
    ({"avx512_f": True, "avx2": True, "avx512_bf16": False}, False), ({}, False)])
def test_bf16_is_the_processors_own_where_torch_names_its_units(told: dict[str, bool], has: bool,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told)
    assert machine.native_bf16() == has
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not machine.native_bf16()


def test_without_units_nothing_is_measured_or_written(cache: Path, measured: list[float], monkeypatch: pytest.MonkeyPatch,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(machine, "native_bf16", lambda: False)
    rt = parsed()
    assert rt.precision == "fp32" and not cache.exists() and not capsys.readouterr().out
    assert Runtime(rt).facts()["chosen"] == {"precision": "fp32", "because": "this processor has no bf16 of its own"}
    assert parsed("--precision", "bf16").precision == "bf16"
    assert "--precision bf16 is emulated on this processor, which takes 12-20 times as long" in capsys.readouterr().out
    assert parsed("--precision", "fp32").chosen == {}


@pytest.mark.parametrize(("seconds", "precision", "speed"), [(1.0, "bf16", 1.5), (1.4, "fp32", 1.071), (15.0, "fp32", 0.1)])
def test_bf16_is_chosen_where_it_was_measured_faster(seconds: float, precision: str, speed: float, cache: Path, native: None,
                                                     measured: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """By a tenth at least; measured once, kept, and the same in every later stage; why is in the record."""
    measured.append(seconds)
    rt = parsed()
    (file,) = cache.iterdir()
    assert capsys.readouterr().out == (f"notice: bf16 trains resnet8s {speed:g} times as fast as fp32 on this machine "
                                       f"(measured and kept in {file})\n")
    assert rt.precision == precision and Runtime(rt).facts()["chosen"] == {
        "precision": precision, "because": f"bf16 trains {speed:g} times as fast as fp32 here", "bf16_speed": speed}
    assert json.loads(file.read_text())["machine"]["processor"] == machine.processor()
    again = parsed()  # which would fail if it measured
    assert again == rt and again.chosen == rt.chosen and not capsys.readouterr().out


def test_other_networks_and_machines_are_measured_for_themselves(cache: Path, native: None, measured: list[float],
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    measured += [9.0, 9.0, 9.0, 9.0, 1.0]  # the last one first
    assert parsed().precision == "bf16"
    assert parsed("--arch", "resnet20s").precision == "fp32"
    assert parsed("--dataset", "cifar10").precision == "fp32"
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert parsed().precision == "fp32"
    monkeypatch.setattr(machine, "threads", lambda: 64)
    assert parsed().precision == "fp32"
    assert not measured and len(list(cache.iterdir())) == 5


def test_what_another_process_kept_meanwhile_holds(cache: Path, native: None, measured: list[float],
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    measured.append(9.0)
    real = calibration.compared

    def beaten(ways: dict[str, Any], budget: float) -> dict[str, float]:
        machine.write("cpu", DIGITS, {"bf16_speed": 2.0}, {})
        return real(ways, budget)

    monkeypatch.setattr(calibration, "compared", beaten)
    assert parsed().precision == "bf16"


def test_precision_is_measured_by_real_steps(cache: Path, native: None) -> None:
    """Of the network itself; what it came to is what is chosen, and no random stream has moved."""
    before = torch.get_rng_state()
    rt = parsed()
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == 1
    speed = machine.read("cpu", DIGITS)["bf16_speed"]
    assert speed > 0 and rt.precision == ("bf16" if speed >= 1.1 else "fp32")


def test_an_explicit_precision_and_a_later_stage_meet_the_same_folder(cache: Path, native: None, measured: list[float],
                                                                      tmp_path: Path) -> None:
    """auto resolves before the folder is named; the command of a run states what would else be measured."""
    measured.append(1.0)
    folders = []
    for words in ([], ["--precision", "bf16"], ["--precision", "fp32"]):
        args = arg_parser.parse("train", [*WORDS, *words])
        folders.append(Run(args.run, "train", args.label, args.settings, data_key="x").folder)
    assert folders[0] == folders[1] != folders[2]
    run = shell.train(tmp_path / "runs", 1, "--precision", "fp32")
    assert "--precision fp32" in " ".join(commands.command_of(run))


def test_the_command_of_a_missing_retrain_states_what_would_else_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {"device": RuntimeConfig().resolved().device, "precision": RuntimeConfig(device="cpu").resolved().precision}
    for native, words in ((False, []), (True, ["--precision", "fp32"])):
        monkeypatch.setattr(machine, "native_bf16", lambda native=native: native)
        assert missing._machine({"setup": theirs}) == (words if theirs["device"] == "cpu" else [])


def test_turns_are_taken_by_all_and_the_first_does_not_count() -> None:
    """Against a written-out clock: seconds of each call, in order."""
    now, calls = [0.0], {"a": [50.0, 1.0, 2.0, 9.0], "b": [50.0, 3.0, 3.0, 3.5]}
    order: list[str] = []

    def way(name: str) -> Callable[[], None]:
        def call() -> None:
            order.append(name)
            now[0] += calls[name].pop(0)
        return call

    assert calibration.compared({"a": way("a"), "b": way("b")}, 0.1, lambda: now[0]) == {"a": 2.0, "b": 3.0}
    assert order == ["a", "b"] * 4
    now, calls = [0.0], {"a": [1.0] * 100}
    calibration.compared({"a": way("a")}, 20.0, lambda: now[0])
    assert len(calls["a"]) == 100 - 21


@pytest.mark.parametrize("content", ["", "{", "[]", '{"values": 3}', '{"values": {"bf16_speed": "fast"}}',
                                     '{"values": {"eval_batch": 0}}', '{"values": {"threads": true}}',
                                     '{"values": {"layout": "scattered"}}'])
def test_a_file_that_cannot_be_used_is_told_once_and_left_out(content: str, cache: Path,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    path = machine.path_of("cpu", DIGITS)
    cache.mkdir()
    path.write_text(content)
    for _ in range(2):
        rt = parsed()
        assert (rt.eval_batch, rt.threads, rt.layout, rt.precision) == (128, None, "channels_last", "fp32")
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and str(path) in said[0] and said[0].startswith("notice: ")


def test_without_a_place_to_write_it_works_and_says_so_once(cache: Path, native: None, measured: list[float],
                                                            capsys: pytest.CaptureFixture[str]) -> None:
    cache.write_text("a file where the folder should be")
    measured += [1.0, 1.0]
    assert [parsed().precision for _ in range(2)] == ["bf16", "bf16"]
    said = capsys.readouterr().out
    assert said.count("is not kept; LETHE_CACHE in the environment names another folder") == 1


def test_the_place_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(machine.PLACE, "here")
    assert machine.place() == Path("here")
    monkeypatch.delenv(machine.PLACE)
    monkeypatch.setenv("XDG_CACHE_HOME", "there")
    assert machine.place() == Path("there") / machine.NAME
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/nobody")
    assert machine.place() == Path("/nobody/.cache") / machine.NAME


# -------------------------------------------------------------------------------------------------------- bf16 on a CPU


def test_under_bf16_only_training_is_in_bf16() -> None:
    """Predictions, saliency, per-example gradients and curvature are those of float32 to the bit; a training step is not."""
    found: dict[str, list[torch.Tensor]] = {}
    for precision in ("fp32", "bf16"):
        rt = Runtime(dataclasses.replace(quiet_runtime().cfg, precision=precision))
        data, model = make_data(rt), tiny_net(rt).eval()
        batch = next(iter(data.loader("train")))
        squared = persample.squared(model, data.loader("forget"))
        found[precision] = [
            predict(model, data.loader("test"), rt)[0], *saliency(model, data.loader("forget"), "gradient").values(),
            *(squared.values() if isinstance(squared, dict) else squared), events.curvature(model, batch.x, batch.y, 0.01)]
        Descent(model, ScheduleConfig(), lr=0.1, epochs=1, rt=rt, purpose="x").epoch([batch], cross_entropy)
        found[precision].append(model.conv.weight.detach())
    *same, trained = (torch.equal(a, b) for a, b in zip(*found.values(), strict=True))
    assert all(same) and len(same) > 5 and not trained
    assert all(value.dtype != torch.bfloat16 for value in found["bf16"])


def test_log_odds_of_a_sure_example_are_finite_and_of_float32() -> None:
    """p = 1 - 1e-12, where 1 - p is 0 in float32: against the closed form in float64."""
    from evaluation import mia

    logits = torch.tensor([[27.631, 0.0], [0.0, 3.0]])
    margins = mia.margin(mia.Outputs(logits, torch.tensor([0, 1])))
    assert torch.allclose(margins.double(), torch.tensor([27.631, 3.0]).double(), atol=1e-5)
    assert math.isclose(1 - 1 / (1 + math.exp(-27.631)), 1e-12, rel_tol=0.01)


def test_a_pool_states_its_precision_and_shares_nothing_with_another(tmp_path: Path) -> None:
    pools = []
    for precision in ("fp32", "bf16"):
        rt = Runtime(dataclasses.replace(quiet_runtime().cfg, precision=precision))
        pools.append(make_pool(tmp_path, rt))
        factory._open(pools[-1])
        assert json.loads((pools[-1].folder / "pool.json").read_text())["precision"] == precision
    assert pools[0].folder != pools[1].folder


def test_a_process_of_a_pool_computes_as_its_parent_resolved_but_on_one_thread(tmp_path: Path,
                                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    rt = Runtime(dataclasses.replace(quiet_runtime().cfg, precision="bf16", eval_batch=7, layout="contiguous"))
    pool = make_pool(tmp_path, rt, make_toy(rt))
    pool.rt.cfg = dataclasses.replace(rt.cfg, threads=2)
    orders: list[Any] = []
    monkeypatch.setattr(engines, "spread", lambda work, order, numbers, places: orders.append(order) or iter(()))
    factory._spread(pool, [0], 1, 0)
    assert orders[0].rt == dataclasses.replace(rt.cfg, threads=1)


# ------------------------------------------------------------------------------------------------------ what is calibrated


def test_what_was_calibrated_is_read_recorded_and_overruled_by_flags(cache: Path) -> None:
    machine.write("cpu", DIGITS, {"eval_batch": 7, "threads": 1, "layout": "contiguous"}, {})
    rt = parsed()
    assert (rt.eval_batch, rt.threads, rt.layout) == (7, 1, "contiguous")
    facts = Runtime(rt).facts()["chosen"]
    assert {name: facts[name] for name in ("eval_batch", "threads", "layout")} == {"eval_batch": 7, "threads": 1,
                                                                                   "layout": "contiguous"}
    typed = parsed("--eval_batch", 9, "--layout", "channels_last")
    assert (typed.eval_batch, typed.threads, typed.layout) == (9, 1, "channels_last")
    assert "eval_batch" not in typed.chosen and typed.chosen["threads"] == 1
    other = parsed("--arch", "resnet20s")
    assert (other.eval_batch, other.threads, other.layout) == (128, None, "channels_last")


def test_what_is_kept_later_stands_beside_what_was_kept_before(cache: Path) -> None:
    for values in ({"eval_batch": 7, "threads": 1}, {"bf16_speed": 2.0}, {"threads": 2}):
        machine.write("cpu", DIGITS, values, {})
    assert machine.read("cpu", DIGITS) == {"eval_batch": 7, "threads": 2, "bf16_speed": 2.0}


def test_a_calibrated_run_is_the_same_run(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It meets the folder of one that was not; the record says what was read."""
    first = shell.train(tmp_path / "runs")
    machine.write("cpu", DIGITS, {"eval_batch": 50, "layout": "contiguous"}, {})
    again = shell.train(tmp_path / "runs")
    assert again.folder == first.folder and ": already done; " in capsys.readouterr().out
    fresh = shell.train(tmp_path / "other")
    assert fresh.folder.name == first.folder.name and "eval_batch" not in first.record["chosen"]
    assert fresh.record["chosen"]["eval_batch"] == 50 and fresh.record["settings"]["rt"]["layout"] == "contiguous"
    for name, value in shell.weights(fresh).items():
        assert torch.allclose(value.float(), shell.weights(first)[name].float(), atol=1e-4), name


@pytest.mark.parametrize("layout", list(machine.LAYOUTS))
def test_predictions_do_not_depend_on_evaluation_batch_or_layout(layout: str) -> None:
    """Of one example at a time, of a few and of all at once, within 1e-5; images lie as asked for."""
    outputs, strides = [], []
    model = snapshot(tiny_net(quiet_runtime()))
    for eval_batch, batches in ((1, 29), (7, 5), (10_000, 1)):  # of 30; a last one alone joins the one before
        rt = Runtime(dataclasses.replace(quiet_runtime().cfg, eval_batch=eval_batch, layout=layout))
        net = tiny_net(rt).to(memory_format=rt.layout)
        assert equal(snapshot(net), model)
        loader = make_data(rt).loader("test")
        assert len(loader) == batches
        x = next(iter(loader)).x
        strides.append(x.is_contiguous(memory_format=rt.layout))
        outputs.append(predict(net.eval(), loader, rt)[0])
    assert all(strides) and all((outputs[0] - other).abs().max() <= 1e-5 for other in outputs[1:])
    default = predict(tiny_net(quiet_runtime()).eval(), make_data(quiet_runtime()).loader("test"), quiet_runtime())[0]
    assert (outputs[0] - default).abs().max() <= 1e-5


@pytest.mark.parametrize("layout", list(machine.LAYOUTS))
def test_new_and_loaded_networks_lie_as_asked_for(layout: str, original: Saved) -> None:
    rt = Runtime(dataclasses.replace(quiet_runtime().cfg, layout=layout))
    data = dataset.load(DataConfig(dataset="digits", classes="0-2"), rt)
    made = models.new(ModelConfig(arch="resnet8s"), data, rt, "x"), models.load(original.folder / "model.pt", ModelConfig(
        arch="resnet8s"), data, rt)[0]
    for model in made:
        lie = [p.is_contiguous(memory_format=rt.layout) for p in model.parameters() if p.dim() == 4]
        assert lie and all(lie)


@pytest.mark.parametrize("aug", [False, True])
def test_layouts_have_the_same_images(aug: bool) -> None:
    batches = []
    for layout in machine.LAYOUTS:
        rt = Runtime(dataclasses.replace(quiet_runtime().cfg, layout=layout))
        batches.append(next(iter(make_data(rt, aug=aug).loader("train", rt, "train"))).x)
        assert batches[-1].is_contiguous(memory_format=rt.layout)
    assert torch.equal(*batches)


def test_threads_are_those_asked_for_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        Runtime(RuntimeConfig(device="cpu", threads=2))
        assert torch.get_num_threads() == 2
        assert quiet_runtime().facts()["threads"] == before
        torch.set_num_threads(3)  # somebody's own choice stays
        assert quiet_runtime().facts()["threads"] == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("speeds", "wanted"), [
    ({"1": 1.0, "2": 1.04, "4": 2.0}, 2),  # not worth it
    ({"1": 1.0, "2": 1.06, "4": 2.0}, 1), ({"1": 9.0, "2": 2.0, "4": 1.0}, 4)])
def test_another_choice_than_the_default_has_to_be_worth_it(speeds: dict[str, float], wanted: int, cache: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "threads", lambda: 2)
    monkeypatch.setattr(calibration, "steps", lambda cfg, network, images: lambda: None)
    monkeypatch.setattr(calibration, "predictions", lambda cfg, network, eval_batch: lambda: None)
    monkeypatch.setattr(calibration, "_images", lambda *_: 16)

    def compared(ways: dict[str, Any], seconds: float) -> dict[str, float]:
        return {name: speeds.get(name, 1.0) if "channels_last" not in ways and "128" not in ways else 1.0 for name in ways}

    monkeypatch.setattr(calibration, "compared", compared)
    monkeypatch.setattr(calibration, "_counts", lambda: [1, 2, 4])
    calibration.calibrate("resnet8s", calibration.CalibrateConfig(image_size=8, device="cpu"))
    assert machine.read("cpu", DIGITS) == {"threads": wanted, "layout": "channels_last", "eval_batch": 128}


def test_calibration_from_the_shell_is_read_by_the_next_run(cache: Path, monkeypatch: pytest.MonkeyPatch,
                                                            capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(calibration, "EVALUATED", {"cpu": 64})
    main_calibrate.main(["--arch", "resnet8s", "--image_size", "8", "--budget", "0.01", "--device", "cpu"])
    said = capsys.readouterr().out
    known = machine.read("cpu", DIGITS)
    assert {"layout", "eval_batch"} <= known.keys() and f"eval_batch   {known['eval_batch']}" in said
    assert parsed().eval_batch == known["eval_batch"] and parsed().layout == known["layout"]
    assert np.isfinite(list(json.loads(next(cache.iterdir()).read_text())["measured"]["seconds"]["layout"].values())).all()


def test_networks_that_are_not_there_are_refused(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main_calibrate.main(["--arch", "resnet9"])
    assert end.value.code == 2 and "--arch must be one of" in capsys.readouterr().err
    with pytest.raises(BadInput, match="needs images"):
        calibration.calibrate("vgg16_bn", calibration.CalibrateConfig(image_size=8, device="cpu"))
    assert not cache.exists() and calibration.network_of(ModelConfig(arch="resnet8s"), "digits") == DIGITS
