"""What a GPU does otherwise than a CPU, emulated here: rounding, refused kernels, cards, shapes under the compiler.

Each test says how. ``tests/gpu`` has what needs the device itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import shell
import torch
import torch.nn.functional as F
from conftest import quiet_runtime, tiny_net
from pools import SMALL, make_setup, make_toy, quick, refusal, subsets
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import models
from dataset import Batch, Data, DataConfig
from memorization import engines, entanglement, events, factory
from memorization.engines import Setup
from memorization.factory import Pool
from memorization.stack import Stack
from models.layers import AveragePool
from pruner import mask
from trainer import Descent, ScheduleConfig, cross_entropy, predict
from unlearn import persample
from unlearn.label import soft_threshold
from unlearn.saliency import saliency
from utils import Runtime, RuntimeConfig

# --------------------------------------------------------------------------------------------------- TF32 and bf16


def rounded(x: Tensor) -> Tensor:
    """x to the nearest of TF32's 10 bits after the leading one, as a tensor core reads its operands; gradients pass."""
    bits = (x.detach().contiguous().view(torch.int32) + 0x1000) & ~0x1FFF
    return x + (bits.view(torch.float32).view_as(x) - x).detach()


@pytest.fixture
def tf32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Convolutions that round their operands while cuDNN's switch allows TF32, forward and, by autograd, backward."""
    plain = F.conv2d

    def conv2d(x: Tensor, weight: Tensor, *rest: Any, **more: Any) -> Tensor:
        if torch.backends.cudnn.allow_tf32 and x.dtype == torch.float32:
            x, weight = rounded(x), rounded(weight)
        return plain(x, weight, *rest, **more)

    monkeypatch.setattr(F, "conv2d", conv2d)
    monkeypatch.setattr(nn.modules.conv.F, "conv2d", conv2d)
    before = torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32 = before


def of_model(name: str, data: Data, rt: Runtime) -> Tensor:
    """A measure of a network that has been trained for a while, as one vector."""
    with rt.seeded("model"):
        model = models.build("resnet8s", 3, (0.5,) * 3, (0.25,) * 3)
    if name == "predictions":
        return predict(model, data.loader("train"), rt)[0].flatten()
    if name == "features":
        return entanglement.features(model, data.loader("train"), rt).flatten()
    if name == "saliency":
        return torch.cat([part.flatten() for part in saliency(model, data.loader("forget")).values()])
    if name == "squares":
        return persample.flat(persample.squared_means(model, data.loader("forget")).values())
    batch = next(iter(data.loader("train")))
    return events.curvature(model.eval(), batch.x, batch.y, 0.01)


@pytest.mark.parametrize("name", ["predictions", "features", "saliency", "squares", "curvature"])
def test_measures_are_the_same_where_training_may_use_tf32(name: str, data: Data, tf32: None) -> None:
    """Bit by bit; without the switch back to float32 each of them moves, as the emulation itself is seen to."""
    found = []
    for allowed in (True, False):
        torch.backends.cudnn.allow_tf32 = allowed
        found.append(of_model(name, data, quiet_runtime()))
        assert torch.backends.cudnn.allow_tf32 is allowed
    assert torch.equal(*found)
    torch.backends.cudnn.allow_tf32 = True
    x = torch.rand(2, 3, 6, 6)
    net = models.build("resnet8s", 3, (0.5,) * 3, (0.25,) * 3).eval()
    rough = net(x)
    torch.backends.cudnn.allow_tf32 = False
    assert 0 < float((rough - net(x)).detach().abs().max()) < 0.1


OWN_HEADS = ["resnet8s", "vgg11_bn", "wrn_28_2", "allcnn", "vit"]  # one of each file


