"""A pool's models shared out over shards and processes: the same models; errors and Ctrl-C reach all; the estimate."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import quiet_runtime
from pools import SMALL, contents, filled, make_pool, quick, refusal, same

import dataset
from dataset import DataConfig
from memorization import engines, factory
from memorization.engines import spread
from memorization.factory import Pool, fill, prepare
from memorization.registry import Job
from utils import BadInput, CannotWrite, RunConfig

ROOT = Path(__file__).resolve().parent.parent


def make_job(folder: Path, dataset_name: str = "digits") -> Job:
    rt = quiet_runtime()
    config = DataConfig(dataset=dataset_name, data=str(folder), classes="0,1", val_fraction=0.2)
    return Job(data=dataset.load(config, rt), rt=rt, data_config=config, config=SMALL, where=RunConfig(save_dir=str(folder)))


# --------------------------------------------------------------------------------------------------------------- shards


@pytest.mark.parametrize(("shard", "word"), [("2/2", "counts from 0"), ("3/2", "counts from 0"), ("0/0", "0/1 is all"),
                                             ("1", "i/n"), ("a/2", "i/n"), ("-1/2", "i/n"), ("0/", "i/n")])
def test_bad_shards_are_refused(shard: str, word: str) -> None:
    refusal(lambda: quick(shard=shard), word, shard)


def test_shards_make_the_same_pool_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first shard says what is missing and returns nothing; the last one to finish returns the pool."""
    one = prepare(make_job(tmp_path / "one"), quick())
    assert prepare(make_job(tmp_path / "two"), quick(shard="1/2")) is None
    said = capsys.readouterr().out
    assert "2 of 4 models are missing" in said and "--shard 0/2" in said
    assert [p.name for p in sorted((tmp_path / "two").rglob("model*"))] == ["model-00001.npz", "model-00003.npz"]
    two = prepare(make_job(tmp_path / "two"), quick(shard="0/2"))
    assert all(same(contents(one, n), contents(two, n)) for n in range(4)) and one.folder.name == two.folder.name
    capsys.readouterr()
    assert prepare(make_job(tmp_path / "two"), quick(shard="1/2")).present() == [0, 1, 2, 3]
    assert not capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------ processes


def test_processes_make_the_same_models(tmp_path: Path) -> None:
    """Two new processes on one thread each against this process, which has one too: bit for bit."""
    one = prepare(make_job(tmp_path / "one"), quick(models=3))
    two = prepare(make_job(tmp_path / "two"), quick(models=3, engine="processes", pool_workers=2))
    assert all(same(contents(one, n), contents(two, n)) for n in range(3))


def explain(order: str) -> Callable[[int], float]:
    """What the processes of the next tests do; here, since a new process imports it by name."""
    def act(number: int) -> float:
        if order == "bad" and number == 1:
            raise BadInput("model 1 cannot be")
        if order == "large":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if order == "full":
            raise CannotWrite("no room")
        if order == "error":
            raise KeyError("lost")
        if order == "killed" and number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if order.startswith("slow"):  # and a file that says that the work has begun
            Path(order.removeprefix("slow ")).touch()
            time.sleep(60)
        return number + float(os.environ["PLACE"])

    return act


@pytest.mark.parametrize(("order", "kind", "words"), [
    ("bad", BadInput, "model 1 cannot be"), ("large", BadInput, "fewer --pool_workers"),
    ("full", CannotWrite, "no room"), ("error", RuntimeError, "KeyError: 'lost'")])
