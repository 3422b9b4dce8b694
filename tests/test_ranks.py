"""Several processes step as one does: here they are threads, which exchange their tensors at a barrier, in float64.

What gloo does between processes is test_torchrun.py's.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyNet, make_data, snapshot
from torch import Tensor, nn
from torch.nn import functional as F

import arg_parser
import models
import processes
import trainer
from batches import Loader
from memorization.events import Events
from models import ModelConfig, together
from models.together import synchronised
from trainer import Descent, TrainConfig
from updates import UPDATES
from utils import ALONE, BadInput, Lost, Ranks, Runtime, RuntimeConfig
from utils import ranks as ranks_module


class Thread(Ranks):
    """One of several threads in place of as many processes; ``board`` is where they lay what the others shall see."""

    def __init__(self, rank: int, board: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(rank, len(board))
        self.board, self.barrier = board, barrier

    def _exchanged(self, value: Tensor) -> list[Tensor]:
        self.board[self.rank] = value.clone()
        self.barrier.wait()
        found = list(self.board)
        self.barrier.wait()
        return found

    def _sum(self, value: Tensor) -> None:
        value.copy_(sum(self._exchanged(value)))

    def _gather(self, found: Tensor, value: Tensor) -> None:
        found.copy_(torch.stack(self._exchanged(value)))

    def _send(self, value: Tensor) -> None:
        value.copy_(self._exchanged(value)[0])


def each(size: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """What each of so many threads makes of its part; the first error of any of them."""
    barrier, board, found = threading.Barrier(size, timeout=60), [None] * size, [None] * size
    errors: list[BaseException] = []

    def one(rank: int) -> None:
        try:
            found[rank] = work(Thread(rank, board, barrier))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    with torch.random.fork_rng(devices=[]):  # which the threads set one after another
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
    return found


def runtime(ranks: Ranks) -> Runtime:
    return Runtime(RuntimeConfig(seed=5, device="cpu", progress=False), ranks)


LOCK = threading.Lock()


def network(ranks: Ranks, rt: Runtime, kind: Callable[[], Any] = TinyNet) -> Any:
    """The same in each; one after another, since threads have the global streams in common."""
    with LOCK, rt.seeded("model"):
        model = kind()
    if isinstance(ranks, Thread):
        ranks.barrier.wait()
    return model


class Wide(TinyNet):
    """A TinyNet in float64."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double())


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch.x), batch.y, label_smoothing=0.1)


def stepped(ranks: Ranks, optimizer: str, batch_size: int) -> dict[str, Any]:
    """Weights, losses and images of two epochs, with crops, decay, a penalty and a mask; 54 examples."""
    rt = runtime(ranks)
    data = make_data(rt, batch_size=batch_size, aug=True)
    model = network(ranks, rt, Wide).double()
    mask = {"conv.weight": torch.arange(model.conv.weight.numel()).view_as(model.conv.weight) % 3 > 0}
    loader = data.loader("train", rt, "train")
    loader = loader.among(ranks) if ranks.size > 1 else loader
    cfg = TrainConfig(optimizer=optimizer, bias_lr=0.5, head_lr=2.0)
    opt = Descent(model, cfg, lr=0.05, epochs=2, rt=rt, purpose="train", mask=mask, l1=1e-3)
    losses = [opt.epoch(loader, loss) for opt.at in range(2)]
    return {"weights": snapshot(model), "losses": losses, "images": rt.tally.images}


@pytest.mark.parametrize("optimizer", UPDATES)
@pytest.mark.parametrize(("size", "batch_size"), [(2, 16), (3, 26)], ids=["parts of two", "some parts are empty"])
def test_parts_step_as_the_whole_batch(size: int, batch_size: int, optimizer: str) -> None:
    """54 in batches of 16 end with 6 examples; in batches of 26 with 2, of which one of three processes has none."""
    whole = stepped(ALONE, optimizer, batch_size)
    parts = each(size, lambda ranks: stepped(ranks, optimizer, batch_size))
    for part in parts:
        for name, value in whole["weights"].items():
            assert torch.allclose(part["weights"][name], value, rtol=1e-9, atol=1e-11), name
            assert torch.equal(part["weights"][name], parts[0]["weights"][name]), name
        assert part["losses"] == pytest.approx(whole["losses"], rel=1e-5)
        assert part["images"] == whole["images"] == 108


@pytest.mark.parametrize(("arch", "side", "optimizer"), [("cifarnet", 32, "muon"), ("resnet8s", 8, "sgd")])
def test_networks_step_as_the_whole_batch(arch: str, side: int, optimizer: str) -> None:
    """Batch norm without a scale behind a pool, and shortcuts; one part of the last batch is empty."""
    def stepped(ranks: Ranks) -> dict[str, Tensor]:
        rt = runtime(ranks)
        data = make_data(rt, batch_size=26, size=side)
        model = network(ranks, rt, lambda: models.build(arch, 3, (0.5,) * 3, (0.25,) * 3, image_size=side)).double()
        loader = data.loader("train", rt, "train")
        loader = loader.among(ranks) if ranks.size > 1 else loader
        opt = Descent(model, TrainConfig(optimizer=optimizer), lr=0.01, epochs=1, rt=rt, purpose="train")
        opt.epoch(loader, lambda model, batch: F.cross_entropy(model(batch.x.double()), batch.y))
        return snapshot(model)

    whole = stepped(ALONE)
    for part in each(3, stepped):
        for name, value in whole.items():
            assert torch.allclose(part[name].double(), value.double(), rtol=1e-9, atol=1e-10), name