@pytest.mark.parametrize("name", OWN_HEADS)
def test_head_is_in_float32_where_the_rest_is_in_bf16(name: str) -> None:
    """bf16 autocast on the CPU. Logits keep float32's digits: hardly one is a number of bf16, as all of them were."""
    with quiet_runtime().seeded("model"):
        model = models.build(name, 10, (0.5,) * 3, (0.25,) * 3).eval()
    seen: list[Tensor] = []
    head = [part for part in model.modules() if isinstance(part, nn.Linear)][-1]
    head.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    x = torch.rand(2, 3, *(2 * [32 if name == "vit" else 16]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    assert logits.dtype == seen[0].dtype == torch.float32
    assert float((logits == logits.bfloat16().float()).float().mean()) < 0.5
    assert model.double()(x.double()).dtype == torch.float64


def test_watch_and_loss_of_a_training_see_the_logits_of_a_float32_head(data: Data) -> None:
    """In bf16 on the CPU: the labels' logits lie closer together than bf16 can tell, and the events tell them apart."""
    rt, seen = Runtime(RuntimeConfig(seed=5, device="cpu", precision="bf16", progress=False)), []
    with rt.seeded("model"):
        model = models.build("resnet8s", 3, (0.5,) * 3, (0.25,) * 3)
    with torch.no_grad():
        model.fc.weight.copy_(model.fc.weight[:1] + torch.tensor([0.0, 1e-6, 2e-6])[:, None])
        model.fc.bias.copy_(torch.tensor([100.0, 100.001, 100.002]))

    class Look:
        keep: dict[str, Any] = {}

        def begin(self, epoch: int, epochs: int) -> None: ...

        def before(self, model: nn.Module, batch: Any) -> None: ...

        def after(self, batch: Any, logits: Tensor) -> None:
            seen.append(events.learning_events(logits, batch.y)["bi_acc"] == (batch.y == 2))

        def end(self) -> None: ...

    from trainer import TrainConfig, train

    train(model, data.loader("train", rt, "train"), TrainConfig(lr=1e-9, epochs=1), rt, None, watch=Look())
    assert seen and all(bool(part.all()) for part in seen)


# ------------------------------------------------------------------------------------------------- refused kernels


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As --deterministic sets torch on a GPU, where adaptive pooling to more than 1 x 1 is refused."""
    plain = F.adaptive_avg_pool2d

    def refused(x: Tensor, size: tuple[int, int]) -> Tensor:
        assert tuple(size) == (1, 1), "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation"
        return plain(x, size)

    monkeypatch.setattr(F, "adaptive_avg_pool2d", refused)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 5), (6, 13), (16, 7)])
def test_deterministic_average_pool_needs_no_kernel_that_cuda_refuses(size: tuple[int, int], request: Any) -> None:
    """The kernel is made to refuse; values and gradients are its own (1e-12, float64)."""
    x = torch.rand(2, 3, *size, dtype=torch.float64, requires_grad=True)
    there = F.adaptive_avg_pool2d(x, (7, 7))
    weight = torch.rand_like(there)
    slope = torch.autograd.grad((there * weight).sum(), x)[0]
    assert torch.equal(AveragePool((7, 7))(x), there)  # and where nothing is refused it is that kernel
    request.getfixturevalue("deterministic")
    here = AveragePool((7, 7))(x)
    torch.testing.assert_close(here, there, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad((here * weight).sum(), x)[0], slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "imagenet"), [("vgg11_bn", True), ("vgg16_bn_lth", False), ("resnet18", True)])
def test_networks_pool_without_what_cuda_refuses(name: str, imagenet: bool, deterministic: None) -> None:
    with torch.device("meta"):
        model = models.ARCHS[name].make(3, imagenet=imagenet)
        for side in (32, 64):
            assert model.features_of(torch.empty(2, 3, side, side)).dim() == 2


# ------------------------------------------------------------------------------------------------- ranks of weights


@pytest.mark.parametrize("switched", [False, True])
def test_one_sort_on_the_device_serves_all_counts(switched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tensors that say they are on a GPU, with and without --deterministic: one sort, no kthvalue, the same masks."""
    scores = {"a": torch.rand(40, 7).mul(20).round(), "b": torch.rand(33).mul(20).round()}
    counts = (5, 90, 200, 313)
    expected = mask.top(scores, counts)
    sort, sorts = Tensor.sort, []
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda self: True), raising=False)
    monkeypatch.setattr(torch, "kthvalue", lambda *args: pytest.fail("leaves all scores to one block"))
    monkeypatch.setattr(Tensor, "cpu", lambda self: pytest.fail("left the device"))
    monkeypatch.setattr(Tensor, "sort", lambda self: sorts.append(len(self)) or sort(self))
    torch.use_deterministic_algorithms(switched)
    try:
        found = mask.top(scores, counts)
    finally:
        torch.use_deterministic_algorithms(False)
    assert sorts == [313]
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in scores)


# ------------------------------------------------------------------------------------------------------- the compiler