def test_error_of_a_process_reaches_the_caller(order: str, kind: type[Exception], words: str,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same kind; a process's own code, run here at one end of the pipe. It computes on one thread."""
    monkeypatch.setenv("PLACE", "")
    ours, theirs = engines.multiprocessing.Pipe()
    ours.send(1)
    torch.set_num_threads(2)
    engines._worker(theirs, explain, order, {"PLACE": "0"})
    assert torch.get_num_threads() == 1
    with pytest.raises(kind, match=words) as error:
        engines._answer(ours, None)
    assert type(error.value) is kind


def test_killed_process_stops_all_and_is_explained() -> None:
    with pytest.raises(BadInput, match="ended with code -9.*fewer --pool_workers"):
        list(spread(explain, "killed", range(1, 3), [{"PLACE": "0.5"}]))
    assert not engines.multiprocessing.active_children()


def test_numbers_are_spread_over_the_processes() -> None:
    """Every number once, in both environments, and no process is left."""
    done = list(spread(explain, "fine", range(7), [{"PLACE": "0.5"}, {"PLACE": "0.25"}]))
    assert sorted(number for number, _ in done) == list(range(7))
    assert {value - number for number, value in done} == {0.5, 0.25}
    assert not engines.multiprocessing.active_children()


def test_ctrl_c_ends_all_processes(tmp_path: Path) -> None:
    """The interrupted parent is gone soon, and so are its children, which would have slept for a minute."""
    script = tmp_path / "interrupted.py"
    script.write_text(f"import sys\nsys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
                      "import signal\nimport test_factory\nfrom memorization.engines import spread\n"
                      # a shell starts what runs in the background with the signal ignored, and that is inherited
                      "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
                      "if __name__ == '__main__':\n"
                      "    print('ready', flush=True)\n"
                      f"    list(spread(test_factory.explain, 'slow {tmp_path / 'begun'}', range(2), [{{'PLACE': '0'}}]))\n")
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              start_new_session=True)
    assert parent.stdout.readline() == "ready\n"
    for _ in range(600):
        if (tmp_path / "begun").exists():
            break
        time.sleep(0.1)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    workers = [c for c in children if "spawn_main" in Path(f"/proc/{c}/cmdline").read_text()]
    assert workers
    os.killpg(parent.pid, signal.SIGINT)
    parent.wait(20)
    time.sleep(0.2)
    assert parent.returncode != 0 and not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_changed_data_stop_the_processes(tmp_path: Path) -> None:
    """A process reads the data anew; if they are others by then, no model of theirs is mixed in."""
    job = make_job(tmp_path)
    pool = Pool(tmp_path, quick(), job.data, SMALL, job.rt, dataclasses.replace(job.data_config, classes="0,2"))
    order = factory.Order(str(tmp_path), pool.cfg, pool.data_config, SMALL, job.rt.cfg, pool.digest)
    refusal(lambda: factory._in_process(order), "changed")
    memory = Pool(tmp_path, quick(engine="processes"), job.data, SMALL, job.rt)
    refusal(lambda: fill(memory), "--engine processes", "serial")


# -------------------------------------------------------------------------------------------------- choice and estimate


def test_engine_is_chosen_by_device_and_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    job = make_job(tmp_path)
    pool = Pool(tmp_path, quick(models=8, engine="auto"), job.data, SMALL, job.rt, job.data_config)
    monkeypatch.setattr(factory.os, "sched_getaffinity", lambda pid: {0, 1, 2})
    texts = []
    for pace in (1e-7, 1.0):
        monkeypatch.setattr(engines, "pace", lambda *args, p=pace: p)
        texts.append(factory._way(pool, list(range(8))).text)
    assert texts == ["one after another", "on 3 processes"]
    assert factory._way(pool, [5]).text == "one after another"
    seconds = [factory._way(other_settings(pool, engine=name), list(range(8))).seconds for name in ("serial", "processes")]
    expected = 8 * (len(pool.subset(0)) + (pool.sizes["train"] + pool.sizes["test"]) / 3)
    assert seconds == pytest.approx([expected, expected / 3])


def test_pace_of_processes_is_that_of_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they will compute; the others, and all that comes after, on as many as there were."""
    job, seen = make_job(tmp_path), []
    pool = Pool(tmp_path, quick(models=8), job.data, SMALL, job.rt, job.data_config)
    monkeypatch.setattr(engines, "pace", lambda *args: seen.append(torch.get_num_threads()) or 1.0)
    torch.set_num_threads(2)
    try:
        for name in ("processes", "serial"):
            factory._way(other_settings(pool, engine=name), list(range(8)))
            seen.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(1)
    assert seen == [1, 2, 2, 2]


def other_settings(pool: Pool, **values: Any) -> Pool:
    cfg = dataclasses.replace(pool.cfg, **values)
    return Pool(pool.save_dir, cfg, pool.data, pool.setup.model, pool.rt, pool.data_config)


def test_estimate_says_models_time_and_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """400 models at 0.7: 1.96 sqrt(1/4/280 + 1/4/120) = 0.107; the time is of real steps, so only its form is checked."""
    assert make_pool(tmp_path, models=400).interval() == pytest.approx(0.106927, abs=1e-6)
    assert make_pool(tmp_path, models=2).interval() == 1
    filled(tmp_path, models=2, subset="half")
    said = capsys.readouterr().out
    assert re.search(r"^2 models: about [1-9]\d* s one after another; scores to ±1\.00 \(95 %, at worst\)$", said, re.M)
    assert [factory._spoken(s) for s in (50, 720, 7200, 54000)] == ["50 s", "12 min", "2.0 h", "15 h"]