@pytest.mark.parametrize("size", [2, 3])
def test_every_example_is_in_one_part_with_its_own_crop_and_label(size: int) -> None:
    def seen(ranks: Ranks) -> list[Any]:
        rt = runtime(ranks)
        loader = make_data(rt, batch_size=26, aug=True).loader("train", rt, "train").among(ranks)
        return [list(loader), loader.shares]

    rt = runtime(ALONE)
    whole = list(make_data(rt, batch_size=26, aug=True).loader("train", rt, "train"))
    parts = each(size, seen)
    for number, batch in enumerate(whole):
        for at, value in enumerate(batch):
            assert torch.equal(torch.cat([batches[number][at] for batches, _ in parts]), value)
        assert [shares[number] for _, shares in parts] == [len(b[number].y) / len(batch.y) for b, _ in parts]
    assert [len(batches[-1].y) for batches, _ in parts] == {2: [1, 1], 3: [0, 1, 1]}[size]


def test_events_of_parts_are_those_of_one_process() -> None:
    """In each process, so that any may write the state: sums, the last answer that forgetting hangs on, and curvature."""
    def recorded(ranks: Ranks) -> tuple[dict[str, np.ndarray], dict[str, Tensor]]:
        rt = runtime(ranks)
        data, model = make_data(rt, batch_size=26), network(ranks, rt, Wide).double()
        watch = Events(len(data.images.y), rt, curvature=True)
        cfg = TrainConfig(lr=0.3, epochs=5)  # a rate that forgets
        trainer.train(model, data.loader("train", rt, "train"), cfg, rt, None, watch=watch)
        return watch.arrays(data.candidates.y, "key"), snapshot(model)

    whole, _ = recorded(ALONE)
    parts = each(3, recorded)
    assert np.nansum(whole["forgetting"][whole["bi_acc"] > 0]) > 5
    for part, weights in parts:
        assert all(torch.equal(weights[name], parts[0][1][name]) for name in weights)
        for name, values in whole.items():
            assert np.array_equal(part[name], parts[0][0][name], equal_nan=values.dtype.kind == "f"), name
            if values.dtype.kind == "f":
                assert np.allclose(part[name], values, rtol=1e-3, atol=1e-3, equal_nan=True), name