def test_compiled_training_has_a_graph_for_each_shape(monkeypatch: pytest.MonkeyPatch, data: Data) -> None:
    """With a backend that counts graphs and runs them as they are: after a short last batch the full ones go on through the
    graph of their own shape, and no size is a symbol."""
    import torch._dynamo

    shapes: list[tuple[Any, ...]] = []

    def backend(graph: Any, inputs: list[Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            shapes.append(next(tuple(a.shape) for a in args if isinstance(a, Tensor) and a.dim() == 4 and a.shape[1] == 3
                               and a.shape[2] == 6))
            assert not any(isinstance(a, (int, torch.SymInt)) for a in inputs), "a size is a symbol"
            return graph(*args)

        return run

    rt = Runtime(RuntimeConfig(seed=5, device="cpu", progress=False, compile="default"))
    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, mode, **more: plain(self, backend=backend, **more))
    torch._dynamo.reset()
    model = tiny_net(rt)
    opt = Descent(model, ScheduleConfig(), lr=0.01, epochs=2, rt=rt, purpose="train")
    loader = data.loader("train", rt, "train")
    assert loader.size % loader.batch_size
    for opt.at in range(2):
        opt.epoch(loader, cross_entropy)
    torch._dynamo.reset()
    assert len(shapes) == 2 * len(loader) and {shape[0] for shape in shapes} == {16, loader.size % 16}


# ------------------------------------------------------------------------------------------------------------ the cards


@pytest.mark.parametrize(("visible", "gpus", "workers", "expected"), [
    (None, 0, 2, [None, None]),
    ("", 0, 2, [None, None]),
    (None, 1, 4, ["0"] * 4),
    ("", 1, 2, ["0"] * 2),  # as some systems read it: nothing is hidden
    (None, 3, 2, ["0", "1"]),
    ("5", 1, 3, ["5"] * 3),
    ("2, 7", 2, 5, ["2", "7", "2", "7", "2"]),
    ("GPU-8f1c,GPU-02aa", 2, 3, ["GPU-8f1c", "GPU-02aa", "GPU-8f1c"]),
    ("3,1,-1,0", 2, 3, ["3", "1", "3"])])
def test_every_process_sees_one_card(visible: str | None, gpus: int, workers: int, expected: list[str | None],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variable as it stands and the number of cards that torch counts: a process never gets it empty."""
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [place.get("CUDA_VISIBLE_DEVICES") for place in factory._places(workers, gpus)] == expected


@pytest.mark.parametrize(("typed", "cards", "missing", "expected"), [
    (None, 1, 8, []), (4, 1, 8, ["0"] * 4), (None, 3, 8, ["0", "1", "2"]), (5, 3, 8, ["0", "1", "2", "0", "1"]),
    (None, 4, 2, ["0", "1"])])
def test_pool_starts_a_process_for_each_card(typed: int | None, cards: int, missing: int, expected: list[str], tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """With a count of cards of our own and processes that are only noted; with one card and no number typed, auto stacks."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    rt, seen = quiet_runtime(), []
    pool = Pool(tmp_path, quick(models=8, engine="auto", pool_workers=typed), make_toy(rt), SMALL, rt, DataConfig())
    monkeypatch.setattr(rt, "cuda", True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(engines, "pace", lambda *args: 1.0)
    monkeypatch.setattr(engines, "fitting", lambda setup, subset, size: (size, 1.0))
    monkeypatch.setattr(engines, "spread", lambda work, order, numbers, places: seen.extend(places))
    way = factory._way(pool, list(range(missing)))
    if expected:
        way.train(list(range(missing)))
    assert [place["CUDA_VISIBLE_DEVICES"] for place in seen] == expected
    assert way.text == (f"on {len(expected)} processes" if expected else "with 4 at once")


# ----------------------------------------------------------------------------------------------------------- the memory


def test_stack_that_does_not_fit_is_halved_and_loses_no_model(monkeypatch: pytest.MonkeyPatch,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    """torch's OutOfMemoryError, raised for more than two models after their first epoch: each model comes once, and is what
    a stack of two makes of it, bit by bit; half is taken where the size was, and said once."""
    setup = make_setup(torch.float32, pool_epochs=2)
    cuts, fit = dict(enumerate(subsets(setup, [0, 1, 2, 3, 4], 30))), Setup.fit
    expected = {t.number: t.logits for t in engines.stacked(setup, cuts.__getitem__, range(5), 2)}

    def small(self: Setup, model: Any, batches: Any, loss: Any, purpose: str) -> None:
        if model.count > 2:
            once = dataclasses.replace(self.recipe, pool_epochs=1)
            fit(dataclasses.replace(self, recipe=once), model, batches, loss, purpose)
            raise torch.OutOfMemoryError("CUDA out of memory")
        fit(self, model, batches, loss, purpose)

    monkeypatch.setattr(Setup, "fit", small)
    capsys.readouterr()
    found = list(engines.stacked(setup, cuts.__getitem__, range(5), 4))
    assert [t.number for t in found] == list(range(5))
    assert all(torch.equal(t.logits[part], expected[t.number][part]) for t in found for part in ("train", "test"))
    assert capsys.readouterr().out == "notice: 4 models at once do not fit into the GPU's memory; going on with 2\n"


def test_model_that_does_not_fit_alone_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = make_setup(torch.float32)
    cuts = dict(enumerate(subsets(setup, [0, 1], 30)))

    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Setup, "fit", full)
    refusal(lambda: list(engines.stacked(setup, cuts.__getitem__, range(2), 2)), "--pool_batch", "what is finished stays")


def test_stage_whose_memory_runs_out_says_so_in_one_line_and_keeps_its_state(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """torch's error, in the second of three epochs; then the same command goes on from the first."""
    words, step, full = [*shell.THREE, "--epochs", 3, "--resume_every", 0], Descent._step, []

    def raising(self: Descent, rate: float) -> None:
        if self.at == 1 and not full:
            full.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 8 GiB.\nTrace")
        step(self, rate)

    monkeypatch.setattr(Descent, "_step", raising)
    with pytest.raises(SystemExit) as end:
        shell.call("main_train.py", *words, save_dir=tmp_path)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and "Tried to allocate 2.00 GiB; use a smaller --batch_size" in said
    assert "Trace" not in said and len(list(tmp_path.rglob("state.pt"))) == 1
    shell.call("main_train.py", *words, save_dir=tmp_path)
    assert shell.only(tmp_path, "train").record["status"] == "done"


@pytest.mark.parametrize(("room", "left", "said"), [(80, 16, 0), (34, 13, 1), (30, 8, 1), (9, 3, 3), (3, 1, 4)])
def test_models_of_a_stack_are_what_the_memory_holds(room: int, left: int, said: int, monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    """A card of ``room`` GB on which a model's step takes 2 GB, all said by replaced functions: 80 % of it may be full."""
    setup = make_setup(torch.float32)
    monkeypatch.setattr(setup.rt, "cuda", True)
    peak = [0]

    def pace(setup: Setup, subset: Any, size: int) -> float:
        if 2 * size > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        peak[0] = 2 * size
        return 1 / size

    monkeypatch.setattr(engines, "pace", pace)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, room))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak[0])
    assert engines.fitting(setup, subsets(setup, [0], 30)[0], 16) == (left, 1 / left)
    assert capsys.readouterr().out.count("notice") == said
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 1))
    room = 1
    refusal(lambda: engines.fitting(setup, subsets(setup, [0], 30)[0], 2), "--pool_batch")


def test_stack_is_evaluated_on_as_many_images_in_all_as_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches times models is the batch of one: a map of the first layers of 16 models would else be 16 times as large."""
    setup, seen = make_setup(torch.float32), []
    monkeypatch.setattr(engines, "predict", lambda model, loader, rt: [seen.append((model, loader.batch_size))])
    for count in (1, 3):
        singles = [setup.new(number) for number in range(count)]
        setup.evaluate(singles[0] if count == 1 else Stack(singles))
    whole = setup.data.images.eval_batch
    assert [width for _, width in seen] == [whole, whole, whole // 3, whole // 3]


def test_chunk_of_examples_counts_their_activations(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow networks have few weights and large maps. Their bytes by hand: for a convolution and ReLU of 4 channels on 6x6."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    # kept for the backward pass: the image, ReLU's output, which is also the linear layer's input
    assert persample._activations(net, torch.rand(1, 3, 6, 6)) == 4 * (3 * 36 + 144 + 144)
    weights = 4 * sum(p.numel() for p in net.parameters())
    sizes = []
    for budget in (10 * (persample.COPIES * (weights + 4 * 396)), 1, 2**40):
        params = dict(net.named_parameters())
        batches = [Batch(torch.rand(600, 3, 6, 6), torch.zeros(600, dtype=torch.int64), torch.arange(600))]
        sizes.append([len(y) for _, y in persample._chunks(net, batches, params, budget)])
    assert [part[0] for part in sizes] == [10, 1, 256] and all(sum(part) == 600 for part in sizes)


# ------------------------------------------------------------------------------------------------------------- launches


class Counted(TorchDispatchMode):
    """How many operations are called that compute something: on a GPU each of them is a launch at least."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def test_soft_threshold_starts_as_many_operations_for_many_tensors_as_for_few() -> None:
    found = []
    for count in (2, 30):
        params = tuple(nn.Parameter(torch.rand(4, 3)) for _ in range(count))
        anchor, free = [torch.rand(4, 3) for _ in range(count)], torch.ones(12 * count, dtype=torch.bool)
        with Counted() as counted:
            soft_threshold(params, anchor, free, 5 * count)
        found.append(counted.count)
    assert found[0] == found[1] < 20