def test_batch_norm_of_parts_has_the_gradients_of_the_whole() -> None:
    """Also without scale and shift, by the running mean of all batches, under batch statistics alone, and in eval mode."""
    x = torch.randn(7, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slope = torch.randn(7, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cuts = [(0, 0), (0, 5), (5, 7)]

    def passed(ranks: Ranks, start: int, end: int, mode: str) -> list[Tensor]:
        norm = nn.BatchNorm2d(3, affine=mode != "plain", momentum=None if mode == "cumulative" else 0.3).double()
        norm.track_running_stats = mode != "batch"
        norm.train(mode != "eval")
        at = x[start:end].clone().requires_grad_()
        with synchronised(norm, ranks):
            for _ in range(2):
                (norm(at) * slope[start:end]).sum().backward()
        assert "forward" not in vars(norm)
        for p in norm.parameters():
            ranks.add([p.grad])
        return [at.grad, *[p.grad for p in norm.parameters()], *norm.buffers()]

    for mode in ("affine", "plain", "cumulative", "batch", "eval"):
        whole = passed(ALONE, 0, 7, mode)
        parts = each(3, lambda ranks, mode=mode: passed(ranks, *cuts[ranks.rank], mode))
        assert torch.allclose(torch.cat([part[0] for part in parts]), whole[0], rtol=1e-9, atol=1e-12), mode
        for part in parts:
            for a, b in zip(part[1:], whole[1:], strict=True):
                assert torch.allclose(a.double(), b.double(), rtol=1e-9), mode


def test_a_loss_that_is_not_finite_in_one_process_stops_all() -> None:
    def diverging(ranks: Ranks) -> str:
        rt = runtime(ranks)
        data, model = make_data(rt, batch_size=26), network(ranks, rt)
        opt = Descent(model, TrainConfig(), lr=0.1, epochs=1, rt=rt, purpose="train")
        with pytest.raises(trainer.Diverged) as error:
            opt.epoch(data.loader("train", rt, "train").among(ranks),
                      lambda model, batch: loss(model, batch) * (float("inf") if ranks.rank == 1 else 1))
        return str(error.value)

    assert len(set(each(2, diverging))) == 1


def test_parts_have_dropout_of_their_own() -> None:
    """Drawn one after another, since threads have the global streams in common; the first one's is that of one process."""
    def drawn(ranks: Ranks) -> Tensor:
        rt, found = runtime(ranks), []
        data, model = make_data(rt, batch_size=26), network(ALONE, rt)
        opt = Descent(model, TrainConfig(), lr=0.1, epochs=1, rt=rt, purpose="train")

        def dropped(model: nn.Module, batch: Any) -> Tensor:
            found.append(F.dropout(torch.ones(8), 0.5))
            return loss(model, batch)

        opt.epoch(data.loader("train", rt, "train"), dropped)
        return torch.cat(found)

    class Lone(Ranks):
        def add(self, values: list[Tensor]) -> None: ...

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loader, "shares", [])
        patch.setattr(trainer, "synchronised", lambda model, ranks: contextlib.nullcontext())
        one, first, second = drawn(ALONE), drawn(Lone(0, 2)), drawn(Lone(1, 2))
    assert torch.equal(one, first) and not torch.equal(first, second)


@pytest.mark.parametrize(("arch", "size", "named"), [("vit", 8, True), ("resnet8s", 8, False)])
def test_a_network_with_dropout_has_a_folder_for_each_number_of_processes(arch: str, size: int, named: bool) -> None:
    data = make_data(runtime(ALONE), size=size)
    cfg = ModelConfig(arch=arch)
    assert together.identity(cfg, data, Ranks(0, 3)) == ({"processes": 3} if named else {})
    assert together.identity(cfg, data, ALONE) == {}


def test_a_message_that_nobody_answers_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Lost, match=r"reached any more \(Connection closed\)"), ranks_module._answered():
        raise RuntimeError("[pair.cc:5] Connection closed. This may be so\nat some line")
    with pytest.raises(torch.OutOfMemoryError), ranks_module._answered():
        raise torch.OutOfMemoryError("full")

    class Two(Ranks):
        joined = staticmethod(lambda device: contextlib.nullcontext())
        shared = staticmethod(lambda value: value)

    def main(args: Any) -> None:
        raise Lost("gone")

    for rank, told in ((0, "main_train.py: gone; the same command goes on where it was saved last\n"), (1, "")):
        parser = arg_parser._Parser(prog="main_train.py")
        parser.ranks = Two(rank, 2)
        with pytest.raises(SystemExit) as end:
            processes.work("train", parser.ranks, lambda: arg_parser.parse("train", ["--device", "cpu"]), main, parser)
        assert end.value.code == 1 and capsys.readouterr().err == told


def test_the_first_ones_value_reaches_all_and_it_goes_ahead() -> None:
    order: list[int] = []

    def told(ranks: Ranks) -> Any:
        with ranks.ahead():
            order.append(ranks.rank)
        return ranks.shared({"state": torch.arange(3), "rank": ranks.rank})

    found = each(3, told)
    assert order[0] == 0 and sorted(order) == [0, 1, 2]
    assert all(value["rank"] == 0 and torch.equal(value["state"], torch.arange(3)) for value in found)


def test_a_batch_of_one_has_no_parts() -> None:
    rt = runtime(ALONE)
    data = make_data(rt)
    loader = Loader(data.images, torch.arange(3), data.images.y[:3], 1)
    with pytest.raises(BadInput, match="larger --batch_size"):
        loader.among(Ranks(0, 2))


@pytest.mark.parametrize(("variables", "size"), [
    ({"WORLD_SIZE": "8"}, 1),
    ({"WORLD_SIZE": "8", "RANK": "3", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, 1),  # as some queues set them
    ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, 1),
    ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, 4),
], ids=["a queue's count", "a queue's rank", "one process", "torchrun"])
def test_only_torchrun_starts_several(variables: dict[str, str], size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = Ranks.of_environment()
    assert (found.size, found.rank, found.local, found.beside) == ((4, 3, 1, 2) if size == 4 else (1, 0, 0, 1))
    if size == 4:
        monkeypatch.setenv("RANK", "first")
        with pytest.raises(BadInput, match="--nproc_per_node"):
            Ranks.of_environment()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BadInput, match="--nproc_per_node 1"), Ranks(1, 2, 1, 2).joined("cuda"):
        pass


def test_each_process_computes_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """By number, since a thread that sends batches begins on the first one."""
    for name in ("set_float32_matmul_precision", "use_deterministic_algorithms"):
        monkeypatch.setattr(torch, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    cfg = RuntimeConfig(seed=5, device="cuda", precision="fp32", keep_memory=False, progress=False)
    assert Runtime(cfg, Ranks(3, 4, 1, 2)).device == torch.device("cuda", 1)
    assert Runtime(cfg).device == torch.device("cuda")


def test_the_record_tells_of_several_processes() -> None:
    one, two = (runtime(ranks).facts() for ranks in (ALONE, Ranks(0, 2)))
    assert "processes" not in one and two["processes"] == 2 and two["device"] == f"2 x {one['device']}"
